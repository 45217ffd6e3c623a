//! A process with a data path, from its first certificate to its last connection: what the sidecar and the ingress do
//! alike. They differ in the [`Design`] that they hand in.

mod listeners;
mod rows;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use hickory_proto::rr::Name;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use weft_runtime::config::{Problems, Publisher, Status, Watched};
use weft_runtime::drain;
use weft_runtime::ready::{Guard, Readiness};
use weft_runtime::task::Group;

use crate::authn::KeySet;
use crate::cluster::{Cluster, Spec};
use crate::core::{Cores, Open, Shared};
use crate::discovery::Resolver;
use crate::discovery::resolver::Family;
use crate::identity::{Identity, Ours, Source};
use crate::limit::Limiter;
use crate::observe::{AccessLog, CertificateRow, Registry};
use crate::plan::Plan;
use crate::plan::carry::Carried;
use listeners::Listeners;

/// How often it is looked for counters of what is no more.
const FORGET: Duration = Duration::from_secs(60);
/// How often listeners that could not be opened are tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether a plan that is over is still in use.
const RETIRED: Duration = Duration::from_secs(2);
/// How long the first answers of discovery, of token issuers and of the CA are waited for before a plan is put in force.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);

/// A program's checked configuration, from which its plans are made.
pub trait Design: Send + Sync + 'static {
    /// The clusters that its plan leads to, and of each whether it is the app beside us.
    fn clusters(&self) -> Vec<(Spec, bool)>;

    /// The callers that it knows, by the names under which they are counted when they come in from the mesh.
    fn callers(&self) -> HashSet<Arc<str>> {
        HashSet::new()
    }

    /// The plan. Problems are those that only show now, such as a key file that is gone since the check.
    fn plan(
        &self,
        generation: u64,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        carried: &mut Carried,
        problems: &mut Problems,
    ) -> Option<Plan>;
}

/// The parts of a process that its tasks share.
#[derive(Clone)]
pub struct Process {
    /// Where tasks are started.
    pub tasks: Group,
    /// What has to happen before it is ready.
    pub readiness: Readiness,
    /// When it ends.
    pub drain: drain::Watch,
    /// Where it tells exchanges one by one.
    pub access_log: Arc<AccessLog>,
    /// Where it counts.
    pub registry: Arc<Registry>,
    /// Where it tells how its configuration stands.
    pub status: Status,
    /// Keeps the app's way out open longer than what comes in, where somebody knows when the app ends.
    pub way_out: Option<WayOut>,
}

/// What of the configuration in force does something by itself, and who comes in.
#[derive(Default)]
struct AtWork {
    clusters: Vec<Arc<Cluster>>,
    /// By the names of the authenticators that use them.
    key_sets: Vec<(Arc<str>, Arc<KeySet>)>,
    limiters: Vec<Arc<Limiter>>,
    callers: HashSet<Arc<str>>,
}

impl AtWork {
    /// Whether any service is in the mesh, for which an identity is needed.
    fn is_meshed(&self) -> bool {
        self.clusters.iter().any(|cluster| cluster.is_mesh())
    }
}

/// Between who runs the app and the data path: the way out stays open until the app has ended.
#[derive(Debug, Clone)]
pub struct WayOut {
    /// Whether what came in has drained.
    quiet: Arc<watch::Sender<bool>>,
    /// Whether the app needs its way out no longer.
    over: Arc<watch::Sender<bool>>,
}

impl Default for WayOut {
    fn default() -> Self {
        Self {
            quiet: Arc::new(watch::Sender::new(false)),
            over: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl WayOut {
    /// Waits until everything that came in has ended. May be dropped at any time.
    pub async fn quiet(&self) {
        // The sender is ours, so this cannot fail.
        let _ = self.quiet.subscribe().wait_for(|&quiet| quiet).await;
    }

    /// The app has ended.
    pub fn close(&self) {
        self.over.send_replace(true);
    }

    async fn closed(&self) {
        let _ = self.over.subscribe().wait_for(|&over| over).await;
    }
}

/// The size of a process.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Threads of the data path; one per core that we may use by default.
    pub workers: usize,
    /// Downstream connections, in all.
    pub connections: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            connections: 20_000,
        }
    }
}

/// Who a process is, or how it finds out as soon as its configuration needs it.
#[derive(Debug, Default)]
pub struct Who {
    ours: Ours,
    source: Option<Source>,
    /// Whether the source is asked before that is needed.
    at_once: bool,
}

impl Who {
    /// It is this one.
    pub fn known(identity: Arc<Identity>) -> Self {
        Self {
            ours: Ours::from(identity),
            ..Self::default()
        }
    }

    /// Nobody yet. Where there is a source, it is asked when a configuration needs it.
    pub fn later(source: Option<Source>) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }

    /// Nobody yet, but the source is asked as soon as the process works, needed or not, for it may have nothing to give later.
    pub fn soon(source: Source) -> Self {
        Self {
            at_once: true,
            ..Self::later(Some(source))
        }
    }

    /// Who it is, as far as that is known.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.ours.get()
    }

    /// Begins to find out, if that is needed now, or will not be possible later. It is not waited for: what needs no identity works.
    fn find_out(&mut self, process: &Process, work: &AtWork) {
        let is_needed = work.is_meshed();
        if !is_needed && !self.at_once {
            return;
        }
        let Some(source) = self.source.take() else {
            return;
        };
        if is_needed {
            tracing::info!("the configuration leads into the mesh now, so an identity is needed");
        }
        let (process, ours, tasks) = (process.clone(), self.ours.clone(), process.tasks.clone());
        tasks.spawn("first identity", async move {
            if let Some(identity) = obtain(&process, source).await {
                ours.set(identity);
            }
            Ok::<_, std::convert::Infallible>(())
        });
    }
}

/// Waits for the process's first certificate and has it kept fresh from then on. `None` when the process ends first.
pub async fn identity(process: &Process, source: Source) -> Option<Arc<Identity>> {
    let guard = process.readiness.guard("identity: no certificate yet");
    let identity = obtain(process, source).await?;
    guard.ready();
    Some(identity)
}

async fn obtain(process: &Process, source: Source) -> Option<Arc<Identity>> {
    let (stop, stopping) = watch::channel(false);
    let drain = process.drain.clone();
    let ends = async {
        drain.draining().await;
    };
    let identity = tokio::select! {
        identity = source.obtain(stopping.clone(), |_| ()) => identity?,
        () = ends => return None,
    };
    let shown = Arc::clone(&identity);
    process.registry.certificate_from(Box::new(move || {
        let status = shown.status();
        Some(CertificateRow {
            spiffe_id: Arc::from(status.spiffe_id.as_str()),
            not_before: status.not_before,
            not_after: status.not_after,
            serial: Arc::from(status.serial.as_str()),
            renewals: status.renewals,
            renewal_failures: status.renewal_failures,
        })
    }));
    let foreigners = Arc::clone(identity.foreigners());
    process
        .registry
        .foreign_from(Box::new(move || foreigners.snapshot()));
    let kept = Arc::clone(&identity);
    process.tasks.spawn("identity", async move {
        source.keep(kept, stopping).await;
        drop(stop);
        Ok::<_, std::convert::Infallible>(())
    });
    Some(identity)
}

/// What a process that is about to [`run`] holds from its very start: without it, it would be ready before there is
/// anything to be ready with, until the first task has begun, and again between two of them.
pub fn not_listening(process: &Process) -> Guard {
    process.readiness.guard("listeners: not bound yet")
}

/// Runs the data path until the process has drained. Ready once it listens everywhere: then `listening` is dropped.
/// `in_force` is told each design that is: not every one that is handed on can be taken.
pub async fn run<D: Design>(
    process: Process,
    size: Size,
    resolver: Arc<Resolver>,
    designs: Watched<D>,
    in_force: Publisher<Arc<D>>,
    who: Who,
    listening: Guard,
) -> Result<(), String> {
    let readiness = process.readiness.clone();
    let mut listening = Some(listening);
    let ended = listen(
        process,
        size,
        resolver,
        designs,
        in_force,
        who,
        &mut listening,
    )
    .await;
    if ended.is_err() {
        // Or letting go of the guard would say that it listens, and somebody would believe it before the process has ended.
        readiness.leave("it has failed");
    }
    ended
}

async fn listen<D: Design>(
    process: Process,
    size: Size,
    resolver: Arc<Resolver>,
    designs: Watched<D>,
    in_force: Publisher<Arc<D>>,
    mut who: Who,
    listening: &mut Option<Guard>,
) -> Result<(), String> {
    let held = process.drain.guard();
    let status = &process.status;
    let mut changes = designs.changes();
    let mut carried = Carried::new(process.tasks.clone(), resolver, who.ours.clone());
    let work: Arc<ArcSwap<AtWork>> = Arc::default();
    rows::show(&process.registry, &work);

    let mut generation = 1;
    status.taking();
    let design = designs.get();
    let first = compile(&*design, generation, &mut carried, &work)?;
    in_force.publish(design);
    status.began(SystemTime::now());
    who.find_out(&process, &work.load());
    first_answers(&work, &who.ours).await;
    let shared = Shared {
        plan: Arc::new(ArcSwap::from_pointee(first)),
        identity: who.ours.clone(),
        registry: Arc::clone(&process.registry),
        access_log: Arc::clone(&process.access_log),
        open: Arc::new(Open::default()),
        max_connections: size.connections,
        dials: Arc::default(),
        settled: Arc::default(),
        pressure: Arc::default(),
    };
    let cores = Cores::start(size.workers, &shared)
        .map_err(|error| format!("starting the cores: {error}"))?;
    if shared.plan.load().captures() {
        shared.dials.watch();
    }
    let mut listeners = Listeners::default();
    let mut unopened = listeners.follow(&cores, &shared.plan.load()).await;
    if !unopened.is_empty() {
        return Err(unopened.join("; "));
    }
    *listening = None;

    let mut leaving = false;
    // Whoever lets go of a plan last takes it apart, and that is not to be a core: exchanges would wait for thousands of
    // routes to be freed. Cores let go of it within a second.
    let mut retired: Vec<Arc<Plan>> = Vec::new();
    let mut looks = tokio::time::interval(RETIRED);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut forgets = tokio::time::interval(FORGET);
    forgets.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let design = tokio::select! {
            () = process.drain.draining() => break,
            () = process.drain.leaving(), if !leaving => {
                leaving = true;
                cores.leave().await;
                continue;
            }
            _ = looks.tick(), if !retired.is_empty() => {
                retired.retain(|plan| Arc::strong_count(plan) > 1);
                continue;
            }
            _ = forgets.tick() => {
                let work = work.load();
                let names = |name: &str| work.callers.contains(name);
                process.registry.forget_idle(Instant::now(), names);
                continue;
            }
            _ = again.tick(), if !unopened.is_empty() => {
                let still = listeners.follow(&cores, &shared.plan.load()).await;
                if still != unopened {
                    tell_unopened(status, &still);
                    unopened = still;
                }
                continue;
            }
            design = changes.next() => match design {
                Some(design) => design,
                // Nobody can change the configuration any more.
                None => {
                    process.drain.draining().await;
                    break;
                }
            },
        };
        status.taking();
        match compile(&*design, generation + 1, &mut carried, &work) {
            Ok(plan) => {
                generation += 1;
                who.find_out(&process, &work.load());
                first_answers(&work, &who.ours).await;
                if plan.captures() {
                    shared.dials.watch();
                }
                retired.push(shared.plan.swap(Arc::new(plan)));
                in_force.publish(design);
                unopened = listeners.follow(&cores, &shared.plan.load()).await;
                again.reset();
                status.loaded(SystemTime::now());
                tracing::info!(
                    generation = status.generation(),
                    "the new configuration is in force"
                );
                tell_unopened(status, &unopened);
            }
            // It is tried again every few seconds, and said once.
            Err(problem) if status.refusal().as_ref() == Some(&problem) => {}
            Err(problem) => {
                tracing::error!(%problem, "the new configuration is not usable; the last good one stays in force");
                status.refused(SystemTime::now(), problem);
            }
        }
    }
    // First what comes in, while the app that works on it can still call others.
    cores.drain_first(process.drain.ended()).await;
    if let Some(way_out) = &process.way_out {
        way_out.quiet.send_replace(true);
        tokio::select! {
            () = way_out.closed() => {}
            () = process.drain.ended() => {}
        }
    }
    let cut = cores.drain(process.drain.ended()).await;
    if cut > 0 {
        tracing::warn!(
            connections = cut,
            "cut connections that did not end in time"
        );
    } else {
        tracing::info!("every connection has ended");
    }
    drop(held);
    Ok(())
}

/// Waits until it is known where each service of a plan is, which keys its tokens are signed with and who we are, before
/// the plan is put in force: what is asked of us before would fail for nothing. A name that does not resolve is no reason to wait long: others do.
async fn first_answers(work: &ArcSwap<AtWork>, ours: &Ours) {
    let work = work.load_full();
    let _: Result<(), _> = tokio::time::timeout(FIRST_ANSWERS, async {
        for cluster in &work.clusters {
            cluster.discovery.known().await;
        }
        for (_, keys) in &work.key_sets {
            keys.tried().await;
        }
        if work.is_meshed() {
            ours.known().await;
        }
    })
    .await;
}

/// Has everybody know which listeners of the plan in force are shut.
fn tell_unopened(status: &Status, unopened: &[String]) {
    if !unopened.is_empty() {
        let problem = unopened.join("; ");
        tracing::error!(%problem, "a listener of the configuration could not be opened; trying on");
    }
    status.unopened(unopened.to_vec());
}

/// The addresses behind `host:port`, by the mesh's own resolver.
pub async fn lookup(resolver: &Resolver, address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{address}` is not a host with a port"),
        )
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let mut name = Name::from_ascii(host).map_err(|_| invalid())?;
    name.set_fqdn(true);
    let (v4, v6) = tokio::join!(
        resolver.lookup(&name, Family::V4),
        resolver.lookup(&name, Family::V6)
    );
    let mut failed = None;
    let mut found = Vec::new();
    for answer in [v4, v6] {
        match answer {
            Ok(answer) => found.extend(
                answer
                    .addresses
                    .into_iter()
                    .map(|ip| SocketAddr::new(ip, port)),
            ),
            Err(error) => failed = Some(error),
        }
    }
    match (found.is_empty(), failed) {
        (false, _) => Ok(found),
        (true, Some(error)) => Err(io::Error::other(format!("resolving `{host}`: {error}"))),
        (true, None) => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("`{host}` resolves to nothing"),
        )),
    }
}

fn compile<D: Design>(
    design: &D,
    generation: u64,
    carried: &mut Carried,
    work: &ArcSwap<AtWork>,
) -> Result<Plan, String> {
    let mut problems = Problems::new();
    let (plan, found) = carried
        .attempt(|carried| {
            let found = carried.clusters(design.clusters());
            let plan = design.plan(generation, &found, carried, &mut problems)?;
            // What is wrong with it was said, and nobody would see it: also of what the plan could be made without.
            problems.is_empty().then_some((plan, found))
        })
        .ok_or_else(|| problems.render())?;
    work.store(Arc::new(AtWork {
        clusters: found.into_values().collect(),
        key_sets: carried.key_sets(),
        limiters: carried.all_limiters(),
        callers: design.callers(),
    }));
    Ok(plan)
}
