//! `mtls:` of a service: whether plaintext is let in beside mutual TLS, where, and for how long.

use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::Date;
use time::macros::format_description;
use weft_runtime::config::{Path, Problems};

/// Whom a service's sidecars let in: `strict`, or `permissive: { until: DATE, ports: [PORT] }`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Mtls")]
pub enum Config {
    /// Members of the mesh only, by mutual TLS.
    #[default]
    Strict,
    /// Also callers without a sidecar, whose plaintext is redirected to it (`sidecar.intercept`), for a time.
    Permissive(Permissive),
}

/// A dated exception.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Permissive {
    /// The last day of it, as `2026-12-31`, in UTC. After that it is as if `strict` were said.
    pub until: String,
    /// On which of the app's ports; the service's `port` when this is left out.
    #[serde(default)]
    pub ports: Option<Vec<u16>>,
}

/// A checked exception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// The moment at which it ends.
    pub until: SystemTime,
    /// The ports, each once.
    pub ports: Vec<u16>,
}

impl Config {
    /// Checks it, for a service whose app listens on `app_port` and has rules about its callers or none. `None` when it is
    /// strict, or wrong.
    pub fn build(
        &self,
        app_port: u16,
        has_rules: bool,
        path: &Path,
        problems: &mut Problems,
    ) -> Option<Permit> {
        let Self::Permissive(permissive) = self else {
            return None;
        };
        let path = path.key("permissive");
        let before = problems.len();
        let until = end_of(&permissive.until);
        if until.is_none() {
            problems.at(
                &path.key("until"),
                format!("`{}` is not a date", permissive.until),
                "write the last day on which plaintext is let in, as `2026-12-31`",
            );
        }
        let at = path.key("ports");
        let mut ports: Vec<u16> = Vec::new();
        for (index, &port) in permissive.ports.iter().flatten().enumerate() {
            let at = at.index(index);
            if port == 0 {
                problems.at(&at, "nothing listens on port 0", "write a port of the app");
            } else if ports.contains(&port) {
                problems.at(&at, format!("port {port} is listed twice"), "list it once");
            } else if port != app_port && has_rules {
                problems.at(
                    &at,
                    format!("the `allow` rules are about requests to port {app_port}, so nobody could be let in on port {port}"),
                    format!("remove it; where everybody may reach it, have it spared with `weft intercept install --exclude-inbound-port {port}`"),
                );
            }
            ports.push(port);
        }
        match &permissive.ports {
            None => ports.push(app_port),
            Some(list) if list.is_empty() => problems.at(
                &at,
                "the list is empty, so nothing is let in",
                "list a port of the app, or leave `ports` out for the service's own",
            ),
            Some(_) => {}
        }
        (problems.len() == before).then_some(Permit {
            until: until?,
            ports,
        })
    }

    /// Tells that its time is over, which is a mistake where somebody looks at the file and none where it is in use: a
    /// process that has to start again on the next day starts, and is strict.
    pub fn check_time(&self, now: SystemTime, path: &Path, problems: &mut Problems) {
        if let Self::Permissive(permissive) = self
            && end_of(&permissive.until).is_some_and(|until| until <= now)
        {
            problems.at(
                &path.key("permissive").key("until"),
                format!(
                    "`{}` is over, and nothing is let in in plaintext any more",
                    permissive.until
                ),
                "remove `mtls` for `strict`, or write a later day",
            );
        }
    }
}

/// The moment at which this day ends.
fn end_of(day: &str) -> Option<SystemTime> {
    let date = Date::parse(day, format_description!("[year]-[month]-[day]")).ok()?;
    let next = date.next_day()?;
    Some(next.midnight().assume_utc().into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    fn permissive(until: &str, ports: Option<&[u16]>) -> Config {
        Config::Permissive(Permissive {
            until: until.to_owned(),
            ports: ports.map(<[u16]>::to_vec),
        })
    }

    fn build(config: &Config, has_rules: bool) -> Result<Option<Permit>, String> {
        let mut problems = Problems::new();
        let permit = config.build(8080, has_rules, &Path::root().key("mtls"), &mut problems);
        match problems.is_empty() {
            true => Ok(permit),
            false => Err(problems.render()),
        }
    }

    #[test]
    fn it_ends_with_its_last_day() {
        let permit = build(&permissive("1970-01-02", None), false)
            .unwrap()
            .unwrap();
        assert_eq!(
            permit.until,
            SystemTime::UNIX_EPOCH + Duration::from_secs(2 * 24 * 3600)
        );
        assert_eq!(permit.ports, [8080]);
        assert_eq!(build(&Config::Strict, true), Ok(None));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let told = |config: &Config, has_rules: bool, words: &str| {
            let said = build(config, has_rules).unwrap_err();
            assert!(said.contains(words), "{said}");
        };
        for day in [
            "",
            "tomorrow",
            "2026-13-01",
            "2026-02-30",
            "2026-1-1",
            "20261231",
            "9999-12-31 ",
        ] {
            told(&permissive(day, None), false, "is not a date");
        }
        told(&permissive("2030-01-01", Some(&[])), false, "empty");
        told(&permissive("2030-01-01", Some(&[0])), false, "port 0");
        told(&permissive("2030-01-01", Some(&[80, 80])), false, "twice");
        told(
            &permissive("2030-01-01", Some(&[8080, 9090])),
            true,
            "`allow` rules",
        );
        assert!(build(&permissive("2030-01-01", Some(&[8080, 9090])), false).is_ok());
        assert!(build(&permissive("2030-01-01", Some(&[8080])), true).is_ok());
    }

    #[test]
    fn a_day_that_is_over_is_told_from_the_next_on() {
        let config = permissive("1970-01-02", None);
        let over = |seconds| {
            let mut problems = Problems::new();
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            config.check_time(now, &Path::root(), &mut problems);
            !problems.is_empty()
        };
        assert!(!over(2 * 24 * 3600 - 1));
        assert!(over(2 * 24 * 3600));
    }
}
