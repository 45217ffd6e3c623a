//! Who the client is when proxies stand in front of us: what a proxy that we trust says of where a request comes from.
//!
//! Each proxy adds whom it has its request from to the end of `X-Forwarded-For`. So the field is read from its end: as long
//! as whoever wrote an address is trusted, the address is true, and the first one that is no proxy of ours is the client.
//! What stands further in front may be anybody's invention and is not looked at. Where there is no such field, `Forwarded`
//! (RFC 7239) is read in the same way; of both only the first is, because a proxy writes one and lets the other pass.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName, HeaderValue};
use weft_runtime::config::{Network, Path, Problems};

/// `x-forwarded-for`.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Whose word for where a request comes from is taken.
#[derive(Debug, Clone, Default)]
pub struct Trusted {
    /// Whoever connects is trusted, whatever its address: it is the app beside us.
    app: bool,
    /// Others may connect too: the app is who does so from loopback or from this address.
    host: Option<IpAddr>,
    /// Proxies, by address.
    proxies: Arc<[Network]>,
}

impl Trusted {
    /// These proxies, as the file has them at `place`.
    pub fn build(networks: &[String], place: &Path, problems: &mut Problems) -> Self {
        let cure =
            "write the addresses of the proxies, such as `10.0.0.0/8`, `fd00::/8` or one address";
        let proxies = Network::list(networks, place, cure, problems);
        for (index, text) in networks.iter().enumerate() {
            if text.parse().is_ok_and(|network: Network| network.is_all()) {
                problems.at(
                    &place.index(index),
                    "every client would be believed whatever it says of its address",
                    cure,
                );
            }
        }
        Self {
            app: false,
            host: None,
            proxies: proxies.into(),
        }
    }

    /// The app beside us, behind all these proxies: it hands on what it was told.
    #[must_use]
    pub fn with_app(all: impl IntoIterator<Item = Self>) -> Self {
        Self {
            app: true,
            host: None,
            proxies: all
                .into_iter()
                .flat_map(|trusted| trusted.proxies.to_vec())
                .collect(),
        }
    }

    /// The same where others than this host may connect: the app is who does so from loopback, or from the address that it
    /// connects to.
    #[must_use]
    pub fn only_from_host(self, host: IpAddr) -> Self {
        Self {
            host: Some(host.to_canonical()),
            ..self
        }
    }

    /// Whether the word of who connects from here is taken.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        (self.app && self.is_host(peer.to_canonical())) || self.is_proxy(peer)
    }

    fn is_host(&self, peer: IpAddr) -> bool {
        self.host
            .is_none_or(|host| peer == host || peer.is_loopback())
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(address))
    }

    /// The client of a request that came from `peer`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trusts(peer) {
            return peer;
        }
        match headers.contains_key(FORWARDED_FOR) {
            true => self.walk(peer, entries(headers, &FORWARDED_FOR).map(address)),
            false => self.walk(peer, entries(headers, &FORWARDED).map(forwarded_for)),
        }
    }

    /// Adds a trusted `peer` to what it said. Who the client is can be asked as before.
    pub(crate) fn append(&self, peer: IpAddr, headers: &mut HeaderMap) {
        let peer = peer.to_canonical();
        if headers.contains_key(FORWARDED_FOR) {
            // The peer has not vouched for this one.
            headers.remove(FORWARDED);
        } else if headers.contains_key(FORWARDED) {
            let client = self.client(peer, headers);
            if client != peer {
                join(headers, FORWARDED_FOR, &client.to_string());
            }
            let entry = match peer {
                IpAddr::V4(peer) => format!("for={peer}"),
                IpAddr::V6(peer) => format!("for=\"[{peer}]\""),
            };
            join(headers, FORWARDED, &entry);
        }
        join(headers, FORWARDED_FOR, &peer.to_string());
    }

    /// The first that is no proxy, or the last before one that nobody can read.
    fn walk(&self, peer: IpAddr, entries: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut client = peer;
        for entry in entries {
            let Some(address) = entry else { break };
            client = address;
            if !self.is_proxy(address) {
                break;
            }
        }
        client
    }
}

/// Makes one line of all lines of a list, with one more entry.
fn join(headers: &mut HeaderMap, name: HeaderName, entry: &str) {
    let lines = headers.get_all(&name).iter();
    let lines = lines
        .map(HeaderValue::as_bytes)
        .filter(|line| !line.is_empty());
    let all: Vec<&[u8]> = lines.chain([entry.as_bytes()]).collect();
    if let Ok(value) = HeaderValue::from_bytes(&all.join(&b", "[..])) {
        headers.insert(name, value);
    }
}

/// The entries of a list, last first. Commas within quotes part entries too: no address has one, and so no quote that is
/// left open further in front can swallow what a proxy has added behind it.
fn entries<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().rev();
    lines.flat_map(|line| {
        // Nothing that is not ASCII can be read.
        let line = line.to_str().unwrap_or("?");
        line.rsplit(',')
            .map(|entry| entry.trim_matches([' ', '\t']))
    })
}

/// An address, which may have a port and, of IPv6, brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = match bare {
        Some(bare) => IpAddr::V6(bare.parse().ok()?),
        None => text
            .parse()
            .or_else(|_| text.parse().map(|with_port: SocketAddr| with_port.ip()))
            .ok()?,
    };
    Some(address.to_canonical())
}

/// The address after `for=` in an entry of `Forwarded`. What hides behind a name of its own has none.
fn forwarded_for(entry: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in entry.split(';') {
        let (name, value) = pair.trim_matches([' ', '\t']).split_once('=')?;
        if name.eq_ignore_ascii_case("for") {
            let value = match value.strip_prefix('"') {
                Some(value) => value.strip_suffix('"')?,
                None => value,
            };
            if found.replace(address(value)?).is_some() {
                return None;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn trusted(networks: &[&str]) -> Trusted {
        let networks: Vec<String> = networks.iter().map(|text| (*text).to_owned()).collect();
        let mut problems = Problems::new();
        let trusted = Trusted::build(&networks, &Path::root(), &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        trusted
    }

    fn fields(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let lines = lines.iter();
        lines
            .map(|(name, value)| {
                (
                    name.clone(),
                    HeaderValue::from_bytes(value.as_bytes()).unwrap(),
                )
            })
            .collect()
    }

    fn check(trusted: &Trusted, lines: &[(HeaderName, &str)], expected: &str) {
        let client = trusted.client("10.0.0.1".parse().unwrap(), &fields(lines));
        assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{lines:?}");
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy_of_ours() {
        let ours = trusted(&["10.0.0.0/8", "fd00::/8"]);
        let table = [
            ("192.0.2.7", "192.0.2.7"),
            ("203.0.113.9, 192.0.2.7", "192.0.2.7"),
            ("203.0.113.9, 192.0.2.7,10.1.1.1 ,\t10.2.2.2", "192.0.2.7"),
            ("192.0.2.7:4711", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:4711, fd00::1", "2001:db8::7"),
            ("::ffff:192.0.2.7, ::ffff:10.2.2.2", "192.0.2.7"),
            // Everybody is a proxy: the one farthest away.
            ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
            // What cannot be read ends the walk at who wrote it.
            ("", "10.0.0.1"),
            ("unknown", "10.0.0.1"),
            ("192.0.2.7, unknown, 10.2.2.2", "10.2.2.2"),
            ("192.0.2.7, ", "10.0.0.1"),
            ("192.0.2.7, , 10.2.2.2", "10.2.2.2"),
            ("192.0.2.7 10.2.2.2", "10.0.0.1"),
            ("192.0.2.07", "10.0.0.1"),
            ("192.0.2.7:99999", "10.0.0.1"),
            ("[192.0.2.7]", "10.0.0.1"),
            ("2001:db8::7%1", "10.0.0.1"),
            ("\u{e9}, 10.2.2.2", "10.0.0.1"),
        ];
        for (line, expected) in table {
            check(&ours, &[(FORWARDED_FOR, line)], expected);
        }
        let lines = [(FORWARDED_FOR, "192.0.2.7"), (FORWARDED_FOR, "10.2.2.2")];
        check(&ours, &lines, "192.0.2.7");
        check(&ours, &[], "10.0.0.1");
    }

    #[test]
    fn nobody_else_is_believed() {
        let lines = [(FORWARDED_FOR, "192.0.2.7"), (FORWARDED, "for=192.0.2.7")];
        check(&Trusted::default(), &lines, "10.0.0.1");
        check(&trusted(&["10.0.0.2"]), &lines, "10.0.0.1");
        check(&trusted(&["10.0.0.1"]), &lines, "192.0.2.7");
        check(&Trusted::with_app([]), &lines, "192.0.2.7");
    }

    #[test]
    fn behind_the_proxies_of_a_gateway_the_app_hands_the_client_on() {
        let app = Trusted::with_app([trusted(&["10.0.0.0/8"]), trusted(&["fd00::/8"])]);
        check(
            &app,
            &[(FORWARDED_FOR, "192.0.2.7, fd00::1, 10.2.2.2")],
            "192.0.2.7",
        );
        check(&app, &[], "10.0.0.1");
    }

    #[test]
    fn where_others_may_connect_the_app_is_who_is_on_the_same_host() {
        let app = Trusted::with_app([trusted(&["10.0.0.0/8"])]);
        let app = app.only_from_host("192.0.2.1".parse().unwrap());
        let lines = fields(&[(FORWARDED_FOR, "203.0.113.9")]);
        for (peer, expected) in [
            ("127.0.0.1", "203.0.113.9"),
            ("::1", "203.0.113.9"),
            ("::ffff:127.0.0.2", "203.0.113.9"),
            ("::ffff:192.0.2.1", "203.0.113.9"),
            ("10.0.0.1", "203.0.113.9"),
            ("192.0.2.2", "192.0.2.2"),
            ("2001:db8::7", "2001:db8::7"),
        ] {
            let client = app.client(peer.parse().unwrap(), &lines);
            assert_eq!(client.to_string(), expected, "from {peer}");
        }
    }

    #[test]
    fn forwarded_is_read_where_nothing_else_is_there() {
        let ours = trusted(&["10.0.0.0/8", "fd00::/8"]);
        let table = [
            ("for=192.0.2.7", "192.0.2.7"),
            ("For=\"192.0.2.7:4711\";proto=https", "192.0.2.7"),
            (
                "for=203.0.113.9, proto=http;for=\"[2001:db8::7]:80\" , for=10.2.2.2",
                "2001:db8::7",
            ),
            ("for=192.0.2.7, for=_hidden, for=10.2.2.2", "10.2.2.2"),
            ("for=192.0.2.7, for=unknown", "10.0.0.1"),
            ("for=192.0.2.7, by=10.2.2.2", "10.0.0.1"),
            ("for=192.0.2.7;for=192.0.2.8", "10.0.0.1"),
            ("for=\"192.0.2.7", "10.0.0.1"),
            ("192.0.2.7", "10.0.0.1"),
            // A quote left open in front takes nothing from who is behind.
            ("for=203.0.113.9;by=\", for=192.0.2.7", "192.0.2.7"),
        ];
        for (line, expected) in table {
            check(&ours, &[(FORWARDED, line)], expected);
        }
        let both = [(FORWARDED, "for=203.0.113.9"), (FORWARDED_FOR, "192.0.2.7")];
        check(&ours, &both, "192.0.2.7");
    }

    #[test]
    fn whom_we_have_it_from_is_added_behind_what_was_said() {
        let check = |lines: &[(HeaderName, &str)], peer: &str, expected: &[(HeaderName, &str)]| {
            let (mut headers, peer) = (fields(lines), peer.parse().unwrap());
            let ours = trusted(&["10.0.0.0/8", "fd00::/8"]);
            let client = ours.client(peer, &headers);
            ours.append(peer, &mut headers);
            assert_eq!(headers, fields(expected), "{lines:?}");
            assert_eq!(ours.client(peer, &headers), client, "{lines:?}");
        };
        check(&[], "10.0.0.1", &[(FORWARDED_FOR, "10.0.0.1")]);
        check(
            &[(FORWARDED_FOR, "a"), (FORWARDED_FOR, "192.0.2.7, 10.2.2.2")],
            "::ffff:10.0.0.1",
            &[(FORWARDED_FOR, "a, 192.0.2.7, 10.2.2.2, 10.0.0.1")],
        );
        // Of both, the one that is believed.
        check(
            &[(FORWARDED_FOR, "192.0.2.7"), (FORWARDED, "for=203.0.113.9")],
            "10.0.0.1",
            &[(FORWARDED_FOR, "192.0.2.7, 10.0.0.1")],
        );
        check(
            &[(FORWARDED, "for=192.0.2.7;proto=https")],
            "fd00::1",
            &[
                (FORWARDED_FOR, "192.0.2.7, fd00::1"),
                (FORWARDED, "for=192.0.2.7;proto=https, for=\"[fd00::1]\""),
            ],
        );
        check(
            &[(FORWARDED, "for=_hidden")],
            "10.0.0.1",
            &[
                (FORWARDED_FOR, "10.0.0.1"),
                (FORWARDED, "for=_hidden, for=10.0.0.1"),
            ],
        );
    }

    #[test]
    fn what_is_no_network_or_all_of_them_is_a_problem_at_its_place() {
        let list = ["10.0.0.0/8", "balancer", "0.0.0.0/0", "::/0"].map(str::to_owned);
        let mut problems = Problems::new();
        Trusted::build(&list, &Path::root().key("trusted_proxies"), &mut problems);
        let places: Vec<String> = problems.iter().map(|p| p.path.to_string()).collect();
        let expected = [1, 2, 3].map(|index| format!("trusted_proxies[{index}]"));
        assert_eq!(places, expected);
    }
}
