//! Prometheus' text format, for what the `metrics` exporter is no match for.
//!
//! The exporter takes one sample at a time and keeps each until it is asked (24 bytes an exchange: a process that
//! nobody scrapes would grow without end), and it shows every series for ever that it once saw. So counters of bounded
//! names go through it, and what is counted in buckets or comes and goes is written by this, onto the same page.

use std::fmt::{Display, Write};

use super::cells::{BOUNDS_US, Totals};

/// What a family of series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Is what it is.
    Gauge,
    /// Counts in buckets.
    Histogram,
}

/// A page that is being written. Infallible: it writes to memory.
#[derive(Debug)]
pub struct Page<'a>(&'a mut String);

impl<'a> Page<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut String) -> Self {
        Self(out)
    }

    /// Begins a family; all its samples must follow before the next one begins.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        if !self.0.is_empty() && !self.0.ends_with('\n') {
            self.0.push('\n');
        }
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One series' value.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.line(name, "", labels, None, value);
    }

    /// One series of latencies: the sum is exact to the microsecond of each exchange.
    pub fn latency(&mut self, name: &str, labels: &[(&str, &str)], totals: &Totals) {
        let mut count = 0u64;
        for (bound, n) in BOUNDS_US.iter().zip(&totals.latency) {
            count = count.saturating_add(*n);
            let le = (*bound as f64 / 1e6).to_string();
            self.line(name, "_bucket", labels, Some(&le), count);
        }
        count = count.saturating_add(totals.latency[BOUNDS_US.len()]);
        self.line(name, "_bucket", labels, Some("+Inf"), count);
        self.line(
            name,
            "_sum",
            labels,
            None,
            totals.latency_sum_us as f64 / 1e6,
        );
        self.line(name, "_count", labels, None, count);
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[(&str, &str)],
        le: Option<&str>,
        value: impl Display,
    ) {
        self.0.push_str(name);
        self.0.push_str(suffix);
        let mut separator = '{';
        for (label, value) in labels.iter().copied().chain(le.map(|le| ("le", le))) {
            self.0.push(separator);
            self.0.push_str(label);
            self.0.push_str("=\"");
            self.escape(value);
            self.0.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn escape(&mut self, value: &str) {
        for character in value.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_as_prometheus_wants_it() {
        let mut out = String::from("before 1");
        let mut page = Page::new(&mut out);
        page.family("up", Kind::Gauge, "Whether it is up.");
        page.sample("up", &[], 1);
        page.sample("up", &[("a", "quote\" back\\ line\n")], 0.5);
        assert_eq!(
            out,
            "before 1\n# HELP up Whether it is up.\n# TYPE up gauge\nup 1\nup{a=\"quote\\\" back\\\\ line\\n\"} 0.5\n"
        );
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let mut totals = Totals::default();
        totals.latency[0] = 2;
        totals.latency[1] = 3;
        totals.latency[16] = 1;
        totals.latency_sum_us = 12_000_900;
        let mut out = String::new();
        let mut page = Page::new(&mut out);
        page.latency("t", &[("a", "b")], &totals);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 19);
        assert_eq!(lines[0], "t_bucket{a=\"b\",le=\"0.0001\"} 2");
        assert_eq!(lines[1], "t_bucket{a=\"b\",le=\"0.00025\"} 5");
        assert_eq!(lines[15], "t_bucket{a=\"b\",le=\"10\"} 5");
        assert_eq!(lines[16], "t_bucket{a=\"b\",le=\"+Inf\"} 6");
        assert_eq!(lines[17], "t_sum{a=\"b\"} 12.0009");
        assert_eq!(lines[18], "t_count{a=\"b\"} 6");
    }
}
