//! The services of the mesh as the file has them, checked: what every program's plan is made from.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_runtime::config::{Path, Problems};

use crate::authz;
use crate::cluster::Spec;
use crate::cluster::config::{Defaults, Service};
use crate::identity::TrustDomain;

/// Names that are no service of the file and may be named in rules all the same: the programs of Weft.
pub const INGRESS: &str = "ingress";

/// What no service may be called: it would have the identity of one of those programs.
const RESERVED: [&str; 2] = ["ca", INGRESS];

/// The checked services.
#[derive(Debug, Clone)]
pub struct Services {
    /// Whose mesh it is.
    pub trust_domain: TrustDomain,
    /// As they stand in the file.
    pub file: BTreeMap<String, Service>,
    /// What holds for those that do not say otherwise.
    pub defaults: Defaults,
    /// How each is reached, by name.
    pub specs: BTreeMap<String, Spec>,
    /// The identity of every name that a rule may mention.
    pub identities: BTreeMap<String, String>,
}

impl Services {
    /// The same for a process that runs in this zone.
    #[must_use]
    pub fn in_zone(mut self, zone: Option<&Arc<str>>) -> Self {
        for spec in self.specs.values_mut() {
            spec.balance = std::mem::take(&mut spec.balance).in_zone(zone);
        }
        self
    }

    /// Checks them all, and goes on with those that are good. `mesh_port` is where sidecars listen for each other.
    pub fn build(
        trust_domain: &TrustDomain,
        file: BTreeMap<String, Service>,
        defaults: Defaults,
        mesh_port: u16,
        problems: &mut Problems,
    ) -> Self {
        let place = Path::root().key("services");
        defaults.check(&Path::root().key("defaults"), problems);
        let mut specs = BTreeMap::new();
        let mut identities = BTreeMap::new();
        let mut names: BTreeMap<String, Path> = BTreeMap::new();
        if let Ok(id) = crate::identity::SpiffeId::for_service(trust_domain, INGRESS) {
            identities.insert(INGRESS.to_owned(), id.to_string());
        }
        for (name, service) in &file {
            let at = place.key(name);
            if RESERVED.contains(&name.as_str()) {
                problems.at(
                    &at,
                    format!("`{name}` is the name of a program of Weft's own, whose identity nobody else may have"),
                    format!(
                        "give the service another name, and write `hosts: [{name}]` for callers that know it by this one"
                    ),
                );
            }
            if let Ok(id) = service.identity(name, trust_domain) {
                identities.insert(name.clone(), id.to_string());
            }
            if let Some(spec) =
                service.build(name, &defaults, mesh_port, trust_domain, &at, problems)
            {
                specs.insert(name.clone(), spec);
            }
            names.insert(name.to_ascii_lowercase(), at);
        }
        for (name, service) in &file {
            for (index, host) in service.hosts.iter().enumerate() {
                let at = place.key(name).key("hosts").index(index);
                let host = host.strip_suffix('.').unwrap_or(host);
                if let Some(other) = names.insert(host.to_ascii_lowercase(), at.clone()) {
                    problems.conflict(
                        &at,
                        &[&other],
                        format!("`{host}` already stands for `{other}`"),
                        "give each name to one service",
                    );
                }
            }
        }
        for (name, service) in &file {
            let at = place.key(name).key("allow");
            let allow = service.allow.as_deref();
            authz::Rules::of(name, &at, allow, &identities, problems);
        }
        Self {
            trust_domain: trust_domain.clone(),
            file,
            defaults,
            specs,
            identities,
        }
    }
}
