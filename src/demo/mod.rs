//! `weft demo`: a whole mesh on loopback, with real processes, real certificates and real DNS.
//!
//! It starts a CA, a gateway and an app of three services, each instance with its sidecar and on an address of its own;
//! drives traffic through them; breaks, kills, adds and renews things; and checks what it promised. Read [`story`] for
//! what happens, [`mesh`] for what runs, [`ledger`] for what is promised.

pub(crate) mod app;
mod config;
mod dns;
mod ground;
mod http;
mod issuer;
mod ledger;
mod load;
mod mesh;
mod process;
mod services;
mod stage;
mod story;
mod table;
mod view;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use weft_runtime::config::units::Period;

use self::app::TOLD_TO_FAIL;
use self::ground::INGRESS;
use self::issuer::Issuer;
use self::ledger::{Ledger, Promise};
use self::load::{Load, Tally};
use self::mesh::Mesh;
use self::services::SERVICES;
use self::stage::Stage;
use self::story::Story;
use self::table::Heading;
use self::view::View;

/// The steady traffic: so many callers, and how long each waits between two requests. About 120 per second.
const CALLERS: usize = 8;
const CALLER_INTERVAL: Duration = Duration::from_millis(66);
/// The shortest time in which the story can be told.
const SHORTEST: Duration = Duration::from_secs(20);
/// How much longer than asked the story may take on a slow machine. Then it is cut.
const GRACE: Duration = Duration::from_secs(40);
/// What an unattended run keeps back for stopping everything.
const STOPPING: Duration = Duration::from_secs(1);
/// How long the last requests get to be answered.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How long certificates live when somebody watches, and when nobody does and time is short.
const LEAF_LIFETIME: Duration = Duration::from_secs(40);
const SHORT_LEAF_LIFETIME: Duration = Duration::from_secs(20);
/// How often the table is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(500);

/// Runs a whole mesh on loopback and shows what it does
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Run unattended for about this long (20s or more), then say what was shown; without it, the mesh stays until Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = run_for)]
    run_for: Option<Period>,
}

fn run_for(text: &str) -> Result<Period, String> {
    let period: Period = text.parse()?;
    if period.as_duration() < SHORTEST {
        return Err(format!("the story takes {SHORTEST:?} or more"));
    }
    Ok(period)
}

/// Runs the demo. Fails when something did not hold; unattended, also when something was not shown.
pub(crate) fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let shown = match runtime {
        Ok(runtime) => runtime.block_on(demonstrate(args)),
        Err(error) => Err(format!("start the demo: {error}")),
    };
    match shown {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// From the first process to the summary; whether it went well.
async fn demonstrate(args: &Args) -> Result<bool, String> {
    let stage = Stage::open();
    let mut stop = Stop::listen().map_err(|error| format!("listen for signals: {error}"))?;
    let issuer = Issuer::new().map_err(|error| error.to_string())?;
    let run_for = args.run_for.map(Period::as_duration);
    let leaf_lifetime = match run_for {
        Some(time) if time < Duration::from_secs(60) => SHORT_LEAF_LIFETIME,
        _ => LEAF_LIFETIME,
    };
    stage.say("A mesh starts: a CA, a gateway, and three services of which each instance has its sidecar.");
    let mut mesh = tokio::select! {
        mesh = Mesh::start(&issuer, leaf_lifetime, |line| stage.say(&line)) => {
            mesh.map_err(|error| error.to_string())?
        }
        () = stop.asked() => {
            stage.say("Stopped before the mesh was up.");
            return Ok(run_for.is_none());
        }
    };
    let mut ledger = Ledger::default();
    let came_up = format!(
        "{} processes ready after {:.1} s",
        mesh.processes(),
        stage.running().as_secs_f64()
    );
    stage.say(&came_up);
    ledger.enter(Promise::ComesUp, Ok(came_up));
    stage.print(&by_hand(&mesh, &story::token(&issuer, "you")?));

    let url = format!("{}{}", mesh.public_url(), SERVICES[0].path);
    let tokens = story::tokens(&issuer, "caller", CALLERS)?;
    let mut load = Load::start(&url, tokens, CALLER_INTERVAL);
    let (publish, view) = watch::channel(Arc::new(View::default()));
    let page = format!("{}/mesh", mesh.admin_url(mesh.block.host(INGRESS)));
    let scenery = view::follow(mesh.client.clone(), page, publish);
    let table = draw(&stage, &load, view.clone());
    let play = play(
        Story {
            mesh: &mut mesh,
            issuer: &issuer,
            stage: &stage,
            load: &load,
            view: view.clone(),
            ledger: &mut ledger,
            leaf_lifetime,
        },
        run_for,
    );
    tokio::select! {
        () = play => {}
        () = stop.asked() => stage.say("Stopping."),
        () = scenery => {}
        () = table => {}
    }

    let all_ended = tokio::time::timeout(LAST_ANSWERS, load.finish()).await;
    judge_traffic(&mut ledger, &load.tally(), all_ended.is_ok());
    let well = ledger.all_held() || (run_for.is_none() && !ledger.any_broken());
    tokio::select! {
        kept = mesh.stop(!well) => {
            stage.close();
            stage.print("");
            stage.print(&ledger.summary());
            if let Some(directory) = kept {
                stage.print(&format!("The logs are in {}", directory.display()));
            }
        }
        // Asked twice: whatever still runs is killed.
        () = stop.asked() => {
            stage.close();
            stage.print(&ledger.summary());
        }
    }
    Ok(well)
}

/// The story, and the time after it: until the time is over, or for ever.
async fn play(mut story: Story<'_>, run_for: Option<Duration>) {
    let stage = story.stage;
    let left = |until: Duration| until.saturating_sub(stage.running());
    let Some(time) = run_for else {
        story.tell().await;
        stage.say("The mesh stays up until Ctrl-C.");
        return story.stand_by().await;
    };
    if tokio::time::timeout(left(time + GRACE), story.tell())
        .await
        .is_err()
    {
        return stage.say("The story takes far longer than asked, and ends here.");
    }
    let rest = left(time.saturating_sub(STOPPING));
    // Elapsing is how it ends when all is well.
    let _ = tokio::time::timeout(rest, story.stand_by()).await;
}

/// Draws the table for as long as it is polled.
async fn draw(stage: &Stage, load: &Load, view: watch::Receiver<Arc<View>>) {
    let mut pace = tokio::time::interval(DRAW_EVERY);
    loop {
        pace.tick().await;
        let now = view.borrow().clone();
        let tally = load.tally();
        let heading = Heading {
            running: stage.running(),
            answered: tally.answered,
            failed: tally.failed(),
        };
        let table = table::render(&heading, &now, stage.width(), stage.is_terminal());
        stage.show(table);
    }
}

/// The steady traffic as a whole: only the replica that was told to fail may have cost a request.
fn judge_traffic(ledger: &mut Ledger, tally: &Tally, all_ended: bool) {
    if tally.ended() == 0 {
        return;
    }
    let (excused, others) = tally.without(&format!("502 orders answered 500: {TOLD_TO_FAIL}"));
    let seen = if others.failed() > 0 {
        Err(format!(
            "{} requests failed: {}",
            others.failed(),
            others.reasons()
        ))
    } else if all_ended {
        Ok(format!(
            "{} requests answered; {excused} failed at the replica that was told to fail, none elsewhere",
            tally.answered
        ))
    } else {
        Err(format!(
            "requests were still without an answer after {LAST_ANSWERS:?}"
        ))
    };
    ledger.enter(Promise::FailsNothingElse, seen);
}

/// What a reader can try while the mesh is up.
fn by_hand(mesh: &Mesh, token: &str) -> String {
    let gateway = mesh.public_url();
    let admin = mesh.admin_url(mesh.block.host(INGRESS));
    let path = SERVICES[0].path;
    let replica = mesh.replicas("orders").next();
    let sidecar = replica
        .map(|replica| mesh.admin_url(replica.host))
        .unwrap_or_default();
    let directory = mesh.directory().display();
    format!(
        "
  the gateway          {gateway}{path}/42
  its admin pages      {admin}/metrics and /mesh /config /ready
  a sidecar's          {sidecar}/metrics and /config /ready
  configuration, logs  {directory}

  Try by hand:
TOKEN={token}
curl -s -H \"Authorization: Bearer $TOKEN\" {gateway}{path}/42
curl -i {gateway}{path}/42
curl -s {admin}/mesh
"
    )
}

/// Ctrl-C, a stop by the system, or a terminal that is gone.
struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        let signals = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ];
        Ok(Self { signals })
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_time_to_run_has_units_and_is_long_enough() {
        for (text, expected) in [
            ("30s", Ok(30)),
            ("20s", Ok(20)),
            ("1m30s", Ok(90)),
            ("19s", Err("the story takes 20s or more")),
        ] {
            let parsed = run_for(text).map(|period| period.as_duration().as_secs());
            assert_eq!(parsed, expected.map_err(str::to_owned), "{text}");
        }
        assert!(run_for("30").unwrap_err().contains("write it with units"));
    }

    fn judged(answered: u64, failures: &[(&str, u64)], all_ended: bool) -> Ledger {
        let mut ledger = Ledger::default();
        let tally = Tally {
            answered,
            failures: failures
                .iter()
                .map(|(k, n)| ((*k).to_owned(), *n))
                .collect(),
        };
        judge_traffic(&mut ledger, &tally, all_ended);
        ledger
    }

    #[test]
    fn only_the_replica_that_was_told_to_fail_may_cost_requests() {
        let told = "502 orders answered 500: told to fail";
        assert!(!judged(100, &[(told, 7)], true).any_broken());
        assert!(
            judged(100, &[(told, 7)], true)
                .summary()
                .contains("7 failed at the replica")
        );
        assert!(judged(100, &[(told, 7), ("503 no_endpoints", 1)], true).any_broken());
        assert!(judged(100, &[], false).any_broken());
    }

    #[test]
    fn a_demo_without_traffic_says_nothing_of_it() {
        let ledger = judged(0, &[], true);
        assert!(!ledger.any_broken() && !ledger.all_held());
    }
}
