//! `weft run -- CMD…`: a sidecar and its app as one. The app is started when the sidecar is ready; signals reach it;
//! when it is time to go, what comes in is drained before the app is told, and the way out stays until the app has
//! ended; then the whole ends, with the app's exit code.
//!
//! It may be the first process of a container: it buries orphans, and what still runs when it ends goes with it.

mod app;

use std::convert::Infallible;
use std::ffi::OsString;
use std::future::pending;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{sleep, timeout};
use weft_dataplane::node::WayOut;
use weft_runtime::config::units::Period;
use weft_runtime::config::{Watched, env};
use weft_runtime::drain::{self, Trigger};
use weft_runtime::ready::Readiness;
use weft_runtime::signal::{Stop, Stops};

use self::app::{App, Children, OURS, PassedOn, Program};
use crate::role::{self, Ending};
use crate::sidecar;

/// How long the sidecar may take to end once the app has: peers let go of their connections, the last report is sent.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// Longer than any drain: when what came in is over is told in another way.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug, clap::Args)]
#[group(id = "run")]
pub(crate) struct Args {
    #[command(flatten)]
    sidecar: sidecar::Args,
    /// How long the sidecar may take to be ready; after that the app is not started, and the exit code is 125
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    ready_timeout: Period,
    /// How long the app may take to end after it was told to; after that it is killed
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    grace: Period,
    /// Tells the app to use the sidecar as its HTTP proxy: sets http_proxy and no_proxy, unless the app has them
    #[arg(long)]
    http_proxy: bool,
    /// The app and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let mut program = Program::new(&args.command);
    let mut start = match args.sidecar.start() {
        Ok(start) => start,
        Err(code) => return code,
    };
    if args.http_proxy
        && let Some(design) = &start.checked.sidecar
    {
        let outbound = design.outbound_address();
        if program.use_proxy(outbound, env::read) {
            start.outbound = Some(outbound);
        }
    }
    let way_out = WayOut::default();
    let keeper = Keeper {
        ready_timeout: args.ready_timeout.as_duration(),
        grace: args.grace.as_duration(),
        way_out: way_out.clone(),
    };
    let sidecar = args.sidecar;
    role::conduct(
        start,
        move |start, running| {
            running.process.way_out = Some(way_out);
            sidecar::work(&sidecar, start, running)
        },
        async move |ending| keeper.keep(program, ending).await,
    )
}

/// Who looks after the app.
struct Keeper {
    ready_timeout: Duration,
    grace: Duration,
    way_out: WayOut,
}

/// The sidecar's side of the story.
struct Beside<'a> {
    stops: Stops,
    trigger: &'a Trigger,
    readiness: &'a Readiness,
    drain: Watched<drain::Config>,
}

impl Keeper {
    async fn keep(self, mut program: Program, ending: Ending) -> ExitCode {
        let (mut children, mut passed_on) = match (Children::listen(), PassedOn::listen()) {
            (Ok(children), Ok(passed_on)) => (children, passed_on),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot catch signals, so the app is not started");
                return ExitCode::from(OURS);
            }
        };
        let Ending {
            stops,
            trigger,
            readiness,
            drain,
            tasks,
        } = ending;
        let beside = Beside {
            stops,
            trigger: &trigger,
            readiness: &readiness,
            drain,
        };
        let mut started = None;
        let story = self.story(
            &mut program,
            &mut started,
            &mut children,
            &mut passed_on,
            beside,
        );
        let code = match tasks.run_until(story).await {
            Ok(code) => code,
            Err(failure) => {
                tracing::error!(problem = %failure, "the sidecar has failed, so the app ends too");
                if let Some(app) = started {
                    self.end(app, &mut children).await;
                }
                OURS
            }
        };
        ExitCode::from(code)
    }

    /// From the sidecar's readiness to the end of both; gives the exit code.
    async fn story(
        &self,
        program: &mut Program,
        started: &mut Option<App>,
        children: &mut Children,
        passed_on: &mut PassedOn,
        mut beside: Beside<'_>,
    ) -> u8 {
        if let Err(code) = self.ready(&mut beside).await {
            return code;
        }
        let name = program.name();
        let app = match program.start() {
            Ok(app) => *started.insert(app),
            Err((code, error)) => {
                tracing::error!(%error, command = name, "the app cannot be started");
                return code;
            }
        };
        tracing::info!(command = name, pid = app.id(), "the app has been started");
        let code = tokio::select! {
            code = children.until_ended(app) => code,
            never = passed_on.to(app) => match never {},
            stop = self.stopped(app, &mut beside) => {
                app.signal(Signal::KILL);
                return at_once(stop);
            }
        };
        *started = None;
        tracing::info!(code, "the app has ended");
        self.afterwards(code, &mut beside).await
    }

    /// Waits for the sidecar. No app, but an exit code, when it takes too long or somebody says stop.
    async fn ready(&self, beside: &mut Beside<'_>) -> Result<(), u8> {
        tokio::select! {
            () = beside.readiness.ready() => Ok(()),
            () = sleep(self.ready_timeout) => {
                tracing::error!(
                    missing = ?beside.readiness.missing(),
                    waited = ?self.ready_timeout,
                    "the sidecar is not ready, so the app is not started; the lines above say why, `--ready-timeout` gives it longer",
                );
                Err(OURS)
            }
            stop = beside.stops.next() => {
                tracing::info!(signal = %stop, "stopped before the app was started");
                Err(at_once(stop))
            }
            () = beside.trigger.requested() => {
                tracing::info!("stopped by the admin page before the app was started");
                Err(at_once(Stop::Terminate))
            }
        }
    }

    /// Waits until somebody says stop, then brings the app to its end step by step, without an end of its own: that is
    /// the app's. Returns when somebody says stop again.
    async fn stopped(&self, app: App, beside: &mut Beside<'_>) -> Stop {
        let (signal, why) = tokio::select! {
            stop = beside.stops.next() => match stop {
                Stop::Terminate => (Signal::TERM, "SIGTERM"),
                Stop::Interrupt => (Signal::INT, "SIGINT"),
            },
            () = beside.trigger.requested() => (Signal::TERM, "the admin page"),
        };
        let drain = *beside.drain.get();
        let (delay, limit) = (drain.delay.as_duration(), drain.timeout.as_duration());
        tracing::info!(why, ?delay, timeout = ?limit, grace = ?self.grace, "draining");
        beside.readiness.leave("draining");
        beside.trigger.leave();
        let trigger = beside.trigger;
        let steps = async {
            sleep(delay).await;
            let quiet = async {
                tokio::select! {
                    // Begins the drain. It does not end, for the data path waits for the app.
                    _ = trigger.drain(NEVER) => {}
                    () = self.way_out.quiet() => {}
                }
            };
            if timeout(limit, quiet).await.is_err() {
                tracing::warn!(
                    "not everything that came in has ended in time; the app is told all the same"
                );
            }
            app.signal(signal);
            sleep(self.grace).await;
            tracing::warn!(grace = ?self.grace, "the app did not end in time and is killed");
            app.signal(Signal::KILL);
            pending::<Infallible>().await
        };
        tokio::select! {
            never = steps => match never {},
            stop = beside.stops.next() => stop,
        }
    }

    /// The app has ended: nothing that comes in can be served any more, and nobody goes out.
    async fn afterwards(&self, code: u8, beside: &mut Beside<'_>) -> u8 {
        beside.readiness.leave("the app has ended");
        self.way_out.close();
        tokio::select! {
            cut = beside.trigger.drain(AFTERWARDS) => {
                if cut > 0 {
                    tracing::warn!(cut, "what still runs is cut");
                }
                code
            }
            stop = beside.stops.next() => at_once(stop),
        }
    }

    /// Ends the app without a sidecar beside it.
    async fn end(&self, app: App, children: &mut Children) {
        app.signal(Signal::TERM);
        if timeout(self.grace, children.until_ended(app))
            .await
            .is_err()
        {
            app.signal(Signal::KILL);
        }
    }
}

fn at_once(stop: Stop) -> u8 {
    tracing::warn!(signal = %stop, "ending at once");
    u8::try_from(stop.exit_code()).unwrap_or(OURS)
}
