//! What happens to connections that were redirected to a listener: neither who made them nor whom they were meant for knows
//! of us. What was meant is their original destination.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, Method};
use weft_runtime::config::Network;

use super::Rule;
use crate::error::Error;
use crate::reason::Reason;
use crate::route::Table;

/// What a listener does with connections that were redirected to it.
#[derive(Debug)]
pub enum Capture {
    /// Those of the app to others.
    Outbound(Outbound),
    /// Those of others to the app, in plaintext.
    Inbound(Inbound),
}

impl Capture {
    /// The rule for an exchange that no route matched, on a connection that was meant for `original`.
    pub(crate) fn rule(
        &self,
        original: SocketAddr,
        host: &str,
        now: SystemTime,
    ) -> Result<&Arc<Rule>, Error> {
        match self {
            Self::Outbound(outbound) => match outbound.service(original) {
                Some(rule) => Ok(rule),
                None if !outbound.egress.allows(original.ip(), Some(host)) => {
                    Err(outbound.egress.refusal(original, Some(host)))
                }
                // The connection began with another service's name, so it is ours and cannot go there.
                None => Err(Error::new(
                    Reason::NoService,
                    format!(
                        "`{host}` is not the name of a service, and {original} is no service's address; this connection \
                         began with a request for one"
                    ),
                )),
            },
            Self::Inbound(inbound) => match inbound.permit(original.port(), now) {
                Some(Permitted::Exchanges(rule)) => Ok(rule),
                _ => Err(inbound.refusal(original.port(), now)),
            },
        }
    }

    /// The rule for a connection that was meant for `original` and whose bytes are not looked at.
    pub(crate) fn connection_rule(
        &self,
        original: SocketAddr,
        now: SystemTime,
    ) -> Option<&Arc<Rule>> {
        match self {
            Self::Outbound(outbound) => outbound.service(original),
            Self::Inbound(inbound) => match inbound.permit(original.port(), now)? {
                Permitted::Exchanges(rule) => Some(rule),
                Permitted::Connections(_) => None,
            },
        }
    }

    /// The rules that it leads to.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        let (outbound, inbound) = match self {
            Self::Outbound(outbound) => (Some(outbound), None),
            Self::Inbound(inbound) => (None, Some(inbound)),
        };
        let services = outbound.into_iter().flat_map(|found| &found.services);
        let permits = inbound.into_iter().flat_map(|found| found.ports.values());
        let permitted = permits.filter_map(|permit| match &permit.to {
            Permitted::Exchanges(rule) => Some(rule),
            Permitted::Connections(_) => None,
        });
        services.map(|service| &service.rule).chain(permitted)
    }
}

/// What the app sends to others.
#[derive(Debug)]
pub struct Outbound {
    /// The services of the mesh and around it.
    pub services: Vec<Service>,
    /// Where else it may go.
    pub egress: Arc<Egress>,
    /// Where servers that are no service speak first, so that nothing is gained by waiting for their clients' first bytes.
    pub opaque_ports: Arc<[u16]>,
}

/// A service, as those know it who were told its address by DNS and not by us.
#[derive(Debug)]
pub struct Service {
    /// How it is reached.
    pub rule: Arc<Rule>,
    /// Where its app listens beside each of its sidecars; `None` when its endpoints are the apps themselves.
    pub app_port: Option<u16>,
    /// Its bytes are carried and not looked at.
    pub is_opaque: bool,
}

impl Outbound {
    /// The service that listens at this address.
    pub(crate) fn service(&self, original: SocketAddr) -> Option<&Arc<Rule>> {
        self.find(original).map(|service| &service.rule)
    }

    /// The same, with what is known of it.
    pub(crate) fn find(&self, original: SocketAddr) -> Option<&Service> {
        let ip = original.ip().to_canonical();
        self.services.iter().find(|service| {
            if service.app_port.is_some_and(|port| port != original.port()) {
                return false;
            }
            let members = service.rule.target.members.load();
            members.endpoints().iter().any(|endpoint| {
                let address = endpoint.address;
                address.ip().to_canonical() == ip
                    && (service.app_port.is_some() || address.port() == original.port())
            })
        })
    }
}

/// Where an app may go that is no service.
#[derive(Debug)]
pub enum Egress {
    /// Everywhere.
    Passthrough,
    /// Only there.
    AllowList {
        /// By the name that the connection gives: `Host` of HTTP, or the server's name of TLS.
        hosts: Option<Box<Table<()>>>,
        /// By address.
        networks: Vec<Network>,
    },
}

impl Egress {
    /// Whether a connection to this address may go there, with the name that it gives where that is known.
    pub(crate) fn allows(&self, address: IpAddr, name: Option<&str>) -> bool {
        match self {
            Self::Passthrough => true,
            Self::AllowList { hosts, networks } => {
                networks.iter().any(|network| network.contains(address))
                    || hosts.as_ref().zip(name).is_some_and(|(hosts, name)| {
                        let no_fields = HeaderMap::new();
                        let found = hosts.find_parts(name, "/", &Method::GET, &no_fields);
                        found.is_some()
                    })
            }
        }
    }

    /// Whether the name that a connection gives can make a difference.
    pub(crate) fn asks_names(&self) -> bool {
        matches!(self, Self::AllowList { hosts: Some(_), .. })
    }

    /// Why a connection may not go there.
    pub(crate) fn refusal(&self, original: SocketAddr, name: Option<&str>) -> Error {
        let name = name.map_or_else(String::new, |name| format!(", called `{name}`"));
        Error::new(
            Reason::EgressDenied,
            format!("{original}{name} is no service of the mesh and not on the list"),
        )
    }
}

/// What others send to the app in plaintext.
#[derive(Debug)]
pub struct Inbound {
    /// Whose app it is.
    pub service: Arc<str>,
    /// Where the app listens, and what is permitted there; nothing is anywhere else.
    pub ports: HashMap<u16, Permit>,
}

/// A dated exception.
#[derive(Debug)]
pub struct Permit {
    /// From then on it is as if it were not there.
    pub until: SystemTime,
    /// What is permitted.
    pub to: Permitted,
}

/// What is permitted in plaintext.
#[derive(Debug)]
pub enum Permitted {
    /// Exchanges and connections under the service's rules.
    Exchanges(Arc<Rule>),
    /// Connections to this address, whatever they carry.
    Connections(SocketAddr),
}

impl Inbound {
    /// What is permitted on this port now.
    pub(crate) fn permit(&self, port: u16, now: SystemTime) -> Option<&Permitted> {
        let permit = self.ports.get(&port)?;
        (now < permit.until).then_some(&permit.to)
    }

    /// Why plaintext is refused there.
    pub(crate) fn refusal(&self, port: u16, now: SystemTime) -> Error {
        let service = &self.service;
        let detail = match self.ports.get(&port) {
            Some(permit) if now >= permit.until => format!(
                "plaintext on port {port} of `{service}` was permitted for a time, and the time is over"
            ),
            _ => format!(
                "port {port} of `{service}` is for mutual TLS, and this connection was in plaintext"
            ),
        };
        Error::new(Reason::PlaintextRefused, detail)
    }
}

#[cfg(test)]
mod tests;
