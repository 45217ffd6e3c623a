//! Connections that were redirected to a listener: from where they were going to what happens to them.
//!
//! On the way out, a connection to a service's address is that service's, one that begins with a request for a service by
//! name is ours too, and everything else goes on to where it was going, byte for byte. On the way in, what arrives here came
//! in plaintext, and is refused unless the service permits it there for now.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::detect::{self, Version};
use super::permitted::{Guest, while_permitted};
use super::{Io, misplaced, name};
use crate::cluster::vanished;
use crate::core::{Core, Seat};
use crate::foreign::{Foreign, Sighting};
use crate::observe::{ConnectionCells, Detected, Redirected};
use crate::plan::Site;
use crate::plan::capture::{Capture, Inbound, Outbound, Permitted};
use crate::tcp::copy::{Patience, copy};
use crate::tcp::end::End;

/// For a connection to where another was going. The system's own limit is minutes, and what was accepted already gives its
/// client no sign.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection, as the system handed it over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    /// Who made it.
    pub(super) from: SocketAddr,
    /// Where it was going; `None` when it was going here.
    pub(super) to: Option<SocketAddr>,
}

/// What is left to be served of a connection, and in which protocol. `None` when it has been seen to its end.
pub(super) async fn enter(
    core: &Core,
    site: &Site,
    capture: &Capture,
    io: Io,
    came: Came,
    cells: &ConnectionCells,
    seat: &Seat,
) -> Option<(Io, Version)> {
    let door = Door {
        core,
        seat,
        site,
        from: came.from,
        cells,
    };
    match (capture, came.to) {
        (Capture::Outbound(outbound), Some(to)) => door.outbound(outbound, io, to).await,
        (Capture::Inbound(inbound), Some(to)) => door.inbound(inbound, io, to).await,
        // Only a redirection says which port of the app is meant.
        (Capture::Inbound(_), None) => {
            cells.redirected(Redirected::PlaintextRefused);
            if door.foreign(Foreign::PlaintextRefused, site.address.port(), None) {
                tracing::warn!(listener = %site.name, peer = %came.from, "refused a connection that was not redirected here: \
                     nobody is to connect to this port, and peers speak mutual TLS with the mesh's");
            }
            io.reset();
            None
        }
        // Who speaks with us as with a proxy is not here.
        (Capture::Outbound(_), None) => None,
    }
}

struct Door<'a> {
    core: &'a Core,
    seat: &'a Seat,
    site: &'a Site,
    from: SocketAddr,
    cells: &'a ConnectionCells,
}

impl Door<'_> {
    async fn outbound(
        &self,
        outbound: &Outbound,
        mut io: Io,
        to: SocketAddr,
    ) -> Option<(Io, Version)> {
        if self.is_looped(to) {
            io.reset();
            return None;
        }
        if let Some(service) = outbound.find(to) {
            self.cells.redirected(Redirected::Service);
            let version = match service.is_opaque {
                true => Version::Opaque,
                false => self.http(&mut io, to).await?,
            };
            return Some((io, version));
        }
        // Without a name it would be refused, so there is time to wait for one.
        let wants_name = outbound.egress.asks_names() && !outbound.egress.allows(to.ip(), None);
        let detected = match wants_name {
            _ if outbound.opaque_ports.contains(&to.port()) => Detected::Opaque,
            true => self.protocol(&mut io, self.site.timeouts.head).await?,
            false => self.protocol(&mut io, self.site.timeouts.detection).await?,
        };
        let patience = self.site.timeouts.head;
        let name = match detected {
            Detected::Http1 => {
                let head = name::head(&mut io, &self.site.http1, patience).await;
                if head
                    .as_ref()
                    .is_some_and(|head| self.site.routes.find(head).is_some())
                {
                    self.cells.redirected(Redirected::Service);
                    return Some((io, Version::Http1));
                }
                head.map(|head| head.host().to_owned())
            }
            Detected::Tls if wants_name => name::server(&mut io, patience).await,
            _ => None,
        };
        if outbound.egress.allows(to.ip(), name.as_deref()) {
            self.cells.redirected(Redirected::Passthrough);
            self.pass_on(io, to, None).await;
            return None;
        }
        self.cells.redirected(Redirected::EgressDenied);
        let refusal = outbound.egress.refusal(to, name.as_deref());
        tracing::warn!(client = %self.from, destination = %to, reason = refusal.reason.code(), detail = %refusal.detail,
            "refused a connection to the outside");
        self.explained(io, detected)
    }

    async fn inbound(
        &self,
        inbound: &Inbound,
        mut io: Io,
        to: SocketAddr,
    ) -> Option<(Io, Version)> {
        let now = SystemTime::now();
        let permitted = || {
            self.cells.redirected(Redirected::PlaintextPermitted);
            // Who comes like this will be refused after that.
            let until = inbound.ports.get(&to.port()).map(|permit| permit.until);
            self.foreign(Foreign::PlaintextPermitted, to.port(), until);
        };
        match inbound.permit(to.port(), now) {
            Some(Permitted::Connections(app)) => {
                permitted();
                let guest = Guest::of(self.core, self.site, self.from, Some(to));
                self.pass_on(io, *app, guest).await;
                return None;
            }
            Some(Permitted::Exchanges(rule)) => {
                // The app says in the file what it speaks.
                let version = match rule.target.spec.authority {
                    Some(_) => Some(Version::Opaque),
                    None => self.http(&mut io, to).await,
                };
                match version {
                    Some(Version::Tls) => self.cells.redirected(Redirected::UnexpectedTls),
                    _ => permitted(),
                }
                return Some((io, version?));
            }
            None => {}
        }
        // What it speaks only makes a difference to how it is told.
        let Some(detected) = self.protocol(&mut io, self.site.timeouts.head).await else {
            self.cells.redirected(Redirected::PlaintextRefused);
            return None;
        };
        // It is no member of the mesh or means the wrong port, but plaintext is not what is wrong with it.
        if detected == Detected::Tls {
            self.cells.redirected(Redirected::UnexpectedTls);
            misplaced::tls(self.core, self.site, self.from, to.port());
            return self.explained(io, detected);
        }
        self.cells.redirected(Redirected::PlaintextRefused);
        if self.foreign(Foreign::PlaintextRefused, to.port(), None) {
            let refusal = inbound.refusal(to.port(), now);
            tracing::warn!(peer = %self.from, port = to.port(), reason = refusal.reason.code(), detail = %refusal.detail,
                "refused a peer");
        }
        self.explained(io, detected)
    }

    /// The version of HTTP of a connection that was meant for something that speaks nothing else. It may be silent as long as any
    /// other: clients keep connections at hand.
    async fn http(&self, io: &mut Io, to: SocketAddr) -> Option<Version> {
        let patience = (self.site.timeouts.idle, self.site.timeouts.head);
        let leaving = || self.core.is_draining(self.site.outlasts);
        let version = detect::version(io, patience, self.seat, leaving).await?;
        if version == Version::Tls {
            misplaced::tls(self.core, self.site, self.from, to.port());
        }
        Some(version)
    }

    /// What a connection speaks of which nothing is known.
    async fn protocol(&self, io: &mut Io, patience: Duration) -> Option<Detected> {
        let detected = detect::protocol(io, patience).await?;
        self.cells.detected(detected);
        Some(detected)
    }

    /// Who speaks HTTP is told why by an answer to each request; the others see a reset.
    fn explained(&self, io: Io, detected: Detected) -> Option<(Io, Version)> {
        match detected {
            Detected::Http1 => Some((io, Version::Http1)),
            Detected::Http2 => Some((io, Version::Http2)),
            _ => {
                io.reset();
                None
            }
        }
    }

    /// Notes who came in plaintext to this port. Gives whether that is worth a line in the log.
    fn foreign(&self, kind: Foreign, port: u16, until: Option<SystemTime>) -> bool {
        let service = &self.site.service;
        self.core.foreign(&Sighting {
            until,
            ..Sighting::came(kind, service, self.from.ip(), Some(port), None)
        })
    }

    /// Whether it is a connection of our own that came back.
    fn is_looped(&self, to: SocketAddr) -> bool {
        let is_looped = self.core.dials.has(self.from, to) || to.ip().is_loopback();
        if is_looped {
            self.cells.redirected(Redirected::Looped);
            tracing::error!(listener = %self.site.name, client = %self.from, destination = %to,
                "a connection of the sidecar's own was redirected to it: install the rules with `weft intercept install --user` \
                 and the user that the sidecar runs as");
        }
        is_looped
    }

    /// Carries a connection on to there, byte for byte, to its end or to that of its time.
    async fn pass_on(&self, io: Io, to: SocketAddr, guest: Option<Guest<'_>>) {
        let connected = timeout(CONNECT, TcpStream::connect(to)).await;
        let failed = match connected {
            Ok(Ok(stream)) => {
                let _: Result<(), _> = stream.set_nodelay(true);
                let _: Result<(), _> = vanished::ask(&SockRef::from(&stream));
                let dial = self.core.dials.note(&stream);
                let there = Io::plain(stream).with_dial(dial);
                let (mut client, mut server) = (End::socket(io), End::socket(there));
                let patience = Patience::of(self.site.timeouts.tunnel_idle);
                let passed = |up, down| self.cells.passed(up, down);
                let ending = {
                    let copying = copy(&mut client, &mut server, patience, passed);
                    while_permitted(guest, pin!(copying)).await
                };
                let Some(ending) = ending else {
                    client.reset();
                    server.reset();
                    return;
                };
                tracing::debug!(client = %self.from, destination = %to, %ending, "a connection that was passed on has ended");
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {CONNECT:?}"),
        };
        self.cells.redirected(Redirected::Unreachable);
        tracing::info!(client = %self.from, destination = %to, problem = %failed, "a connection could not be passed on");
        // It never was there for its client, as far as we can still say so.
        io.reset();
    }
}
