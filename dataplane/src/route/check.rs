//! Routes that could never be found, because others always come first.
//!
//! The more specific host and path always wins, so only routes with the very same host and path can hide one another:
//! those that come first by the rest of the precedence and leave no method over.

use std::collections::HashMap;

use weft_runtime::config::{Path, Problems};

use super::host::Host;
use super::matching::Checked;
use crate::path::Pattern;

/// Reports identical routes and routes that earlier ones hide. `routes` are in the order of the file.
pub(super) fn check_overlaps<T>(routes: &[(&Path, Checked, T)], problems: &mut Problems) {
    let mut alike: HashMap<(&Host, &Pattern), Vec<(&Path, &Checked)>> = HashMap::new();
    for (place, route, _) in routes {
        let earlier = alike.entry((&route.host, &route.path)).or_default();
        check_one(place, route, earlier, problems);
        earlier.push((place, route));
    }
}

fn check_one(
    place: &Path,
    route: &Checked,
    earlier: &[(&Path, &Checked)],
    problems: &mut Problems,
) {
    let wanted = &route.conditions;
    if let Some((twin, _)) = earlier
        .iter()
        .find(|(_, other)| other.conditions == *wanted)
    {
        problems.conflict(
            place,
            &[twin],
            format!("this match is the same as `{twin}`, which comes first, so it can never match"),
            format!("remove one of them, or set them apart from `{twin}` by host, path, methods or headers"),
        );
        return;
    }
    // A route without methods, or with other headers, is left over by all others with the same number of headers.
    if wanted.methods.is_empty() {
        return;
    }
    let covering: Vec<_> = earlier
        .iter()
        .filter(|(_, other)| other.conditions.headers == wanted.headers)
        .collect();
    let covered = wanted.methods.iter().all(|method| {
        covering
            .iter()
            .any(|(_, other)| other.conditions.methods.contains(method))
    });
    if covered {
        let others: Vec<&Path> = covering
            .iter()
            .filter(|(_, other)| {
                let methods = &other.conditions.methods;
                methods.iter().any(|method| wanted.methods.contains(method))
            })
            .map(|(place, _)| *place)
            .collect();
        let places: Vec<_> = others.iter().map(|place| format!("`{place}`")).collect();
        problems.conflict(
            place,
            &others,
            format!(
                "this match can never be chosen: {} with the same host, path and headers {} all its methods",
                places.join(" and "),
                if places.len() == 1 {
                    "comes first and takes"
                } else {
                    "come first and take"
                },
            ),
            "remove it, or give it a method, header, path or host that the others do not have",
        );
    }
}
