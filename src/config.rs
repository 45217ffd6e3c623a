//! The one file: a struct with one field per part, each part's type where its feature is.
//!
//! Every role parses and checks the whole file, so that a mistake anywhere is an error everywhere and in the same
//! words; then each takes the part that it needs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Deserialize;
use weft_dataplane::cluster::config::{Defaults, Service};
use weft_dataplane::discovery;
use weft_dataplane::identity::{self, IdError, SpiffeId, TrustDomain};
use weft_dataplane::observe::AccessLogConfig;
use weft_dataplane::plan::services::Services;
use weft_dataplane::trusted::Trusted;
use weft_ingress::Files;
use weft_runtime::config::units::Period;
use weft_runtime::config::{Document, Path, Problems, env, overlap};
use weft_runtime::{admin, drain, telemetry};

/// `weft.yaml`: one file for a whole mesh, read by every process of it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// The name of the mesh in every identity: `spiffe://<trust_domain>/service/<name>`. A running process refuses a file with
    /// another one.
    pub(crate) trust_domain: String,
    /// The zone that this process runs in: services prefer endpoints of the same one, where endpoints' zones are known. The
    /// variable `WEFT_ZONE` overrules it, since one file serves many hosts.
    pub(crate) zone: Option<String>,
    /// The certificate authority, which reads this part at the start. Proxies read its `address` only, each time that they ask it.
    pub(crate) ca: Option<weft_ca::Config>,
    /// A certificate from files, instead of one from the CA. Where they are is read at the start; the files are followed.
    pub(crate) identity: Option<identity::files::Config>,
    /// Where sidecars report. Read at the start.
    pub(crate) collector: Option<Collector>,
    /// The admin pages of every process. Read at the start.
    #[serde(default)]
    pub(crate) admin: admin::Config,
    /// The log of every process. Read at the start. The variable `WEFT_LOG` overrules it.
    #[serde(default)]
    pub(crate) log: telemetry::log::Config,
    /// One line for each exchange of a proxy. Read at the start.
    #[serde(default)]
    pub(crate) access_log: AccessLogConfig,
    /// How names are resolved. Read at the start.
    #[serde(default)]
    pub(crate) resolver: discovery::Config,
    /// How processes end, as the file has it by then.
    #[serde(default)]
    pub(crate) drain: drain::Config,
    /// What holds for every service unless it says otherwise. A mapping that a service has itself, such as `retry`, stands in place
    /// of the whole one here: what it leaves out has the default of that key.
    #[serde(default)]
    pub(crate) defaults: Defaults,
    /// The services, by name.
    #[serde(default)]
    pub(crate) services: BTreeMap<String, Service>,
    /// Where sidecars listen.
    #[serde(default)]
    pub(crate) sidecar: weft_sidecar::Config,
    /// The gateway.
    #[serde(default)]
    pub(crate) ingress: weft_ingress::Config,
}

/// `collector:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Collector {
    /// Where sidecars reach the ingress: `host:port`. The ingress listens on this port.
    pub(crate) address: String,
    /// Time between two reports, from `100ms` to `5m`.
    #[serde(default = "report_interval")]
    pub(crate) interval: Period,
}

fn report_interval() -> Period {
    Period::seconds(5)
}

/// Reports more often than this would cost more than they tell.
const SHORTEST_INTERVAL: Period = Period::millis(100);
/// Whoever reports more seldom is taken for gone in between: the collector waits ten minutes, and one report may be late.
const LONGEST_INTERVAL: Period = Period::seconds(300);

/// Where this process runs, when that is not for the file to say.
const ZONE: &str = "WEFT_ZONE";

/// Who reads the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader<'a> {
    /// `weft check`: everybody at once.
    Check,
    /// The certificate authority.
    Ca,
    /// The sidecar of this service.
    Sidecar { service: &'a str },
    /// The gateway.
    Ingress,
}

/// The file, checked, and what this reader takes from it.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) file: File,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) admin: admin::Settings,
    pub(crate) resolver: Arc<discovery::Resolver>,
    pub(crate) ca: Option<weft_ca::Rules>,
    pub(crate) identity: Option<identity::files::Files>,
    /// Of the sidecar that reads.
    pub(crate) sidecar: Option<weft_sidecar::Design>,
    /// Of the ingress that reads.
    pub(crate) ingress: Option<weft_ingress::Design>,
    /// The file, as the admin page shows it.
    pub(crate) shown: String,
}

/// Parses and checks. `name` is the file's, for messages; `base` what paths in it are relative to; `host` what the
/// command line says about where this instance listens.
pub(crate) fn check(
    name: &str,
    text: &str,
    base: &FilePath,
    host: Option<IpAddr>,
    reader: Reader<'_>,
) -> Result<Checked, Problems> {
    let document = Document::parse(name, text)?;
    let mut problems = Problems::new();
    let checked = document.check(&mut problems, |file, problems| {
        check_parts(file, base, host, reader, problems)
    });
    problems.locate(&document);
    match checked {
        Some(checked) if problems.is_empty() => Ok(Checked {
            shown: document.show(),
            ..checked
        }),
        _ => Err(problems),
    }
}

/// Checks part by part. What is wrong with one keeps no other from being looked at.
fn check_parts(
    mut file: File,
    base: &FilePath,
    host: Option<IpAddr>,
    reader: Reader<'_>,
    problems: &mut Problems,
) -> Option<Checked> {
    file.access_log.relative_to(base);
    for service in file.services.values_mut() {
        service.relative_to(base);
    }
    let root = Path::root();
    let trust_domain = check_trust_domain(&file.trust_domain, &root.key("trust_domain"), problems);
    let admin = file.admin.build(&root.key("admin"), problems);
    if reader == Reader::Check {
        // Others open it, once and when they start.
        file.access_log.check(&root.key("access_log"), problems);
    }
    let resolver = file.resolver.build(&root.key("resolver"), problems);
    let ca = file
        .ca
        .as_ref()
        .and_then(|ca| ca.build(&root.key("ca"), problems));
    if let Some(collector) = &file.collector {
        check_collector(collector, &root.key("collector"), problems);
    }
    let services = Services::build(
        &trust_domain.clone().unwrap_or_else(some_trust_domain),
        file.services.clone(),
        file.defaults.clone(),
        file.sidecar.inbound.address.port(),
        problems,
    )
    .in_zone(check_zone(&file, problems).as_ref());
    if let Some(trust_domain) = &trust_domain {
        check_membership(&file, trust_domain, problems);
    }
    let identity = match (&file.identity, &trust_domain, reader) {
        // The CA's host has no such files.
        (_, _, Reader::Ca) => None,
        (Some(files), Some(trust_domain), _) => {
            files.build(base, trust_domain, &root.key("identity"), problems)
        }
        _ => None,
    };
    let sidecar = check_sidecars(&file, &services, host, reader, problems);
    let files = match reader {
        Reader::Check | Reader::Ingress => Files::Read,
        Reader::Ca | Reader::Sidecar { .. } => Files::Elsewhere,
    };
    let ingress =
        weft_ingress::Design::build(file.ingress.clone(), &services, host, base, files, problems);
    check_identity(&file, problems);
    check_addresses(&file, ca.as_ref(), host, problems);
    check_reader(&file, reader, problems);
    Some(Checked {
        trust_domain: trust_domain?,
        admin: admin?,
        resolver: Arc::new(resolver?),
        ca,
        identity,
        sidecar,
        ingress: ingress.filter(|_| reader == Reader::Ingress),
        shown: String::new(),
        file,
    })
}

/// All sidecars of the mesh; the one that reads comes back.
fn check_sidecars(
    file: &File,
    services: &Services,
    host: Option<IpAddr>,
    reader: Reader<'_>,
    problems: &mut Problems,
) -> Option<weft_sidecar::Design> {
    let place = Path::root().key("sidecar");
    let settings = weft_sidecar::Settings {
        trusted: Trusted::with_app(file.ingress.trusted()),
        ..file.sidecar.build(host, &place, problems)?
    };
    weft_sidecar::listens::check(services, &settings, problems);
    if reader == Reader::Check {
        check_permits(services, SystemTime::now(), problems);
    }
    let reads = |name: &str| reader == (Reader::Sidecar { service: name });
    let mut own = None;
    for (name, service) in &services.file {
        if service.is_mesh() {
            let design = weft_sidecar::Design::build(services, name, &settings, problems);
            if reads(name) {
                own = design;
            }
        }
    }
    if let Reader::Sidecar { service } = reader
        && !services.file.get(service).is_some_and(Service::is_mesh)
    {
        weft_sidecar::Design::build(services, service, &settings, problems);
    }
    own
}

/// Exceptions whose time is over. Told to who looks at the file, and not to a process that has to start.
fn check_permits(services: &Services, now: SystemTime, problems: &mut Problems) {
    let place = Path::root().key("services");
    for (name, service) in &services.file {
        let at = place.key(name).key("mtls");
        service.mtls.check_time(now, &at, problems);
    }
}

/// What only this reader demands.
fn check_reader(file: &File, reader: Reader<'_>, problems: &mut Problems) {
    let root = Path::root();
    if reader == Reader::Ingress && file.ingress.listeners.is_empty() {
        problems.at(
            &root.key("ingress"),
            "the ingress listens nowhere",
            "add `listeners: [ { name: public, address: \"0.0.0.0:8080\" } ]`",
        );
    }
    if reader == Reader::Ca && file.ca.is_none() {
        problems.at(
            &root,
            "there is no `ca:`, and this is to be the CA",
            "add `ca: { address: \"HOST:15012\" }`",
        );
    }
}

/// Stands in for one that is wrong, so that the rest can be checked all the same.
fn some_trust_domain() -> TrustDomain {
    "some.invalid"
        .parse()
        .expect("lower case letters and a dot")
}

fn check_trust_domain(text: &str, at: &Path, problems: &mut Problems) -> Option<TrustDomain> {
    match text.parse() {
        Ok(domain) => Some(domain),
        Err(error) => {
            let what = match error {
                _ if text.is_empty() => "the trust domain is empty".to_owned(),
                IdError::LongTrustDomain => "the trust domain is longer than 255 bytes".to_owned(),
                _ => format!("`{text}` is not a trust domain"),
            };
            problems.at(
                at,
                what,
                "write a name of lower case letters, digits, `.`, `-` and `_`, such as `shop.internal`",
            );
            None
        }
    }
}

/// The zone of this process, of the file or the environment.
fn check_zone(file: &File, problems: &mut Problems) -> Option<Arc<str>> {
    if file.zone.as_deref().is_some_and(str::is_empty) {
        problems.at(
            &Path::root().key("zone"),
            "the zone has no name",
            "write one as endpoints have it, such as `eu-1a`, or leave `zone` out",
        );
    }
    let zone = env::read(ZONE).or_else(|| file.zone.clone())?;
    Some(Arc::from(zone))
}

fn check_collector(collector: &Collector, at: &Path, problems: &mut Problems) {
    if collector_port(&collector.address).is_none() {
        problems.at(
            &at.key("address"),
            format!("`{}` is not a host with a port", collector.address),
            "write it as `ingress:15010` or `10.0.0.5:15010`",
        );
    }
    if collector.interval < SHORTEST_INTERVAL {
        problems.at(
            &at.key("interval"),
            "reports more than ten times a second cost more than they tell",
            "write `100ms` or more; `5s` is the default",
        );
    }
    if collector.interval > LONGEST_INTERVAL {
        problems.at(
            &at.key("interval"),
            "a sidecar that reports less than once in five minutes would be taken for gone when one report is late",
            "write `5m` or less; `5s` is the default",
        );
    }
}

/// The port of `host:port`.
pub(crate) fn collector_port(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse()
        .ok()
        .filter(|&port| port > 0 && !host.is_empty())
}

/// Whoever speaks in the mesh needs a certificate from somewhere.
fn check_identity(file: &File, problems: &mut Problems) {
    if file.ca.is_some() || file.identity.is_some() {
        return;
    }
    let root = Path::root();
    if file.services.values().any(Service::is_mesh) {
        problems.at(
            &root.key("services"),
            "services are in the mesh, but there is neither `ca:` nor `identity:` to get certificates from",
            "add `ca: { address: \"HOST:15012\" }`, or write `mesh: false` at services that have no sidecar",
        );
    } else if file.collector.is_some() {
        problems.at(
            &root.key("collector"),
            "reports travel by mutual TLS, but there is neither `ca:` nor `identity:` to get certificates from",
            "add `ca: { address: \"HOST:15012\" }`, or remove `collector`",
        );
    }
}

/// Members of other trust domains are refused before any rule is asked.
fn check_membership(file: &File, trust_domain: &TrustDomain, problems: &mut Problems) {
    let foreign = |text: &str| {
        text.parse::<SpiffeId>()
            .is_ok_and(|id| !id.is_member_of(trust_domain))
    };
    let place = Path::root().key("services");
    for (name, service) in &file.services {
        let at = place.key(name);
        if service.identity.as_deref().is_some_and(foreign) {
            problems.at(
                &at.key("identity"),
                format!("`{name}` would not be of the trust domain (`trust_domain`), and nobody would talk to it"),
                format!("write an identity that begins with `spiffe://{trust_domain}/`"),
            );
        }
        for (index, rule) in service.allow.iter().flatten().enumerate() {
            for (nth, caller) in rule.from.iter().enumerate() {
                if foreign(caller) {
                    problems.at(
                        &at.key("allow").index(index).key("from").index(nth),
                        format!("`{caller}` is not of the trust domain (`trust_domain`) and never gets in, so the rule can never match it"),
                        format!("write an identity that begins with `spiffe://{trust_domain}/`, or the name of a service"),
                    );
                }
            }
        }
    }
}

/// Two listeners of one process on the same address would keep it from starting. Those of one part are compared where
/// the part is; here those of different parts are.
fn check_addresses(
    file: &File,
    ca: Option<&weft_ca::Rules>,
    host: Option<IpAddr>,
    problems: &mut Problems,
) {
    let root = Path::root();
    let on_host = |address: SocketAddr| {
        let ip = host.unwrap_or(address.ip());
        SocketAddr::new(ip, address.port())
    };
    let admin = (
        root.key("admin").key("address"),
        on_host(file.admin.address),
    );
    if admin.1.port() == 0 {
        problems.at(
            &admin.0,
            "port 0 is a different one at each start",
            "write the port of the admin pages; 15000 is the default",
        );
    }
    let mut taken = |place: &Path, address: SocketAddr, by: &(Path, SocketAddr)| {
        let address = on_host(address);
        if address.port() != 0 && overlap(address, by.1) {
            problems.conflict(
                place,
                &[&by.0, place],
                format!("`{place}` and `{}` would both listen on `{address}`", by.0),
                "give each listener of a process a port of its own",
            );
        }
    };
    if file.services.values().any(Service::is_mesh) {
        let place = root.key("sidecar");
        let sidecar = &file.sidecar;
        taken(
            &place.key("outbound").key("address"),
            sidecar.outbound.address,
            &admin,
        );
        taken(
            &place.key("inbound").key("address"),
            sidecar.inbound.address,
            &admin,
        );
        if let Some(intercept) = &sidecar.intercept {
            let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), intercept.inbound_port);
            taken(&place.key("intercept").key("inbound_port"), any, &admin);
        }
        for (name, service) in file
            .services
            .iter()
            .filter(|(_, service)| service.is_mesh())
        {
            let app = SocketAddr::new(sidecar.app.host, service.app_port());
            taken(&root.key("services").key(name).key("port"), app, &admin);
        }
        for (name, service) in &file.services {
            if let Some(listen) = service.listen {
                taken(
                    &root.key("services").key(name).key("listen"),
                    listen,
                    &admin,
                );
            }
        }
    }
    let collector = file.collector.as_ref().and_then(|collector| {
        let port = collector_port(&collector.address)?;
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        let address = on_host(collector.address.parse().unwrap_or(any));
        Some((root.key("collector").key("address"), address))
    });
    let listeners = root.key("ingress").key("listeners");
    for (index, listener) in file.ingress.listeners.iter().enumerate() {
        let place = listeners.index(index).key("address");
        taken(&place, listener.address, &admin);
        if let Some(collector) = &collector {
            taken(&place, listener.address, collector);
        }
    }
    if let (Some((place, address)), false) = (&collector, file.ingress.listeners.is_empty()) {
        taken(place, *address, &admin);
    }
    if let Some(rules) = ca {
        let place = root.key("ca");
        let key = match file.ca.as_ref().is_some_and(|ca| ca.listen.is_some()) {
            true => "listen",
            false => "address",
        };
        taken(&place.key(key), rules.listen, &admin);
    }
}
