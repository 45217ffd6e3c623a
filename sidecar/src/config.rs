//! `sidecar:` of the file: where a sidecar listens. All instances share it; `--host` puts one on its own address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use weft_dataplane::accept::OPAQUE_PORTS;
use weft_dataplane::plan::Timeouts;
use weft_dataplane::plan::capture::Egress;
use weft_dataplane::trusted::Trusted;
use weft_runtime::config::units::Interval;
use weft_runtime::config::{Path, Problems, overlap};

use crate::egress;

/// Where sidecars listen for each other.
const MESH_PORT: u16 = 15_008;
/// Where the app sends what is meant for other services.
const OUTBOUND_PORT: u16 = 15_001;
/// Where plaintext from others is redirected to.
const PLAINTEXT_PORT: u16 = 15_006;

/// `sidecar:` as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Sidecar")]
pub struct Config {
    /// For the app: an HTTP proxy, or the address to send requests to with the service's name as `Host`.
    pub outbound: Outbound,
    /// For the mesh: mutual TLS.
    pub inbound: Inbound,
    /// The app beside it.
    pub app: App,
    /// Whether connections are redirected to the sidecars by the rules of `weft intercept`: `{}` for yes. What the app sends to
    /// others then comes to the outbound port, and what others send to it in plaintext to one of its own.
    pub intercept: Option<Intercept>,
    /// Where an app whose traffic is intercepted may go that is no service: `passthrough`, or `allow_list`.
    pub egress: egress::Config,
    /// How long the app, or another sidecar, may leave what waits for it unread: one that takes less than 64 bytes a second of it for so
    /// long is given up, be it an answer, a WebSocket or a whole HTTP/2 connection. Up to an hour.
    pub unread_timeout: Interval,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            outbound: Outbound::default(),
            inbound: Inbound::default(),
            app: App::default(),
            intercept: None,
            egress: egress::Config::default(),
            unread_timeout: Interval::seconds(300),
        }
    }
}

/// `sidecar.outbound`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Outbound {
    /// Where to listen. Whoever reaches it speaks with the service's identity, so it is a loopback address.
    pub address: SocketAddr,
    /// Whether others than this host may reach it. What they say of where a request comes from (`X-Forwarded-For`) is not
    /// believed then: the app is who connects from loopback or from `address` itself.
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

/// `sidecar.intercept`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Intercept {
    /// Where plaintext from others is redirected to, on every address of the host.
    pub inbound_port: u16,
    /// Ports of servers outside of the mesh that speak first: what the app connects to there is passed on at once, without the 200 ms
    /// in which its first bytes could say what it is, and whatever names in `egress.allow_list` would take from them. They come on
    /// top of 25, 587, 3306, 4444, 5432, 6379, 9300 and 11211.
    pub opaque_ports: Vec<u16>,
}

impl Default for Intercept {
    fn default() -> Self {
        Self {
            inbound_port: PLAINTEXT_PORT,
            opaque_ports: Vec::new(),
        }
    }
}

/// Checked addresses of one instance.
#[derive(Debug, Clone)]
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
    /// Where plaintext is redirected to, where connections are redirected at all.
    pub plaintext: Option<SocketAddr>,
    /// Where the app may go that is no service.
    pub egress: Arc<Egress>,
    /// Where servers that are no service speak first.
    pub opaque_ports: Arc<[u16]>,
    /// How long whoever connects may take.
    pub timeouts: Timeouts,
    /// The app, whose word for where a request comes from is taken.
    pub trusted: Trusted,
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
        let plaintext = self.plaintext(host, inbound, outbound, place, problems);
        let opaque_ports = self.opaque_ports(place, problems);
        let egress = self.egress.build(&place.key("egress"), problems)?;
        let at = place.key("unread_timeout");
        let timeouts = Timeouts::default().with_unread(self.unread_timeout, &at, problems);
        (problems.len() == before).then(|| Settings {
            outbound,
            inbound,
            app: host.unwrap_or(self.app.host),
            host,
            allow_remote: self.outbound.allow_remote,
            plaintext,
            egress,
            opaque_ports,
            timeouts,
            trusted: Trusted::with_app([]),
        })
    }

    /// The ports that are opaque, those that always are included.
    fn opaque_ports(&self, place: &Path, problems: &mut Problems) -> Arc<[u16]> {
        let declared = self.intercept.as_ref().map(|found| &found.opaque_ports[..]);
        let declared = declared.unwrap_or_default();
        let at = place.key("intercept").key("opaque_ports");
        for (index, port) in declared.iter().enumerate() {
            if *port == 0 {
                problems.at(
                    &at.index(index),
                    "nothing listens on port 0",
                    "write the port of a server that speaks first",
                );
            } else if declared[..index].contains(port) {
                problems.at(
                    &at.index(index),
                    format!("port {port} is listed twice"),
                    "list it once",
                );
            }
        }
        OPAQUE_PORTS.iter().chain(declared).copied().collect()
    }

    /// What depends on interception.
    fn plaintext(
        &self,
        host: Option<IpAddr>,
        inbound: SocketAddr,
        outbound: SocketAddr,
        place: &Path,
        problems: &mut Problems,
    ) -> Option<SocketAddr> {
        let Some(intercept) = &self.intercept else {
            if self.egress != egress::Config::Passthrough {
                problems.at(
                    &place.key("egress"),
                    "nothing is redirected to the sidecars, so nobody is kept from going anywhere",
                    "write `intercept: {}` beside it and install the rules with `weft intercept install`, or remove it",
                );
            }
            return None;
        };
        let at = place.key("intercept").key("inbound_port");
        if intercept.inbound_port == 0 {
            problems.at(
                &at,
                "port 0 is a different one at each start",
                "write the port to which plaintext is redirected; 15006 is the default",
            );
        }
        let ip = host.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let plaintext = SocketAddr::new(ip, intercept.inbound_port);
        for (key, other) in [("outbound", outbound), ("inbound", inbound)] {
            if other.port() == plaintext.port() && plaintext.port() != 0 {
                let other = place.key(key).key("address");
                problems.conflict(
                    &at,
                    &[&other],
                    format!("port {} is taken by `{other}`", plaintext.port()),
                    "give the two listeners different ports",
                );
            }
        }
        if outbound.is_ipv6() {
            problems.at(
                &place.key("outbound").key("address"),
                format!("`{outbound}` gets no redirected connections of IPv4"),
                format!("write the IPv4 address, such as `127.0.0.1:{}`; IPv6's loopback is listened on besides", outbound.port()),
            );
        }
        Some(plaintext)
    }
}
