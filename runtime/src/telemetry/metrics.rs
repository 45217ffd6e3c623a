//! Metrics in Prometheus' text format, for the admin page. Recording goes through the `metrics` crate's macros; this file starts the recorder
//! and renders.
//!
//! What is counted as it happens is never dropped: counters kept as handles would go on counting into nothing. What hooks hand over just
//! before each rendering is another matter: a series that they hand over no longer (a route that is no more) leaves the page, and one that
//! begins at zero again is shown so, where a recorder that remembers would keep the larger count. Hence two recorders, the second of which
//! is made for one rendering. Bounding the number of series is the business of whoever makes labels.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::process::Sample;

/// Runs before each rendering, to hand over what was counted elsewhere.
pub type Hook = Box<dyn Fn() + Send + Sync>;

/// Writes a part of the page itself.
pub type PageHook = Box<dyn Fn(&mut String) + Send + Sync>;

/// The metrics of the process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    started: SystemTime,
    version: &'static str,
    /// Guards the list. Held while the hooks run: two scrapes at once are one after the other.
    hooks: Arc<Mutex<Vec<Hook>>>,
    /// Held while they run.
    pages: Arc<Mutex<Vec<PageHook>>>,
}

/// The process has a recorder already.
#[derive(Debug, thiserror::Error)]
#[error("metrics are installed already")]
pub struct AlreadyInstalled;

impl Metrics {
    /// Makes the recorder of the process. Once, at the start: what is recorded before goes nowhere.
    pub fn install(version: &'static str) -> Result<Self, AlreadyInstalled> {
        let (recorder, metrics) = Self::detached(version);
        ::metrics::set_global_recorder(recorder).map_err(|_| AlreadyInstalled)?;
        describe();
        Ok(metrics)
    }

    /// A recorder that is not the process's, for tests: `metrics::with_local_recorder` records into it.
    pub fn detached(version: &'static str) -> (PrometheusRecorder, Self) {
        let recorder = recorder();
        let metrics = Self {
            handle: recorder.handle(),
            started: SystemTime::now(),
            version,
            hooks: Arc::default(),
            pages: Arc::default(),
        };
        (recorder, metrics)
    }

    /// Runs `hook` before each rendering from now on, to hand over all that it has. It must neither wait nor render.
    pub fn on_render(&self, hook: Hook) {
        self.hooks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(hook);
    }

    /// Has `page` write what it knows itself, in the same format, behind all else. It must neither wait nor render.
    pub fn on_page(&self, page: PageHook) {
        self.pages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(page);
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self) -> String {
        let handed = recorder();
        {
            let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            ::metrics::with_local_recorder(&handed, || {
                describe();
                for hook in hooks.iter() {
                    hook();
                }
            });
        }
        let mut text = self.handle.render();
        text.push_str(&handed.handle().render());
        for page in self
            .pages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            page(&mut text);
        }
        text.push_str(&Sample::take(self.started).render(self.version));
        text
    }
}

/// For counters and levels. It has no buckets, and nobody drains it: latencies are counted elsewhere, and written onto the
/// page as they are.
fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new().build_recorder()
}

/// What this crate itself counts.
fn describe() {
    ::metrics::describe_gauge!(
        "weft_config_generation",
        "How many configurations have been in force."
    );
    ::metrics::describe_gauge!(
        "weft_config_refused",
        "1 while the configuration file is not in force because something is wrong with it, or not wholly because a listener cannot be opened."
    );
    ::metrics::describe_gauge!(
        "weft_config_restart_needed",
        "1 while what the file says of this key is not in force, because it is read at the start only."
    );
    ::metrics::describe_counter!(
        "weft_config_reloads_total",
        "How often the configuration file was read anew, by result."
    );
    ::metrics::describe_counter!(
        "weft_log_lines_dropped_total",
        "Lines of the log that were dropped because standard error was read too slowly."
    );
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn hooks_hand_over_before_rendering() {
        let (recorder, metrics) = Metrics::detached("1.2.3");
        let cell = Arc::new(AtomicU64::new(0));
        let counted = cell.clone();
        metrics.on_render(Box::new(move || {
            ::metrics::counter!("exchanges_total").absolute(counted.load(Ordering::Relaxed));
        }));
        ::metrics::with_local_recorder(&recorder, || {
            cell.store(5, Ordering::Relaxed);
            assert!(metrics.render().contains("\nexchanges_total 5\n"));
            cell.store(7, Ordering::Relaxed);
            assert!(metrics.render().contains("\nexchanges_total 7\n"));
        });
    }

    #[test]
    fn what_hooks_hand_over_no_longer_leaves_the_page_and_what_was_counted_stays() {
        let (recorder, metrics) = Metrics::detached("1.2.3");
        let routes = Arc::new(AtomicU64::new(2));
        let there = routes.clone();
        metrics.on_render(Box::new(move || {
            for route in 0..there.load(Ordering::Relaxed) {
                ::metrics::counter!("route_total", "route" => route.to_string()).absolute(7);
            }
        }));
        ::metrics::with_local_recorder(&recorder, || {
            ::metrics::counter!("counted_total").increment(1);
            let both = [
                "route_total{route=\"0\"} 7\n",
                "route_total{route=\"1\"} 7\n",
            ];
            let text = metrics.render();
            assert!(both.iter().all(|line| text.contains(line)), "{text}");
            routes.store(1, Ordering::Relaxed);
            let text = metrics.render();
            assert!(
                text.contains(both[0]) && text.contains("counted_total 1\n"),
                "{text}"
            );
            assert!(!text.contains(both[1]), "{text}");
        });
    }

    #[test]
    fn a_count_that_began_anew_between_two_pages_is_shown_as_it_is() {
        let (_recorder, metrics) = Metrics::detached("1.2.3");
        let count = Arc::new(AtomicU64::new(100));
        let counted = count.clone();
        metrics.on_render(Box::new(move || {
            ::metrics::counter!("edge_total").absolute(counted.load(Ordering::Relaxed));
        }));
        assert!(metrics.render().contains("edge_total 100\n"));
        count.store(3, Ordering::Relaxed);
        assert!(metrics.render().contains("edge_total 3\n"));
    }

    #[test]
    fn the_process_tells_about_itself() {
        let (_recorder, metrics) = Metrics::detached("1.2.3");
        let text = metrics.render();
        assert!(text.contains("weft_build_info{version=\"1.2.3\"} 1\n"));
        assert!(text.contains("\nprocess_resident_memory_bytes "));
    }

    #[test]
    fn the_process_has_one_recorder() {
        Metrics::install("1.2.3").expect("the first");
        assert!(Metrics::install("1.2.3").is_err());
        ::metrics::counter!("global_total").increment(1);
    }
}
