//! When to ask the CA again, and the loop that does.
//!
//! Renewal goes by the clock and never by traffic: at half of the certificate's life, give or take a tenth, so that
//! instances started together do not come together. A CA that is away changes nothing while the certificate is valid.

use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tracing::{debug, info, warn};
use weft_runtime::backoff::Backoff;

use super::Identity;
use super::client::{AskError, Authority};

/// Waits after failures.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300), 0.5);
/// Longest wait before the first certificate: containers start in any order, and somebody is waiting.
const LONGEST_FIRST_RETRY: Duration = Duration::from_secs(10);
/// However short a certificate's life, the CA is not asked more often.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);
/// So often the wall clock is looked at: it may jump, and timers stand still while a host sleeps.
const CLOCK_CHECK: Duration = Duration::from_secs(10);

/// When to renew a certificate: after 40 to 60 % of the life that it had left when it was obtained.
///
/// Certificates are backdated, so that hosts whose clocks are late take them at once. What lies before the moment
/// in which we got one is not ours to use; counting it would have a short-lived certificate renewed for ever. `random` is in 0..1.
pub fn renew_at(
    not_before: SystemTime,
    not_after: SystemTime,
    obtained: SystemTime,
    random: f64,
) -> SystemTime {
    let start = not_before.max(obtained);
    let life = not_after.duration_since(start).unwrap_or(Duration::ZERO);
    start + life.mul_f64(0.4 + 0.2 * random.clamp(0.0, 1.0))
}

/// How long to wait after the `failures`-th failure in a row, when the certificate has `life` in all and `rest` left.
///
/// Doubles from a second to five minutes, but waits no longer than a tenth of the life, nor than half of what is left:
/// so even a certificate that lives for seconds gets several attempts. `random` in 0..1 takes off up to a half.
pub fn retry_after(failures: u32, life: Duration, rest: Duration, random: f64) -> Duration {
    let mut longest = life / 10;
    if !rest.is_zero() {
        longest = longest.min(rest / 2);
    }
    RETRY
        .no_longer_than(longest)
        .delay(failures, random)
        .max(SHORTEST_RETRY)
}

/// The same before there is a certificate.
pub(super) fn first_retry_after(failures: u32, random: f64) -> Duration {
    RETRY
        .no_longer_than(LONGEST_FIRST_RETRY)
        .delay(failures, random)
}

/// Keeps the identity fresh until it is dropped, which loses nothing.
pub(super) async fn keep(identity: &Identity, authority: &Authority) {
    let renew_now = Notify::new();
    tokio::join!(
        Box::pin(keep_certificate(identity, authority, &renew_now)),
        Box::pin(keep_bundle(identity, authority, &renew_now)),
    );
}

async fn keep_certificate(identity: &Identity, authority: &Authority, renew_now: &Notify) {
    let mut failures = 0;
    loop {
        let due = next_attempt(identity, failures, SystemTime::now(), fastrand::f64());
        tokio::select! {
            () = sleep_until(due) => {}
            () = renew_now.notified() => {}
        }
        match renew(identity, authority).await {
            Ok(()) => {
                failures = 0;
                let status = identity.status();
                info!(serial = %status.serial, not_after = %httpdate::fmt_http_date(status.not_after), "certificate renewed");
            }
            Err(error) => {
                failures += 1;
                let left = left(identity, SystemTime::now());
                warn!(%error, failures, valid_for = ?left, "the certificate could not be renewed");
                identity.note_failure(error.to_string());
            }
        }
    }
}

fn next_attempt(identity: &Identity, failures: u32, now: SystemTime, random: f64) -> SystemTime {
    let material = identity.current();
    let start = material.not_before().max(material.obtained());
    if failures == 0 {
        return renew_at(material.not_before(), material.not_after(), start, random)
            .max(now + SHORTEST_RETRY);
    }
    let life = material.not_after().duration_since(start);
    let rest = left(identity, now);
    now + retry_after(failures, life.unwrap_or(Duration::ZERO), rest, random)
}

/// By the certificate while it is valid; after that only a join token can help.
async fn renew(identity: &Identity, authority: &Authority) -> Result<(), AskError> {
    let current = identity.current();
    let material = if current.is_valid(SystemTime::now()) {
        authority.renew(&current).await?
    } else {
        authority.join().await?
    };
    Ok(identity.renew(material)?)
}

fn left(identity: &Identity, now: SystemTime) -> Duration {
    identity
        .current()
        .not_after()
        .duration_since(now)
        .unwrap_or(Duration::ZERO)
}

async fn keep_bundle(identity: &Identity, authority: &Authority, renew_now: &Notify) {
    let mut failures = 0;
    loop {
        let ended = follow(identity, authority, renew_now, &mut failures).await;
        failures += 1;
        match ended {
            Ok(()) => debug!("the CA ended the stream of trust bundles"),
            // Said once: it may take long, and does no harm but that a change of roots is learned late.
            Err(error) if failures == 1 => warn!(%error, "the trust bundle cannot be followed"),
            Err(error) => debug!(%error, failures, "the trust bundle cannot be followed"),
        }
        let wait = RETRY.delay(failures, fastrand::f64());
        sleep_until(SystemTime::now() + wait).await;
    }
}

async fn follow(
    identity: &Identity,
    authority: &Authority,
    renew_now: &Notify,
    failures: &mut u32,
) -> Result<(), AskError> {
    let mut bundles = authority.follow(&identity.current()).await?;
    loop {
        let bundle = match bundles.next().await {
            Ok(Some(bundle)) => bundle,
            Ok(None) => return Ok(()),
            // The stream is sound, and the next bundle may be.
            Err(AskError::Answer(what)) => {
                warn!(what, "a trust bundle is of no use; the last good one stays");
                continue;
            }
            Err(error) => return Err(error),
        };
        *failures = 0;
        let roots = bundle.roots().len();
        if !identity.trust(bundle) {
            continue;
        }
        info!(roots, "the trust bundle has changed");
        if !identity.current().is_vouched_for(SystemTime::now()) {
            // Others have the new bundle as well, so they are about to refuse us.
            renew_now.notify_one();
        }
    }
}

async fn sleep_until(due: SystemTime) {
    while let Ok(rest) = due.duration_since(SystemTime::now()) {
        if rest.is_zero() {
            return;
        }
        tokio::time::sleep(rest.min(CLOCK_CHECK)).await;
    }
}

/// Ends when `shutdown` turns true or its sender is gone.
pub(super) async fn stopped(mut shutdown: tokio::sync::watch::Receiver<bool>) {
    // An error says that the sender is gone.
    let _ = shutdown.wait_for(|stop| *stop).await;
}
