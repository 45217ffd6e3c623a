//! Steady load: so many callers that ask one after the other until told to stop, and what became of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Request;
use tokio::task::JoinSet;

use super::client::{Body, Client, Reply, whole};
use super::eventually;

/// Who asks one thing after the other, and remembers what it needs for the next.
pub(crate) trait Caller: Send + 'static {
    /// The answer to the next question, or what went wrong in words.
    fn ask(&mut self) -> impl Future<Output = Result<String, String>> + Send;
}

/// Asks with a client.
#[derive(Debug, Clone)]
struct Asks<F> {
    client: Client,
    request: F,
}

impl<F: Fn() -> Request<Body> + Send + 'static> Caller for Asks<F> {
    async fn ask(&mut self) -> Result<String, String> {
        let request = (self.request)();
        good(&self.client.try_send(request).await?)
    }
}

/// The body of an answer with 200.
pub(crate) fn good(reply: &Reply) -> Result<String, String> {
    match reply.code() {
        200 => Ok(reply.text()),
        _ => Err(format!("{} {}", reply.status, reply.text())),
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicUsize,
    answers: Mutex<BTreeMap<String, usize>>,
    failures: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

/// Load that runs until [`Load::stop`].
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    callers: JoinSet<()>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How often each body was answered with 200.
    pub(crate) answers: BTreeMap<String, usize>,
    /// What went wrong, in words, one for each exchange that failed (the first hundred).
    pub(crate) failures: Vec<String>,
}

impl Load {
    /// Each of `callers` sends a GET to `url`, waits for the answer and for `pause`, and begins again.
    pub(crate) fn start(client: &Client, url: &str, callers: usize, pause: Duration) -> Self {
        let url = url.to_owned();
        let request = move || Request::get(&url).body(whole("")).unwrap();
        Self::of(client, request, callers, pause)
    }

    /// The same with any request.
    pub(crate) fn of(
        client: &Client,
        request: impl Fn() -> Request<Body> + Clone + Send + 'static,
        callers: usize,
        pause: Duration,
    ) -> Self {
        let client = client.clone();
        let asks = Asks { client, request };
        Self::by(vec![asks; callers], pause)
    }

    /// The same by anybody.
    pub(crate) fn by(callers: Vec<impl Caller>, pause: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let mut set = JoinSet::new();
        for mut caller in callers {
            let shared = Arc::clone(&shared);
            set.spawn(async move {
                while !shared.stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    match caller.ask().await {
                        Ok(text) => {
                            *shared.answers.lock().unwrap().entry(text).or_default() += 1;
                        }
                        Err(words) => shared.fail(words),
                    }
                    {
                        let mut slowest = shared.slowest.lock().unwrap();
                        *slowest = begun.elapsed().max(*slowest);
                    }
                    shared.done.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                }
            });
        }
        Self {
            shared,
            callers: set,
        }
    }

    /// Exchanges that have ended.
    pub(crate) fn done(&self) -> usize {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// How long the longest took of those that have ended since this was asked last.
    pub(crate) fn slowest(&self) -> Duration {
        std::mem::take(&mut self.shared.slowest.lock().unwrap())
    }

    /// Waits until so many more have ended.
    pub(crate) async fn more(&self, exchanges: usize) {
        let wanted = self.done() + exchanges;
        eventually(&format!("{exchanges} more exchanges end"), async || {
            (self.done() >= wanted).then_some(())
        })
        .await;
    }

    /// Lets the exchanges under way end.
    pub(crate) async fn stop(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        Outcome {
            answers: std::mem::take(&mut self.shared.answers.lock().unwrap()),
            failures: std::mem::take(&mut self.shared.failures.lock().unwrap()),
        }
    }
}

impl Shared {
    fn fail(&self, words: String) {
        let mut failures = self.failures.lock().unwrap();
        if failures.len() < 100 {
            failures.push(words);
        }
    }
}

impl Outcome {
    /// Exchanges that were answered well.
    pub(crate) fn answered(&self) -> usize {
        self.answers.values().sum()
    }

    /// Nothing failed, and something was asked.
    pub(crate) fn assert_all_answered(&self) {
        assert!(self.failures.is_empty(), "{:#?}", self.failures);
        assert!(self.answered() > 0, "nothing was asked");
    }
}
