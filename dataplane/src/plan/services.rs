//! The services of the mesh as the file has them, checked: what every program's plan is made from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use weft_runtime::config::{Path, Problems};

use crate::authz;
use crate::cluster::Spec;
use crate::cluster::config::{Defaults, Service};
use crate::identity::{SpiffeId, TrustDomain};

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
    /// What callers are called that have these identities.
    pub callers: Arc<Callers>,
}

/// Under which names callers are counted: those under which they count themselves, and never another's.
#[derive(Debug, Default)]
pub struct Callers {
    by_identity: HashMap<Arc<str>, Arc<str>>,
    /// The names of the file.
    names: HashSet<Arc<str>>,
}

impl Callers {
    /// Of all names that there are, with their identities. Of several services with one identity it is the one that the
    /// identity's label names, or the first.
    fn new(identities: &BTreeMap<String, String>) -> Self {
        let mut callers = Self::default();
        for (name, identity) in identities {
            let name: Arc<str> = Arc::from(name.as_str());
            callers.names.insert(Arc::clone(&name));
            let is_label = |id: SpiffeId| id.label() == &*name;
            if !callers.by_identity.contains_key(identity.as_str())
                || identity.parse().is_ok_and(is_label)
            {
                callers.by_identity.insert(identity.as_str().into(), name);
            }
        }
        callers
    }

    /// What a caller is called that can prove this identity. One that the file does not know goes by its label, unless that is
    /// the name of a service, which it is not.
    pub fn name(&self, identity: &SpiffeId) -> Arc<str> {
        let (text, label) = (identity.as_str(), identity.label());
        match self.by_identity.get(text) {
            Some(name) => Arc::clone(name),
            None if self.names.contains(label) => Arc::from(text),
            None => Arc::from(label),
        }
    }

    /// The names of those whom the file knows.
    pub fn known(&self) -> HashSet<Arc<str>> {
        self.by_identity.values().cloned().collect()
    }
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

    /// The services whose identity this is: those to which the file gives it, which may be several, or else the one that it
    /// names itself, unless the file gives that one another.
    pub fn whose(&self, identity: &SpiffeId) -> Vec<Arc<str>> {
        let given = self.identities.iter();
        let given = given.filter(|(_, theirs)| *theirs == identity.as_str());
        let mut names: Vec<_> = given.map(|(name, _)| Arc::from(name.as_str())).collect();
        if let Some(name) = identity.service_name()
            && names.is_empty()
            && identity.is_member_of(&self.trust_domain)
            && !self.identities.contains_key(name)
        {
            names.push(Arc::from(name));
        }
        names
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
        if let Ok(id) = SpiffeId::for_service(trust_domain, INGRESS) {
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
            callers: Arc::new(Callers::new(&identities)),
            identities,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use weft_runtime::config::Document;

    fn services(text: &str) -> Services {
        let mut problems = Problems::new();
        let document = Document::parse("services", text).unwrap();
        let file = document.decode(&mut problems).unwrap();
        let domain = "shop.internal".parse().unwrap();
        let services = Services::build(&domain, file, Defaults::default(), 15_008, &mut problems);
        assert!(problems.is_empty(), "{}", problems.render());
        services
    }

    const TEXT: &str = "\
orders: { port: 8080 }
billing: { identity: \"spiffe://shop.internal/ns/shop/sa/invoices\" }
reports: { identity: \"spiffe://shop.internal/ns/shop/sa/all\" }
audit: { identity: \"spiffe://shop.internal/ns/shop/sa/all\" }
stock: { identity: \"spiffe://shop.internal/ns/shop/sa/stock\" }
";

    #[test]
    fn an_identity_is_of_the_services_that_have_it_and_of_nobody_else() {
        let services = services(TEXT);
        for (path, names) in [
            ("service/orders", vec!["orders"]),
            ("service/ingress", vec!["ingress"]),
            // One that this file does not know, or not yet.
            ("service/newcomer", vec!["newcomer"]),
            ("ns/shop/sa/invoices", vec!["billing"]),
            ("ns/shop/sa/all", vec!["audit", "reports"]),
            // The names of others, by their form or their end.
            ("service/billing", vec![]),
            ("service/invoices", vec!["invoices"]),
            ("ns/shop/sa/orders", vec![]),
            ("ns/other/sa/invoices", vec![]),
        ] {
            let identity = format!("spiffe://shop.internal/{path}").parse().unwrap();
            let whose = services.whose(&identity);
            let whose: Vec<&str> = whose.iter().map(|name| &**name).collect();
            assert_eq!(whose, names, "{path}");
        }
        let elsewhere = "spiffe://other.internal/service/newcomer".parse().unwrap();
        assert!(services.whose(&elsewhere).is_empty());
    }

    #[test]
    fn a_caller_is_counted_under_the_name_under_which_it_counts_itself() {
        let callers = services(TEXT).callers;
        for (path, name) in [
            ("service/orders", "orders"),
            ("service/ingress", "ingress"),
            ("ns/shop/sa/invoices", "billing"),
            ("ns/shop/sa/stock", "stock"),
            // Of two services.
            ("ns/shop/sa/all", "audit"),
            // Of none that this file knows.
            ("service/newcomer", "newcomer"),
            ("ns/shop/sa/newcomer", "newcomer"),
        ] {
            let identity = format!("spiffe://shop.internal/{path}").parse().unwrap();
            assert_eq!(&*callers.name(&identity), name, "{path}");
        }
        let mut known: Vec<_> = callers.known().into_iter().collect();
        known.sort();
        assert_eq!(
            known.iter().map(|name| &**name).collect::<Vec<_>>(),
            ["audit", "billing", "ingress", "orders", "stock"]
        );
    }

    #[test]
    fn nobody_is_counted_under_the_name_of_another() {
        let callers = services(TEXT).callers;
        for path in ["service/billing", "ns/other/sa/orders", "service/reports"] {
            let identity = format!("spiffe://shop.internal/{path}");
            let name = callers.name(&identity.parse().unwrap());
            assert_eq!(*name, *identity);
        }
    }
}
