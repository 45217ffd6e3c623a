//! `listen` of the services that are not HTTP: where a sidecar takes its app's connections to each of them.

use std::net::SocketAddr;

use weft_dataplane::cluster::config::Protocol;
use weft_dataplane::plan::services::Services;
use weft_runtime::config::{Path, Problems, overlap};

use crate::config::Settings;

/// Where the sidecars of a service's callers listen for it, if they do.
pub(crate) fn of<'a>(
    services: &'a Services,
    settings: &'a Settings,
) -> impl Iterator<Item = (&'a str, SocketAddr)> {
    services
        .file
        .iter()
        .filter(|(_, service)| service.protocol == Protocol::Tcp)
        .filter_map(|(name, service)| {
            let listen = service.listen?;
            let ip = settings.host.unwrap_or(listen.ip());
            Some((name.as_str(), SocketAddr::new(ip, listen.port())))
        })
}

/// Where it stands in the file.
pub(crate) fn place(service: &str) -> Path {
    Path::root().key("services").key(service).key("listen")
}

/// Checks them against each other and against the sidecar's own listeners.
pub fn check(services: &Services, settings: &Settings, problems: &mut Problems) {
    let sidecar = Path::root().key("sidecar");
    let mut taken = vec![
        (sidecar.key("outbound").key("address"), settings.outbound),
        (sidecar.key("inbound").key("address"), settings.inbound),
    ];
    if let Some(plaintext) = settings.plaintext {
        taken.push((sidecar.key("intercept").key("inbound_port"), plaintext));
    }
    for (name, address) in of(services, settings) {
        let at = place(name);
        if !address.ip().to_canonical().is_loopback() && !settings.allow_remote {
            problems.at(
                &at,
                format!("`{address}` can be reached from other hosts, which would then speak in the name of the sidecar's service"),
                "use a loopback address such as `127.0.0.1:5432`, or write `allow_remote: true` under `sidecar.outbound` if a firewall is in front",
            );
        }
        if let Some((other, _)) = taken.iter().find(|(_, taken)| overlap(*taken, address)) {
            problems.conflict(
                &at,
                &[other],
                format!("`{address}` is taken by `{other}`"),
                "give each listener of a sidecar a port of its own",
            );
        }
        taken.push((at, address));
    }
}
