//! The app that the demo runs: which services there are, who calls whom, and how many of each.

/// The demo's trust domain.
pub(super) const TRUST_DOMAIN: &str = "shop.internal";
/// The name by which rules know the gateway.
pub(super) const INGRESS_NAME: &str = "ingress";

/// One service of the app.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    /// What it is asked for: this path and an id.
    pub(super) path: &'static str,
    /// The service that it calls for each request.
    pub(super) calls: Option<&'static str>,
    /// How many instances there are at the start.
    pub(super) replicas: u8,
    /// The last number of the address of its first instance; the others follow.
    pub(super) first_host: u8,
}

/// In the order of the calls: the first is what the gateway shows.
pub(super) const SERVICES: &[Service] = &[
    Service {
        name: "storefront",
        path: "/checkout",
        calls: Some("orders"),
        replicas: 1,
        first_host: 11,
    },
    Service {
        name: "orders",
        path: "/orders",
        calls: Some("inventory"),
        replicas: 3,
        first_host: 21,
    },
    Service {
        name: "inventory",
        path: "/stock",
        calls: None,
        replicas: 2,
        first_host: 31,
    },
];

/// The service with this name; the demo's own names only.
pub(super) fn service(name: &str) -> Option<&'static Service> {
    SERVICES.iter().find(|service| service.name == name)
}

/// The edges that must show up: who calls whom.
pub(super) fn edges() -> impl Iterator<Item = (&'static str, &'static str)> {
    let callers = SERVICES.iter().map(|service| (service.name, service.calls));
    std::iter::once((INGRESS_NAME, Some(SERVICES[0].name)))
        .chain(callers)
        .filter_map(|(source, destination)| Some((source, destination?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_follow_the_calls() {
        let all: Vec<_> = edges().collect();
        let expected = [
            ("ingress", "storefront"),
            ("storefront", "orders"),
            ("orders", "inventory"),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn hosts_do_not_collide() {
        let mut hosts: Vec<u8> = SERVICES
            .iter()
            .flat_map(|s| s.first_host..=s.first_host + s.replicas)
            .collect();
        let count = hosts.len();
        hosts.dedup();
        assert_eq!(hosts.len(), count);
    }
}
