//! Endpoints in a file of their own, which something else writes: a list as under `endpoints:`, in YAML or JSON.
//!
//! The file is looked at every second. What it says is used at once when it is good, an empty list included; while it is
//! missing, unreadable or wrong, the last good list stays in use and the problem is told, with its line and column, in the
//! log, on `/endpoints` and as a metric.

use std::path::{Path as FilePath, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use weft_runtime::config::watch::{self, Change};
use weft_runtime::config::{Document, Path, Problems};

use super::list::{self, Item};
use super::status::Status;
use crate::endpoint::place::Place;

/// See [`super::follow`]; never returns.
pub(super) async fn follow(
    path: &FilePath,
    status: &Status,
    publish: &(impl Fn(Vec<Place>) + Sync),
) {
    let name = path.display().to_string();
    // One task tells it, so nobody ever waits for this lock.
    let published: Mutex<Option<Vec<Place>>> = Mutex::new(None);
    let on_change = |change| {
        let read = match change {
            Change::Content(text) => parse(&name, &text),
            Change::Unreadable(why) => Err(format!("{name}: {why}")),
        };
        let mut published = published.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(places) => {
                tracing::info!(file = %name, endpoints = places.len(), "the list of endpoints was read");
                let count = places.len();
                if published.as_ref() != Some(&places) {
                    publish(places.clone());
                    *published = Some(places);
                }
                status.update(|report| {
                    report.known = true;
                    report.addresses = count;
                    report.last_success = Some(Instant::now());
                    report.last_error = None;
                    report.stale = false;
                });
            }
            Err(problems) => {
                tracing::error!(file = %name, %problems, "the list of endpoints cannot be used; the last good one stays");
                status.update(|report| {
                    report.stale = report.known;
                    report.last_error = Some(problems);
                });
            }
        }
    };
    // No file has this content, so that what is there first is news.
    let nothing = "\0";
    watch::follow(PathBuf::from(path), nothing, watch::EVERY, on_change).await;
}

fn parse(name: &str, text: &str) -> Result<Vec<Place>, String> {
    let document = Document::parse(name, text).map_err(|problems| problems.render())?;
    let mut problems = Problems::new();
    let places = document.check(&mut problems, |items: Vec<Item>, problems| {
        list::build(&items, &Path::root(), problems)
    });
    problems.locate(&document);
    places.ok_or_else(|| problems.render())
}
