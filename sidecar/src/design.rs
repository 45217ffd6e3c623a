//! A sidecar's plan: every service by its name on the way out, the one app on the way in.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_dataplane::authz::Rules;
use weft_dataplane::cluster::config::{Protocol, Service, local_app};
use weft_dataplane::cluster::mtls::Permit;
use weft_dataplane::cluster::{Cluster, Spec};
use weft_dataplane::health::Question;
use weft_dataplane::http1::Limits;
use weft_dataplane::node;
use weft_dataplane::observe::PermitRow;
use weft_dataplane::plan::carry::Carried;
use weft_dataplane::plan::services::Services;
use weft_dataplane::plan::{Door, Http2, Opaque, Plan, Purpose, Rule, Site};
use weft_dataplane::reason::Reason;
use weft_dataplane::route::{Match, Table};
use weft_dataplane::trusted::Trusted;
use weft_runtime::config::{Path, Problems, overlap};

use crate::config::Settings;
use crate::{intercept, listens};

/// The checked configuration of one sidecar.
#[derive(Debug, Clone)]
pub struct Design {
    services: Services,
    /// The service beside which it stands.
    service: String,
    settings: Settings,
    local: Spec,
    permit: Option<Permit>,
}

impl Design {
    /// For the sidecar of `service`.
    pub fn build(
        services: &Services,
        service: &str,
        settings: &Settings,
        problems: &mut Problems,
    ) -> Option<Self> {
        let at = Path::root().key("services").key(service);
        let config = Self::find(services, service, problems)?;
        // Checked here so that the plan cannot fail by it.
        rules(services, service, problems)?;
        let address = SocketAddr::new(settings.app, config.app_port());
        Self::check_port(services, service, settings, address, problems)?;
        // Told where the service is checked, when it is wrong.
        let permit = config.permit(&at, &mut Problems::new());
        if permit.is_some() && settings.plaintext.is_none() {
            problems.at(
                &at.key("mtls"),
                "nothing is redirected to the sidecars, so plaintext does not come to them",
                "write `intercept: {}` under `sidecar` and install the rules with `weft intercept install`, or remove it",
            );
        }
        let local = local_app(service, config, &services.defaults, address)?;
        Some(Self {
            services: services.clone(),
            service: service.to_owned(),
            settings: settings.clone(),
            local,
            permit,
        })
    }

    /// What the file says of its service.
    fn find<'a>(
        services: &'a Services,
        service: &str,
        problems: &mut Problems,
    ) -> Option<&'a Service> {
        let place = Path::root().key("services");
        let Some(config) = services.file.get(service) else {
            let known: Vec<&str> = services.file.keys().map(String::as_str).collect();
            let cure = match known.as_slice() {
                [] => "add it".to_owned(),
                known => format!(
                    "add it, or start the sidecar with `--service` and one of `{}`",
                    known.join("`, `")
                ),
            };
            problems.at(
                &place,
                format!("there is no service `{service}`, which this sidecar is to stand beside"),
                cure,
            );
            return None;
        };
        if !config.is_mesh() {
            problems.at(
                &place.key(service).key("mesh"),
                format!("`{service}` is said to have no sidecar, and this is one"),
                "remove `mesh: false`",
            );
            return None;
        }
        Some(config)
    }

    /// Nothing else of this host may stand where its app does; what the sidecar itself needs ends the check.
    fn check_port(
        services: &Services,
        service: &str,
        settings: &Settings,
        address: SocketAddr,
        problems: &mut Problems,
    ) -> Option<()> {
        let at = Path::root().key("services").key(service).key("port");
        let sidecar = Path::root().key("sidecar");
        let intercept = sidecar.key("intercept");
        let own = [
            (
                sidecar.key("outbound").key("address"),
                Some(settings.outbound),
            ),
            (
                sidecar.key("inbound").key("address"),
                Some(settings.inbound),
            ),
            (intercept.key("inbound_port"), settings.plaintext),
        ];
        let taken = |own: SocketAddr| overlap(own, address);
        if let Some((own, _)) = own.into_iter().find(|(_, own)| own.is_some_and(taken)) {
            problems.conflict(
                &at,
                &[&own],
                format!("the app's address `{address}` is taken by the sidecar's own `{own}`"),
                "give the app and the sidecar different ports",
            );
            return None;
        }
        for (other, listen) in listens::of(services, settings) {
            if other != service && overlap(listen, address) {
                problems.conflict(
                    &listens::place(other),
                    &[&at],
                    format!("`{listen}` is taken by the app of `{service}`, which listens on `{address}`"),
                    "write another port, and have the callers use that",
                );
            }
        }
        Some(())
    }

    /// Where the app beside it finds the others.
    pub fn outbound_address(&self) -> SocketAddr {
        self.settings.outbound
    }

    /// The same with the app's way out at another address than the file says.
    pub fn keep_outbound(&mut self, address: SocketAddr) {
        self.settings.outbound = address;
    }

    fn outbound(
        &self,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        problems: &mut Problems,
    ) -> Option<Site> {
        let routes = self.routes(clusters, problems)?;
        let site = self.site(
            "outbound",
            self.settings.outbound,
            Door::Plain,
            routes,
            Reason::NoService,
        );
        Some(match self.settings.plaintext {
            Some(_) => Site {
                capture: Some(intercept::outbound(self, clusters, problems)?),
                ..site
            },
            None => site,
        })
    }

    /// Every service that speaks HTTP, by its names.
    pub(crate) fn routes(
        &self,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        problems: &mut Problems,
    ) -> Option<Table<Arc<Rule>>> {
        let place = Path::root().key("services");
        let mut matches = Vec::new();
        for (name, service) in &self.services.file {
            if service.protocol == Protocol::Tcp {
                continue;
            }
            let rule = self.towards(name, clusters, problems)?;
            for host in std::iter::once(name).chain(&service.hosts) {
                let matching = Match {
                    host: Some(host.clone()),
                    ..Match::default()
                };
                matches.push((place.key(name), matching, Arc::clone(&rule)));
            }
        }
        Table::build(
            matches
                .iter()
                .map(|(at, m, rule)| (at, m, Arc::clone(rule)))
                .collect(),
            problems,
        )
    }

    /// Where the app's connections to services that are not HTTP are taken. The app's own is next to it already.
    fn listens(
        &self,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        problems: &mut Problems,
    ) -> Option<Vec<Arc<Site>>> {
        listens::of(&self.services, &self.settings)
            .filter(|(name, _)| *name != self.service)
            .map(|(name, address)| {
                let rule = self.towards(name, clusters, problems)?;
                let site = self.site(
                    &format!("outbound-{name}"),
                    address,
                    Door::Plain,
                    Table::build(Vec::new(), problems)?,
                    Reason::NoService,
                );
                Some(Arc::new(Site {
                    opaque: Opaque::All(rule),
                    ..site
                }))
            })
            .collect()
    }

    /// What the app may send to a service: anything; that is the service's to decide.
    pub(crate) fn towards(
        &self,
        name: &str,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        problems: &mut Problems,
    ) -> Option<Arc<Rule>> {
        let place = Path::root().key("services");
        Some(Arc::new(Rule {
            id: Rule::next_id(),
            name: Arc::from(name),
            authn: None,
            authz: Arc::new(Rules::build(
                name,
                &place,
                &[],
                &self.services.identities,
                problems,
            )?),
            limits: Vec::new(),
            target: Arc::clone(clusters.get(name)?),
            purpose: Purpose::Traffic,
        }))
    }

    fn inbound(
        &self,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        problems: &mut Problems,
    ) -> Option<Site> {
        let app = self.to_app(clusters, problems)?;
        // An app that speaks HTTP gets no connections past its rules for methods and paths, and past what it is told of
        // its callers; one that does not gets no requests.
        let (mut matches, opaque) = match self.local.authority.clone() {
            Some(to) => (Vec::new(), Opaque::Tunnels { to, rule: app }),
            None => (vec![(Match::default(), app)], Opaque::Refused),
        };
        if let Some((probes, purpose)) = self.probes() {
            let anybody = Rules::build(
                &self.service,
                &Path::root(),
                &[],
                &self.services.identities,
                problems,
            )?;
            matches.push((probes, self.at_app("health", anybody, purpose, clusters)?));
        }
        let place = Path::root();
        let routes = matches
            .iter()
            .map(|(matching, rule)| (&place, matching, Arc::clone(rule)));
        let site = self.site(
            "inbound",
            self.settings.inbound,
            Door::Mesh,
            Table::build(routes.collect(), problems)?,
            Reason::NoRoute,
        );
        Some(Site { opaque, ..site })
    }

    /// The requests by which other proxies ask how our app is, where they do. Every member of the mesh may, whatever the
    /// `allow` rules say: whoever is about to call has to know, and nobody would think of a rule for it.
    fn probes(&self) -> Option<(Match, Purpose)> {
        let checks = self.services.specs.get(&self.service)?.health.as_ref()?;
        let (method, path) = checks.question.request();
        let matching = Match {
            path: Some(path.to_owned()),
            methods: Some(vec![method.to_owned()]),
            ..Match::default()
        };
        let purpose = match checks.question {
            Question::Tcp => Purpose::Knock,
            Question::Http { .. } | Question::Grpc { .. } => Purpose::Health,
        };
        Some((matching, purpose))
    }

    /// What others may send to the app.
    pub(crate) fn to_app(
        &self,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        problems: &mut Problems,
    ) -> Option<Arc<Rule>> {
        let allow = rules(&self.services, &self.service, problems)?;
        self.at_app("app", allow, Purpose::Traffic, clusters)
    }

    fn at_app(
        &self,
        name: &str,
        allow: Rules,
        purpose: Purpose,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
    ) -> Option<Arc<Rule>> {
        Some(Arc::new(Rule {
            id: Rule::next_id(),
            name: Arc::from(name),
            authn: None,
            authz: Arc::new(allow),
            limits: Vec::new(),
            target: Arc::clone(clusters.get(&self.local.name)?),
            purpose,
        }))
    }

    /// The services of the file.
    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    /// Whose sidecar it is.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    /// Where it listens.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where plaintext is let in, and until when, if it is at all.
    pub(crate) fn permit(&self) -> Option<&Permit> {
        self.permit.as_ref()
    }

    /// The same, port by port.
    pub(crate) fn permits(&self) -> Vec<PermitRow> {
        let ports = self.permit.iter().flat_map(|permit| {
            let until = permit.until;
            permit
                .ports
                .iter()
                .map(move |&port| PermitRow { port, until })
        });
        ports.collect()
    }

    pub(crate) fn site(
        &self,
        name: &str,
        address: SocketAddr,
        door: Door,
        routes: Table<Arc<Rule>>,
        unmatched: Reason,
    ) -> Site {
        let is_mesh = matches!(door, Door::Mesh);
        Site {
            name: Arc::from(name),
            address,
            door,
            routes,
            opaque: Opaque::Refused,
            capture: None,
            unmatched,
            service: Arc::from(self.service.as_str()),
            identity: Arc::from(
                self.services
                    .identities
                    .get(&self.service)
                    .map_or("", String::as_str),
            ),
            tells_identity: is_mesh,
            callers: match is_mesh {
                true => Arc::clone(&self.services.callers),
                false => Arc::default(),
            },
            is_edge: false,
            paces_uploads: false,
            trusted: match is_mesh {
                true => Trusted::default(),
                // Else whoever reaches it would choose its own address.
                false if self.settings.allow_remote => {
                    let trusted = self.settings.trusted.clone();
                    trusted.only_from_host(self.settings.outbound.ip())
                }
                false => self.settings.trusted.clone(),
            },
            timeouts: self.settings.timeouts,
            http1: Limits::default(),
            http2: Http2::MESH,
            outlasts: !is_mesh,
        }
    }
}

fn rules(services: &Services, service: &str, problems: &mut Problems) -> Option<Rules> {
    let place = Path::root().key("services").key(service).key("allow");
    let allow = services.file.get(service)?.allow.as_deref();
    Rules::of(service, &place, allow, &services.identities, problems)
}

impl node::Design for Design {
    fn clusters(&self) -> Vec<(Spec, bool)> {
        let services = self
            .services
            .specs
            .values()
            .map(|spec| (spec.clone(), false));
        services.chain([(self.local.clone(), true)]).collect()
    }

    fn callers(&self) -> HashSet<Arc<str>> {
        self.services.callers.known()
    }

    fn plan(
        &self,
        generation: u64,
        clusters: &HashMap<Arc<str>, Arc<Cluster>>,
        _: &mut Carried,
        problems: &mut Problems,
    ) -> Option<Plan> {
        let mut sites = vec![
            Arc::new(self.inbound(clusters, problems)?),
            Arc::new(self.outbound(clusters, problems)?),
        ];
        sites.extend(self.listens(clusters, problems)?);
        sites.extend(intercept::sites(self, clusters, problems)?);
        Some(Plan::new(generation, sites))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use weft_dataplane::cluster::config::Defaults;
    use weft_dataplane::node::Design as _;
    use weft_runtime::config::Document;

    #[test]
    fn callers_are_known_by_the_names_under_which_they_are_counted() {
        let text = "\
orders: { port: 8080 }
billing: { identity: \"spiffe://shop.internal/ns/shop/sa/invoices\" }
";
        let mut problems = Problems::new();
        let file = Document::parse("services", text)
            .unwrap()
            .decode(&mut problems)
            .unwrap();
        let domain = "shop.internal".parse().unwrap();
        let defaults = Defaults::default();
        let services = Services::build(&domain, file, defaults, 15_008, &mut problems);
        let settings = crate::Config::default()
            .build(None, &Path::root(), &mut problems)
            .unwrap();
        let design = Design::build(&services, "orders", &settings, &mut problems);
        assert!(problems.is_empty(), "{}", problems.render());
        let mut callers: Vec<_> = design.unwrap().callers().into_iter().collect();
        callers.sort();
        let names: Vec<&str> = callers.iter().map(|name| &**name).collect();
        assert_eq!(names, ["billing", "ingress", "orders"]);
    }
}
