//! A mesh of real processes, described in a few words and started in one.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use http::Request;
use tempfile::TempDir;

use super::certs::{self, Authority, DOMAIN};
use super::client::{Client, Reply, whole};
use super::dns::Dns;
use super::ground::{self, Ground, Ports};
use super::origin::Origin;
use super::process::{self, Process};
use super::{eventually, within};

/// A service of the mesh to be.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    name: String,
    replicas: u8,
    lines: Vec<String>,
    apps: bool,
}

impl Service {
    /// One replica, in DNS under its own name, reachable by everybody in the mesh.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            replicas: 1,
            lines: Vec::new(),
            apps: true,
        }
    }

    pub(crate) fn replicas(mut self, replicas: u8) -> Self {
        self.replicas = replicas;
        self
    }

    /// One more line of YAML, such as `timeout: 2s`.
    pub(crate) fn with(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Its app speaks anything; the apps of the others reach it at [`Mesh::listen`].
    pub(crate) fn tcp(self) -> Self {
        self.with("protocol: tcp")
            .with("listen: \"127.0.0.1:SPARE\"")
    }

    /// `- RULE` under `allow:`; default deny once there is one.
    pub(crate) fn allow(self, rule: &str) -> Self {
        self.with(&format!("allow: [ {rule} ]"))
    }

    /// The test starts its apps itself.
    pub(crate) fn without_apps(mut self) -> Self {
        self.apps = false;
        self
    }
}

/// What the file says.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) services: Vec<Service>,
    /// Flow-style YAML maps.
    pub(crate) routes: Vec<String>,
    /// Whole top-level keys.
    pub(crate) top: Vec<String>,
    /// Lines under `ingress:`.
    pub(crate) ingress: Vec<String>,
    /// Further keys of the listener `public`.
    listener: String,
    /// Further keys of `resolver:`.
    resolver: String,
    /// Further keys of `ca:`; there is a CA then.
    pub(crate) ca: Option<String>,
    has_ingress: bool,
    collector: bool,
    tls: bool,
    workers: usize,
    /// By instance, such as `orders-0`.
    environment: Vec<(String, Vec<(String, String)>)>,
}

/// A mesh to be.
#[derive(Debug)]
pub(crate) struct Builder(Spec);

impl Builder {
    pub(crate) fn service(mut self, service: Service) -> Self {
        self.0.services.push(service);
        self
    }

    /// Requests for this path go to this service.
    pub(crate) fn route(self, path: &str, to: &str) -> Self {
        self.route_yaml(&format!("{{ match: {{ path: {path} }}, to: {to} }}"))
    }

    /// A route in flow-style YAML.
    pub(crate) fn route_yaml(mut self, route: &str) -> Self {
        self.0.routes.push(route.to_owned());
        self
    }

    /// A top-level key of the file, whole, such as `drain: { delay: 0s }`.
    pub(crate) fn with(mut self, yaml: &str) -> Self {
        self.0.top.push(yaml.to_owned());
        self
    }

    /// A line under `ingress:`.
    pub(crate) fn ingress_with(mut self, yaml: &str) -> Self {
        self.0.ingress.push(yaml.to_owned());
        self
    }

    /// More keys of the resolver, such as `attempts: 1`.
    pub(crate) fn resolver_with(mut self, keys: &str) -> Self {
        self.0.resolver = format!(", {keys}");
        self
    }

    /// More keys of the listener in plaintext, such as `trusted_proxies: [ 10.0.0.0/8 ]`.
    pub(crate) fn listener_with(mut self, keys: &str) -> Self {
        self.0.listener = format!(", {keys}");
        self
    }

    /// Certificates from a real CA process, not from files. `extra` is more of `ca:`, such as `leaf_lifetime: 20s`.
    pub(crate) fn ca(mut self, extra: &str) -> Self {
        self.0.ca = Some(extra.to_owned());
        self
    }

    /// Sidecars report to the ingress, ten times a second.
    pub(crate) fn collector(mut self) -> Self {
        self.0.collector = true;
        self
    }

    /// No gateway.
    pub(crate) fn without_ingress(mut self) -> Self {
        self.0.has_ingress = false;
        self
    }

    /// The gateway also speaks TLS, with a certificate for `edge.test` of the mesh's authority.
    pub(crate) fn tls(mut self) -> Self {
        self.0.tls = true;
        self
    }

    /// Threads of each process's data path; two unless this says otherwise.
    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.0.workers = workers;
        self
    }

    /// More of the environment of the sidecar of an instance, such as `orders-0`.
    pub(crate) fn environment(mut self, instance: &str, variables: &[(String, String)]) -> Self {
        self.0
            .environment
            .push((instance.to_owned(), variables.to_vec()));
        self
    }

    /// Starts everything and waits until everything is ready.
    pub(crate) async fn start(self) -> Mesh {
        Mesh::start(self.0).await
    }
}

/// An instance of a service: its app and its sidecar.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) service: String,
    pub(crate) host: IpAddr,
    /// None when the test runs the apps itself.
    pub(crate) app: Option<Origin>,
    pub(crate) sidecar: Process,
}

/// A mesh at work. Everything ends when it is dropped.
pub(crate) struct Mesh {
    pub(crate) spec: Spec,
    pub(crate) ports: Ports,
    pub(crate) dns: Dns,
    /// Who signed the certificates when there is no CA process, and the public listener's always.
    pub(crate) authority: Authority,
    pub(crate) client: Client,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) ingress: Option<Process>,
    pub(crate) ca: Option<Process>,
    ground: Ground,
    // Last, so that it goes after the processes that write into it.
    directory: TempDir,
}

/// What the ingress is called in the mesh.
pub(crate) const INGRESS: &str = "ingress";

impl Mesh {
    /// With nothing in it but a gateway.
    #[allow(clippy::new_ret_no_self, reason = "reads as what it is for")]
    pub(crate) fn new() -> Builder {
        Builder(Spec {
            services: Vec::new(),
            routes: Vec::new(),
            top: Vec::new(),
            ingress: Vec::new(),
            listener: String::new(),
            resolver: String::new(),
            ca: None,
            has_ingress: true,
            collector: false,
            tls: false,
            workers: 2,
            environment: Vec::new(),
        })
    }

    async fn start(spec: Spec) -> Self {
        let (ground, udp, tcp) = Ground::claim();
        let mut mesh = Self {
            ports: ground.ports,
            dns: Dns::start(udp, tcp),
            authority: Authority::new(),
            client: Client::pooled(),
            replicas: Vec::new(),
            ingress: None,
            ca: None,
            ground,
            directory: tempfile::Builder::new()
                .prefix("weft-it-")
                .tempdir()
                .unwrap(),
            spec,
        };
        if mesh.spec.ca.is_some() {
            mesh.start_ca().await;
        }
        let services = mesh.spec.services.clone();
        for (index, service) in services.iter().enumerate() {
            for number in 0..service.replicas {
                mesh.dns.add(&service.name, mesh.address(index, number));
            }
        }
        if mesh.spec.has_ingress {
            mesh.ingress = Some(mesh.spawn_ingress().await);
        }
        for (index, service) in services.iter().enumerate() {
            for number in 0..service.replicas {
                mesh.spawn_replica(index, number).await;
            }
        }
        mesh.ready().await;
        mesh
    }

    /// Waits until every process that runs is ready.
    pub(crate) async fn ready(&mut self) {
        let mut waiting: Vec<(IpAddr, String)> = Vec::new();
        for replica in &mut self.replicas {
            if replica.sidecar.ended().is_none() {
                waiting.push((replica.host, replica.sidecar.name.clone()));
            }
        }
        if self.ingress.is_some() {
            waiting.push((self.host(ground::INGRESS), INGRESS.to_owned()));
        }
        for (host, name) in waiting {
            self.until_ready(host, &name).await;
        }
    }

    async fn until_ready(&self, host: IpAddr, name: &str) {
        eventually(&format!("{name} is ready"), async || {
            (self.try_page(host, "/ready").await?.code() == 200).then_some(())
        })
        .await;
    }

    // ---- Where things are

    /// An address of this test's block.
    pub(crate) fn host(&self, number: u8) -> IpAddr {
        self.ground.host(number)
    }

    /// The address of an instance of the service at `index`.
    fn address(&self, index: usize, number: u8) -> IpAddr {
        self.host(ground::SERVICES + 10 * u8::try_from(index).unwrap() + number)
    }

    /// Where clients connect.
    pub(crate) fn public(&self) -> SocketAddr {
        SocketAddr::new(self.host(ground::INGRESS), self.ports.public())
    }

    /// Where clients connect with TLS.
    pub(crate) fn secure(&self) -> SocketAddr {
        SocketAddr::new(self.host(ground::INGRESS), self.ports.secure())
    }

    /// `http://…` of the ingress.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.public())
    }

    /// The replica's place among those of its service.
    pub(crate) fn place(&self, service: &str, number: usize) -> usize {
        let mut of_service = self
            .replicas
            .iter()
            .enumerate()
            .filter(|(_, replica)| replica.service == service);
        of_service
            .nth(number)
            .unwrap_or_else(|| panic!("no {service}-{number}"))
            .0
    }

    pub(crate) fn replica(&self, service: &str, number: usize) -> &Replica {
        &self.replicas[self.place(service, number)]
    }

    pub(crate) fn replica_mut(&mut self, service: &str, number: usize) -> &mut Replica {
        let place = self.place(service, number);
        &mut self.replicas[place]
    }

    pub(crate) fn origin(&self, service: &str, number: usize) -> &Origin {
        self.replica(service, number).app.as_ref().unwrap()
    }

    pub(crate) fn origins(&self, service: &str) -> Vec<&Origin> {
        let of_service = self.replicas.iter().filter(|r| r.service == service);
        of_service.filter_map(|r| r.app.as_ref()).collect()
    }

    pub(crate) fn sidecar(&self, service: &str, number: usize) -> &Process {
        &self.replica(service, number).sidecar
    }

    pub(crate) fn ingress(&self) -> &Process {
        self.ingress.as_ref().expect("an ingress")
    }

    pub(crate) fn ca_host(&self) -> IpAddr {
        self.host(ground::CA)
    }

    pub(crate) fn ingress_host(&self) -> IpAddr {
        self.host(ground::INGRESS)
    }

    /// Where an app reaches its sidecar.
    pub(crate) fn outbound(&self, service: &str, number: usize) -> SocketAddr {
        SocketAddr::new(self.replica(service, number).host, self.ports.outbound())
    }

    /// Where an app reaches the one service that is not HTTP.
    pub(crate) fn listen(&self, service: &str, number: usize) -> SocketAddr {
        SocketAddr::new(self.replica(service, number).host, self.ports.spare())
    }

    /// Where other sidecars reach an instance.
    pub(crate) fn inbound(&self, service: &str, number: usize) -> SocketAddr {
        SocketAddr::new(self.replica(service, number).host, self.ports.inbound())
    }

    // ---- Exchanges

    /// A GET through the ingress.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.client.get(&self.url(path)).await
    }

    /// A POST through the ingress.
    pub(crate) async fn post(&self, path: &str, body: impl Into<bytes::Bytes>) -> Reply {
        self.client.post(&self.url(path), body).await
    }

    /// A GET as the app of an instance sends it: to its sidecar, with the service's name as host.
    pub(crate) async fn get_from(&self, service: &str, number: usize, url: &str) -> Reply {
        let request = self.request_from(service, number, url);
        self.client.send(request.body(whole("")).unwrap()).await
    }

    /// The beginning of that request, for more fields.
    pub(crate) fn request_from(
        &self,
        service: &str,
        number: usize,
        url: &str,
    ) -> http::request::Builder {
        let url: http::Uri = url.parse().unwrap();
        Request::get(format!(
            "http://{}{}",
            self.outbound(service, number),
            url.path_and_query().unwrap()
        ))
        .header("host", url.authority().unwrap().as_str())
    }

    /// An admin page of the process on this host.
    pub(crate) async fn page(&self, host: IpAddr, path: &str) -> Reply {
        eventually(&format!("admin page {path} of {host}"), async || {
            self.try_page(host, path).await
        })
        .await
    }

    pub(crate) async fn try_page(&self, host: IpAddr, path: &str) -> Option<Reply> {
        // A client of its own: a connection that is kept must not hold up a drain.
        let url = format!("http://{host}:{}{path}", self.ports.admin());
        let request = Request::get(url)
            .header("connection", "close")
            .body(whole(""))
            .unwrap();
        self.client.try_send(request).await.ok()
    }

    /// The sum of a metric's samples on a host's `/metrics`, of those whose labels contain all `parts`.
    pub(crate) async fn metric(&self, host: IpAddr, name: &str, parts: &[&str]) -> f64 {
        sample(&self.page(host, "/metrics").await.text(), name, parts)
    }

    // ---- Changes

    /// Changes the file under all running processes.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Spec)) {
        change(&mut self.spec);
        self.write_all(&self.yaml());
    }

    /// Writes this as everybody's file.
    pub(crate) fn write_all(&self, yaml: &str) {
        for entry in std::fs::read_dir(self.directory.path()).unwrap() {
            let file = entry.unwrap().path().join("weft.yaml");
            if file.exists() {
                write_whole(&file, yaml);
            }
        }
    }

    /// One more instance of a service, running and ready but not in DNS.
    pub(crate) async fn add_replica(&mut self, service: &str) -> usize {
        let index = self
            .spec
            .services
            .iter()
            .position(|known| known.name == service)
            .unwrap();
        let number = self
            .replicas
            .iter()
            .filter(|replica| replica.service == service)
            .count();
        self.spawn_replica(index, u8::try_from(number).unwrap())
            .await;
        let host = self.replica(service, number).host;
        self.until_ready(host, service).await;
        number
    }

    /// One more gateway, beside the one that there is, on a host of its own: ready, and where clients connect.
    pub(crate) async fn second_ingress(&self) -> (Process, SocketAddr) {
        let (name, host) = ("second-ingress", self.host(ground::SECOND_INGRESS));
        let process = self.spawn_ingress_at(name, host).await;
        self.until_ready(host, name).await;
        (process, SocketAddr::new(host, self.ports.public()))
    }

    pub(crate) async fn restart_ingress(&mut self) {
        drop(self.ingress.take());
        self.ingress = Some(self.spawn_ingress().await);
        self.until_ready(self.ingress_host(), INGRESS).await;
    }

    /// Starts the CA, again with the same state if there was one.
    pub(crate) async fn start_ca(&mut self) {
        drop(self.ca.take());
        let arguments = self.arguments(&["ca", "serve"], "ca", self.host(ground::CA));
        self.ca = Some(Process::start(self.directory.path(), "ca", &arguments, &[]));
        self.until_ready(self.host(ground::CA), "ca").await;
    }

    /// Starts the sidecar of an instance again.
    pub(crate) async fn restart_sidecar(&mut self, service: &str, number: usize) {
        self.respawn_sidecar(service, number).await;
        let host = self.replica(service, number).host;
        self.until_ready(host, service).await;
    }

    /// The same, when it is not known that it gets ready.
    pub(crate) async fn respawn_sidecar(&mut self, service: &str, number: usize) {
        let place = self.place(service, number);
        self.replicas[place].sidecar.kill();
        let host = self.replicas[place].host;
        self.replicas[place].sidecar = self.spawn_sidecar(service, number, host).await;
    }

    /// An instance of a service that has no replicas, as `weft run FLAGS -- COMMAND`. In DNS, and not waited for.
    pub(crate) async fn run(&self, wrapper: &[&str], service: &str, words: &[&str]) -> Process {
        let host = self.run_host(service);
        let name = format!("{service}-run");
        let mut arguments = self.arguments(&["run", "--service", service], &name, host);
        arguments.extend(["--workers", "1"].map(str::to_owned));
        arguments.extend(words.iter().map(|&word| word.to_owned()));
        self.dns.add(service, host);
        let directory = self.directory.path();
        if self.spec.ca.is_none() {
            let leaf = self.authority.leaf(&self.identity(service));
            self.authority.write(&leaf, &directory.join(&name));
            return Process::start_in(wrapper, directory, &name, &arguments, &[]);
        }
        let token = self.join_token(service).await;
        let environment = [("WEFT_JOIN_TOKEN", token.as_str())];
        Process::start_in(wrapper, directory, &name, &arguments, &environment)
    }

    /// Where [`run`](Self::run) puts it.
    pub(crate) fn run_host(&self, service: &str) -> IpAddr {
        let mut services = self.spec.services.iter();
        let index = services.position(|known| known.name == service).unwrap();
        self.address(index, 0)
    }

    // ---- Starting

    async fn spawn_ingress(&self) -> Process {
        self.spawn_ingress_at(INGRESS, self.ingress_host()).await
    }

    async fn spawn_ingress_at(&self, name: &str, host: IpAddr) -> Process {
        let mut arguments = self.arguments(&["ingress"], name, host);
        arguments.extend(["--workers".to_owned(), self.spec.workers.to_string()]);
        self.spawn_proxy(name, INGRESS, &arguments).await
    }

    async fn spawn_replica(&mut self, index: usize, number: u8) {
        let service = self.spec.services[index].clone();
        let host = self.address(index, number);
        let name = format!("{}-{number}", service.name);
        let app = match service.apps {
            true => Some(Origin::start(&name, SocketAddr::new(host, self.ports.app())).await),
            false => None,
        };
        let sidecar = self.spawn_sidecar(&service.name, number.into(), host).await;
        self.replicas.push(Replica {
            service: service.name,
            host,
            app,
            sidecar,
        });
    }

    async fn spawn_sidecar(&self, service: &str, number: usize, host: IpAddr) -> Process {
        let name = format!("{service}-{number}");
        let mut arguments = self.arguments(&["sidecar", "--service", service], &name, host);
        arguments.extend(["--workers".to_owned(), self.spec.workers.to_string()]);
        self.spawn_proxy(&name, service, &arguments).await
    }

    async fn spawn_proxy(&self, name: &str, service: &str, arguments: &[String]) -> Process {
        let directory = self.directory.path();
        let of_instance = self.spec.environment.iter().filter(|(of, _)| of == name);
        let mut environment: Vec<(&str, &str)> = of_instance
            .flat_map(|(_, variables)| variables)
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        if self.spec.ca.is_none() {
            let leaf = self.authority.leaf(&self.identity(service));
            self.authority.write(&leaf, &directory.join(name));
            return Process::start(directory, name, arguments, &environment);
        }
        let token = self.join_token(service).await;
        environment.push(("WEFT_JOIN_TOKEN", &token));
        Process::start(directory, name, arguments, &environment)
    }

    /// The identity of a service: the one that the file gives it, or the usual one.
    fn identity(&self, name: &str) -> String {
        let spec = self.spec.services.iter();
        let mut lines = spec
            .filter(|service| service.name == name)
            .flat_map(|service| &service.lines);
        let own = lines.find_map(|line| line.strip_prefix("identity: "));
        own.map_or_else(|| certs::service(name), str::to_owned)
    }

    /// A join token of the CA process.
    pub(crate) async fn join_token(&self, service: &str) -> String {
        let file = self.directory("ca").join("weft.yaml");
        let file = file.to_str().unwrap();
        let arguments = ["ca", "token", "create", "--service", service, "-c", file];
        let (status, output, errors) = process::run(&arguments).await;
        assert!(status.success(), "{output}{errors}");
        output.trim().to_owned()
    }

    /// The roots of the CA process, in PEM.
    pub(crate) async fn bundle(&self) -> String {
        let file = self.directory("ca").join("weft.yaml");
        let (status, output, errors) =
            process::run(&["ca", "bundle", "show", "-c", file.to_str().unwrap()]).await;
        assert!(status.success(), "{output}{errors}");
        output
    }

    /// A process's own directory, with its `weft.yaml` and, without a CA, its certificate.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `weft ROLE --config …/NAME/weft.yaml --host HOST`; writes the file.
    fn arguments(&self, role: &[&str], name: &str, host: IpAddr) -> Vec<String> {
        let directory = self.directory(name);
        std::fs::create_dir_all(&directory).unwrap();
        if name == INGRESS && self.spec.tls {
            let site = self.authority.website("edge.test");
            std::fs::write(directory.join("site.pem"), site.chain_pem()).unwrap();
            std::fs::write(directory.join("site.key"), site.key_pem()).unwrap();
        }
        let file = directory.join("weft.yaml");
        write_whole(&file, &self.yaml());
        let file = file.display().to_string();
        let host = host.to_string();
        let flags = ["--config", &file, "--host", &host];
        let all = role.iter().copied().chain(flags);
        all.map(str::to_owned).collect()
    }

    /// The file as it is now.
    pub(crate) fn yaml(&self) -> String {
        let Spec {
            services,
            routes,
            top,
            ingress,
            listener,
            ca,
            ..
        } = &self.spec;
        let ports = self.ports;
        let at = |number, port| format!("\"{}:{port}\"", self.host(number));
        let mut yaml = format!("trust_domain: {DOMAIN}\n");
        let mut line = |text: String| {
            yaml.push_str(&text);
            yaml.push('\n');
        };
        match ca {
            Some(extra) => {
                let comma = if extra.is_empty() { "" } else { ", " };
                line(format!(
                    "ca: {{ address: {}, state: \"{}\"{comma}{extra} }}",
                    at(ground::CA, ports.ca()),
                    self.directory.path().join("ca-state").display()
                ));
            }
            None => {
                line("identity: { cert: cert.pem, key: key.pem, bundle: bundle.pem }".to_owned());
            }
        }
        if self.spec.collector {
            let address = at(ground::INGRESS, ports.collector());
            line(format!(
                "collector: {{ address: {address}, interval: 100ms }}"
            ));
        }
        line(format!(
            "admin: {{ address: \"127.0.0.1:{}\" }}",
            ports.admin()
        ));
        line(format!(
            "resolver: {{ servers: [{}]{} }}",
            at(ground::TEST, ports.dns()),
            self.spec.resolver
        ));
        line(format!(
            "sidecar:\n  outbound: {{ address: \"127.0.0.1:{}\" }}\n  inbound: {{ address: \"127.0.0.1:{}\" }}",
            ports.outbound(),
            ports.inbound()
        ));
        for text in top {
            line(text.clone());
        }
        if !services.is_empty() {
            line("services:".to_owned());
        }
        for service in services {
            line(format!("  {}:\n    port: {}", service.name, ports.app()));
            for text in &service.lines {
                let text = text.replace("SPARE", &ports.spare().to_string());
                line(format!("    {text}"));
            }
        }
        if self.spec.has_ingress {
            line("ingress:\n  listeners:".to_owned());
            line(format!(
                "    - {{ name: public, address: \"127.0.0.1:{}\"{listener} }}",
                ports.public()
            ));
            if self.spec.tls {
                line(format!(
                    "    - {{ name: secure, address: \"127.0.0.1:{}\", tls: {{ cert: \"{dir}/site.pem\", key: \"{dir}/site.key\" }} }}",
                    ports.secure(),
                    dir = self.directory(INGRESS).display()
                ));
            }
            for text in ingress {
                line(format!("  {text}"));
            }
            if !routes.is_empty() {
                line("  routes:".to_owned());
            }
            for route in routes {
                line(format!("    - {route}"));
            }
        }
        yaml
    }
}

/// Written beside and renamed, so that nobody reads half of it.
fn write_whole(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, file).unwrap();
}

/// The sum of a metric's samples in a page, of those whose labels contain all `parts`.
pub(crate) fn sample(page: &str, name: &str, parts: &[&str]) -> f64 {
    page.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && parts.iter().all(|part| line.contains(part))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

impl Mesh {
    /// Waits until a metric of a host is at least `least`.
    pub(crate) async fn metric_reaches(
        &self,
        host: IpAddr,
        name: &str,
        parts: &[&str],
        least: f64,
    ) -> f64 {
        within(
            super::PATIENCE,
            &format!("{name}{parts:?} of {host} reaches {least}"),
            async || {
                let value = self.metric(host, name, parts).await;
                (value >= least).then_some(value)
            },
        )
        .await
    }
}
