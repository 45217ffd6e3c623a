//! The gateway's plan: each listener with the same routes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Instant;

use weft_dataplane::authn::Authenticator;
use weft_dataplane::authz::Rules;
use weft_dataplane::balance::{self, sticky::Sticky};
use weft_dataplane::cluster::config::Protocol;
use weft_dataplane::cluster::{Cluster, Spec};
use weft_dataplane::http1::Limits;
use weft_dataplane::limit::Limiter;
use weft_dataplane::node;
use weft_dataplane::plan::carry::Carried;
use weft_dataplane::plan::services::{INGRESS, Services};
use weft_dataplane::plan::{Door, Http2, Metered, Opaque, Plan, Purpose, Rule, Site, Timeouts};
use weft_dataplane::reason::Reason;
use weft_dataplane::route::Table;
use weft_dataplane::trusted::Trusted;
use weft_runtime::config::{Path, Problems, nearest, overlap};

use crate::config::{Config, Listener, Route};
use crate::tls::Shown;

/// The checked configuration of an ingress.
#[derive(Debug, Clone)]
pub struct Design {
    config: Config,
    services: Services,
    /// How the sessions of services are kept.
    sticky: BTreeMap<String, Arc<Sticky>>,
    /// What listeners show, by their names.
    shown: BTreeMap<String, Arc<Shown>>,
}

/// Whether the files that the configuration names are there to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// They are: this is the ingress's host.
    Read,
    /// They belong to the ingress, and this is somebody else, who reads the same configuration.
    Elsewhere,
}

impl Design {
    /// Checks everything that needs no running process. `host` puts all listeners on one address.
    pub fn build(
        mut config: Config,
        services: &Services,
        host: Option<IpAddr>,
        base: &FilePath,
        files: Files,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.len();
        let place = Path::root().key("ingress");
        if let Some(host) = host {
            for listener in &mut config.listeners {
                listener.address.set_ip(host);
            }
        }
        for authn in config.authn.values_mut() {
            authn.relative_to(base);
        }
        check_listeners(&config, &place.key("listeners"), problems);
        let mut shown = BTreeMap::new();
        if files == Files::Read {
            for (index, listener) in config.listeners.iter().enumerate() {
                if let Some(files) = &listener.tls {
                    let at = place.key("listeners").index(index).key("tls");
                    let built = Shown::build(&listener.name, files, base, &at, problems);
                    shown.extend(built.map(|built| (listener.name.clone(), Arc::new(built))));
                }
            }
        }
        for (name, authn) in &config.authn {
            let at = place.key("authn").key(name);
            match files {
                Files::Read => drop(Authenticator::build(&at, authn, problems)),
                Files::Elsewhere => authn.check(&at, problems),
            }
        }
        for (name, limit) in &config.limits {
            Limiter::build(
                name,
                &place.key("limits").key(name),
                limit,
                Instant::now(),
                problems,
            );
        }
        check_sticky(&config, services, problems);
        let sticky = match files {
            Files::Read => sticky(services, base, problems),
            Files::Elsewhere => BTreeMap::new(),
        };
        let routes = place.key("routes");
        let mut matches = Vec::new();
        for (index, route) in config.routes.iter().enumerate() {
            let at = routes.index(index);
            check_route(route, &config, services, &at, problems);
            matches.push((at.key("match"), &route.matching, ()));
        }
        Table::build(
            matches
                .iter()
                .map(|(at, matching, ())| (at, *matching, ()))
                .collect(),
            problems,
        );
        (problems.len() == before).then(|| Self {
            config,
            services: services.clone(),
            sticky,
            shown,
        })
    }
}

/// Sessions are kept for whom a route leads to, and for nobody else: sidecars keep none.
fn check_sticky(config: &Config, services: &Services, problems: &mut Problems) {
    for (name, service) in &services.file {
        let sticky = service.balance.as_ref().and_then(balance::Config::sticky);
        if sticky.is_some() && !config.routes.iter().any(|route| route.to == *name) {
            let place = Path::root().key("services").key(name);
            problems.at(
                &place.key("balance").key("sticky"),
                format!("no route of the ingress leads to `{name}`, and sidecars keep no sessions: apps send no cookies"),
                "remove it; `policy: maglev` with a `key` that services hand on, such as a header, keeps together what they send",
            );
        }
    }
}

/// Reads the keys of all services whose sessions are kept.
fn sticky(
    services: &Services,
    base: &FilePath,
    problems: &mut Problems,
) -> BTreeMap<String, Arc<Sticky>> {
    let mut found = BTreeMap::new();
    // What is wrong with the defaults is said once.
    let mut said = false;
    for (name, service) in &services.file {
        let (balance, place) = match &service.balance {
            Some(balance) => (balance, Path::root().key("services").key(name)),
            None if said => continue,
            None => (&services.defaults.balance, Path::root().key("defaults")),
        };
        let Some(config) = balance.sticky() else {
            continue;
        };
        let at = place.key("balance").key("sticky");
        match config.build(name, base, &at, problems) {
            Some(sticky) => drop(found.insert(name.clone(), Arc::new(sticky))),
            None => said |= service.balance.is_none(),
        }
    }
    found
}

fn check_listeners(config: &Config, place: &Path, problems: &mut Problems) {
    let mut names = HashMap::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let at = place.index(index);
        if listener.name.is_empty() {
            problems.at(
                &at.key("name"),
                "the listener has no name",
                "write one, such as `public`, for logs and metrics",
            );
        } else if let Some(other) = names.insert(listener.name.as_str(), index) {
            let other = place.index(other).key("name");
            problems.conflict(
                &at.key("name"),
                &[&other],
                format!("`{}` is the name at `{other}` too", listener.name),
                "give each listener a name of its own",
            );
        }
        let same = config.listeners[..index]
            .iter()
            .position(|other| overlap(other.address, listener.address));
        if let Some(other) = same.filter(|_| listener.address.port() != 0) {
            let other = place.index(other).key("address");
            problems.conflict(
                &at.key("address"),
                &[&other],
                format!("`{}` is taken by `{other}`", listener.address),
                "give each listener a port of its own",
            );
        }
        trusted(listener, &at, problems);
        timeouts(listener, &at, problems);
        if listener.address.port() == 0 {
            problems.at(
                &at.key("address"),
                "port 0 is a different one at each start",
                "write the port that clients use",
            );
        }
    }
}

/// Whom this listener believes.
fn trusted(listener: &Listener, at: &Path, problems: &mut Problems) -> Trusted {
    Trusted::build(
        &listener.trusted_proxies,
        &at.key("trusted_proxies"),
        problems,
    )
}

/// How long its clients may take.
fn timeouts(listener: &Listener, at: &Path, problems: &mut Problems) -> Timeouts {
    let at = at.key("unread_timeout");
    Timeouts::default().with_unread(listener.unread_timeout, &at, problems)
}

fn check_route(
    route: &Route,
    config: &Config,
    services: &Services,
    at: &Path,
    problems: &mut Problems,
) {
    let unknown = |what: &str, name: &str, known: Vec<&str>| {
        let cure = match nearest(name, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => format!("add one under `{what}`"),
            None => format!("write one of `{}`, or add it there", known.join("`, `")),
        };
        (format!("there is no `{name}` under `{what}`"), cure)
    };
    if !services.file.contains_key(&route.to) {
        let (what, cure) = unknown(
            "services",
            &route.to,
            services.file.keys().map(String::as_str).collect(),
        );
        problems.at(&at.key("to"), what, cure);
    }
    if let Some(service) = services.file.get(&route.to)
        && service.protocol == Protocol::Tcp
    {
        problems.at(
            &at.key("to"),
            format!("`{}` has `protocol: tcp`, and a route carries requests", route.to),
            "route to a service with `protocol: http` or `grpc`; services of the mesh reach this one at its `listen`",
        );
    }
    if let Some(name) = &route.authn
        && !config.authn.contains_key(name)
    {
        let (what, cure) = unknown(
            "ingress.authn",
            name,
            config.authn.keys().map(String::as_str).collect(),
        );
        problems.at(&at.key("authn"), what, cure);
    }
    for (index, name) in route.limits.iter().enumerate() {
        let at = at.key("limits").index(index);
        match config.limits.get(name) {
            None => {
                let (what, cure) = unknown(
                    "ingress.limits",
                    name,
                    config.limits.keys().map(String::as_str).collect(),
                );
                problems.at(&at, what, cure);
            }
            Some(_) if route.limits[..index].contains(name) => {
                problems.at(
                    &at,
                    format!("`{name}` is listed twice: every request would take two tokens"),
                    "list it once",
                );
            }
            Some(_) => {}
        }
    }
}

impl node::Design for Design {
    fn clusters(&self) -> Vec<(Spec, bool)> {
        // Only those that a route leads to: the others are nobody's business here.
        let wanted: HashSet<&str> = self
            .config
            .routes
            .iter()
            .map(|route| route.to.as_str())
            .collect();
        let specs = self
            .services
            .specs
            .iter()
            .filter(|(name, _)| wanted.contains(name.as_str()));
        let clusters = specs.map(|(name, spec)| {
            let spec = Spec {
                sticky: self.sticky.get(name).cloned(),
                ..spec.clone()
            };
            (spec, false)
        });
        clusters.collect()
    }

    fn plan(
        &self,
        generation: u64,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        carried: &mut Carried,
        problems: &mut Problems,
    ) -> Option<Plan> {
        let place = Path::root().key("ingress");
        let authenticators =
            carried.authenticators(&place.key("authn"), &self.config.authn, problems);
        let limiters = carried.limiters(&place.key("limits"), &self.config.limits, problems);
        let anybody = Arc::new(Rules::build(
            INGRESS,
            &place,
            &[],
            &BTreeMap::new(),
            problems,
        )?);
        let mut rules = Vec::new();
        for (index, route) in self.config.routes.iter().enumerate() {
            let name: Arc<str> = match &route.name {
                Some(name) => Arc::from(name.as_str()),
                None => Arc::from(format!("routes[{index}]")),
            };
            let limits = route.limits.iter().map(|limit| {
                Some(Metered {
                    limiter: Arc::clone(limiters.get(limit)?),
                    route: Arc::clone(&name),
                })
            });
            let rule = Rule {
                id: Rule::next_id(),
                authn: match &route.authn {
                    Some(authn) => Some(Arc::clone(authenticators.get(authn)?)),
                    None => None,
                },
                authz: Arc::clone(&anybody),
                limits: limits.collect::<Option<_>>()?,
                target: Arc::clone(clusters.get(route.to.as_str())?),
                purpose: Purpose::Traffic,
                name,
            };
            rules.push((
                place.key("routes").index(index).key("match"),
                &route.matching,
                Arc::new(rule),
            ));
        }
        let mut sites = Vec::new();
        for (index, listener) in self.config.listeners.iter().enumerate() {
            let at = place.key("listeners").index(index);
            let door = match &listener.tls {
                Some(_) => Door::Tls(self.shown.get(&listener.name)?.config()),
                None => Door::Plain,
            };
            let table = rules
                .iter()
                .map(|(at, matching, rule)| (at, *matching, Arc::clone(rule)))
                .collect();
            sites.push(Arc::new(Site {
                name: Arc::from(listener.name.as_str()),
                address: listener.address,
                door,
                routes: Table::build(table, problems)?,
                opaque: Opaque::Refused,
                capture: None,
                unmatched: Reason::NoRoute,
                service: Arc::from(INGRESS),
                identity: Arc::from(
                    self.services
                        .identities
                        .get(INGRESS)
                        .map_or("", String::as_str),
                ),
                tells_identity: false,
                callers: Arc::default(),
                is_edge: true,
                paces_uploads: true,
                trusted: trusted(listener, &at, problems),
                timeouts: timeouts(listener, &at, problems),
                http1: Limits::default(),
                http2: Http2::EDGE,
                outlasts: false,
            }));
        }
        Some(Plan::new(generation, sites))
    }
}

impl Design {
    /// Whether any route leads into the mesh, for which an identity is needed.
    pub fn needs_identity(&self) -> bool {
        self.config.routes.iter().any(|route| {
            self.services
                .file
                .get(&route.to)
                .is_some_and(weft_dataplane::cluster::config::Service::is_mesh)
        })
    }

    /// The services that there are.
    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    /// What its listeners show.
    pub(crate) fn shown(&self) -> impl Iterator<Item = &Arc<Shown>> {
        self.shown.values()
    }
}
