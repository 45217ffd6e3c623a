//! The traffic: workers that send GETs through the gateway, one after the other, and count how each ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::http::{self as client, Answer};

/// How long a caller waits for an answer; longer than the mesh's own timeout, whose answer has a reason.
const DEADLINE: Duration = Duration::from_secs(20);
/// How many kinds of failure are told apart; the rest is counted together.
const MAX_KINDS: usize = 32;

/// How exchanges ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) answered: u64,
    /// By what the answer, or its absence, says.
    pub(super) failures: BTreeMap<String, u64>,
}

impl Tally {
    /// How many failed.
    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// How many were sent and ended.
    pub(super) fn ended(&self) -> u64 {
        self.answered + self.failed()
    }

    /// What was added since `earlier`.
    pub(super) fn since(&self, earlier: &Tally) -> Tally {
        let failures = self.failures.iter().filter_map(|(kind, count)| {
            let before = earlier.failures.get(kind).copied().unwrap_or(0);
            let added = count.saturating_sub(before);
            (added > 0).then(|| (kind.clone(), added))
        });
        Tally {
            answered: self.answered.saturating_sub(earlier.answered),
            failures: failures.collect(),
        }
    }

    /// How many failed in this way, and the tally of all the others.
    pub(super) fn without(&self, kind: &str) -> (u64, Tally) {
        let mut others = self.clone();
        let count = others.failures.remove(kind).unwrap_or(0);
        (count, others)
    }

    /// Both together.
    pub(super) fn add(&mut self, other: &Tally) {
        self.answered += other.answered;
        for (kind, count) in &other.failures {
            *self.failures.entry(kind.clone()).or_default() += count;
        }
    }

    /// `3 × 502 orders answered 500, 1 × client timeout`.
    pub(super) fn reasons(&self) -> String {
        let each = self.failures.iter();
        let each: Vec<String> = each
            .map(|(kind, count)| format!("{count} × {kind}"))
            .collect();
        if each.is_empty() {
            "none".to_owned()
        } else {
            each.join(", ")
        }
    }

    fn count(&mut self, failure: Option<String>) {
        let Some(kind) = failure else {
            self.answered += 1;
            return;
        };
        let full = self.failures.len() >= MAX_KINDS && !self.failures.contains_key(&kind);
        let kind = if full { "others".to_owned() } else { kind };
        *self.failures.entry(kind).or_default() += 1;
    }
}

/// Workers at work.
pub(super) struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: watch::Sender<bool>,
    workers: JoinSet<()>,
}

impl Load {
    /// One worker for each token, each with a connection of its own and at most one request per `interval`.
    pub(super) fn start(url: &str, tokens: Vec<String>, interval: Duration) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let stop = watch::Sender::new(false);
        let mut workers = JoinSet::new();
        for (number, token) in tokens.into_iter().enumerate() {
            let worker = Worker {
                url: format!("{url}/{}", number + 1),
                authorization: format!("Bearer {token}"),
                interval,
                tally: tally.clone(),
            };
            let stop = stop.subscribe();
            workers.spawn(async move { worker.run(stop).await });
        }
        Self {
            tally,
            stop,
            workers,
        }
    }

    /// How the exchanges ended so far.
    pub(super) fn tally(&self) -> Tally {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.clone()
    }

    /// Lets every worker finish what it has in hand; after that, the tally is final.
    pub(super) async fn finish(&mut self) {
        self.stop.send_replace(true);
        while self.workers.join_next().await.is_some() {}
    }
}

struct Worker {
    url: String,
    authorization: String,
    interval: Duration,
    tally: Arc<Mutex<Tally>>,
}

impl Worker {
    async fn run(self, mut stop: watch::Receiver<bool>) {
        let client = client::client();
        let mut pace = tokio::time::interval(self.interval);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A request is never given up half-way: only the wait for the next one is.
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                _ = pace.tick() => {}
            }
            let failure = self.ask(&client).await.err();
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.count(failure);
        }
    }

    async fn ask(&self, client: &client::Client) -> Result<(), String> {
        let request = request(&self.url, Some(&self.authorization))?;
        match client::exchange(client, request, DEADLINE).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) => Err(failure(&answer)),
            Err(error) => Err(error.reason().to_owned()),
        }
    }
}

/// A GET with a token or without.
pub(super) fn request(
    url: &str,
    authorization: Option<&str>,
) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::get(url);
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(Full::default()).map_err(|e| e.to_string())
}

/// What a refusal says of itself: Weft's problem+json has a `reason`, the app's answers have an `error`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    reason: Option<String>,
    error: Option<String>,
}

/// The `reason` of an answer that Weft made itself.
pub(super) fn reason(answer: &Answer) -> Option<String> {
    let refusal: Refusal = serde_json::from_slice(&answer.body).ok()?;
    refusal.reason
}

fn failure(answer: &Answer) -> String {
    let refusal: Refusal = serde_json::from_slice(&answer.body).unwrap_or_default();
    let why = refusal.reason.or(refusal.error);
    let why = why.unwrap_or_else(|| "without a reason".to_owned());
    format!("{} {why}", answer.status.as_u16())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::{HeaderMap, StatusCode};

    fn tally(answered: u64, failures: &[(&str, u64)]) -> Tally {
        let failures = failures.iter().map(|(kind, n)| ((*kind).to_owned(), *n));
        Tally {
            answered,
            failures: failures.collect(),
        }
    }

    #[test]
    fn a_window_holds_what_was_added_in_it() {
        let before = tally(10, &[("502 a", 2), ("503 b", 1)]);
        let after = tally(15, &[("502 a", 5), ("503 b", 1), ("client timeout", 1)]);
        let window = after.since(&before);
        assert_eq!(window, tally(5, &[("502 a", 3), ("client timeout", 1)]));
        assert_eq!(window.failed(), 4);
        assert_eq!(window.ended(), 9);
        assert_eq!(window.reasons(), "3 × 502 a, 1 × client timeout");
        assert_eq!(after.since(&after).reasons(), "none");
    }

    #[test]
    fn kinds_of_failure_are_bounded() {
        let mut all = Tally::default();
        for number in 0..MAX_KINDS + 10 {
            all.count(Some(format!("kind {number}")));
        }
        assert_eq!(all.failures.len(), MAX_KINDS + 1);
        assert_eq!(all.failures["others"], 10);
        // A kind that is known already is still told apart.
        all.count(Some("kind 0".to_owned()));
        assert_eq!(all.failures["kind 0"], 2);
    }

    #[test]
    fn a_failure_is_named_by_what_the_answer_says() {
        let answer = |body: &str| Answer {
            status: StatusCode::BAD_GATEWAY,
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        for (body, expected) in [
            (
                r#"{"reason":"upstream_reset","title":"x"}"#,
                "502 upstream_reset",
            ),
            (
                r#"{"error":"orders answered 500"}"#,
                "502 orders answered 500",
            ),
            ("<html>", "502 without a reason"),
        ] {
            assert_eq!(failure(&answer(body)), expected);
        }
        assert_eq!(reason(&answer(r#"{"error":"no"}"#)), None);
    }

    #[tokio::test]
    async fn a_load_without_a_gateway_counts_refusals_and_ends_when_asked() {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/checkout", probe.local_addr().unwrap());
        drop(probe);
        let tokens = vec!["a".to_owned(), "b".to_owned()];
        let mut load = Load::start(&url, tokens, Duration::from_millis(1));
        while load.tally().ended() < 4 {
            tokio::task::yield_now().await;
        }
        load.finish().await;
        let last = load.tally();
        assert_eq!(last.answered, 0);
        assert_eq!(
            last.failures.keys().collect::<Vec<_>>(),
            ["connection refused"]
        );
    }
}
