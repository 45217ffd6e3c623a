//! The one file: a struct with one field per part, each part's type where its feature is.
//!
//! Every role parses and checks the whole file, so that a mistake anywhere is an error everywhere and in the same
//! words; then each takes the part that it needs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path as FilePath;
use std::sync::Arc;

use serde::Deserialize;
use weft_dataplane::cluster::config::{Defaults, Service};
use weft_dataplane::discovery;
use weft_dataplane::identity::{self, TrustDomain};
use weft_dataplane::observe::AccessLogConfig;
use weft_dataplane::plan::services::Services;
use weft_ingress::Files;
use weft_runtime::config::units::Period;
use weft_runtime::config::{Document, Path, Problems};
use weft_runtime::{admin, drain, telemetry};

/// `weft.yaml` as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// The name of the mesh in every identity: `spiffe://<trust_domain>/service/<name>`.
    pub(crate) trust_domain: String,
    /// The certificate authority. Proxies read its `address` only.
    pub(crate) ca: Option<weft_ca::Config>,
    /// A certificate from files, instead of one from the CA.
    pub(crate) identity: Option<identity::files::Config>,
    /// Where sidecars report.
    pub(crate) collector: Option<Collector>,
    /// The admin pages of every process.
    #[serde(default)]
    pub(crate) admin: admin::Config,
    /// The log of every process.
    #[serde(default)]
    pub(crate) log: telemetry::log::Config,
    /// One line for each exchange of a proxy.
    #[serde(default)]
    pub(crate) access_log: AccessLogConfig,
    /// How names are resolved.
    #[serde(default)]
    pub(crate) resolver: discovery::Config,
    /// How processes end.
    #[serde(default)]
    pub(crate) drain: drain::Config,
    /// What holds for every service unless it says otherwise.
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Collector {
    /// Where sidecars reach the ingress: `host:port`. The ingress listens on this port.
    pub(crate) address: String,
    /// Time between two reports.
    #[serde(default = "report_interval")]
    pub(crate) interval: Period,
}

fn report_interval() -> Period {
    Period::seconds(5)
}

/// Reports more often than this would cost more than they tell.
const SHORTEST_INTERVAL: Period = Period::millis(100);

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
    let checked = document
        .decode::<File>(&mut problems)
        .and_then(|file| check_parts(file, base, host, reader, &mut problems));
    problems.locate(&document);
    match checked {
        Some(checked) if problems.is_empty() => Ok(checked),
        _ => Err(problems),
    }
}

fn check_parts(
    file: File,
    base: &FilePath,
    host: Option<IpAddr>,
    reader: Reader<'_>,
    problems: &mut Problems,
) -> Option<Checked> {
    let root = Path::root();
    let trust_domain = check_trust_domain(&file.trust_domain, &root.key("trust_domain"), problems);
    let admin = file.admin.build(&root.key("admin"), problems);
    let resolver = file.resolver.build(&root.key("resolver"), problems);
    let ca = file
        .ca
        .as_ref()
        .and_then(|ca| ca.build(&root.key("ca"), problems));
    if let Some(collector) = &file.collector {
        check_collector(collector, &root.key("collector"), problems);
    }
    let settings = file.sidecar.build(host, &root.key("sidecar"), problems);
    // The rest is about members of the trust domain.
    let trust_domain = trust_domain?;
    let services = Services::build(
        &trust_domain,
        file.services.clone(),
        file.defaults.clone(),
        file.sidecar.inbound.address.port(),
        problems,
    );
    let identity = match (&file.identity, reader) {
        (Some(files), Reader::Check | Reader::Sidecar { .. } | Reader::Ingress) => {
            files.build(base, &trust_domain, &root.key("identity"), problems)
        }
        _ => None,
    };
    let services = services?;
    let mut sidecar = None;
    let mut ingress = None;
    if let Some(settings) = settings {
        for (name, service) in &services.file {
            if service.is_mesh() {
                let design = weft_sidecar::Design::build(&services, name, settings, problems);
                if reader
                    == (Reader::Sidecar {
                        service: name.as_str(),
                    })
                {
                    sidecar = design;
                }
            }
        }
        if let Reader::Sidecar { service } = reader
            && !services.file.get(service).is_some_and(Service::is_mesh)
        {
            weft_sidecar::Design::build(&services, service, settings, problems);
        }
    }
    let files = match reader {
        Reader::Check | Reader::Ingress => Files::Read,
        Reader::Ca | Reader::Sidecar { .. } => Files::Elsewhere,
    };
    let design = weft_ingress::Design::build(
        file.ingress.clone(),
        &services,
        host,
        base.to_owned(),
        files,
        problems,
    );
    check_identity(&file, design.as_ref(), reader, problems);
    if reader == Reader::Ingress {
        if file.ingress.listeners.is_empty() {
            problems.at(
                &root.key("ingress"),
                "the ingress listens nowhere",
                "add `listeners: [ { name: public, address: \"0.0.0.0:8080\" } ]`",
            );
        }
        ingress = design;
    }
    if reader == Reader::Ca && file.ca.is_none() {
        problems.at(
            &root,
            "there is no `ca:`, and this is to be the CA",
            "add `ca: { address: \"HOST:15012\" }`",
        );
    }
    Some(Checked {
        trust_domain,
        admin: admin?,
        resolver: Arc::new(resolver?),
        ca,
        identity,
        sidecar,
        ingress,
        file,
    })
}

fn check_trust_domain(text: &str, at: &Path, problems: &mut Problems) -> Option<TrustDomain> {
    match text.parse() {
        Ok(domain) => Some(domain),
        Err(error) => {
            problems.at(
                at,
                format!("`{text}` is not a trust domain: {error}"),
                "write a name of lower case letters, digits, `.`, `-` and `_`, such as `shop.internal`",
            );
            None
        }
    }
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
}

/// The port of `host:port`.
pub(crate) fn collector_port(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse()
        .ok()
        .filter(|&port| port > 0 && !host.is_empty())
}

/// Whoever speaks in the mesh needs a certificate from somewhere.
fn check_identity(
    file: &File,
    ingress: Option<&weft_ingress::Design>,
    reader: Reader<'_>,
    problems: &mut Problems,
) {
    let at = Path::root();
    let wanted = match reader {
        Reader::Sidecar { .. } => true,
        Reader::Ingress => ingress.is_some_and(weft_ingress::Design::needs_identity),
        Reader::Check => file.services.values().any(Service::is_mesh),
        Reader::Ca => false,
    };
    if wanted && file.ca.is_none() && file.identity.is_none() {
        problems.at(
            &at,
            "services are in the mesh, but there is neither `ca:` nor `identity:` to get certificates from",
            "add `ca: { address: \"HOST:15012\" }`, or write `mesh: false` at services that have no sidecar",
        );
    }
}
