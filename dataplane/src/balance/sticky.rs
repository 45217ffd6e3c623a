//! Sticky sessions: a cookie that brings a client back to the endpoint it was at.
//!
//! The cookie says where that was and since when, encrypted and authenticated (AES-256-GCM) for this one service: a client
//! can neither read an address of ours in it nor choose one, and two cookies for the same endpoint have nothing in
//! common. All replicas of the ingress have the same key and no other state, so any of them understands every cookie.
//! The secret may have several lines: the first makes new cookies, the others are still understood, which is how it
//! is changed without a session lost.
//!
//! The policy decides about exchanges without a session; an exchange with one goes to its endpoint for as long as that
//! takes exchanges at all, also when it is in a lower tier, another zone, or to take nothing new. When it does not, or
//! has just failed the exchange, the policy finds another and the session moves there: [`Outcome`] says so.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_runtime::config::secret::Secret;
use weft_runtime::config::units::Period;
use weft_runtime::config::{Path, Problems};

use super::cookie;

/// What a cookie says: an address (16 bytes), a port (2), and the second since when (8).
const SAID: usize = 16 + 2 + 8;
/// How long its value is: the above with a nonce and a tag, in Base64.
const LENGTH: usize = (NONCE_LEN + SAID + 16) * 4 / 3;
/// Cookies of the name that are looked at. A browser sends one; more are somebody's attempt.
const LOOKS: usize = 4;
/// Lines of a secret that are used.
const KEYS: usize = 4;
/// Characters that a secret has at least: what 24 random bytes are in Base64.
const SHORTEST: usize = 32;

/// `balance.sticky`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Sticky")]
pub struct Config {
    /// What the cookie is encrypted with: at least 32 characters, the same for all replicas of the ingress. Of several
    /// lines the first makes cookies, the others are still understood.
    pub key: Secret,
    /// What the cookie is called; `weft-` and the service's name when left out.
    #[serde(default)]
    pub cookie: Option<String>,
    /// How long a session stays where it is at most. As long as the browser is open when left out.
    #[serde(default)]
    pub ttl: Option<Period>,
    /// When a browser sends the cookie along from other sites.
    #[serde(default)]
    pub same_site: SameSite,
}

/// `SameSite` of the cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameSite {
    /// When a link is followed.
    #[default]
    Lax,
    /// Never.
    Strict,
    /// Always. Browsers want TLS for that.
    None,
}

impl Config {
    /// Checks what needs no secret.
    pub(super) fn check(&self, place: &Path, problems: &mut Problems) {
        if let Some(name) = &self.cookie
            && !cookie::is_name(name)
        {
            problems.at(
                &place.key("cookie"),
                format!("`{name}` is not the name of a cookie"),
                "write letters, digits, `-` and `_`, or leave `cookie` out",
            );
        }
        if self.ttl.is_some_and(|ttl| ttl.as_duration().as_secs() == 0) {
            problems.at(
                &place.key("ttl"),
                "a session would end before the next exchange",
                "write `1s` or more, such as `8h`, or leave `ttl` out",
            );
        }
    }

    /// Reads the secret. `base` is what its path is relative to.
    pub fn build(
        &self,
        service: &str,
        base: &FilePath,
        place: &Path,
        problems: &mut Problems,
    ) -> Option<Sticky> {
        let mut wrong = |what: String| {
            problems.at(
                &place.key("key"),
                what,
                "make one with `openssl rand -base64 32` and give all replicas the same",
            );
        };
        let secret = match self.key.read(base) {
            Ok(secret) => secret,
            Err(error) => {
                wrong(error);
                return None;
            }
        };
        let lines = || {
            secret
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
        };
        if lines().any(|line| line.len() < SHORTEST) {
            wrong(format!(
                "a key has fewer than {SHORTEST} characters and could be guessed"
            ));
            return None;
        }
        let keys: Option<Vec<Key>> = lines().take(KEYS).map(Key::new).collect();
        let name = self
            .cookie
            .clone()
            .unwrap_or_else(|| format!("weft-{service}"));
        let same_site = match self.same_site {
            SameSite::Lax => "Lax",
            SameSite::Strict => "Strict",
            SameSite::None => "None",
        };
        let mut attributes = format!("; Path=/; HttpOnly; SameSite={same_site}");
        if let Some(ttl) = self.ttl {
            attributes += &format!("; Max-Age={}", ttl.as_duration().as_secs());
        }
        Some(Sticky {
            name: name.into(),
            attributes: attributes.into(),
            always_secure: self.same_site == SameSite::None,
            ttl: self.ttl.map(Period::as_duration),
            service: format!("weft sticky 1\0{service}").into(),
            keys: keys?,
        })
    }
}

/// How the sessions of one service are kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Sticky {
    name: Box<str>,
    attributes: Box<str>,
    always_secure: bool,
    ttl: Option<Duration>,
    /// What cookies are authenticated with: one of another service is none of ours.
    service: Box<str>,
    keys: Vec<Key>,
}

/// What an exchange says of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// It has none.
    None,
    /// It was at this endpoint.
    At(SocketAddr),
    /// There is a cookie that nobody of ours made, that has expired, or whose key is gone.
    Unreadable,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It began.
    New,
    /// It stayed where it was.
    Kept,
    /// It went to another endpoint, because its own does not take exchanges or is gone.
    Moved,
    /// It began anew, because its cookie could not be understood.
    Unreadable,
}

impl Outcome {
    /// In the order of [`Tally::counts`].
    pub const ALL: [Self; 4] = [Self::New, Self::Kept, Self::Moved, Self::Unreadable];

    /// The word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Kept => "kept",
            Self::Moved => "moved",
            Self::Unreadable => "unreadable",
        }
    }
}

/// How often each has come about at a service. Only exchanges of services that keep sessions count here, so that its cores
/// may share it.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; Outcome::ALL.len()]);

impl Tally {
    /// One exchange's session.
    pub fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Relaxed);
    }

    /// Of each outcome, in the order of [`Outcome::ALL`].
    pub fn counts(&self) -> [u64; Outcome::ALL.len()] {
        self.0.each_ref().map(|count| count.load(Relaxed))
    }
}

impl Session {
    /// What became of it when the exchange was answered by this endpoint.
    pub fn outcome(self, endpoint: SocketAddr) -> Outcome {
        match self {
            Self::None => Outcome::New,
            Self::At(address) if address == endpoint => Outcome::Kept,
            Self::At(_) => Outcome::Moved,
            Self::Unreadable => Outcome::Unreadable,
        }
    }
}

impl Sticky {
    /// The session of a request.
    pub fn session(&self, headers: &HeaderMap, now: SystemTime) -> Session {
        let mut session = Session::None;
        for value in cookie::values(headers, &self.name).take(LOOKS) {
            match self.open(value, now) {
                Some(address) => return Session::At(address),
                None => session = Session::Unreadable,
            }
        }
        session
    }

    /// What a cookie says, if it is one of ours and still good.
    fn open(&self, value: &[u8], now: SystemTime) -> Option<SocketAddr> {
        // Everything else is turned away before it costs anything.
        if value.len() != LENGTH {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(value).ok()?;
        let said = self.keys.iter().find_map(|key| {
            let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
            let mut rest = rest.to_vec();
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let said = key
                .cipher
                .open_in_place(nonce, self.aad(), &mut rest)
                .ok()?;
            <[u8; SAID]>::try_from(&*said).ok()
        })?;
        let (address, rest) = said.split_first_chunk::<16>()?;
        let (port, since) = rest.split_first_chunk::<2>()?;
        let since = u64::from_be_bytes(since.try_into().ok()?);
        if let Some(ttl) = self.ttl {
            let since = UNIX_EPOCH.checked_add(Duration::from_secs(since))?;
            // From another replica's future: its clock is ahead, and the session is new.
            let age = now.duration_since(since).unwrap_or_default();
            if age > ttl {
                return None;
            }
        }
        let address = IpAddr::from(Ipv6Addr::from(*address)).to_canonical();
        Some(SocketAddr::new(address, u16::from_be_bytes(*port)))
    }

    /// The field that makes a client come back to this endpoint. It is `Secure` when the client came by TLS. None when the
    /// operating system has no randomness to give.
    pub fn cookie(&self, endpoint: SocketAddr, tls: bool, now: SystemTime) -> Option<HeaderValue> {
        let address = match endpoint.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut said = Vec::with_capacity(SAID + 16);
        said.extend_from_slice(&address.octets());
        said.extend_from_slice(&endpoint.port().to_be_bytes());
        said.extend_from_slice(&since.to_be_bytes());
        let key = self.keys.first()?;
        let nonce = key
            .cipher
            .seal_in_place_append_tag(self.aad(), &mut said)
            .ok()?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.extend_from_slice(&said);
        let value = URL_SAFE_NO_PAD.encode(sealed);
        let secure = if tls || self.always_secure {
            "; Secure"
        } else {
            ""
        };
        let line = format!("{}={value}{}{secure}", self.name, self.attributes);
        HeaderValue::try_from(line).ok()
    }

    fn aad(&self) -> Aad<&[u8]> {
        Aad::from(self.service.as_bytes())
    }
}

/// A key of a service's cookies. Its `Debug` does not show it.
struct Key {
    cipher: RandomizedNonceKey,
    /// Tells keys apart without showing them.
    fingerprint: [u8; 32],
}

impl Key {
    /// Of a line of the secret, which has all the entropy that is needed: a hash brings it to its length.
    fn new(line: &str) -> Option<Self> {
        let hash = |label: &str| digest(&SHA256, format!("{label}\0{line}").as_bytes());
        let key = hash("weft sticky key 1");
        Some(Self {
            cipher: RandomizedNonceKey::new(&AES_256_GCM, key.as_ref()).ok()?,
            fingerprint: hash("weft sticky fingerprint 1").as_ref().try_into().ok()?,
        })
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(elided)")
    }
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210";

    fn sticky(service: &str, secret: &str, more: &str) -> Sticky {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("key"), secret).unwrap();
        let config = format!(r#"{{"key": {{"file": "key"}}{more}}}"#);
        let config: Config = serde_json::from_str(&config).unwrap();
        let mut problems = Problems::new();
        let sticky = config.build(service, directory.path(), &Path::root(), &mut problems);
        sticky.unwrap()
    }

    fn endpoint(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    /// `name=value` of the cookie that a client is given.
    fn pair(sticky: &Sticky, address: &str) -> String {
        let line = sticky.cookie(endpoint(address), false, at(0)).unwrap();
        line.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    fn session(sticky: &Sticky, cookie: &str, now: SystemTime) -> Session {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, cookie.parse().unwrap());
        sticky.session(&headers, now)
    }

    #[test]
    fn a_client_comes_back_to_where_it_was() {
        let sticky = sticky("orders", KEY, "");
        for address in ["10.0.0.7:8080", "[2001:db8::7]:65535", "255.255.255.255:1"] {
            let cookie = pair(&sticky, address);
            let expected = Session::At(endpoint(address));
            assert_eq!(session(&sticky, &cookie, at(0)), expected);
            assert_eq!(
                session(&sticky, &format!("a=b; {cookie}; c"), at(1 << 30)),
                expected
            );
        }
        assert_eq!(sticky.session(&HeaderMap::new(), at(0)), Session::None);
        assert_eq!(session(&sticky, "weft-order=1", at(0)), Session::None);
    }

    #[test]
    fn the_cookie_tells_nothing() {
        let sticky = sticky("orders", KEY, "");
        let (one, other) = (
            pair(&sticky, "10.0.0.7:8080"),
            pair(&sticky, "10.0.0.7:8080"),
        );
        assert_ne!(one, other, "not even that it is the same endpoint");
        assert_eq!(one.len(), "weft-orders=".len() + LENGTH);
        assert_eq!(one.len(), pair(&sticky, "[2001:db8::7]:1").len());
    }

    #[test]
    fn the_attributes_keep_it_from_scripts_and_from_plaintext() {
        let line = |more, tls| {
            let sticky = sticky("orders", KEY, more);
            let cookie = sticky.cookie(endpoint("10.0.0.7:80"), tls, at(0)).unwrap();
            let line = cookie.to_str().unwrap().to_owned();
            line.split_once("; ").unwrap().1.to_owned()
        };
        assert_eq!(line("", false), "Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(line("", true), "Path=/; HttpOnly; SameSite=Lax; Secure");
        assert_eq!(
            line(r#", "ttl": "8h", "same_site": "strict""#, true),
            "Path=/; HttpOnly; SameSite=Strict; Max-Age=28800; Secure"
        );
        assert_eq!(
            line(r#", "same_site": "none""#, false),
            "Path=/; HttpOnly; SameSite=None; Secure"
        );
    }

    #[test]
    fn every_replica_with_the_key_understands_it_and_nobody_else() {
        let cookie = pair(&sticky("orders", KEY, ""), "10.0.0.7:80");
        let expected = Session::At(endpoint("10.0.0.7:80"));
        assert_eq!(
            session(&sticky("orders", KEY, ""), &cookie, at(0)),
            expected
        );
        assert_eq!(
            session(&sticky("orders", OTHER, ""), &cookie, at(0)),
            Session::Unreadable
        );
        // Another service's cookie, under the name of ours.
        let foreign = pair(
            &sticky("orders2", KEY, r#", "cookie": "weft-orders""#),
            "10.0.0.7:80",
        );
        assert_eq!(
            session(&sticky("orders", KEY, ""), &foreign, at(0)),
            Session::Unreadable
        );
    }

    #[test]
    fn a_key_is_changed_without_a_session_lost() {
        let old = pair(&sticky("orders", KEY, ""), "10.0.0.7:80");
        let both = sticky("orders", &format!("{OTHER}\n\n{KEY}\n"), "");
        let expected = Session::At(endpoint("10.0.0.7:80"));
        assert_eq!(session(&both, &old, at(0)), expected);
        let new = pair(&both, "10.0.0.7:80");
        assert_eq!(session(&sticky("orders", OTHER, ""), &new, at(0)), expected);
        assert_ne!(both, sticky("orders", KEY, ""), "a reload sees the change");
        assert_eq!(sticky("orders", KEY, ""), sticky("orders", KEY, ""));
    }

    #[test]
    fn a_changed_cookie_is_no_cookie() {
        let sticky = sticky("orders", KEY, "");
        let cookie = pair(&sticky, "10.0.0.7:80");
        let (name, value) = cookie.split_once('=').unwrap();
        for place in 0..value.len() {
            let mut changed = value.as_bytes().to_vec();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            let changed = format!("{name}={}", String::from_utf8(changed).unwrap());
            assert_eq!(
                session(&sticky, &changed, at(0)),
                Session::Unreadable,
                "{place}"
            );
        }
        for value in [
            "",
            "x",
            &value[1..],
            &format!("{value}A"),
            &"=".repeat(LENGTH),
        ] {
            let changed = format!("{name}={value}");
            assert_eq!(session(&sticky, &changed, at(0)), Session::Unreadable);
        }
    }

    #[test]
    fn one_good_cookie_among_a_few_bad_ones_is_found_and_among_many_not_looked_for() {
        let sticky = sticky("orders", KEY, "");
        let good = pair(&sticky, "10.0.0.7:80");
        let behind = |bad: usize| format!("{}{good}", "weft-orders=x; ".repeat(bad));
        assert!(matches!(
            session(&sticky, &behind(3), at(0)),
            Session::At(_)
        ));
        assert_eq!(session(&sticky, &behind(4), at(0)), Session::Unreadable);
    }

    #[test]
    fn a_session_ends_when_its_time_is_over() {
        let sticky = sticky("orders", KEY, r#", "ttl": "1m""#);
        let cookie = pair(&sticky, "10.0.0.7:80");
        assert!(matches!(session(&sticky, &cookie, at(60)), Session::At(_)));
        assert_eq!(session(&sticky, &cookie, at(61)), Session::Unreadable);
        let behind = UNIX_EPOCH + Duration::from_secs(1_799_999_000);
        assert!(matches!(session(&sticky, &cookie, behind), Session::At(_)));
    }

    #[test]
    fn what_became_of_a_session_has_a_word() {
        let (here, there) = (endpoint("10.0.0.7:80"), endpoint("10.0.0.8:80"));
        assert_eq!(Session::None.outcome(here), Outcome::New);
        assert_eq!(Session::At(here).outcome(here), Outcome::Kept);
        assert_eq!(Session::At(there).outcome(here), Outcome::Moved);
        assert_eq!(Session::Unreadable.outcome(here), Outcome::Unreadable);
    }

    #[test]
    fn a_key_that_is_away_or_short_is_a_problem() {
        let directory = tempfile::tempdir().unwrap();
        for (secret, what) in [(None, "cannot be read"), (Some("hunter2"), "fewer than 32")] {
            if let Some(secret) = secret {
                std::fs::write(directory.path().join("key"), secret).unwrap();
            }
            let config: Config = serde_json::from_str(r#"{"key": {"file": "key"}}"#).unwrap();
            let mut problems = Problems::new();
            let built = config.build("orders", directory.path(), &Path::root(), &mut problems);
            assert!(built.is_none());
            let problem = problems.iter().next().unwrap();
            assert!(problem.what.contains(what), "{}", problem.what);
            assert!(!problem.what.contains("hunter2"));
        }
    }
}
