//! `sidecar:` of the file: where a sidecar listens. All instances share it; `--host` puts one on its own address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::{Path, Problems, overlap};

/// Where sidecars listen for each other.
const MESH_PORT: u16 = 15_008;
/// Where the app sends what is meant for other services.
const OUTBOUND_PORT: u16 = 15_001;

/// `sidecar:` as written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Sidecar")]
pub struct Config {
    /// For the app: an HTTP proxy, or the address to send requests to with the service's name as `Host`.
    pub outbound: Outbound,
    /// For the mesh: mutual TLS.
    pub inbound: Inbound,
    /// The app beside it.
    pub app: App,
}

/// `sidecar.outbound`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Outbound {
    /// Where to listen. Whoever reaches it speaks with the service's identity, so it is a loopback address.
    pub address: SocketAddr,
    /// Whether others than this host may reach it.
    pub allow_remote: bool,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), OUTBOUND_PORT),
            allow_remote: false,
        }
    }
}

/// `sidecar.inbound`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Inbound {
    /// Where to listen. Its port is where all sidecars of the mesh expect each other.
    pub address: SocketAddr,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), MESH_PORT),
        }
    }
}

/// `sidecar.app`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct App {
    /// The address at which the app listens on the service's `port`.
    pub host: IpAddr,
}

impl Default for App {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

/// Checked addresses of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// For the app.
    pub outbound: SocketAddr,
    /// For the mesh.
    pub inbound: SocketAddr,
    /// Of the app, without its port.
    pub app: IpAddr,
    /// In place of all addresses of the file, where the instance was given one of its own.
    pub host: Option<IpAddr>,
    /// Whether others than this host may reach what is for the app.
    pub allow_remote: bool,
}

impl Config {
    /// Checks it, for an instance on `host` where one is given.
    pub fn build(
        &self,
        host: Option<IpAddr>,
        place: &Path,
        problems: &mut Problems,
    ) -> Option<Settings> {
        let before = problems.len();
        let outbound = host.map_or(self.outbound.address, |host| {
            SocketAddr::new(host, self.outbound.address.port())
        });
        if !outbound.ip().to_canonical().is_loopback() && !self.outbound.allow_remote {
            problems.at(
                &place.key("outbound").key("address"),
                format!("`{outbound}` can be reached from other hosts, which would then speak in this service's name"),
                "use a loopback address such as `127.0.0.1:15001`, or write `allow_remote: true` beside it if a firewall is in front",
            );
        }
        for (key, address) in [("outbound", outbound), ("inbound", self.inbound.address)] {
            if address.port() == 0 {
                problems.at(
                    &place.key(key).key("address"),
                    "port 0 is a different one at each start",
                    "write the port that others are to use",
                );
            }
        }
        let inbound = host.map_or(self.inbound.address, |host| {
            SocketAddr::new(host, self.inbound.address.port())
        });
        if overlap(inbound, outbound) && inbound.port() != 0 {
            let other = place.key("outbound").key("address");
            problems.conflict(
                &place.key("inbound").key("address"),
                &[&other],
                format!("`{inbound}` is taken by `{other}`"),
                "give the two listeners different ports",
            );
        }
        (problems.len() == before).then(|| Settings {
            outbound,
            inbound,
            app: host.unwrap_or(self.app.host),
            host,
            allow_remote: self.outbound.allow_remote,
        })
    }
}
