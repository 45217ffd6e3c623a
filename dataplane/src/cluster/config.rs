//! `services:` and `defaults:` of the file: what a service is, and how it is reached.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, InvalidUri};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use weft_runtime::config::units::Period;
use weft_runtime::config::{Path, Problems};

use super::limits::{self, Limits};
use super::{Speaks, Spec, breaker, mtls, retry};
use crate::authz;
use crate::balance;
use crate::discovery::list::{self, Item};
use crate::discovery::{Source, dns};
use crate::endpoint::place::Place;
use crate::health::{self, Question, outlier};
use crate::identity::{SpiffeId, TrustDomain};

/// How long a connection within the mesh may take to come about, unless the file says otherwise: sidecars are near each other.
pub(crate) const NEAR: Duration = Duration::from_secs(1);

/// The same of one to somebody who is not of the mesh, and may be at the other end of the world.
pub(crate) const FAR: Duration = Duration::from_secs(3);

/// What a service's app speaks on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// gRPC: HTTP/2 by prior knowledge.
    Grpc,
    /// Anything over TCP: its bytes are carried and not looked at. Callers reach it at `listen` of their own sidecar.
    Tcp,
}

impl Protocol {
    /// What an app of it is spoken to in.
    fn speaks(self) -> Speaks {
        match self {
            Self::Http => Speaks::Http1,
            Self::Grpc => Speaks::Http2,
            Self::Tcp => Speaks::Tcp,
        }
    }
}

/// `defaults:`: what holds for every service unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// How an endpoint is chosen.
    pub balance: balance::Config,
    /// From a request to the head of its answer, retries included. A request with a body begins to count anew with each
    /// piece that had to be waited for. The answer's body and tunnels have idle timeouts.
    pub timeout: Period,
    /// For a connection to an endpoint, its TLS handshake included. When left out `1s` within the mesh, and `3s` to services that have
    /// no sidecar (`mesh: false`), which may be farther away.
    pub connect_timeout: Option<Period>,
    /// How often a failed exchange is tried again.
    pub retry: retry::Config,
    /// When an endpoint that fails is left alone.
    pub outlier: outlier::Config,
    /// How endpoints are asked whether they are well. They are not when this is left out.
    pub health: Option<health::Config>,
    /// How much may be under way.
    pub limits: limits::Config,
    /// When nothing is sent any more because nearly everything fails.
    pub breaker: breaker::Config,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            balance: balance::Config::default(),
            timeout: Period::seconds(15),
            connect_timeout: None,
            retry: retry::Config::default(),
            outlier: outlier::Config::default(),
            health: None,
            limits: limits::Config::default(),
            breaker: breaker::Config::default(),
        }
    }
}

impl Defaults {
    /// Checks them, as they stand in the file.
    pub fn check(&self, path: &Path, problems: &mut Problems) {
        self.build(path, |_| true, problems);
        if self
            .balance
            .sticky()
            .is_some_and(|sticky| sticky.cookie.is_some())
        {
            problems.at(
                &path.key("balance").key("sticky").key("cookie"),
                "all services would have the same cookie and take it from each other",
                "leave it out, for `weft-` and each service's name, or write it at the service",
            );
        }
        if let Some(health) = &self.health {
            health.build(&path.key("health"), problems);
        }
    }

    /// Checks those values whose keys `tell` says; of the others only whether they are good comes back.
    fn build(
        &self,
        path: &Path,
        tell: impl Fn(&str) -> bool,
        problems: &mut Problems,
    ) -> Option<Reach> {
        let mut found = Problems::new();
        for (key, period) in [
            ("timeout", Some(self.timeout)),
            ("connect_timeout", self.connect_timeout),
        ] {
            if period.is_some_and(|period| period.as_duration().is_zero()) && tell(key) {
                problems.at(
                    &path.key(key),
                    "a timeout of 0 fails everything",
                    "write a positive duration, such as `15s`",
                );
            }
        }
        let balance = self.balance.build(&path.key("balance"), &mut found);
        if tell("balance") {
            problems.append(std::mem::take(&mut found));
        }
        let mut found = Problems::new();
        let retry = self.retry.build(&path.key("retry"), &mut found);
        if tell("retry") {
            problems.append(std::mem::take(&mut found));
        }
        let mut found = Problems::new();
        let outlier = self.outlier.build(&path.key("outlier"), &mut found);
        if tell("outlier") {
            problems.append(std::mem::take(&mut found));
        }
        let mut found = Problems::new();
        let limits = self.limits.build(&path.key("limits"), &mut found);
        if tell("limits") {
            problems.append(std::mem::take(&mut found));
        }
        let mut found = Problems::new();
        let breaker = self.breaker.build(&path.key("breaker"), &mut found);
        if tell("breaker") {
            problems.append(found);
        }
        Some(Reach {
            balance: balance?,
            retry: retry?,
            outlier: outlier?,
            limits: limits?,
            breaker: breaker?,
        })
    }
}

/// What `defaults` and a service say together, checked.
struct Reach {
    balance: balance::Policy,
    retry: retry::Policy,
    outlier: outlier::Rules,
    limits: Limits,
    breaker: Option<breaker::Rules>,
}

/// One of `services:`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// The name that resolves to its hosts (A, AAAA), or a list of names that do so together. Its own name when none of
    /// this, `srv`, `endpoints` and `endpoints_file` is given.
    pub dns: Option<Names>,
    /// The name whose SRV records list its instances, such as `_http._tcp.orders`, or a list of such names. A record's
    /// priority is a tier, its weight a share within it (RFC 2782). Its port counts where there are no sidecars
    /// (`mesh: false`); sidecars are reached on the port of `sidecar.inbound`.
    pub srv: Option<Names>,
    /// Its endpoints, instead of DNS: `IP:PORT`, or a mapping with `address`, `weight`, `priority` and `zone`. In the mesh
    /// the port is that of the sidecars.
    pub endpoints: Option<Vec<Item>>,
    /// A file with such a list, in YAML or JSON. It is looked at every second; while it cannot be used, its last good
    /// content stays in use.
    pub endpoints_file: Option<PathBuf>,
    /// Where its app listens, on its own host. 8080 by default.
    pub port: Option<u16>,
    /// What its app speaks on that port.
    pub protocol: Protocol,
    /// Whether there is a sidecar beside each instance, as there is when this is left out. `false`: it is reached in
    /// plaintext at its port.
    pub mesh: Option<bool>,
    /// Where the sidecars of its callers take connections for it, on loopback, such as `127.0.0.1:5432`. For
    /// `protocol: tcp` only: other services are reached by name at the sidecar's outbound address.
    pub listen: Option<SocketAddr>,
    /// More names by which callers address it, without a port.
    pub hosts: Vec<String>,
    /// Its SPIFFE ID, when it is not `spiffe://<trust_domain>/service/<name>`.
    pub identity: Option<String>,
    /// Whether plaintext is let in beside mutual TLS: `strict` (never), or for a time.
    pub mtls: mtls::Config,
    /// Who may call it. Anybody of the mesh when this is left out; with it, only those whom a rule allows, so an empty list
    /// allows nobody.
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
    pub health: Option<health::Config>,
    /// As in `defaults`.
    pub limits: Option<limits::Config>,
    /// As in `defaults`.
    pub breaker: Option<breaker::Config>,
}

/// One name or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// One.
    One(String),
    /// Several, in a list.
    Several(Vec<String>),
}

impl Names {
    fn targets(
        &self,
        at: &Path,
        problems: &mut Problems,
        build: impl Fn(&str, &Path, &mut Problems) -> Option<dns::Target>,
    ) -> Option<Source> {
        let names = match self {
            Self::One(name) => {
                return build(name, at, problems).map(|target| Source::Dns(vec![target]));
            }
            Self::Several(names) => names,
        };
        if names.is_empty() || names.len() > MOST_NAMES {
            problems.at(
                at,
                match names.len() {
                    0 => "the list is empty: the service could never be reached".to_owned(),
                    count => format!("{count} names are too many"),
                },
                format!("write a name, or a list of 1 to {MOST_NAMES}"),
            );
            return None;
        }
        let mut targets = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let at = at.index(index);
            if let Some(target) = build(name, &at, problems) {
                if targets.contains(&target) {
                    problems.at(
                        &at,
                        format!("`{name}` is listed twice"),
                        "list each name once",
                    );
                }
                targets.push(target);
            }
        }
        Some(Source::Dns(targets))
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Names;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a list of names")
            }
            fn visit_str<E>(self, name: &str) -> Result<Names, E> {
                Ok(Names::One(name.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, names: A) -> Result<Names, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(names)).map(Names::Several)
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

impl JsonSchema for Names {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Names".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" } },
        ] })
    }
}

/// Names that a service may have in DNS.
const MOST_NAMES: usize = 32;

/// Where the port of an app is not said.
pub const APP_PORT: u16 = 8080;

impl Service {
    /// Paths of files are relative to the directory of the configuration.
    pub fn relative_to(&mut self, base: &std::path::Path) {
        if let Some(file) = &mut self.endpoints_file {
            *file = base.join(&file);
        }
    }

    /// Whether it is reached through sidecars.
    pub fn is_mesh(&self) -> bool {
        self.mesh.unwrap_or(true)
    }

    /// Where its app listens on its own host.
    pub fn app_port(&self) -> u16 {
        self.port.unwrap_or(APP_PORT)
    }

    /// Where plaintext is let in, and until when, if it is at all.
    pub fn permit(&self, path: &Path, problems: &mut Problems) -> Option<mtls::Permit> {
        let has_rules = self.allow.as_ref().is_some_and(|rules| !rules.is_empty());
        let path = path.key("mtls");
        self.mtls.build(self.app_port(), has_rules, &path, problems)
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
            // Of a name that makes no identity more is said below.
            if self.identity.is_some() {
                problems.at(
                    &path.key("identity"),
                    what,
                    format!("write `spiffe://{trust_domain}/PATH`, or remove it for `spiffe://{trust_domain}/service/{name}`"),
                );
            }
        });
        self.check_place(name, path, problems);
        self.check_protocol(name, path, problems);
        let source = self.source(name, mesh_port, path, problems);
        self.check_hosts(path, problems);
        let own = self.or(defaults);
        // What is wrong with the defaults is said once, where they stand.
        let said = |key: &str| match key {
            "balance" => self.balance.is_some(),
            "timeout" => self.timeout.is_some(),
            "connect_timeout" => self.connect_timeout.is_some(),
            "retry" => self.retry.is_some(),
            "outlier" => self.outlier.is_some(),
            "limits" => self.limits.is_some(),
            _ => self.breaker.is_some(),
        };
        let reach = own.build(path, said, problems);
        let health = self.health(defaults, path, problems);
        if problems.len() > before {
            return None;
        }
        let reach = reach?;
        let authority = match self.protocol {
            Protocol::Tcp => Some(self.authority(name).ok()?),
            Protocol::Http | Protocol::Grpc => None,
        };
        Some(Spec {
            name: Arc::from(name),
            source: source?,
            mesh: if self.is_mesh() {
                Some(identity.ok()?)
            } else {
                None
            },
            authority,
            app: self.protocol.speaks(),
            balance: reach.balance,
            sticky: None,
            outlier: reach.outlier,
            health,
            retry: reach.retry,
            timeout: own.timeout.as_duration(),
            connect_timeout: self.connect_timeout(defaults),
            limits: reach.limits,
            breaker: reach.breaker,
        })
    }

    /// What it does not say itself, as all services have it.
    fn or(&self, defaults: &Defaults) -> Defaults {
        fn own<T: Clone>(own: Option<&T>, default: &T) -> T {
            own.unwrap_or(default).clone()
        }
        Defaults {
            balance: own(self.balance.as_ref(), &defaults.balance),
            timeout: own(self.timeout.as_ref(), &defaults.timeout),
            connect_timeout: self.connect_timeout.or(defaults.connect_timeout),
            retry: own(self.retry.as_ref(), &defaults.retry),
            outlier: own(self.outlier.as_ref(), &defaults.outlier),
            health: None,
            limits: own(self.limits.as_ref(), &defaults.limits),
            breaker: own(self.breaker.as_ref(), &defaults.breaker),
        }
    }

    /// How long a connection may take to come about.
    fn connect_timeout(&self, defaults: &Defaults) -> Duration {
        let usual = if self.is_mesh() { NEAR } else { FAR };
        let given = self.connect_timeout.or(defaults.connect_timeout);
        given.map_or(usual, Period::as_duration)
    }

    fn check_hosts(&self, path: &Path, problems: &mut Problems) {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        for (index, host) in self.hosts.iter().enumerate() {
            if host.is_empty() || !host.bytes().all(is_word) {
                problems.at(
                    &path.key("hosts").index(index),
                    format!("`{host}` is not a host name"),
                    "write a name or an IPv4 address, without scheme, port or path",
                );
            }
        }
    }

    /// How its endpoints are probed, by itself or by the defaults.
    fn health(
        &self,
        defaults: &Defaults,
        path: &Path,
        problems: &mut Problems,
    ) -> Option<health::Checks> {
        let (config, place) = match (&self.health, &defaults.health) {
            (Some(own), _) => (own, path.key("health")),
            (None, Some(default)) => (default, path.clone()),
            (None, None) => return None,
        };
        let mut found = Problems::new();
        let checks = config.build(&place, &mut found);
        // What is wrong with the defaults is said once, where they stand.
        if self.health.is_some() {
            problems.append(found);
        }
        let checks = checks?;
        if matches!(checks.question, Question::Grpc { .. }) && self.protocol != Protocol::Grpc {
            problems.at(
                &place,
                "its health is asked by gRPC, which its app does not speak",
                "write `protocol: grpc`, or a `health:` of its own with `http: /PATH` or `tcp: true`",
            );
            return None;
        }
        if self.protocol == Protocol::Tcp && checks.question != Question::Tcp {
            problems.at(
                &place,
                "its health is asked by HTTP, which nobody speaks with a `protocol: tcp` service",
                "write `health: { tcp: true }` here",
            );
            return None;
        }
        Some(checks)
    }

    /// Host and port, as callers know it.
    pub fn authority(&self, name: &str) -> Result<Authority, InvalidUri> {
        Authority::try_from(format!("{name}:{}", self.app_port()))
    }

    /// What depends on whether we understand what it speaks.
    fn check_protocol(&self, name: &str, path: &Path, problems: &mut Problems) {
        if self.protocol != Protocol::Tcp {
            if self.listen.is_some() {
                problems.at(
                    &path.key("listen"),
                    format!("`{name}` is not opaque, so its callers need no port of their own for it"),
                    "remove `listen` and send requests to the sidecar's outbound address, or write `protocol: tcp`",
                );
            }
            return;
        }
        if self.authority(name).is_err() {
            problems.at(
                path,
                format!("`{name}` cannot be the name of a service with `protocol: tcp`, because it stands in a host name"),
                "write letters, digits, `-` and `.`",
            );
        }
        if self.listen.is_some_and(|listen| listen.port() == 0) {
            problems.at(
                &path.key("listen"),
                "port 0 is a different one at each start",
                "write the port that the callers use, such as `127.0.0.1:5432`",
            );
        }
        if self
            .balance
            .as_ref()
            .is_some_and(|balance| balance.settings().is_by_request())
        {
            problems.at(
                &path.key("balance").key("key"),
                format!("connections to `{name}` have no such key: nobody looks into them"),
                "write `key: source`, the client's address",
            );
        }
        if let Some(retry) = &self.retry {
            let statuses = !retry.statuses.is_empty();
            let calls = !retry.grpc_statuses.is_empty();
            for (key, is_there) in [("statuses", statuses), ("grpc_statuses", calls)] {
                if is_there {
                    problems.at(
                        &path.key("retry").key(key),
                        format!("connections to `{name}` have no statuses: nobody looks into them"),
                        format!("remove `{key}`; connections that come about nowhere are tried again all the same"),
                    );
                }
            }
        }
        for (index, rule) in self.allow.iter().flatten().enumerate() {
            for (key, list) in [("methods", &rule.methods), ("paths", &rule.paths)] {
                if list.is_some() {
                    problems.at(
                        &path.key("allow").index(index).key(key),
                        format!("connections to `{name}` have no {key}: nobody looks into them"),
                        format!(
                            "remove `{key}`; a rule of a `protocol: tcp` service has `from` only"
                        ),
                    );
                }
            }
        }
    }

    /// What depends on whether there is a sidecar beside it.
    fn check_place(&self, name: &str, path: &Path, problems: &mut Problems) {
        if self.port == Some(0) {
            problems.at(
                &path.key("port"),
                "nothing listens on port 0",
                "write the port on which the app listens; 8080 is the default",
            );
        }
        if !self.is_mesh() {
            if self.allow.is_some() {
                problems.at(
                    &path.key("allow"),
                    format!("`{name}` has no sidecar (`mesh: false`), so nobody would enforce these rules"),
                    "remove `allow`, or remove `mesh: false` and run a sidecar beside each instance",
                );
            }
            if self.mtls != mtls::Config::Strict {
                problems.at(
                    &path.key("mtls"),
                    format!("`{name}` has no sidecar (`mesh: false`), so everything comes to it in plaintext as it is"),
                    "remove `mtls`, or remove `mesh: false` and run a sidecar beside each instance",
                );
            }
            return;
        }
        self.permit(path, problems);
        // One label of DNS, because it stands in the certificate as the service's DNS name too.
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_label = (1..=63).contains(&name.len())
            && name.bytes().all(letter)
            && !name.starts_with('-')
            && !name.ends_with('-');
        if self.identity.is_none() && !is_label {
            problems.at(
                path,
                format!("`{name}` cannot be the name of a service of the mesh, because it stands in its certificate"),
                "write 1 to 63 lower case letters, digits and `-` between them; other names belong in `hosts`",
            );
        }
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
        let said = [
            ("dns", self.dns.is_some()),
            ("srv", self.srv.is_some()),
            ("endpoints", self.endpoints.is_some()),
            ("endpoints_file", self.endpoints_file.is_some()),
        ];
        let mut said = said
            .into_iter()
            .filter(|(_, said)| *said)
            .map(|(key, _)| key);
        if let (Some(first), Some(second)) = (said.next(), said.next()) {
            problems.at(
                &path.key(second),
                format!("a service has `{first}` or `{second}`, not both"),
                "remove one of them",
            );
        }
        if self.port.is_some() && self.srv.is_some() && !self.is_mesh() {
            problems.at(
                &path.key("port"),
                "the port of each instance stands in its SRV record",
                "remove `port`",
            );
        }
        if let Some(file) = &self.endpoints_file {
            return Some(Source::File(file.clone()));
        }
        if let Some(endpoints) = &self.endpoints {
            let at = path.key("endpoints");
            if endpoints.is_empty() {
                problems.at(
                    &at,
                    "the list is empty: the service could never be reached",
                    "list at least one `IP:PORT`",
                );
            }
            return list::build(endpoints, &at, problems).map(Source::Fixed);
        }
        if let Some(srv) = &self.srv {
            // The record has the app's port on its own host; in the mesh its sidecar is reached, on the mesh's port.
            let port = self.is_mesh().then_some(mesh_port);
            return srv.targets(&path.key("srv"), problems, |name, at, problems| {
                dns::Target::instances(name, port, at, problems)
            });
        }
        let address = |name: &str, at: &Path, problems: &mut Problems| {
            dns::Target::build(name, port, at, problems)
        };
        match &self.dns {
            Some(dns) => dns.targets(&path.key("dns"), problems, address),
            None => address(name, path, problems).map(|target| Source::Dns(vec![target])),
        }
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
        source: Source::Fixed(vec![Place::new(address)]),
        mesh: None,
        app: service.protocol.speaks(),
        authority: match service.protocol {
            Protocol::Tcp => Some(service.authority(name).ok()?),
            Protocol::Http | Protocol::Grpc => None,
        },
        balance: balance::Policy::default(),
        sticky: None,
        // Its callers judge it; there is no other endpoint to turn to.
        outlier: outlier::Config {
            enabled: false,
            ..outlier::Config::default()
        }
        .build(&path, &mut ignored)?,
        health: None,
        // Its callers try again, elsewhere if they can.
        retry: retry::Config {
            attempts: 0,
            ..retry::Config::default()
        }
        .build(&path, &mut ignored)?,
        timeout: service.timeout.unwrap_or(defaults.timeout).as_duration(),
        connect_timeout: service.connect_timeout(defaults),
        // Its callers count; here all of them would share one.
        limits: Limits::NONE,
        breaker: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_connection_out_of_the_mesh_is_given_more_time() {
        let check = |service: &str, defaults: &str, expected: u64| {
            let service: Service = serde_json::from_str(service).unwrap();
            let defaults: Defaults = serde_json::from_str(defaults).unwrap();
            let given = service.connect_timeout(&defaults);
            assert_eq!(given, Duration::from_millis(expected), "{service:?}");
        };
        let (plain, all) = (r#"{"mesh": false}"#, r#"{"connect_timeout": "2s"}"#);
        check("{}", "{}", 1_000);
        check(plain, "{}", 3_000);
        check("{}", all, 2_000);
        check(plain, all, 2_000);
        check(r#"{"connect_timeout": "100ms"}"#, all, 100);
        check(r#"{"mesh": false, "connect_timeout": "5s"}"#, "{}", 5_000);
    }
}
