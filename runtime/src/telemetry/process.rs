//! What Prometheus wants to know of every process, under the names it has for it.
//!
//! Written as text beside the recorder's: these are counters with fractions and read from the system at the moment of asking.

use std::fmt::Write;
use std::fs;
use std::time::SystemTime;

/// The process at one moment. What the system does not tell is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) start_seconds: f64,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_descriptors: Option<u64>,
    pub(super) most_descriptors: Option<u64>,
}

impl Sample {
    /// Of this process now.
    pub(super) fn take(started: SystemTime) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            start_seconds: started
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
            cpu_seconds: fs::read_to_string("/proc/self/stat")
                .ok()
                .and_then(|stat| ticks(&stat))
                .map(seconds),
            resident_bytes: fs::read_to_string("/proc/self/statm")
                .ok()
                .and_then(|statm| pages(&statm))
                .map(|pages| pages * rustix::param::page_size() as u64),
            // Reading the list opens one descriptor more.
            open_descriptors: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|list| (list.count() as u64).saturating_sub(1)),
            most_descriptors: limit.current,
        }
    }

    /// In Prometheus' text format.
    pub(super) fn render(&self, version: &str) -> String {
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{value}"
            );
        };
        one(
            "weft_build_info",
            "gauge",
            "Always 1; the version is the label.",
            &format!("{{version=\"{version}\"}} 1"),
        );
        one(
            "process_start_time_seconds",
            "gauge",
            "When the process started, since the epoch.",
            &format!(" {}", self.start_seconds),
        );
        let mut maybe = |name: &str, kind: &str, help: &str, value: Option<String>| {
            if let Some(value) = value {
                one(name, kind, help, &format!(" {value}"));
            }
        };
        maybe(
            "process_cpu_seconds_total",
            "counter",
            "Processor time spent, user and system.",
            self.cpu_seconds.map(|number| number.to_string()),
        );
        maybe(
            "process_resident_memory_bytes",
            "gauge",
            "Memory in use.",
            self.resident_bytes.map(|number| number.to_string()),
        );
        maybe(
            "process_open_fds",
            "gauge",
            "Open files and sockets.",
            self.open_descriptors.map(|number| number.to_string()),
        );
        maybe(
            "process_max_fds",
            "gauge",
            "How many files and sockets may be open.",
            self.most_descriptors.map(|number| number.to_string()),
        );
        text
    }
}

/// Processor time from `/proc/self/stat`, in ticks. The name in parentheses may contain anything, so counting begins behind it.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "2^53 ticks are three million years"
)]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Resident pages from `/proc/self/statm`.
fn pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "42 (we (ft) x) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1 2";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("garbage"), None);
        assert_eq!(ticks("1 (x) S 1"), None);
        assert_eq!(pages("9000 1200 300 1 0 1 0\n"), Some(1_200));
        assert_eq!(pages(""), None);
    }

    #[test]
    fn a_real_process_has_all_of_it() {
        let sample = Sample::take(SystemTime::now());
        assert!(sample.start_seconds > 1e9);
        assert!(sample.cpu_seconds.is_some());
        assert!(sample.resident_bytes.unwrap() > 100_000);
        assert!(sample.open_descriptors.unwrap() >= 3);
    }

    #[test]
    fn renders_in_the_format_of_prometheus() {
        let sample = Sample {
            start_seconds: 12.5,
            cpu_seconds: Some(0.25),
            ..Sample::default()
        };
        assert_eq!(
            sample.render("1.2.3"),
            "# HELP weft_build_info Always 1; the version is the label.\n\
             # TYPE weft_build_info gauge\n\
             weft_build_info{version=\"1.2.3\"} 1\n\
             # HELP process_start_time_seconds When the process started, since the epoch.\n\
             # TYPE process_start_time_seconds gauge\n\
             process_start_time_seconds 12.5\n\
             # HELP process_cpu_seconds_total Processor time spent, user and system.\n\
             # TYPE process_cpu_seconds_total counter\n\
             process_cpu_seconds_total 0.25\n"
        );
    }
}
