//! Turns signals into a drain. The first SIGTERM or SIGINT begins it; the second one means "now".

use std::fmt;
use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Watched;
use crate::drain::{self, Trigger};
use crate::ready::Readiness;

/// SIGTERM and SIGINT, one after the other.
#[derive(Debug)]
pub struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

/// A request to stop that came as a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM
    Terminate,
    /// SIGINT
    Interrupt,
}

/// What a drain came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// What began it.
    pub why: String,
    /// How much was cut because the time was up.
    pub cut: usize,
}

impl Stops {
    /// Catches both signals from here on.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one. May be dropped while it waits without losing anything.
    pub async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminate,
            _ = self.interrupt.recv() => Stop::Interrupt,
        }
    }
}

impl Stop {
    /// With which code a process ends that is stopped at once: 128 and the number of the signal, as shells have it.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Terminate => 143,
            Self::Interrupt => 130,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// SIGHUP, which asks to read the configuration again.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Catches the signal from here on; before that it ends the process.
    pub fn listen() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next one. May be dropped while it waits without losing anything.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Waits for a signal or for a [`drain::Request`], then drains as `config` has it by then: not ready any more, wait so that others see it, finish what runs, end.
/// A second signal ends the process at once.
///
/// The caller gives it to [`Group::run_until`](crate::task::Group::run_until) and returns from `main` after it.
pub async fn drain_on_stop(
    mut stops: Stops,
    trigger: &Trigger,
    readiness: &Readiness,
    config: &Watched<drain::Config>,
) -> Drained {
    let why = tokio::select! {
        stop = stops.next() => stop.to_string(),
        () = trigger.requested() => "the admin page".to_owned(),
    };
    let at_once = async {
        let stop = stops.next().await;
        tracing::warn!(signal = %stop, guards = trigger.guards(), "second signal, ending at once");
        std::process::exit(stop.exit_code());
    };
    // As the file has it by now.
    let config = *config.get();
    let cut = drain(trigger, readiness, config, &why, at_once).await;
    Drained { why, cut }
}

async fn drain(
    trigger: &Trigger,
    readiness: &Readiness,
    config: drain::Config,
    why: &str,
    at_once: impl Future<Output = usize>,
) -> usize {
    let (delay, timeout) = (config.delay.as_duration(), config.timeout.as_duration());
    tracing::info!(why, ?delay, ?timeout, "draining");
    readiness.leave("draining");
    trigger.leave();
    let drained = async {
        tokio::time::sleep(delay).await;
        trigger.drain(timeout).await
    };
    let cut = tokio::select! {
        cut = drained => cut,
        cut = at_once => cut,
    };
    if cut == 0 {
        tracing::info!("drained");
    } else {
        tracing::warn!(cut, "drain timed out, what still runs is cut");
    }
    cut
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::units::Period;
    use crate::config::watched;
    use rustix::process::{Signal as Number, getpid, kill_process};
    use std::future::pending;
    use std::time::Duration;
    use tokio::time::Instant;

    const CONFIG: drain::Config = drain::Config {
        delay: Period::seconds(5),
        timeout: Period::seconds(30),
    };

    #[tokio::test(start_paused = true)]
    async fn unready_first_then_the_delay_then_the_drain() {
        let (trigger, watch) = drain::channel();
        let readiness = Readiness::new();
        let guard = watch.guard();
        let begun = Instant::now();
        let work = async {
            watch.draining().await;
            assert_eq!(begun.elapsed(), Duration::from_secs(5));
            assert_eq!(readiness.missing(), ["draining"]);
            drop(guard);
        };
        let (cut, ()) = tokio::join!(drain(&trigger, &readiness, CONFIG, "test", pending()), work);
        assert_eq!((cut, begun.elapsed()), (0, Duration::from_secs(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_does_not_wait() {
        let (trigger, watch) = drain::channel();
        let _held = watch.guard();
        let begun = Instant::now();
        let second = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            1
        };
        let cut = drain(&trigger, &Readiness::new(), CONFIG, "test", second).await;
        assert_eq!((cut, begun.elapsed()), (1, Duration::from_secs(7)));
    }

    /// One test, because both would hear the other's signal if they ran at the same time.
    #[tokio::test]
    async fn a_request_or_a_signal_begins_the_drain() {
        // What the file says when it begins counts, and not what it said at the start.
        let (publisher, config) = watched(CONFIG);
        publisher.publish(drain::Config {
            delay: Period::millis(0),
            ..CONFIG
        });
        let begun = Instant::now();
        let (trigger, _watch) = drain::channel();
        trigger.request().ask();
        let stops = Stops::listen().unwrap();
        let drained = drain_on_stop(stops, &trigger, &Readiness::new(), &config).await;
        assert_eq!(drained.why, "the admin page");

        let (trigger, watch) = drain::channel();
        let stops = Stops::listen().unwrap();
        kill_process(getpid(), Number::TERM).unwrap();
        let drained = drain_on_stop(stops, &trigger, &Readiness::new(), &config).await;
        assert_eq!((drained.why.as_str(), drained.cut), ("SIGTERM", 0));
        assert!(watch.has_ended());
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn a_hangup_is_heard() {
        let mut hangups = Hangups::listen().unwrap();
        kill_process(getpid(), Number::HUP).unwrap();
        hangups.next().await;
    }

    #[test]
    fn exit_codes_are_the_shells() {
        assert_eq!(Stop::Terminate.exit_code(), 143);
        assert_eq!(Stop::Interrupt.exit_code(), 130);
    }
}
