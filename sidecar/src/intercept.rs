//! What a sidecar listens for besides when connections are redirected to it: the app's over IPv6, and plaintext from others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use weft_dataplane::cluster::Cluster;
use weft_dataplane::cluster::config::Protocol;
use weft_dataplane::plan::capture::{Capture, Inbound, Outbound, Permit, Permitted, Service};
use weft_dataplane::plan::{Door, Http2, Site};
use weft_dataplane::reason::Reason;
use weft_dataplane::route::Table;
use weft_dataplane::trusted::Trusted;
use weft_runtime::config::Problems;

use crate::Design;

type Clusters = HashMap<Arc<str>, Arc<Cluster>>;

/// What happens to connections that the app meant for others.
pub(crate) fn outbound(
    design: &Design,
    clusters: &Clusters,
    problems: &mut Problems,
) -> Option<Capture> {
    let services = design.services().file.iter().map(|(name, service)| {
        Some(Service {
            rule: design.towards(name, clusters, problems)?,
            app_port: service.is_mesh().then(|| service.app_port()),
            is_opaque: service.protocol == Protocol::Tcp,
        })
    });
    Some(Capture::Outbound(Outbound {
        services: services.collect::<Option<_>>()?,
        egress: Arc::clone(&design.settings().egress),
        opaque_ports: Arc::clone(&design.settings().opaque_ports),
    }))
}

/// The listeners that are there for redirected connections only. A redirection within the host goes to its family's loopback, one
/// of a connection that comes in to an address of the interface.
pub(crate) fn sites(
    design: &Design,
    clusters: &Clusters,
    problems: &mut Problems,
) -> Option<Vec<Arc<Site>>> {
    let settings = design.settings();
    let Some(plaintext) = settings.plaintext else {
        return Some(Vec::new());
    };
    let mut sites = vec![inbound(design, "plaintext", plaintext, clusters, problems)?];
    // An instance with an address of its own has no other, and a host without IPv6 has none of it.
    if settings.host.is_none() && has_ipv6() {
        let all = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), plaintext.port());
        sites.push(inbound(design, "plaintext6", all, clusters, problems)?);
        let ip = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let address = SocketAddr::new(ip, settings.outbound.port());
        let routes = design.routes(clusters, problems)?;
        let site = design.site("outbound6", address, Door::Plain, routes, Reason::NoService);
        sites.push(Site {
            capture: Some(outbound(design, clusters, problems)?),
            ..site
        });
    }
    Some(sites.into_iter().map(Arc::new).collect())
}

fn inbound(
    design: &Design,
    name: &str,
    address: SocketAddr,
    clusters: &Clusters,
    problems: &mut Problems,
) -> Option<Site> {
    let none = Table::build(Vec::new(), problems)?;
    let site = design.site(name, address, Door::Plain, none, Reason::PlaintextRefused);
    let mut ports = HashMap::new();
    if let Some(permit) = design.permit() {
        let app_port = design.services().file.get(design.service())?.app_port();
        for &port in &permit.ports {
            let to = match port == app_port {
                true => Permitted::Exchanges(design.to_app(clusters, problems)?),
                false => Permitted::Connections(SocketAddr::new(design.settings().app, port)),
            };
            let until = permit.until;
            ports.insert(port, Permit { until, to });
        }
    }
    Some(Site {
        trusted: Trusted::default(),
        // It leads to the app, so it closes with what else does.
        outlasts: false,
        capture: Some(Capture::Inbound(Inbound {
            service: Arc::from(design.service()),
            ports,
        })),
        // So that the app is not told what a caller claims to be.
        tells_identity: true,
        http2: Http2::EDGE,
        // Whoever comes in here has shown nobody who it is.
        paces_uploads: true,
        ..site
    })
}

/// Whether there is an IPv6 loopback: without it nothing of that family is redirected.
fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}
