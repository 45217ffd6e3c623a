//! `ingress:` of the file: listeners, who may come in, how often, and what goes where.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use weft_dataplane::authn;
use weft_dataplane::limit;
use weft_dataplane::route::Match;
use weft_dataplane::trusted::Trusted;
use weft_runtime::config::units::Interval;
use weft_runtime::config::{Path, Problems};

/// `ingress:` as written.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Ingress")]
pub struct Config {
    /// Where clients connect.
    pub listeners: Vec<Listener>,
    /// Ways to prove who one is, by name.
    pub authn: BTreeMap<String, authn::Config>,
    /// Rate limits, by name.
    pub limits: BTreeMap<String, limit::Config>,
    /// What goes where. The order matters only between routes that are equal by every other rule of precedence.
    pub routes: Vec<Route>,
}

impl Config {
    /// The proxies in front of any of its listeners, those that are written well: what is wrong is told to the gateway.
    pub fn trusted(&self) -> impl Iterator<Item = Trusted> {
        let nowhere = Path::root();
        self.listeners.iter().map(move |listener| {
            let mut told = Problems::new();
            Trusted::build(&listener.trusted_proxies, &nowhere, &mut told)
        })
    }
}

/// One of `ingress.listeners`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// For logs and metrics.
    pub name: String,
    /// Where to listen.
    pub address: SocketAddr,
    /// HTTPS, when given. HTTP/2 and HTTP/1.1 by ALPN.
    pub tls: Option<Tls>,
    /// The proxies in front of it, by address, such as `10.0.0.0/8`: a load balancer, say. Whom they name in `X-Forwarded-For`
    /// is the client, for limits, for balancing, for the access log and for endpoints: its last address that is none of these. Where they
    /// send no such field, `Forwarded` is read so. Nobody else is believed. Sidecars that read the same file
    /// know these as proxies too, in what apps hand on.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// How long a client may leave what waits for it unread: one that takes less than 64 bytes a second of it for so long is given
    /// up, be it an answer, a WebSocket or a whole connection. Up to an hour.
    #[serde(default = "unread")]
    pub unread_timeout: Interval,
}

fn unread() -> Interval {
    Interval::seconds(60)
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, leaf first, in PEM. Followed, with the key: a renewed one is shown when both go together.
    pub cert: PathBuf,
    /// The leaf's private key, in PEM.
    pub key: PathBuf,
}

/// One of `ingress.routes`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// For logs and metrics; its place in the list when left out.
    pub name: Option<String>,
    /// Which requests. Everything when left out.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// One of `ingress.authn`: who sends no good proof is refused.
    pub authn: Option<String>,
    /// Some of `ingress.limits`: each must have a token left.
    #[serde(default)]
    pub limits: Vec<String>,
    /// One of `services`.
    pub to: Target,
}

/// The name of a service.
pub type Target = String;
