//! The part `ca:` of the one file.
//!
//! Every role reads `address`; the rest is read by `weft ca` alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::units::Period;
use weft_runtime::config::{Path, Problems};

/// The shortest life of a leaf. Ten seconds let a demo show renewals; below that, clocks and handshakes get in the way.
const SHORTEST_LEAF: Duration = Duration::from_secs(10);

/// The part `ca:`, as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Ca")]
pub struct Config {
    /// Where the others reach the authority: `host:port`, the host a DNS name or an IP address.
    pub address: String,
    /// Where the authority listens. Without it: the address, when that is an IP address, else its port on all interfaces.
    pub listen: Option<SocketAddr>,
    /// The directory with the root, the intermediate, the open tokens and the journal.
    pub state: PathBuf,
    /// How long a service's certificate is valid.
    pub leaf_lifetime: Period,
    /// How long the certificate that signs them is valid; it is renewed at half of that.
    pub intermediate_lifetime: Period,
    /// How long the root is valid. Read once, when the state is created.
    pub root_lifetime: Period,
    /// How far a certificate's validity begins in the past, for clocks that are behind.
    pub backdate: Period,
    /// How long a join token is good.
    pub token_lifetime: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "ca:15012".into(),
            listen: None,
            state: "ca-state".into(),
            leaf_lifetime: Period::seconds(24 * 3600),
            intermediate_lifetime: Period::seconds(30 * 86_400),
            root_lifetime: Period::seconds(3650 * 86_400),
            backdate: Period::seconds(60),
            token_lifetime: Period::seconds(600),
        }
    }
}

/// How long what is valid. Made by [`Config::build`], so they fit one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a service's certificate.
    pub leaf: Duration,
    /// Of the certificate that signs it.
    pub intermediate: Duration,
    /// Of the root.
    pub root: Duration,
    /// How far before its making a certificate begins.
    pub backdate: Duration,
    /// Of a join token.
    pub token: Duration,
}

/// A checked [`Config`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The state directory.
    pub state: PathBuf,
    /// Where to listen, unless the command line says otherwise.
    pub listen: SocketAddr,
    /// How long what is valid.
    pub lifetimes: Lifetimes,
}

impl Config {
    /// Checks what serde cannot. `at` is the path of this part in the file.
    pub fn build(&self, at: &Path, problems: &mut Problems) -> Option<Rules> {
        let before = problems.len();
        let address = host_and_port(&self.address);
        if address.is_none() {
            problems.at(
                &at.key("address"),
                format!("`{}` is not a host with a port", self.address),
                "write it as `ca:15012`, `10.0.0.5:15012` or `[fd00::5]:15012`",
            );
        }
        if self.state.as_os_str().is_empty() {
            problems.at(
                &at.key("state"),
                "the state directory has no name",
                "write a path such as `./ca-state`",
            );
        }
        let lifetimes = self.lifetimes();
        if lifetimes.leaf < SHORTEST_LEAF {
            problems.at(
                &at.key("leaf_lifetime"),
                "certificates of less than 10s are over before they are used",
                "write `10s` or more; `24h` is the default",
            );
        }
        // The intermediate is renewed at half its life, so this is what it has left at the least, and no leaf may
        // outlive it.
        if lifetimes.leaf > lifetimes.intermediate / 2 {
            problems.at(
                &at.key("leaf_lifetime"),
                "services' certificates would outlive the intermediate that signs them, which is renewed at half its life",
                "make `leaf_lifetime` at most half of `intermediate_lifetime` (defaults: 24h and 30d)",
            );
        }
        if lifetimes.intermediate > lifetimes.root / 2 {
            problems.at(
                &at.key("intermediate_lifetime"),
                "the intermediate would come close to the end of its root",
                "make `intermediate_lifetime` at most half of `root_lifetime` (defaults: 30d and 3650d)",
            );
        }
        if lifetimes.backdate > Duration::from_secs(3600) {
            problems.at(
                &at.key("backdate"),
                "certificates would be valid more than an hour before they were made",
                "write `1h` or less, and set the clocks; `60s` is the default",
            );
        }
        if lifetimes.token.is_zero() || lifetimes.token > Duration::from_secs(30 * 86_400) {
            problems.at(
                &at.key("token_lifetime"),
                "a join token lives longer than nothing and at most 30 days",
                "write the time between making a token and the start that uses it; `10m` is the default",
            );
        }
        let (host, port) = address?;
        (problems.len() == before).then(|| Rules {
            state: self.state.clone(),
            listen: self.listen.unwrap_or_else(|| {
                let all = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                SocketAddr::new(host.unwrap_or(all), port)
            }),
            lifetimes,
        })
    }

    fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            leaf: self.leaf_lifetime.as_duration(),
            intermediate: self.intermediate_lifetime.as_duration(),
            root: self.root_lifetime.as_duration(),
            backdate: self.backdate.as_duration(),
            token: self.token_lifetime.as_duration(),
        }
    }
}

/// The port, and the IP address when the host is one and not a name.
fn host_and_port(text: &str) -> Option<(Option<IpAddr>, u16)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some((Some(address.ip()), address.port()));
    }
    let (host, port) = text.rsplit_once(':')?;
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label);
    // `10.0.0:15012` is a slip of the hand, not a name.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let port = port.parse().ok().filter(|&port: &u16| port != 0)?;
    (name && !numeric).then_some((None, port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn problems_of(config: &Config) -> Vec<String> {
        let mut problems = Problems::new();
        let rules = config.build(&Path::root().key("ca"), &mut problems);
        assert_eq!(
            rules.is_some(),
            problems.is_empty(),
            "rules or problems, never both or neither"
        );
        problems
            .iter()
            .map(|problem| problem.path.to_string())
            .collect()
    }

    #[test]
    fn the_defaults_are_good() {
        assert_eq!(problems_of(&Config::default()), Vec::<String>::new());
    }

    #[test]
    fn the_defaults_sheet() {
        const DAY: Duration = Duration::from_secs(24 * 3_600);
        let mut problems = Problems::new();
        let rules = Config::default().build(&Path::root(), &mut problems);
        let expected = Lifetimes {
            leaf: DAY,
            intermediate: 30 * DAY,
            root: 3_650 * DAY,
            backdate: Duration::from_secs(60),
            token: Duration::from_secs(600),
        };
        assert_eq!(rules.unwrap().lifetimes, expected);
    }

    #[test]
    fn every_problem_is_found_at_its_place() {
        let check = |change: fn(&mut Config), expected: &[&str]| {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(problems_of(&config), expected, "{config:?}");
        };
        check(|c| c.address = "ca".into(), &["ca.address"]);
        check(|c| c.address = "ca:0".into(), &["ca.address"]);
        check(|c| c.address = "ca:65536".into(), &["ca.address"]);
        check(|c| c.address = "10.0.0:15012".into(), &["ca.address"]);
        check(|c| c.address = "10.0.0.1:0".into(), &["ca.address"]);
        check(|c| c.address = "a b:1".into(), &["ca.address"]);
        check(|c| c.address = "https://ca:1".into(), &["ca.address"]);
        check(|c| c.address = "ca.shop.internal.:15012".into(), &[]);
        check(|c| c.state = PathBuf::new(), &["ca.state"]);
        check(
            |c| c.leaf_lifetime = Period::seconds(9),
            &["ca.leaf_lifetime"],
        );
        check(|c| c.leaf_lifetime = Period::seconds(10), &[]);
        check(|c| c.leaf_lifetime = Period::seconds(15 * 86_400), &[]);
        check(
            |c| c.leaf_lifetime = Period::seconds(15 * 86_400 + 1),
            &["ca.leaf_lifetime"],
        );
        check(
            |c| c.root_lifetime = Period::seconds(59 * 86_400),
            &["ca.intermediate_lifetime"],
        );
        check(|c| c.backdate = Period::seconds(3601), &["ca.backdate"]);
        check(|c| c.backdate = Period::seconds(0), &[]);
        check(
            |c| c.token_lifetime = Period::seconds(0),
            &["ca.token_lifetime"],
        );
        check(
            |c| {
                c.address = String::new();
                c.leaf_lifetime = Period::seconds(1);
                c.backdate = Period::seconds(7200);
            },
            &["ca.address", "ca.leaf_lifetime", "ca.backdate"],
        );
    }

    #[test]
    fn it_listens_where_the_address_says_when_it_can() {
        let listen = |address: &str, listen: Option<&str>| {
            let config = Config {
                address: address.into(),
                listen: listen.map(|text| text.parse().unwrap()),
                ..Config::default()
            };
            let rules = config.build(&Path::root(), &mut Problems::new()).unwrap();
            rules.listen.to_string()
        };
        assert_eq!(listen("ca:15012", None), "0.0.0.0:15012");
        assert_eq!(listen("127.9.0.3:7", None), "127.9.0.3:7");
        assert_eq!(listen("[::1]:7", None), "[::1]:7");
        assert_eq!(listen("203.0.113.7:7", Some("10.0.0.1:8")), "10.0.0.1:8");
    }
}
