//! `services:` and `defaults:` of the file: what a service is, and how it is reached.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use weft_runtime::config::units::Period;
use weft_runtime::config::{Path, Problems};

use super::{Speaks, Spec, retry};
use crate::authz;
use crate::balance;
use crate::discovery::{Source, dns};
use crate::health::outlier;
use crate::identity::{SpiffeId, TrustDomain};

/// What a service's app speaks on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// gRPC: HTTP/2 by prior knowledge.
    Grpc,
}

/// `limits:` of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Exchanges in flight at most, from this process to the service.
    pub in_flight: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_flight: 1024 }
    }
}

/// `defaults:`: what holds for every service unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// How an endpoint is chosen.
    pub balance: balance::Config,
    /// From a request to the head of its answer, retries included. A request with a body begins to count anew with each
    /// piece that had to be waited for. The answer's body and tunnels have idle timeouts.
    pub timeout: Period,
    /// For a connection to an endpoint, its TLS handshake included.
    pub connect_timeout: Period,
    /// How often a failed exchange is tried again.
    pub retry: retry::Config,
    /// When an endpoint that fails is left alone.
    pub outlier: outlier::Config,
    /// How much may be under way.
    pub limits: Limits,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            balance: balance::Config::default(),
            timeout: Period::seconds(15),
            connect_timeout: Period::seconds(1),
            retry: retry::Config::default(),
            outlier: outlier::Config::default(),
            limits: Limits::default(),
        }
    }
}

/// One of `services:`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// The name that resolves to its hosts (A, AAAA). Its own name when neither this nor `endpoints` is given.
    pub dns: Option<String>,
    /// Its hosts as `IP:PORT`, instead of DNS. In the mesh the port is that of the sidecars.
    pub endpoints: Option<Vec<String>>,
    /// Where its app listens, on its own host. 8080 by default.
    pub port: Option<u16>,
    /// What its app speaks on that port.
    pub protocol: Protocol,
    /// `false`: there is no sidecar beside it; it is reached in plaintext at its port.
    pub mesh: Option<bool>,
    /// More names by which callers address it, without a port.
    pub hosts: Vec<String>,
    /// Its SPIFFE ID, when it is not `spiffe://<trust_domain>/service/<name>`.
    pub identity: Option<String>,
    /// Who may call it. Anybody of the mesh when there is no rule; nobody else once there is one.
    pub allow: Option<Vec<authz::Config>>,
    /// As in `defaults`.
    pub balance: Option<balance::Config>,
    /// As in `defaults`.
    pub timeout: Option<Period>,
    /// As in `defaults`.
    pub connect_timeout: Option<Period>,
    /// As in `defaults`.
    pub retry: Option<retry::Config>,
    /// As in `defaults`.
    pub outlier: Option<outlier::Config>,
    /// As in `defaults`.
    pub limits: Option<Limits>,
}

/// Where the port of an app is not said.
pub const APP_PORT: u16 = 8080;

impl Service {
    /// Whether it is reached through sidecars.
    pub fn is_mesh(&self) -> bool {
        self.mesh.unwrap_or(true)
    }

    /// Where its app listens on its own host.
    pub fn app_port(&self) -> u16 {
        self.port.unwrap_or(APP_PORT)
    }

    /// Its SPIFFE ID.
    pub fn identity(&self, name: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, String> {
        match &self.identity {
            Some(id) => id
                .parse()
                .map_err(|error| format!("`{id}` is not a SPIFFE ID: {error}")),
            None => SpiffeId::for_service(trust_domain, name).map_err(|error| error.to_string()),
        }
    }

    /// Checks it. `mesh_port` is where sidecars listen for each other.
    pub fn build(
        &self,
        name: &str,
        defaults: &Defaults,
        mesh_port: u16,
        trust_domain: &TrustDomain,
        path: &Path,
        problems: &mut Problems,
    ) -> Option<Spec> {
        let before = problems.len();
        let identity = self.identity(name, trust_domain).map_err(|what| {
            let at = if self.identity.is_some() { path.key("identity") } else { path.clone() };
            problems.at(&at, what, "write `spiffe://TRUST_DOMAIN/PATH`, and service names in lower case letters, digits and `-`");
        });
        let source = self.source(name, mesh_port, path, problems);
        for (index, host) in self.hosts.iter().enumerate() {
            let valid = !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
            if !valid {
                problems.at(
                    &path.key("hosts").index(index),
                    format!("`{host}` is not a host name"),
                    "write a name or an IPv4 address, without scheme, port or path",
                );
            }
        }
        let retry = self
            .retry
            .as_ref()
            .unwrap_or(&defaults.retry)
            .build(&path.key("retry"), problems);
        let outlier = self
            .outlier
            .as_ref()
            .unwrap_or(&defaults.outlier)
            .build(&path.key("outlier"), problems);
        let timeout = positive(
            self.timeout.unwrap_or(defaults.timeout),
            &path.key("timeout"),
            problems,
        );
        let connect_timeout = positive(
            self.connect_timeout.unwrap_or(defaults.connect_timeout),
            &path.key("connect_timeout"),
            problems,
        );
        let limits = self.limits.unwrap_or(defaults.limits);
        if limits.in_flight == 0 {
            problems.at(
                &path.key("limits").key("in_flight"),
                "a limit of 0 refuses everything",
                "write 1 or more; 1024 is the default",
            );
        }
        if problems.len() > before {
            return None;
        }
        let speaks = match (self.is_mesh(), self.protocol) {
            // Sidecars speak HTTP/2 to each other, whatever the app speaks.
            (true, _) | (false, Protocol::Grpc) => Speaks::Http2,
            (false, Protocol::Http) => Speaks::Http1,
        };
        Some(Spec {
            name: Arc::from(name),
            source: source?,
            mesh: if self.is_mesh() {
                Some(identity.ok()?)
            } else {
                None
            },
            speaks,
            balance: self.balance.unwrap_or(defaults.balance),
            outlier: outlier?,
            retry: retry?,
            timeout: timeout.as_duration(),
            connect_timeout: connect_timeout.as_duration(),
            in_flight: limits.in_flight as usize,
        })
    }

    fn source(
        &self,
        name: &str,
        mesh_port: u16,
        path: &Path,
        problems: &mut Problems,
    ) -> Option<Source> {
        let port = if self.is_mesh() {
            mesh_port
        } else {
            self.app_port()
        };
        let Some(endpoints) = &self.endpoints else {
            let (dns, at) = match &self.dns {
                Some(dns) => (dns.as_str(), path.key("dns")),
                None => (name, path.clone()),
            };
            return dns::Target::build(dns, port, &at, problems).map(Source::Dns);
        };
        let at = path.key("endpoints");
        if self.dns.is_some() {
            problems.at(
                &at,
                "a service has `dns` or `endpoints`, not both",
                "remove one of them",
            );
        }
        if endpoints.is_empty() {
            problems.at(
                &at,
                "the list is empty: the service could never be reached",
                "list at least one `IP:PORT`",
            );
        }
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for (index, text) in endpoints.iter().enumerate() {
            match text.parse() {
                Ok(address) if addresses.contains(&address) => problems.at(
                    &at.index(index),
                    format!("`{text}` is listed twice"),
                    "list each endpoint once",
                ),
                Ok(address) => addresses.push(address),
                Err(_) => problems.at(
                    &at.index(index),
                    format!("`{text}` is not an address with a port"),
                    "write `IP:PORT`, such as `10.0.0.7:8080`; names belong in `dns`",
                ),
            }
        }
        Some(Source::Fixed(addresses))
    }
}

/// The cluster of the app beside a sidecar: one endpoint, never ejected, in plaintext.
pub fn local_app(
    name: &str,
    service: &Service,
    defaults: &Defaults,
    address: SocketAddr,
) -> Option<Spec> {
    let mut ignored = Problems::new();
    let path = Path::root();
    Some(Spec {
        name: Arc::from(format!("{name} (app)")),
        source: Source::Fixed(vec![address]),
        mesh: None,
        speaks: match service.protocol {
            Protocol::Http => Speaks::Http1,
            Protocol::Grpc => Speaks::Http2,
        },
        balance: balance::Config::default(),
        // Its callers judge it; there is no other endpoint to turn to.
        outlier: outlier::Config {
            enabled: false,
            ..outlier::Config::default()
        }
        .build(&path, &mut ignored)?,
        // Its callers try again, elsewhere if they can.
        retry: retry::Config {
            attempts: 0,
            ..retry::Config::default()
        }
        .build(&path, &mut ignored)?,
        timeout: service.timeout.unwrap_or(defaults.timeout).as_duration(),
        connect_timeout: service
            .connect_timeout
            .unwrap_or(defaults.connect_timeout)
            .as_duration(),
        in_flight: usize::MAX >> 1,
    })
}

fn positive(period: Period, path: &Path, problems: &mut Problems) -> Period {
    if period.as_duration().is_zero() {
        problems.at(
            path,
            "a timeout of 0 fails everything",
            "write a positive duration, such as `15s`",
        );
    }
    period
}
