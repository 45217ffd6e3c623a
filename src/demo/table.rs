//! The table: one row per edge, the endpoints with their states below. A pure function of what is known to lines of
//! text.

use std::fmt::Write;
use std::time::Duration;

use super::view::{EdgeRow, View, ip_of};

/// Characters that a terminal shows without taking space: on and off.
#[derive(Debug, Clone, Copy)]
struct Style {
    bold: &'static str,
    good: &'static str,
    bad: &'static str,
    dim: &'static str,
    off: &'static str,
}

const PLAIN: Style = Style {
    bold: "",
    good: "",
    bad: "",
    dim: "",
    off: "",
};
const COLOURED: Style = Style {
    bold: "\x1b[1m",
    good: "\x1b[32m",
    bad: "\x1b[31m",
    dim: "\x1b[2m",
    off: "\x1b[0m",
};

/// What stands above the table.
#[derive(Debug, Clone, Default)]
pub(super) struct Heading {
    pub(super) running: Duration,
    pub(super) answered: u64,
    pub(super) failed: u64,
}

/// The table as lines, none wider than `width`.
pub(super) fn render(heading: &Heading, view: &View, width: usize, colours: bool) -> Vec<String> {
    let style = if colours { COLOURED } else { PLAIN };
    let mut lines = vec![headline(heading, style), columns(style)];
    lines.extend(view.edges.iter().map(|edge| row(edge, style)));
    lines.push(String::new());
    lines.extend(endpoints(view, style));
    let renewals: u64 = view.certificates.iter().map(|c| c.renewals).sum();
    let certificates = view.certificates.len();
    lines.push(format!(
        "  certificates: {certificates} in use, {renewals} renewals so far"
    ));
    lines.into_iter().map(|line| cut(line, width)).collect()
}

fn headline(heading: &Heading, style: Style) -> String {
    let seconds = heading.running.as_secs();
    format!(
        "{}weft demo{} {:02}:{:02}   {} requests answered, {} failed",
        style.bold,
        style.off,
        seconds / 60,
        seconds % 60,
        heading.answered,
        heading.failed
    )
}

fn columns(style: Style) -> String {
    let Style { dim, off, .. } = style;
    format!(
        "  {dim}{:<11}  {:<11}  {:>7}  {:>8}  {:>9}  {:>9}  mTLS{off}",
        "source", "destination", "req/s", "success", "p50", "p99"
    )
}

fn row(edge: &EdgeRow, style: Style) -> String {
    let success = edge.success.map_or_else(|| "-".to_owned(), percent);
    let paint = match edge.success {
        Some(share) if share < 1.0 => style.bad,
        Some(_) => style.good,
        None => "",
    };
    let off = if paint.is_empty() { "" } else { style.off };
    let (mtls, mtls_paint) = if edge.mtls {
        ("yes", style.good)
    } else {
        ("NO", style.bad)
    };
    format!(
        "  {:<11}→ {:<11}  {:>7.1}  {paint}{success:>8}{off}  {:>9}  {:>9}  {mtls_paint}{mtls}{}",
        edge.source,
        edge.destination,
        edge.per_second,
        latency(edge.p50),
        latency(edge.p99),
        style.off,
    )
}

/// A share as a percentage that never rounds up to a perfect hundred.
fn percent(share: f64) -> String {
    let tenths = (share * 1_000.0).floor() / 10.0;
    format!("{tenths:.1} %")
}

fn latency(value: Option<Duration>) -> String {
    let Some(value) = value else {
        return "-".to_owned();
    };
    let millis = value.as_secs_f64() * 1e3;
    if millis < 1_000.0 {
        format!("{millis:.1} ms")
    } else {
        format!("{:.2} s", millis / 1e3)
    }
}

/// One line per service, in the order of the view, which is the alphabet's.
fn endpoints(view: &View, style: Style) -> Vec<String> {
    let mut lines: Vec<(&str, String)> = Vec::new();
    for endpoint in &view.endpoints {
        let paint = match endpoint.state.as_str() {
            "healthy" => style.good,
            _ => style.bad,
        };
        let ip = ip_of(&endpoint.address);
        let text = format!("   {ip} {paint}{}{}", endpoint.state, style.off);
        match lines.last_mut() {
            Some((service, line)) if *service == endpoint.service => line.push_str(&text),
            _ => {
                let mut line = String::new();
                // Writing to a string does not fail.
                let _ = write!(line, "  {:<11}{text}", endpoint.service);
                lines.push((&endpoint.service, line));
            }
        }
    }
    lines.into_iter().map(|(_, line)| line).collect()
}

/// At most `width` characters that take space, so that a line never wraps and the drawing can be counted on.
fn cut(line: String, width: usize) -> String {
    let mut shown = 0;
    let mut in_escape = false;
    for (at, character) in line.char_indices() {
        match character {
            '\x1b' => in_escape = true,
            'm' if in_escape => in_escape = false,
            _ if in_escape => {}
            _ if shown == width => {
                let off = if line.contains('\x1b') {
                    COLOURED.off
                } else {
                    ""
                };
                return format!("{}{off}", &line[..at]);
            }
            _ => shown += 1,
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::view::{Certificate, EndpointRow};

    fn view() -> View {
        let edge = |source: &str, destination: &str, success, p99| EdgeRow {
            source: source.to_owned(),
            destination: destination.to_owned(),
            per_second: 118.25,
            success,
            p50: Some(Duration::from_micros(2_340)),
            p99,
            mtls: destination != "inventory",
        };
        let endpoint = |service: &str, host: &str, state: &str| EndpointRow {
            service: service.to_owned(),
            address: format!("127.83.12.{host}:15008"),
            state: state.to_owned(),
        };
        View {
            edges: vec![
                edge(
                    "ingress",
                    "storefront",
                    Some(0.999_9),
                    Some(Duration::from_millis(12)),
                ),
                edge("orders", "inventory", None, None),
                edge(
                    "storefront",
                    "orders",
                    Some(1.0),
                    Some(Duration::from_millis(1_250)),
                ),
            ],
            endpoints: vec![
                endpoint("inventory", "31", "healthy"),
                endpoint("orders", "21", "healthy"),
                endpoint("orders", "22", "ejected"),
                endpoint("orders", "23", "probing"),
            ],
            certificates: vec![
                Certificate {
                    renewals: 2,
                    ..Certificate::default()
                },
                Certificate {
                    renewals: 1,
                    ..Certificate::default()
                },
            ],
        }
    }

    fn heading() -> Heading {
        Heading {
            running: Duration::from_secs(72),
            answered: 8_123,
            failed: 5,
        }
    }

    #[test]
    fn the_table_looks_like_this() {
        let expected = "\
weft demo 01:12   8123 requests answered, 5 failed
  source       destination    req/s   success        p50        p99  mTLS
  ingress    → storefront     118.2    99.9 %     2.3 ms    12.0 ms  yes
  orders     → inventory      118.2         -     2.3 ms          -  NO
  storefront → orders         118.2   100.0 %     2.3 ms     1.25 s  yes

  inventory     127.83.12.31 healthy
  orders        127.83.12.21 healthy   127.83.12.22 ejected   127.83.12.23 probing
  certificates: 2 in use, 3 renewals so far";
        assert_eq!(render(&heading(), &view(), 200, false).join("\n"), expected);
    }

    #[test]
    fn the_readme_shows_the_table_as_it_is() {
        let readme = include_str!("../../README.md");
        let heading = columns(PLAIN);
        let shown = readme.lines().skip_while(|line| *line != heading).skip(1);
        let rows: Vec<&str> = shown.take_while(|line| !line.is_empty()).collect();
        assert_eq!(rows.len(), 3, "{heading}");
        let like = row(&view().edges[0], PLAIN);
        for row in rows {
            let ends = |text: &str| text.rfind("ms").map(|at| text[..at].chars().count());
            assert_eq!((row.find('→'), ends(row)), (like.find('→'), ends(&like)));
        }
    }

    #[test]
    fn colours_change_nothing_that_is_read() {
        let plain = render(&heading(), &view(), 200, false);
        let coloured = render(&heading(), &view(), 200, true);
        assert_ne!(plain, coloured);
        let stripped: Vec<String> = coloured.iter().map(|line| strip(line)).collect();
        assert_eq!(plain, stripped);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [0, 1, 20, 40, 79] {
            for line in render(&heading(), &view(), width, true) {
                assert!(strip(&line).chars().count() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn a_mesh_without_traffic_has_an_empty_table() {
        let lines = render(&Heading::default(), &View::default(), 80, false);
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_share_below_one_never_reads_as_a_hundred() {
        for (share, expected) in [(1.0, "100.0 %"), (0.999_99, "99.9 %"), (0.0, "0.0 %")] {
            assert_eq!(percent(share), expected);
        }
    }

    fn strip(line: &str) -> String {
        let mut text = String::new();
        let mut in_escape = false;
        for character in line.chars() {
            match character {
                '\x1b' => in_escape = true,
                'm' if in_escape => in_escape = false,
                _ if in_escape => {}
                _ => text.push(character),
            }
        }
        text
    }
}
