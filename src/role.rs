//! What every role does around its work: read and check the file, start the log, the metrics and the admin pages, follow
//! the file, drain on a signal.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use weft_dataplane::discovery::Resolver;
use weft_dataplane::identity::client::{Authority, Lookup};
use weft_dataplane::identity::{SpiffeId, TokenSource, provider};
use weft_dataplane::node::{self, Process};
use weft_dataplane::observe::{self, AccessLog, Registry};
use weft_runtime::admin::Admin;
use weft_runtime::config::{Publisher, Status, Watched, env, watch, watched};
use weft_runtime::drain::Trigger;
use weft_runtime::ready::Readiness;
use weft_runtime::signal::{Stops, drain_on_stop};
use weft_runtime::task::Group;
use weft_runtime::telemetry::log::Log;
use weft_runtime::telemetry::metrics::Metrics;
use weft_runtime::{descriptors, drain, telemetry};

use crate::check::{self, BROKEN, base_of};
use crate::config::{self, Checked, Reader};
use crate::waiting::{self, Role};

/// A join token, where no file holds it.
pub(crate) const TOKEN: &str = "WEFT_JOIN_TOKEN";
/// Set by a parent that wants its children to end with it: they end when their standard input does.
pub(crate) const EXIT_WITH_PARENT: &str = "WEFT_EXIT_ON_STDIN_EOF";

/// The flags that every role has.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// The configuration file
    #[arg(long, short, default_value = "weft.yaml")]
    pub(crate) config: PathBuf,
    /// The address of this instance: every listener is put there, with the port that the file says
    #[arg(long)]
    pub(crate) host: Option<IpAddr>,
}

/// The flags of a role with a data path.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProxyFlags {
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// A file with a join token; without it, WEFT_JOIN_TOKEN is used
    #[arg(long)]
    pub(crate) token_file: Option<PathBuf>,
    /// Threads of the data path; one per core that the process may use by default
    #[arg(long)]
    pub(crate) workers: Option<usize>,
}

impl ProxyFlags {
    pub(crate) fn size(&self) -> node::Size {
        let default = node::Size::default();
        // Each may need one more to an endpoint, and there are other things to open.
        let affordable = descriptors::limit().map_or(usize::MAX, |limit| {
            usize::try_from(limit / 2).unwrap_or(usize::MAX).max(1)
        });
        node::Size {
            workers: self.workers.unwrap_or(default.workers).max(1),
            connections: default.connections.min(affordable),
        }
    }

    /// What proves who we are when we have no certificate yet.
    pub(crate) fn token(&self) -> Result<Option<TokenSource>, String> {
        if let Some(path) = &self.token_file {
            return Ok(Some(TokenSource::File(path.clone())));
        }
        match env::read(TOKEN) {
            Some(text) => text
                .trim()
                .parse()
                .map(|token| Some(TokenSource::Given(token)))
                .map_err(|error| format!("{TOKEN}: {error}")),
            None => Ok(None),
        }
    }
}

/// A process before its work begins.
pub(crate) struct Start {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) host: Option<IpAddr>,
    pub(crate) checked: Checked,
    /// Where the app was told that the sidecar is, which it believes as long as it runs.
    pub(crate) outbound: Option<SocketAddr>,
    role: Role,
    /// Kept to the end: what waits to be written is written when it goes.
    log: Option<Log>,
}

/// Reads and checks the file and starts the log. On failure everything has been said and only the exit code is left.
pub(crate) fn start(flags: &Flags, reader: Reader<'_>) -> Result<Start, ExitCode> {
    let name = flags.config.display().to_string();
    let broken = |words: &str| {
        eprint!("{words}");
        ExitCode::from(BROKEN)
    };
    let text = check::read(&flags.config).map_err(|words| broken(&words))?;
    let checked = config::check(&name, &text, &base_of(&flags.config), flags.host, reader)
        .map_err(|problems| broken(&problems.render()))?;
    let log = telemetry::log::init(checked.file.log.format, checked.file.log.level)
        .map_err(|error| broken(&format!("{error}\n")))?;
    Ok(Start {
        path: flags.config.clone(),
        text,
        host: flags.host,
        checked,
        outbound: None,
        role: reader.into(),
        log: Some(log),
    })
}

impl Start {
    /// What this instance of a service is called where all of them are seen together.
    pub(crate) fn instance(&self, service: &str) -> String {
        let admin = self.checked.admin.address();
        let place = match self.host {
            Some(host) => SocketAddr::new(host, admin.port()).to_string(),
            // The loopback of every host has the same address.
            None if admin.ip().to_canonical().is_loopback() => {
                let system = rustix::system::uname();
                format!("{}:{}", system.nodename().to_string_lossy(), admin.port())
            }
            None => admin.to_string(),
        };
        format!("{service} at {place}")
    }
}

/// What ends a process, for who decides how it ends.
pub(crate) struct Ending {
    pub(crate) stops: Stops,
    pub(crate) trigger: Trigger,
    pub(crate) readiness: Readiness,
    /// As the file has it at the moment.
    pub(crate) drain: Watched<drain::Config>,
    /// Everything that runs; [`Group::run_until`] tells when a part of it has failed.
    pub(crate) tasks: Group,
}

/// A running process, as its role sees it.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) admin: Admin,
    pub(crate) metrics: Metrics,
    /// What a reload changes of what is not the role's own.
    pub(crate) live: Arc<Live>,
}

/// What a running process takes from a new file besides what its role takes.
pub(crate) struct Live {
    drain: Publisher<drain::Config>,
    /// Where the CA is, for those who ask it.
    authority: Publisher<String>,
}

/// Runs a role: `work` starts its tasks, registers its pages and returns; the process ends by a signal or the first
/// task that fails.
pub(crate) fn run<F>(
    start: Start,
    work: impl FnOnce(Start, &mut Running) -> Result<F, String>,
) -> ExitCode
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let at_start = |start, running: &mut Running| {
        exit_with_parent();
        work(start, running)
    };
    conduct(start, at_start, async |ending| {
        let Ending {
            stops,
            trigger,
            readiness,
            drain,
            tasks,
        } = ending;
        let drained = drain_on_stop(stops, &trigger, &readiness, &drain);
        match tasks.run_until(drained).await {
            Ok(_) => ExitCode::SUCCESS,
            Err(failure) => {
                tracing::error!(problem = %failure, "the process ends");
                ExitCode::FAILURE
            }
        }
    })
}

/// Runs a role whose end `conclude` decides, which waits for it and gives the exit code.
pub(crate) fn conduct<F>(
    start: Start,
    work: impl FnOnce(Start, &mut Running) -> Result<F, String>,
    conclude: impl AsyncFnOnce(Ending) -> ExitCode,
) -> ExitCode
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    // Somebody else's choice of provider would be an error of ours; there is nobody else.
    let _: Result<_, _> = rustls::crypto::CryptoProvider::install_default((*provider()).clone());
    if let Err(error) = descriptors::raise_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let mut start = start;
    let log = start.log.take();
    let code = runtime.block_on(live(start, log.as_ref(), work, conclude));
    // Cores hold connections that were cut; they do not keep the process.
    runtime.shutdown_background();
    code
}

async fn live<F>(
    start: Start,
    log: Option<&Log>,
    work: impl FnOnce(Start, &mut Running) -> Result<F, String>,
    conclude: impl AsyncFnOnce(Ending) -> ExitCode,
) -> ExitCode
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    match begin(start, log, work).await {
        Ok(ending) => conclude(ending).await,
        Err(problem) => {
            tracing::error!(%problem, "the process ends");
            ExitCode::FAILURE
        }
    }
}

async fn begin<F>(
    start: Start,
    log: Option<&Log>,
    work: impl FnOnce(Start, &mut Running) -> Result<F, String>,
) -> Result<Ending, String>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let stops = Stops::listen().map_err(|error| format!("catching signals: {error}"))?;
    let metrics = Metrics::install(env!("CARGO_PKG_VERSION")).map_err(|error| error.to_string())?;
    observe::metrics::describe();
    if let Some(log) = log {
        log.count_in(&metrics);
    }
    let (trigger, watch) = drain::channel();
    let readiness = Readiness::new();
    let tasks = Group::new();
    let registry = Registry::new();
    let shown = Arc::clone(&registry);
    metrics.on_render(Box::new(move || shown.publish()));
    let shown = Arc::clone(&registry);
    metrics.on_page(Box::new(move |page| shown.render(page, SystemTime::now())));
    let status = Status::new(&start.path, start.checked.shown.as_str(), SystemTime::now());
    let mut settings = start.checked.admin;
    if let Some(host) = start
        .host
        .filter(|host| host.to_canonical().is_loopback() || settings.allow_remote())
    {
        settings = settings.on(host).map_err(|problems| problems.render())?;
    }
    let (draining, drain) = watched(start.checked.file.drain);
    let ca = start.checked.file.ca.as_ref();
    let (authority, _) = watched(ca.map(|ca| ca.address.clone()).unwrap_or_default());
    let access_log = AccessLog::start(
        &start.checked.file.access_log,
        registry.access_log_dropped(),
    )
    .map_err(|error| format!("the access log (`access_log`) cannot be written: {error}"))?;
    let mut running = Running {
        process: Process {
            tasks: tasks.clone(),
            readiness: readiness.clone(),
            drain: watch.clone(),
            access_log: Arc::new(access_log),
            registry,
            status: status.clone(),
            way_out: None,
        },
        admin: Admin::new(readiness.clone(), metrics.clone(), &trigger),
        metrics,
        live: Arc::new(Live {
            drain: draining,
            authority,
        }),
    };
    running.admin.config(status);
    let role = work(start, &mut running)?;
    let bound = running
        .admin
        .bind(&settings)
        .await
        .map_err(|error| format!("the admin pages on {}: {error}", settings.address()))?;
    tracing::info!(address = %settings.address(), "admin pages");
    tasks.spawn("admin", bound.serve(watch.clone()));
    tasks.spawn("role", role);
    Ok(Ending {
        stops,
        trigger,
        readiness,
        drain,
        tasks,
    })
}

/// Ends the process when its standard input ends, where the parent asked for that: a parent that was killed cannot end
/// its children otherwise.
fn exit_with_parent() {
    if env::read(EXIT_WITH_PARENT).is_none() {
        return;
    }
    let watcher = std::thread::Builder::new().name("parent".into()).spawn(|| {
        let mut sink = std::io::sink();
        let _: Result<_, _> = std::io::copy(&mut std::io::stdin().lock(), &mut sink);
        std::process::exit(0);
    });
    if let Err(error) = watcher {
        tracing::warn!(%error, "cannot watch the parent");
    }
}

/// What became of a new configuration.
pub(crate) enum Taken {
    /// It is in force.
    InForce,
    /// The data path says whether it is.
    HandedOn,
}

/// Follows the file: what is good is handed on by `take`, what is not is told, and the last good one stays. Says which keys
/// wait for a restart. The file is read apart from everything else, with the certificates and keys that it names: they may
/// be on a disk that hangs.
pub(crate) fn follow(
    running: &Running,
    start: &Start,
    take: impl Fn(Checked) -> Taken + Send + Sync + 'static,
) {
    let (path, text) = (start.path.clone(), start.text.clone());
    let (name, base) = (path.display().to_string(), base_of(&path));
    let (status, live) = (running.process.status.clone(), Arc::clone(&running.live));
    let (begun, role, host) = (start.checked.file.clone(), start.role.clone(), start.host);
    let outbound = start.outbound;
    let check = Arc::new(move |text: &str| {
        let mut checked = config::check(&name, text, &base, host, role.reader())
            .map_err(|problems| problems.render())?;
        waiting::same_mesh(&begun, &checked.file, &name, text)?;
        let mut waits = waiting::keys(&begun, &checked.file, &role);
        waits.extend(waiting::way_out(outbound, checked.sidecar.as_mut()));
        waits.sort();
        Ok::<_, String>((checked, waits))
    });
    running.process.tasks.spawn("configuration", async move {
        let (said, check, live, take) = (&status, &check, &live, &take);
        let apply = |text: String| async move {
            let check = Arc::clone(check);
            let (checked, waits) = tokio::task::spawn_blocking(move || check(&text))
                .await
                .map_err(|error| error.to_string())??;
            // From here on nothing is awaited: who fetches what `take` hands on finds it handed on.
            let (live, drain) = (Arc::clone(live), checked.file.drain);
            let authority = checked.file.ca.as_ref().map(|ca| ca.address.clone());
            said.handed(checked.shown.as_str(), waits, move || {
                live.drain.publish(drain);
                if let Some(address) = authority {
                    live.authority.publish(address);
                }
            });
            if matches!(take(checked), Taken::InForce) {
                said.taking();
                said.loaded(SystemTime::now());
            }
            Ok(())
        };
        watch::reload(path, &text, watch::EVERY, status.clone(), apply).await;
        Ok::<_, std::convert::Infallible>(())
    });
}

/// Where this process's identity comes from.
pub(crate) fn identity_source(
    running: &Running,
    checked: &Checked,
    service: &str,
    resolver: &Arc<Resolver>,
    token: Option<TokenSource>,
) -> Result<Option<weft_dataplane::identity::Source>, String> {
    use weft_dataplane::identity::Source;
    if let Some(files) = &checked.identity {
        return Ok(Some(Source::Files(files.clone())));
    }
    if checked.file.ca.is_none() {
        return Ok(None);
    }
    let resolver = Arc::clone(resolver);
    let lookup: Lookup = Arc::new(move |address| {
        let resolver = Arc::clone(&resolver);
        Box::pin(async move { node::lookup(&resolver, &address).await })
    });
    let id = match checked.file.services.get(service) {
        Some(config) => config.identity(service, &checked.trust_domain)?,
        None => SpiffeId::for_service(&checked.trust_domain, service)
            .map_err(|error| error.to_string())?,
    };
    let authority = Authority::following(
        running.live.authority.watched(),
        checked.trust_domain.clone(),
    )
    .map_err(|error| error.to_string())?
    .token(token)
    .expect(id)
    .lookup(lookup);
    Ok(Some(Source::Authority(authority)))
}
