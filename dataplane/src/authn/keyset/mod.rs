//! An issuer's keys, kept fresh: read from a file or fetched, off the path of any request.
//!
//! What was had once is kept until something better comes: neither an outage of the issuer nor a broken or empty
//! document takes keys away. After a day without success that is said loudly.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Guard};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use weft_runtime::backoff::Backoff;
use weft_runtime::config::{Path, Problems, redact_query};

use super::fetch::{Fetcher, MOST_BYTES, Url};
use super::jwks::Keys;

/// `jwks:`, as it stands in the file: either `file` or `url`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "KeySet")]
pub struct Source {
    /// A key set on disk, read again when it changes.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Where the issuer publishes its key set, `https://…` or `http://…`; fetched every ten minutes.
    #[serde(default)]
    pub url: Option<String>,
    /// With an `https` URL: a PEM file with the certificates to trust, instead of the system's. Read again each time.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// The one thing that a [`Source`] says.
pub(super) enum Checked<'a> {
    File(&'a PathBuf),
    Url(&'a str, Url),
}

impl Source {
    /// Checks what stands at `place`, without reading any file.
    pub(super) fn check(&self, place: &Path, problems: &mut Problems) -> Option<Checked<'_>> {
        match (&self.file, &self.url) {
            (Some(file), None) => {
                if self.ca.is_some() {
                    problems.at(
                        &place.key("ca"),
                        "`ca` has no meaning for a key set in a file",
                        "remove it",
                    );
                }
                Some(Checked::File(file))
            }
            (None, Some(text)) => Url::check(place, text, self.ca.is_some(), problems)
                .map(|url| Checked::Url(text, url)),
            (both, _) => {
                problems.at(
                    place,
                    if both.is_some() {
                        "a key set has both `file` and `url`"
                    } else {
                        "a key set has neither `file` nor `url`"
                    },
                    "write one of them, such as `jwks: { url: https://id.example/jwks.json }`",
                );
                None
            }
        }
    }
}

/// The keys of an issuer now.
#[derive(Debug)]
pub struct KeySet {
    place: Place,
    current: ArcSwapOption<Keys>,
    /// Somebody has a token with a key that is not here. Holds one permit, so asking twice is asking once.
    asked: Notify,
    failures: AtomicU32,
    /// When the keys were had or confirmed last.
    succeeded: ArcSwapOption<Instant>,
    /// Whether they were asked for once, however that went.
    tried: watch::Sender<bool>,
    pace: Pace,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    /// As it may be shown.
    Url(String, Box<Fetcher>),
}

/// How often, and how long after what.
#[derive(Debug, Clone)]
struct Pace {
    /// After a success.
    refresh: Duration,
    /// After failures.
    retry: Backoff,
    /// Between two attempts, when tokens with unknown keys ask for one.
    least: Duration,
    /// Beyond the refresh: how long an outage is nothing to be loud about.
    patience: Duration,
}

/// How often an issuer is asked.
pub(crate) const REFRESH: Duration = Duration::from_secs(600);

/// The patience of every pace.
pub(crate) const PATIENCE: Duration = Duration::from_secs(24 * 3_600);

impl Pace {
    fn of_url() -> Self {
        Self::new(REFRESH, Duration::from_secs(1), Duration::from_secs(10))
    }

    /// Files are near: looked at every two seconds.
    fn of_file() -> Self {
        let often = Duration::from_secs(2);
        Self::new(often, often, often)
    }

    fn new(refresh: Duration, retry: Duration, least: Duration) -> Self {
        Self {
            refresh,
            retry: Backoff::new(retry, Duration::from_secs(30), 0.5),
            least,
            patience: PATIENCE,
        }
    }

    /// How long to wait after an attempt; `failures` in a row, 0 after a success. `random` is from 0 to 1.
    fn wait(&self, failures: u32, random: f64) -> Duration {
        match failures {
            // Gateways that started together do not ask together for ever.
            0 => self.refresh.mul_f64(1.0 - 0.1 * random),
            _ => self.retry.delay(failures, random),
        }
    }
}

impl KeySet {
    /// Builds from the `source` that stands at `place`. A file must be there and good now; a URL is not asked yet.
    pub fn build(place: &Path, source: &Source, problems: &mut Problems) -> Option<Self> {
        let before = problems.len();
        let set = match source.check(place, problems) {
            Some(Checked::File(file)) => {
                match read_file_now(file).and_then(|bytes| Keys::parse(&bytes)) {
                    Ok(keys) => {
                        let set = Self::new(Place::File(file.clone()), Pace::of_file());
                        set.publish(keys);
                        set.succeeded.store(Some(Arc::new(Instant::now())));
                        set.tried.send_replace(true);
                        Some(set)
                    }
                    Err(error) => {
                        problems.at(
                            &place.key("file"),
                            format!("the key set `{}`: {error}", file.display()),
                            "write the path of a JSON Web Key Set (RFC 7517) with a public RSA, P-256 or Ed25519 key",
                        );
                        None
                    }
                }
            }
            Some(Checked::Url(text, url)) => {
                Fetcher::build(place, &url, source.ca.as_deref(), problems).map(|fetcher| {
                    let shown = redact_query(text).into_owned();
                    Self::new(Place::Url(shown, Box::new(fetcher)), Pace::of_url())
                })
            }
            None => None,
        };
        set.filter(|_| problems.len() == before)
    }

    fn new(place: Place, pace: Pace) -> Self {
        Self {
            place,
            current: ArcSwapOption::empty(),
            asked: Notify::new(),
            failures: AtomicU32::new(0),
            succeeded: ArcSwapOption::empty(),
            tried: watch::Sender::new(false),
            pace,
        }
    }

    /// Whether there are keys.
    pub fn is_ready(&self) -> bool {
        self.current.load().is_some()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.current.load().as_ref().map_or(0, |keys| keys.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        !self.is_ready()
    }

    /// How many attempts have failed since the last one that did not.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How long ago the keys were had or confirmed last, if ever.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let succeeded = self.succeeded.load();
        let at = succeeded.as_deref()?;
        Some(now.saturating_duration_since(*at))
    }

    /// Waits until the keys were asked for once, however that went. May be dropped at any time.
    pub async fn tried(&self) {
        // The sender is ours, so this cannot fail.
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }

    /// Where the keys are from, for people: of a URL without its query.
    pub fn origin(&self) -> String {
        match &self.place {
            Place::File(file) => file.display().to_string(),
            Place::Url(url, _) => url.clone(),
        }
    }

    pub(super) fn current(&self) -> Guard<Option<Arc<Keys>>> {
        self.current.load()
    }

    /// Asks for an attempt soon; never waits.
    pub(super) fn ask_again(&self) {
        self.asked.notify_one();
    }

    /// Keeps the keys fresh until `shutdown` says true or its sender is gone. May be dropped at any time.
    pub async fn keep(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let begun = Instant::now();
        let mut said = String::new();
        loop {
            let began = Instant::now();
            let attempt = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return,
                attempt = self.attempt() => attempt,
            };
            match attempt {
                Ok(()) => {
                    if self.failures.swap(0, Ordering::Relaxed) > 0 {
                        tracing::info!(keys = %self.origin(), "key set can be had again");
                    }
                    self.succeeded.store(Some(Arc::new(Instant::now())));
                    said.clear();
                }
                Err(error) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    let age = self.age(Instant::now()).unwrap_or_else(|| begun.elapsed());
                    self.say_failure(&error, age, &mut said);
                }
            }
            self.tried.send_replace(true);
            let wait = self.pace.wait(self.failures(), fastrand::f64());
            let asked = async {
                self.asked.notified().await;
                let least = self.pace.least.saturating_sub(began.elapsed());
                tokio::time::sleep(least).await;
            };
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(wait) => {}
                () = asked => {}
            }
        }
    }

    async fn attempt(&self) -> Result<(), String> {
        let document = match &self.place {
            Place::Url(_, fetcher) => fetcher.get().await?,
            Place::File(file) => {
                let file = file.clone();
                // A file may be on a disk that hangs.
                tokio::task::spawn_blocking(move || read_file_now(&file))
                    .await
                    .map_err(|error| error.to_string())??
            }
        };
        let current = self.current();
        // Unchanged keys keep their generation, and with it all verified tokens.
        if current
            .as_ref()
            .is_some_and(|keys| keys.document() == document)
        {
            return Ok(());
        }
        self.publish(Keys::parse(&document)?);
        Ok(())
    }

    fn publish(&self, keys: Keys) {
        tracing::info!(keys = %self.origin(), usable = keys.len(), "key set taken");
        for why in keys.left_out() {
            tracing::warn!(keys = %self.origin(), why, "key left out");
        }
        self.current.store(Some(Arc::new(keys)));
    }

    /// Says a failure, and the same one of a file, which is looked at so often, only once.
    fn say_failure(&self, error: &str, age: Duration, said: &mut String) {
        let keys = self.origin();
        if matches!(self.place, Place::File(_)) && *said == error {
            return;
        }
        error.clone_into(said);
        let is_old = age > self.pace.refresh + self.pace.patience;
        let age = age.as_secs();
        if is_old {
            tracing::error!(%keys, error, age, "key set could not be had for more than a day; the old keys stay");
        } else if self.is_ready() {
            tracing::warn!(%keys, error, age, "key set could not be had; the old keys stay");
        } else {
            tracing::warn!(%keys, error, "key set could not be had; requests with tokens are refused until it is");
        }
    }
}

/// Reads at most [`MOST_BYTES`].
fn read_file_now(file: &std::path::Path) -> Result<Bytes, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    opened
        .take(MOST_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() > MOST_BYTES {
        return Err(format!("larger than {} MiB", MOST_BYTES >> 20));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests;
