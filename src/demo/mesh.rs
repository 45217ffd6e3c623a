//! The mesh itself: its working directory, its processes, its DNS zone; starting it, changing it, stopping it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hickory_server::Server;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::config;
use super::dns::{self, Answers, Zone};
use super::ground::{Block, CA, Ground, INGRESS, Ports};
use super::http::{self, Client};
use super::issuer::{self, Issuer};
use super::process::{self, Process};
use super::services::{INGRESS_NAME, SERVICES, Service};

/// How long a process may take until it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// How often it is asked.
const READY_POLL: Duration = Duration::from_millis(40);
/// How long one such question may take.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// How long the processes get to drain at the end.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// The mesh did not come up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("find free loopback addresses: {0}")]
    Ground(std::io::Error),
    #[error("write the working directory: {0}")]
    Directory(std::io::Error),
    #[error("start the DNS server: {0}")]
    Dns(std::io::Error),
    #[error(transparent)]
    Issuer(#[from] issuer::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
}

/// An app and the sidecar beside it.
pub(super) struct Replica {
    pub(super) service: &'static str,
    pub(super) host: IpAddr,
    app: Process,
    sidecar: Process,
}

/// Everything that runs.
pub(super) struct Mesh {
    pub(super) block: Block,
    pub(super) ports: Ports,
    pub(super) zone: Zone,
    pub(super) client: Client,
    replicas: Vec<Replica>,
    ingress: Process,
    ca: Process,
    _dns: Server<Answers>,
    directory: PathBuf,
    // Last, so that it goes after the processes that write into it.
    keeper: TempDir,
}

impl Mesh {
    /// Starts everything and waits until everything is ready. `say` hears what happens.
    pub(super) async fn start(
        issuer: &Issuer,
        leaf_lifetime: Duration,
        mut say: impl FnMut(String),
    ) -> Result<Self, Error> {
        let ground = Ground::claim(&mut fastrand::Rng::new()).map_err(Error::Ground)?;
        let keeper = tempfile::Builder::new()
            .prefix("weft-demo-")
            .tempdir()
            .map_err(Error::Directory)?;
        let directory = keeper.path().to_owned();
        write_files(&ground, &directory, issuer, leaf_lifetime)?;
        let Ground { block, ports, dns } = ground;
        let zone = Zone::default();
        let server = dns::serve(zone.clone(), dns).map_err(Error::Dns)?;
        let client = http::client();

        say(format!(
            "addresses {block}, files in {}",
            directory.display()
        ));
        let arguments = role(&["ca", "serve"], &directory, block.host(CA));
        let mut ca = Process::start(&directory, "ca".to_owned(), &arguments, &[])?;
        let admin = admin_ready(block.host(CA), ports.admin);
        let started = match until_ready(&client, &mut ca, &admin).await {
            Ok(()) => {
                say("the CA has its root and its intermediate, and is ready".to_owned());
                start_rest(&directory, block, ports, &zone, &client).await
            }
            Err(error) => Err(error),
        };
        match started {
            Ok((ingress, replicas)) => Ok(Self {
                block,
                ports,
                zone,
                client,
                replicas,
                ingress,
                ca,
                _dns: server,
                directory,
                keeper,
            }),
            Err(error) => {
                // What went wrong is in there.
                let _ = keeper.keep();
                Err(error.into())
            }
        }
    }

    /// The instances of a service, those that were killed not among them.
    pub(super) fn replicas<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a Replica> {
        self.replicas.iter().filter(move |r| r.service == service)
    }

    /// How many processes there are, besides our own.
    pub(super) fn processes(&self) -> usize {
        2 + 2 * self.replicas.len()
    }

    /// What the gateway shows to everybody.
    pub(super) fn public_url(&self) -> String {
        format!("http://{}:{}", self.block.host(INGRESS), self.ports.public)
    }

    /// The admin pages of an instance.
    pub(super) fn admin_url(&self, host: IpAddr) -> String {
        format!("http://{host}:{}", self.ports.admin)
    }

    /// Where the app of an instance takes orders to misbehave.
    pub(super) fn control_url(&self, host: IpAddr) -> String {
        format!("http://{host}:{}", self.ports.control)
    }

    /// Where the processes write.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts one more instance of a service and waits until it is ready. DNS does not name it yet.
    pub(super) async fn add(
        &mut self,
        service: &'static Service,
    ) -> Result<IpAddr, process::Error> {
        let host = self.block.host(self.free_host(service));
        let starting = Starting {
            directory: self.directory.clone(),
            ports: self.ports,
            client: self.client.clone(),
        };
        let replica = starting.replica(service, host).await?;
        self.replicas.push(replica);
        Ok(host)
    }

    fn free_host(&self, service: &Service) -> u8 {
        // One past the highest that was ever used: the addresses of the dead are not used again.
        let used = self
            .replicas(service.name)
            .filter_map(|r| match r.host {
                IpAddr::V4(v4) => Some(v4.octets()[3]),
                IpAddr::V6(_) => None,
            })
            .max();
        let first_free = service.first_host + service.replicas;
        used.map_or(first_free, |host| first_free.max(host + 1))
    }

    /// Kills an instance as the death of its host would: sidecar and app, without warning. DNS still names it.
    pub(super) async fn kill(&mut self, host: IpAddr) {
        let Some(index) = self.replicas.iter().position(|r| r.host == host) else {
            return;
        };
        let mut dead = self.replicas.swap_remove(index);
        dead.sidecar.kill();
        dead.app.kill();
        dead.sidecar.gone().await;
        dead.app.gone().await;
    }

    /// An error if any process has ended that should not have.
    pub(super) fn check(&mut self) -> Result<(), process::Error> {
        self.ca.still_runs()?;
        self.ingress.still_runs()?;
        for replica in &mut self.replicas {
            replica.app.still_runs()?;
            replica.sidecar.still_runs()?;
        }
        Ok(())
    }

    /// Drains and ends every process, callers before the called; removes the working directory unless `keep`, and
    /// then says where it is.
    pub(super) async fn stop(mut self, keep: bool) -> Option<PathBuf> {
        let deadline = tokio::time::Instant::now() + STOP_DEADLINE;
        self.ingress.terminate();
        for replica in &self.replicas {
            replica.sidecar.terminate();
        }
        let proxies = async {
            self.ingress.gone().await;
            for replica in &mut self.replicas {
                replica.sidecar.gone().await;
            }
        };
        // Whoever is not done by then is killed below.
        let _ = tokio::time::timeout_at(deadline, proxies).await;
        self.ca.terminate();
        let _ = tokio::time::timeout_at(deadline, self.ca.gone()).await;
        let rest = self
            .replicas
            .iter_mut()
            .flat_map(|r| [&mut r.app, &mut r.sidecar]);
        for process in rest.chain([&mut self.ingress, &mut self.ca]) {
            process.kill();
            process.gone().await;
        }
        keep.then(|| self.keeper.keep())
    }
}

fn write_files(
    ground: &Ground,
    directory: &Path,
    issuer: &Issuer,
    leaf_lifetime: Duration,
) -> Result<(), Error> {
    let yaml = config::weft_yaml(ground, directory, leaf_lifetime);
    std::fs::write(directory.join("weft.yaml"), yaml).map_err(Error::Directory)?;
    std::fs::write(directory.join("keys.json"), issuer.key_set()?).map_err(Error::Directory)
}

/// `weft ROLE --config weft.yaml --host HOST`.
fn role(command: &[&str], directory: &Path, host: IpAddr) -> Vec<String> {
    let file = directory.join("weft.yaml").display().to_string();
    let host = host.to_string();
    let flags = ["--config", &file, "--host", &host];
    let all = command.iter().copied().chain(flags);
    all.map(str::to_owned).collect()
}

async fn join_token(directory: &Path, service: &str) -> Result<String, process::Error> {
    let file = directory.join("weft.yaml").display().to_string();
    let arguments = [
        "ca",
        "token",
        "create",
        "--service",
        service,
        "--config",
        &file,
    ];
    process::output(&arguments.map(str::to_owned)).await
}

fn admin_ready(host: IpAddr, port: u16) -> String {
    format!("http://{host}:{port}/ready")
}

async fn start_rest(
    directory: &Path,
    block: Block,
    ports: Ports,
    zone: &Zone,
    client: &Client,
) -> Result<(Process, Vec<Replica>), process::Error> {
    let starting = Starting {
        directory: directory.to_owned(),
        ports,
        client: client.clone(),
    };
    let mut replicas = JoinSet::new();
    for service in SERVICES {
        for number in 0..service.replicas {
            let host = block.host(service.first_host + number);
            zone.add(service.name, host);
            let starting = starting.clone();
            replicas.spawn(async move { starting.replica(service, host).await });
        }
    }
    let ingress = starting.ingress(block.host(INGRESS)).await?;
    let mut ready = Vec::new();
    while let Some(joined) = replicas.join_next().await {
        match joined {
            Ok(replica) => ready.push(replica?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    ready.sort_by_key(|replica: &Replica| replica.host);
    Ok((ingress, ready))
}

/// What it takes to start an instance.
#[derive(Clone)]
struct Starting {
    directory: PathBuf,
    ports: Ports,
    client: Client,
}

impl Starting {
    async fn ingress(&self, host: IpAddr) -> Result<Process, process::Error> {
        let token = join_token(&self.directory, INGRESS_NAME).await?;
        let mut arguments = role(&["ingress"], &self.directory, host);
        arguments.extend(["--workers", "1"].map(str::to_owned));
        let name = INGRESS_NAME.to_owned();
        let mut process = self.proxy(name, &arguments, &token)?;
        let ready = admin_ready(host, self.ports.admin);
        until_ready(&self.client, &mut process, &ready).await?;
        Ok(process)
    }

    /// The app first, then the sidecar: what is ready can be called.
    async fn replica(
        &self,
        service: &'static Service,
        host: IpAddr,
    ) -> Result<Replica, process::Error> {
        let mut app = self.app(service, host)?;
        let token = join_token(&self.directory, service.name).await?;
        let mut arguments = role(&["sidecar"], &self.directory, host);
        arguments.extend(["--service", service.name, "--workers", "1"].map(str::to_owned));
        let name = format!("{}-{host}-sidecar", service.name);
        let mut sidecar = self.proxy(name, &arguments, &token)?;
        let stats = format!("http://{host}:{}/stats", self.ports.control);
        until_ready(&self.client, &mut app, &stats).await?;
        let ready = admin_ready(host, self.ports.admin);
        until_ready(&self.client, &mut sidecar, &ready).await?;
        Ok(Replica {
            service: service.name,
            host,
            app,
            sidecar,
        })
    }

    fn proxy(
        &self,
        name: String,
        arguments: &[String],
        token: &str,
    ) -> Result<Process, process::Error> {
        let environment = [("WEFT_JOIN_TOKEN", token)];
        Process::start(&self.directory, name, arguments, &environment)
    }

    fn app(&self, service: &Service, host: IpAddr) -> Result<Process, process::Error> {
        let at = |port: u16| format!("{host}:{port}");
        let mut arguments = vec!["demo-app".to_owned()];
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("--service", service.name.to_owned());
        flag("--address", at(self.ports.app));
        flag("--control", at(self.ports.control));
        if let Some(next) = service.calls.and_then(super::services::service) {
            flag("--outbound", at(self.ports.outbound));
            flag("--calls", next.name.to_owned());
            flag("--asks", next.path.to_owned());
        }
        let name = format!("{}-{host}-app", service.name);
        Process::start(&self.directory, name, &arguments, &[])
    }
}

/// Asks until the answer is 200, the process ends, or the time is over.
async fn until_ready(
    client: &Client,
    process: &mut Process,
    url: &str,
) -> Result<(), process::Error> {
    let started = Instant::now();
    while started.elapsed() < READY_DEADLINE {
        process.still_runs()?;
        let answer = http::get(client, url, ASK_DEADLINE).await;
        if answer.is_ok_and(|answer| answer.status.is_success()) {
            return Ok(());
        }
        tokio::time::sleep(READY_POLL).await;
    }
    Err(process.not_ready(READY_DEADLINE))
}
