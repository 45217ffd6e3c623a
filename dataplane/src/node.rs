//! A process with a data path, from its first certificate to its last connection: what the sidecar and the ingress do
//! alike. They differ in the [`Design`] that they hand in.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::rr::Name;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use weft_runtime::config::{Problems, Watched};
use weft_runtime::drain;
use weft_runtime::ready::{Guard, Readiness};
use weft_runtime::task::Group;

use crate::balance::sticky::Outcome;
use crate::cluster::members::View;
use crate::cluster::{Cluster, Spec};
use crate::core::{Cores, Open, Shared};
use crate::discovery::Resolver;
use crate::discovery::resolver::Family;
use crate::endpoint::State;
use crate::identity::{Identity, Source};
use crate::observe::{
    AccessLog, CertificateRow, EndpointRow, EndpointState, Registry, ServiceRow, SourceRow,
};
use crate::plan::Plan;
use crate::plan::carry::Carried;

/// How often it is looked whether a plan that is over is still in use.
const RETIRED: Duration = Duration::from_secs(2);
/// How long the first answers of discovery are waited for before a plan is put in force.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);

/// A program's checked configuration, from which its plans are made.
pub trait Design: Send + Sync + 'static {
    /// The clusters that its plan leads to, and of each whether it is the app beside us.
    fn clusters(&self) -> Vec<(Spec, bool)>;

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
    /// Keeps the app's way out open longer than what comes in, where somebody knows when the app ends.
    pub way_out: Option<WayOut>,
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

/// Waits for the process's first certificate and has it kept fresh from then on. `None` when the process ends first.
pub async fn identity(process: &Process, source: Source) -> Option<Arc<Identity>> {
    let guard = process.readiness.guard("identity: no certificate yet");
    let (stop, stopping) = watch::channel(false);
    let drain = process.drain.clone();
    let ends = async {
        drain.draining().await;
    };
    let identity = tokio::select! {
        identity = source.obtain(stopping.clone(), |_| ()) => identity?,
        () = ends => return None,
    };
    guard.ready();
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
pub async fn run<D: Design>(
    process: Process,
    size: Size,
    resolver: Arc<Resolver>,
    designs: Watched<D>,
    identity: Option<Arc<Identity>>,
    listening: Guard,
) -> Result<(), String> {
    let held = process.drain.guard();
    let mut changes = designs.changes();
    let mut carried = Carried::new(process.tasks.clone(), resolver, identity.clone());
    let clusters: Arc<ArcSwap<Vec<Arc<Cluster>>>> = Arc::default();
    show_endpoints(&process.registry, &clusters);
    show_services(&process.registry, &clusters);

    let mut generation = 1;
    let first = compile(&*designs.get(), generation, &mut carried, &clusters)?;
    first_answers(&clusters).await;
    let shared = Shared {
        plan: Arc::new(ArcSwap::from_pointee(first)),
        identity,
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
    let mut bound: HashMap<Arc<str>, SocketAddr> = HashMap::new();
    listen(&cores, &shared.plan.load(), &mut bound).await?;
    listening.ready();

    let mut leaving = false;
    // Whoever lets go of a plan last takes it apart, and that is not to be a core: exchanges would wait for thousands of
    // routes to be freed. Cores let go of it within a second.
    let mut retired: Vec<Arc<Plan>> = Vec::new();
    let mut looks = tokio::time::interval(RETIRED);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
            design = changes.next() => match design {
                Some(design) => design,
                // Nobody can change the configuration any more.
                None => {
                    process.drain.draining().await;
                    break;
                }
            },
        };
        generation += 1;
        match compile(&*design, generation, &mut carried, &clusters) {
            Ok(plan) => {
                first_answers(&clusters).await;
                if plan.captures() {
                    shared.dials.watch();
                }
                retired.push(shared.plan.swap(Arc::new(plan)));
                if let Err(problem) = listen(&cores, &shared.plan.load(), &mut bound).await {
                    tracing::error!(%problem, "a listener of the new configuration could not be opened");
                }
                tracing::info!(generation, "the new configuration is in force");
            }
            Err(problem) => {
                tracing::error!(%problem, "the new configuration is not usable; the last good one stays in force");
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

/// Waits until it is known where each service of a plan is, before the plan is put in force: what is asked of us before
/// would fail for nothing. A name that does not resolve is no reason to wait long: others do.
async fn first_answers(clusters: &ArcSwap<Vec<Arc<Cluster>>>) {
    let clusters = clusters.load_full();
    let _: Result<(), _> = tokio::time::timeout(FIRST_ANSWERS, async {
        for cluster in &*clusters {
            cluster.discovery.known().await;
        }
    })
    .await;
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
    clusters: &ArcSwap<Vec<Arc<Cluster>>>,
) -> Result<Plan, String> {
    let mut problems = Problems::new();
    let (plan, found) = carried
        .attempt(|carried| {
            let found = carried.clusters(design.clusters());
            let plan = design.plan(generation, &found, carried, &mut problems)?;
            Some((plan, found))
        })
        .ok_or_else(|| problems.render())?;
    clusters.store(Arc::new(found.into_values().collect()));
    Ok(plan)
}

/// Opens and closes listeners until they are those of the plan.
async fn listen(
    cores: &Cores,
    plan: &Plan,
    bound: &mut HashMap<Arc<str>, SocketAddr>,
) -> Result<(), String> {
    let mut gone: Vec<Arc<str>> = Vec::new();
    bound.retain(|name, address| {
        let stays = plan.site(name).is_some_and(|site| site.address == *address);
        if !stays {
            gone.push(Arc::clone(name));
        }
        stays
    });
    for name in gone {
        cores.close(&name).await;
    }
    // One that cannot be opened does not keep the others shut.
    let mut problems = Vec::new();
    for site in plan.sites() {
        if bound.contains_key(&site.name) {
            continue;
        }
        match cores.listen(site).await {
            Ok(()) => {
                tracing::info!(listener = %site.name, address = %site.address, "listening");
                bound.insert(Arc::clone(&site.name), site.address);
            }
            Err(error) => {
                problems.push(format!(
                    "listener `{}` on {}: {error}",
                    site.name, site.address
                ));
            }
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("; "))
    }
}

fn show_endpoints(registry: &Registry, clusters: &Arc<ArcSwap<Vec<Arc<Cluster>>>>) {
    let sources = Arc::clone(clusters);
    registry.sources_from(Box::new(move || {
        let clusters = sources.load();
        let meshed = clusters.iter().filter(|cluster| !cluster.is_local);
        let mut rows: Vec<_> = meshed
            .map(|cluster| {
                let report = cluster.discovery.report();
                SourceRow {
                    service: Arc::clone(&cluster.name),
                    known: report.known,
                    endpoints: report.addresses,
                    stale: report.stale,
                    last_success: report.last_success,
                    error: report.last_error,
                }
            })
            .collect();
        rows.sort_by(|a, b| a.service.cmp(&b.service));
        rows
    }));
    let clusters = Arc::clone(clusters);
    registry.endpoints_from(Box::new(move || {
        let now = Instant::now();
        let mut rows = Vec::new();
        for cluster in clusters.load().iter().filter(|cluster| !cluster.is_local) {
            for View {
                endpoint,
                verdict,
                failure,
            } in cluster.members.view()
            {
                rows.push(EndpointRow {
                    service: Arc::clone(&cluster.name),
                    address: endpoint.address,
                    state: match endpoint.state(now) {
                        State::Healthy => EndpointState::Healthy,
                        State::Draining => EndpointState::Draining,
                        State::Unhealthy => EndpointState::Unhealthy,
                        State::Ejected { .. } => EndpointState::Ejected,
                        State::Probing => EndpointState::Probing,
                    },
                    health: cluster.spec.health.as_ref().map(|_| verdict.as_str()),
                    failure,
                    ejections: endpoint.totals().ejections,
                    in_flight: u64::from(endpoint.in_flight()),
                });
            }
        }
        rows
    }));
}

fn show_services(registry: &Registry, clusters: &Arc<ArcSwap<Vec<Arc<Cluster>>>>) {
    let clusters = Arc::clone(clusters);
    registry.services_from(Box::new(move || {
        let clusters = clusters.load();
        let shown = clusters.iter().filter(|cluster| !cluster.is_local);
        let mut rows: Vec<_> = shown
            .map(|cluster| {
                let summary = cluster.members.summary();
                ServiceRow {
                    service: Arc::clone(&cluster.name),
                    endpoints: summary.endpoints,
                    available: summary.available,
                    panicking: summary.panicking,
                    panics: summary.panics,
                    panic_picks: summary.panic_picks,
                    is_probed: cluster.spec.health.is_some(),
                    probes_passed: summary.probes_passed,
                    probes_failed: summary.probes_failed,
                    sessions: cluster.spec.sticky.as_ref().map(|_| {
                        let mut counts = summary.sessions.into_iter();
                        Outcome::ALL.map(|outcome| (outcome.as_str(), counts.next().unwrap_or(0)))
                    }),
                    in_flight: cluster.in_flight() as u64,
                    waiting: cluster.waiting() as u64,
                    breaker: cluster
                        .breaker
                        .as_ref()
                        .map(|breaker| (breaker.state().as_str(), breaker.openings())),
                }
            })
            .collect();
        rows.sort_by(|a, b| a.service.cmp(&b.service));
        rows
    }));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::cluster::Speaks;
    use crate::observe::AccessLogConfig;
    use crate::testing::{nowhere, site, spec};

    fn plan(name: &str, address: SocketAddr) -> Plan {
        let cluster = Cluster::new(spec(Speaks::Http1, &[]), false);
        crate::testing::plan(site(name, address), &cluster)
    }

    fn shared(plan: Plan) -> Shared {
        let registry = Registry::new();
        Shared {
            plan: Arc::new(ArcSwap::from_pointee(plan)),
            identity: None,
            access_log: Arc::new(
                AccessLog::start(&AccessLogConfig::Off, registry.access_log_dropped()).unwrap(),
            ),
            registry,
            open: Arc::new(Open::default()),
            max_connections: 100,
            dials: Arc::default(),
            settled: Arc::default(),
            pressure: Arc::default(),
        }
    }

    async fn answered(address: SocketAddr) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let ask = b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";
        stream.write_all(ask).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_listener_may_change_its_name_and_its_address() {
        let (first, second) = (nowhere().await, nowhere().await);
        let shared = shared(plan("a", first));
        let cores = Cores::start(2, &shared).unwrap();
        let mut bound = HashMap::new();
        listen(&cores, &shared.plan.load(), &mut bound)
            .await
            .unwrap();
        // Again and again, for the old socket may close a moment too late.
        for round in 0..20 {
            for (name, address) in [("b", first), ("b", second), ("a", first)] {
                shared.plan.store(Arc::new(plan(name, address)));
                let listening = listen(&cores, &shared.plan.load(), &mut bound).await;
                assert_eq!(listening, Ok(()), "round {round}, {name} on {address}");
            }
        }
        let answer = answered(first).await;
        assert!(answer.contains("weft-reason: no_endpoints"), "{answer}");
        assert_eq!(
            cores
                .drain(tokio::time::sleep(Duration::from_secs(30)))
                .await,
            0
        );
    }

    #[tokio::test]
    async fn a_listener_that_cannot_be_opened_keeps_no_other_shut() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (taken_at, free) = (taken.local_addr().unwrap(), nowhere().await);
        let cluster = Cluster::new(spec(Speaks::Http1, &[]), false);
        let sites = [site("taken", taken_at), site("free", free)].map(|site| {
            let plan = crate::testing::plan(site, &cluster);
            Arc::clone(&plan.sites()[0])
        });
        let shared = shared(Plan::new(1, sites.to_vec()));
        let cores = Cores::start(1, &shared).unwrap();
        let mut bound = HashMap::new();
        let problem = listen(&cores, &shared.plan.load(), &mut bound).await;
        assert!(problem.unwrap_err().contains("`taken`"));
        assert!(answered(free).await.contains("no_endpoints"));
        drop(taken);
        // The next look finds it free.
        listen(&cores, &shared.plan.load(), &mut bound)
            .await
            .unwrap();
        assert!(answered(taken_at).await.contains("no_endpoints"));
    }
}
