//! What the hops of one exchange tell each other in band: how long it has, that it is a retry, and that its failure is
//! nobody's to try again.
//!
//! * `weft-timeout`: the milliseconds that are left for the head of the answer. Each hop takes off what it has spent, and
//!   waits no longer than that. To the app it comes with the moment that it means (`800;by=1732240000123`, in
//!   milliseconds since 1970), so that the time that the app spends is taken off too if it hands the field on to what it
//!   calls. What gRPC has for the purpose, `grpc-timeout`, is lowered in the same way.
//! * `weft-attempt`: on a request that is not the first try. Whoever gets it does not try it again: one hop's retries are
//!   enough. It is for the app to hand on, too.
//! * `weft-retry: no`: on an answer whose failure was tried again somewhere behind, or not for a reason that holds here
//!   too.
//!
//! Clients at the edge are not believed: what they say of these is removed.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::headers::Forwarded;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::head::Head;
use crate::http1::encode;
use crate::reason::Reason;

/// What the names of our own fields begin with.
const OURS: &str = "weft-";
const TIMEOUT: HeaderName = HeaderName::from_static("weft-timeout");
const ATTEMPT: HeaderName = HeaderName::from_static("weft-attempt");
/// On an answer that nobody is to ask for again.
pub(crate) const RETRY: HeaderName = HeaderName::from_static("weft-retry");
/// The one value of [`RETRY`].
pub(crate) const NO: HeaderValue = HeaderValue::from_static("no");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A time is not worth telling when it is this near to what the next hop takes by itself.
const NEAR: Duration = Duration::from_millis(1);

/// What a request's head said when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Said {
    /// How long the caller waits for the head of the answer.
    timeout: Option<Duration>,
    /// How long the caller of a gRPC call waits for its end.
    call: Option<Duration>,
    /// It is a retry of somebody in front of us.
    pub(crate) is_retry: bool,
}

impl Said {
    /// Takes it out of the head. Nothing of `weft-` that an outsider says is believed.
    pub(crate) fn take(head: &mut Head, outsider: bool, wall: impl FnOnce() -> SystemTime) -> Self {
        let (timeout, attempt) = match has_ours(&head.headers) {
            true => (head.headers.remove(TIMEOUT), head.headers.remove(ATTEMPT)),
            false => (None, None),
        };
        let call = match head.is_grpc() {
            true => head.headers.get(GRPC_TIMEOUT).and_then(grpc_timeout),
            false => None,
        };
        if call.is_some() {
            // Each attempt says what is left by then.
            head.headers.remove(GRPC_TIMEOUT);
        }
        if outsider {
            return Self {
                call,
                ..Self::default()
            };
        }
        Self {
            timeout: timeout.and_then(|value| timeout_left(&value, wall)),
            call,
            is_retry: attempt.is_some(),
        }
    }
}

/// Whether one of these fields is a matter of Weft's. One look at all names costs less than a search for one of them.
pub(crate) fn has_ours(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(OURS))
}

/// `800` or `800;by=1732240000123`, as the time that is left now.
fn timeout_left(value: &HeaderValue, wall: impl FnOnce() -> SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (millis, by) = match text.split_once(";by=") {
        Some((millis, by)) => (millis, Some(by)),
        None => (text, None),
    };
    let told = Duration::from_millis(number(millis)?);
    let Some(by) = by else {
        return Some(told);
    };
    let by = UNIX_EPOCH.checked_add(Duration::from_millis(number(by)?))?;
    // A clock that was set back meanwhile gives nobody more time.
    Some(by.duration_since(wall()).unwrap_or_default().min(told))
}

/// Digits only, and not so many that arithmetic with them could fail.
fn number(text: &str) -> Option<u64> {
    let is_number =
        (1..=15).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// `100m`: up to eight digits and a unit.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count = number(digits)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// In the finest unit that has room for it; rounded down, so that nobody gets more time than there is.
fn to_grpc_timeout(left: Duration) -> HeaderValue {
    const ROOM: u128 = 100_000_000;
    let (count, unit) = if left.as_nanos() < ROOM {
        (left.as_nanos(), 'n')
    } else if left.as_micros() < ROOM {
        (left.as_micros(), 'u')
    } else if left.as_millis() < ROOM {
        (left.as_millis(), 'm')
    } else {
        (u128::from(left.as_secs()).min(ROOM - 1), 'S')
    };
    let text = format!("{count}{unit}");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0n"))
}

/// How long an exchange has, on this hop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    started: Instant,
    /// For the head of the answer; a body that comes in begins it anew.
    pub(crate) patience: Duration,
    /// What the service's own configuration gives it.
    timeout: Duration,
    /// When the caller of a gRPC call gives up. Nothing moves that.
    call: Option<Instant>,
}

impl Deadline {
    /// The service's own timeout, or what the caller has left of its own.
    pub(crate) fn new(said: &Said, timeout: Duration, started: Instant) -> Self {
        Self {
            started,
            patience: said.timeout.map_or(timeout, |told| told.min(timeout)),
            timeout,
            call: said.call.and_then(|call| started.checked_add(call)),
        }
    }

    /// The deadline when there was progress at `now` last.
    pub(crate) fn from(&self, now: Instant) -> Instant {
        let moved = now + self.patience;
        self.call.map_or(moved, |call| call.min(moved))
    }

    /// The deadline before there was any progress.
    pub(crate) fn first(&self) -> Instant {
        self.from(self.started)
    }

    /// Whether the caller said how long it waits, so that each microsecond is taken off.
    pub(crate) fn is_told(&self) -> bool {
        self.call.is_some() || self.patience < self.timeout
    }

    /// Whether it is the caller that has no more time, and not the service that took too long.
    pub(crate) fn is_of_caller(&self, now: Instant) -> bool {
        self.patience < self.timeout || self.call.is_some_and(|call| call <= now)
    }

    /// Whether an endpoint that was waited for so long in vain is to blame, though it was the caller who gave up: when it
    /// had a good part of the time that it usually has. Callers in a hurry must not get endpoints ejected.
    pub(crate) fn blames(&self, waited: Duration) -> bool {
        waited * 2 >= self.timeout
    }

    /// The refusal of an exchange whose time is over before anybody could have answered it.
    pub(crate) fn expired(&self) -> Error {
        let given = match self.call {
            Some(call) => call
                .saturating_duration_since(self.started)
                .min(self.patience),
            None => self.patience,
        };
        Error::new(
            Reason::DeadlineExceeded,
            format!("the caller gave this exchange {given:?}, and that is over"),
        )
    }
}

/// Whom an attempt goes to, which decides in which form it is told how long it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another sidecar, which knows the service's timeout as well as we do.
    Sidecar,
    /// The app beside us, which may hand it on.
    App,
    /// Somebody outside the mesh.
    Outside,
}

impl Next {
    /// Who the endpoints of this cluster are.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        if cluster.is_local {
            Self::App
        } else if cluster.is_mesh() {
            Self::Sidecar
        } else {
            Self::Outside
        }
    }
}

/// What one attempt says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'a> {
    next: Next,
    left: Duration,
    /// The moment at which nothing is left.
    by: Option<SystemTime>,
    call: Option<Duration>,
    is_near: bool,
    is_retry: bool,
    forwarded: Option<Forwarded<'a>>,
}

impl<'a> Told<'a> {
    /// For an attempt that begins `now` and has until `until`. `is_open` is whether more of the request's body may come,
    /// which would move that.
    pub(crate) fn new(
        next: Next,
        deadline: &Deadline,
        until: Instant,
        now: Instant,
        is_open: bool,
        is_retry: bool,
        wall: impl FnOnce(Instant) -> SystemTime,
    ) -> Self {
        let left = until.saturating_duration_since(now);
        Self {
            next,
            left,
            by: (next == Next::App && !is_open).then(|| wall(until)),
            call: deadline
                .call
                .map(|call| call.saturating_duration_since(now)),
            is_near: left + NEAR >= deadline.timeout,
            is_retry,
            forwarded: None,
        }
    }

    /// The same, with where the request came from.
    pub(crate) fn with(self, forwarded: Option<Forwarded<'a>>) -> Self {
        Self { forwarded, ..self }
    }

    /// Says it in the head of the attempt.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        if let Some(forwarded) = &self.forwarded {
            forwarded.write(headers);
        }
        self.each(|name, value| {
            headers.insert(name, value);
        });
    }

    /// Says it in lines of the head of the attempt.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(forwarded) = &self.forwarded {
            forwarded.encode(out);
        }
        self.each(|name, value| encode::field(out, name.as_str(), value.as_bytes()));
    }

    /// Each field that is to be said of time and attempts.
    fn each(&self, mut say: impl FnMut(HeaderName, HeaderValue)) {
        if let Some(call) = self.call {
            say(GRPC_TIMEOUT, to_grpc_timeout(call));
        }
        match self.next {
            Next::Outside => return,
            // It would come to the same by itself.
            Next::Sidecar if self.is_near => {}
            Next::Sidecar | Next::App => {
                // Rounded up: what is left of a millisecond is still time.
                let millis = self.left.as_nanos().div_ceil(1_000_000);
                let since = |by: SystemTime| by.duration_since(UNIX_EPOCH).unwrap_or_default();
                say(
                    TIMEOUT,
                    spell(millis, self.by.map(|by| since(by).as_millis())),
                );
            }
        }
        if self.is_retry {
            say(ATTEMPT, HeaderValue::from_static("2"));
        }
    }
}

thread_local! {
    /// What was spelled last: exchanges that begin in the same millisecond say the same.
    static SPELLED: RefCell<Option<(u128, Option<u128>, HeaderValue)>> = const { RefCell::new(None) };
}

fn spell(millis: u128, by: Option<u128>) -> HeaderValue {
    SPELLED.with_borrow_mut(|spelled| {
        if let Some((same, same_by, value)) = spelled
            && (*same, *same_by) == (millis, by)
        {
            return value.clone();
        }
        let mut text = Digits::default();
        let _: Result<_, _> = write!(text, "{millis}");
        if let Some(by) = by {
            let _: Result<_, _> = write!(text, ";by={by}");
        }
        let value =
            HeaderValue::from_bytes(text.as_bytes()).unwrap_or(HeaderValue::from_static("0"));
        *spelled = Some((millis, by, value.clone()));
        value
    })
}

/// Text that needs no allocation of its own.
struct Digits {
    bytes: [u8; 96],
    length: usize,
}

impl Default for Digits {
    fn default() -> Self {
        Self {
            bytes: [0; 96],
            length: 0,
        }
    }
}

impl Digits {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl std::fmt::Write for Digits {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        let room = self
            .bytes
            .get_mut(self.length..end)
            .ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// How many failures this process has handed to its app that nobody is to try again.
///
/// An app whose own call failed usually fails too, and few apps hand our fields on. So a sidecar remembers: if such a
/// failure was handed out while a request was with the app, and the app then fails it, the failure is taken for that one's
/// consequence. That is a guess, on the safe side: at worst a failure is not tried again that could have been.
#[derive(Debug, Default)]
pub struct Settled(AtomicU64);

impl Settled {
    /// How many there were so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// One more.
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::uri::{Authority, PathAndQuery};
    use http::{Method, Version};

    use super::*;

    const WALL: Duration = Duration::from_millis(1_732_240_000_000);

    fn head(fields: &[(&'static str, &str)]) -> Head {
        Head {
            method: Method::GET,
            version: Version::HTTP_11,
            authority: Authority::from_static("orders"),
            path: PathAndQuery::from_static("/"),
            headers: fields
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
                .collect(),
        }
    }

    fn take(fields: &[(&'static str, &str)], outsider: bool) -> (Said, Head) {
        let mut head = head(fields);
        let said = Said::take(&mut head, outsider, || UNIX_EPOCH + WALL);
        (said, head)
    }

    #[test]
    fn a_timeout_is_read_with_what_the_app_has_spent_of_it() {
        for (value, millis) in [
            ("0", Some(0)),
            ("800", Some(800)),
            ("800;by=1732240000300", Some(300)),
            ("800;by=1732240000000", Some(0)),
            ("800;by=1732239999999", Some(0)),
            // The clock was set back.
            ("800;by=1732240009000", Some(800)),
            ("999999999999999", Some(999_999_999_999_999)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("9999999999999999", None),
            ("800;by=", None),
            ("800;by=x", None),
            ("800; by=1732240000300", None),
            ("800;by=99999999999999999999", None),
        ] {
            let (said, head) = take(&[("weft-timeout", value)], false);
            assert_eq!(said.timeout, millis.map(Duration::from_millis), "{value}");
            assert!(head.headers.is_empty());
        }
    }

    #[test]
    fn outsiders_are_not_believed_but_for_what_grpc_has_of_its_own() {
        let fields = [
            ("weft-timeout", "800"),
            ("weft-attempt", "2"),
            ("grpc-timeout", "2S"),
            ("content-type", "application/grpc+proto"),
        ];
        let (said, head) = take(&fields, true);
        assert_eq!((said.timeout, said.is_retry), (None, false));
        assert_eq!(said.call, Some(Duration::from_secs(2)));
        assert!(!head.headers.contains_key("weft-timeout"));
        assert!(!head.headers.contains_key("weft-attempt"));
        let (said, _) = take(&fields, false);
        assert_eq!(said.timeout, Some(Duration::from_millis(800)));
        assert!(said.is_retry);
        let (said, head) = take(&[("grpc-timeout", "2S")], false);
        assert_eq!(said.call, None, "no gRPC, no such field");
        assert!(head.headers.contains_key("grpc-timeout"));
    }

    #[test]
    fn grpc_timeouts_in_every_unit() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("1 S", None),
            ("1é", None),
        ] {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            assert_eq!(grpc_timeout(&value), expected, "{text}");
        }
    }

    #[test]
    fn a_lowered_grpc_timeout_is_never_more_and_hardly_less() {
        for left in [
            Duration::ZERO,
            Duration::from_nanos(99_999_999),
            Duration::from_nanos(100_000_000),
            Duration::from_micros(2_999_999),
            Duration::from_secs(99),
            Duration::from_secs(86_400),
            Duration::from_secs(99_999_999 * 3600),
        ] {
            let back = grpc_timeout(&to_grpc_timeout(left)).unwrap();
            assert!(back <= left, "{left:?} became {back:?}");
            let most = Duration::from_secs(99_999_999);
            let lost = left.min(most) - back;
            assert!(lost <= left / 1_000_000, "{left:?} became {back:?}");
        }
    }

    #[test]
    fn whoever_has_less_time_decides() {
        let second = Duration::from_secs(1);
        let now = Instant::now();
        let deadline = |timeout: Option<u32>, call: Option<u32>| {
            let said = Said {
                timeout: timeout.map(|seconds| second * seconds),
                call: call.map(|seconds| second * seconds),
                is_retry: false,
            };
            Deadline::new(&said, second * 15, now)
        };
        for (timeout, call, until, of_caller) in [
            (None, None, 15, false),
            (Some(2), None, 2, true),
            (Some(20), None, 15, false),
            (None, Some(3), 3, true),
            (Some(2), Some(3), 2, true),
            (None, Some(60), 15, false),
        ] {
            let deadline = deadline(timeout, call);
            let until = now + second * until;
            assert_eq!(deadline.first(), until, "{timeout:?} {call:?}");
            assert_eq!(
                deadline.is_of_caller(until),
                of_caller,
                "{timeout:?} {call:?}"
            );
        }
        // A body that comes in moves the one and not the other.
        let later = now + second * 10;
        assert_eq!(deadline(Some(2), None).from(later), later + second * 2);
        assert_eq!(deadline(Some(2), Some(3)).from(later), now + second * 3);
        assert!(deadline(Some(8), None).blames(second * 8));
        assert!(!deadline(Some(1), None).blames(second));
    }

    fn told(next: Next, said: &Said, spent: Duration, is_open: bool, is_retry: bool) -> String {
        let started = Instant::now();
        let deadline = Deadline::new(said, Duration::from_secs(15), started);
        let until = deadline.first();
        let wall = |at: Instant| UNIX_EPOCH + WALL + at.saturating_duration_since(started);
        let told = Told::new(
            next,
            &deadline,
            until,
            started + spent,
            is_open,
            is_retry,
            wall,
        );
        let mut fields = String::new();
        told.each(|name, value| {
            fields.push_str(&format!("{name}: {}, ", value.to_str().unwrap()));
        });
        fields
    }

    #[test]
    fn each_hop_is_told_what_is_left() {
        let said = |timeout: Option<u64>, call: Option<u64>| Said {
            timeout: timeout.map(Duration::from_millis),
            call: call.map(Duration::from_millis),
            is_retry: false,
        };
        let ms = Duration::from_millis;
        let check = |next, said: Said, spent, is_open, is_retry, expected: &str| {
            let fields = told(next, &said, spent, is_open, is_retry);
            assert_eq!(fields.trim_end_matches(", "), expected, "{next:?} {said:?}");
        };
        use Next::{App, Outside, Sidecar};
        let nothing = said(None, None);
        check(Sidecar, nothing, ms(0), false, false, "");
        check(
            Sidecar,
            nothing,
            ms(20),
            false,
            false,
            "weft-timeout: 14980",
        );
        check(
            Sidecar,
            nothing,
            ms(20),
            false,
            true,
            "weft-timeout: 14980, weft-attempt: 2",
        );
        check(
            Sidecar,
            said(Some(800), None),
            ms(300),
            false,
            false,
            "weft-timeout: 500",
        );
        check(
            App,
            said(Some(800), None),
            ms(300),
            false,
            false,
            "weft-timeout: 500;by=1732240000800",
        );
        check(
            App,
            said(Some(800), None),
            ms(300),
            true,
            false,
            "weft-timeout: 500",
        );
        check(
            Sidecar,
            said(None, Some(2000)),
            ms(500),
            true,
            false,
            "grpc-timeout: 1500000u, weft-timeout: 1500",
        );
        check(
            Outside,
            said(Some(800), Some(2000)),
            ms(500),
            false,
            true,
            "grpc-timeout: 1500000u",
        );
    }
}
