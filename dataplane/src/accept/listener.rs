//! A listener of one core: accepts, limits, shakes hands, and hands each connection to the protocol it speaks.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::captured::{self, Came};
use super::original::original;
use super::permitted::Guest;
use super::{Io, detect, misplaced};
use crate::cluster::connect::is_starved;
use crate::cluster::vanished;
use crate::core::{Core, Seat};
use crate::foreign::{Foreign, Sighting};
use crate::http::Caller;
use crate::identity::{PeerProblem, SpiffeId, noting, peer_identity};
use crate::observe::{ConnectionCells, HandshakeFailure, OpenConnection};
use crate::plan::capture::Capture;
use crate::plan::{Door, Opaque, Site};
use crate::{http1, http2, tcp};

/// Connections that the kernel holds for us.
const BACKLOG: i32 = 1024;
/// How long, and for how many bytes, a peer that was refused is listened to.
const GOODBYE: Duration = Duration::from_millis(500);
const GOODBYE_BYTES: usize = 64 * 1024;
/// How long a listener rests when it cannot accept: without a rest, a lack of descriptors would spin the core.
const REST: Duration = Duration::from_millis(50);
/// How long a listener that closes waits for clients that the kernel has answered already: about a round trip.
const LAST_CALL: Duration = Duration::from_millis(50);

/// One socket per core on the same address: the kernel spreads connections over them. `one_family`: an IPv6 socket leaves
/// IPv4's connections to another.
pub(crate) fn bind(
    address: SocketAddr,
    one_family: bool,
    count: usize,
) -> io::Result<Vec<TcpListener>> {
    // With `SO_REUSEPORT`, a second process of the same user would silently get a part of the connections. So the
    // address must be free first.
    drop(socket(address, one_family, false)?);
    (0..count)
        .map(|_| socket(address, one_family, count > 1))
        .collect()
}

fn socket(address: SocketAddr, one_family: bool, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Said in either case: what is usual differs between hosts.
        socket.set_only_v6(one_family)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    vanished::ask(&SockRef::from(&socket))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A listener at work on one core.
#[derive(Debug)]
pub(crate) struct Listening {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Listening {
    /// Takes the connections that the kernel has made already, and closes the socket. It is closed when this returns.
    pub(crate) async fn close(self) {
        let _: Result<(), ()> = self.stop.send(());
        let _: Result<(), _> = self.task.await;
    }

    #[cfg(test)]
    pub(crate) fn abort(&self) {
        self.task.abort();
    }
}

/// Accepts on this core until the listener is closed.
pub(crate) fn listen(
    core: Rc<Core>,
    site: Arc<str>,
    listener: TcpListener,
) -> io::Result<Listening> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (stop, mut stopped) = oneshot::channel();
    let task = tokio::task::spawn_local(async move {
        let cells = core.registry.connections(&site);
        let mut starved = false;
        let mut spare = Spare::new();
        let mut last_call = None;
        let mut current = None;
        loop {
            let accepted = tokio::select! {
                biased;
                // Before the next connection: a listener that cannot accept has its error ready at each turn, and would
                // never hear that it is to close.
                //
                // What a socket has in its queue when it is closed is reset, though its clients believe themselves
                // connected, and may have sent a request already.
                _ = &mut stopped, if last_call.is_none() => {
                    turn_newcomers_away(&listener);
                    last_call = Some(Instant::now() + LAST_CALL);
                    continue;
                }
                accepted = listener.accept() => accepted,
                () = async { sleep_until(last_call.unwrap_or_else(Instant::now)).await }, if last_call.is_some() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                // The client was faster than us; that is not our trouble.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) if last_call.is_some() => return,
                Err(error) => {
                    if !starved {
                        tracing::error!(listener = %site, %error, "cannot accept connections");
                        starved = true;
                    }
                    if is_starved(&error) {
                        spare.shed(&listener, || cells.refused());
                    }
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            if starved {
                tracing::info!(listener = %site, "accepting connections again");
                starved = false;
            }
            let plan = core.plan();
            let Some((found, seat)) = plan
                .site(&site)
                .and_then(|found| Some((Arc::clone(found), core.seat(found.outlasts)?)))
            else {
                cells.refused();
                continue;
            };
            let current = current.get_or_insert_with(|| core.follow(plan, Arc::clone(&found)));
            let current = Rc::clone(current);
            let open = cells.accepted();
            let (core, cells) = (Rc::clone(&core), Arc::clone(&cells));
            tokio::task::spawn_local(async move {
                // Small messages go out at once: they are whole already.
                let _: Result<(), _> = stream.set_nodelay(true);
                let Some(entered) = enter(&core, &found, stream, address, &cells, &seat).await
                else {
                    return;
                };
                let Entered {
                    io,
                    identity,
                    version,
                    original,
                } = entered;
                let (tls, outlasts) = (io.is_tls(), found.outlasts);
                let host = Rc::clone(&core);
                let guest = Guest::of(&host, &found, address, original);
                // The plan of its first exchange may be another.
                drop(found);
                let caller = Caller::new(
                    core, current, outlasts, address, original, identity, tls, cells,
                );
                match guest {
                    None => converse(io, caller, seat, version, open).await,
                    // Boxed: rare, and every connection would carry the room for it.
                    Some(guest) => {
                        let mut work = Box::pin(converse(io, caller, seat, version, open));
                        Box::pin(guest.converses(work.as_mut())).await;
                    }
                }
            });
        }
    });
    Ok(Listening { stop, task })
}

/// Has the kernel ignore attempts to connect to this socket, and still finish those that it has answered. Whoever is
/// ignored asks again within a second, and finds the socket closed, or whoever listens there then.
fn turn_newcomers_away(listener: &tokio::net::TcpListener) {
    #[cfg(target_os = "linux")]
    {
        use socket2::SockFilter;
        // Classic BPF over the TCP header: what has SYN among its flags is dropped, the rest is kept.
        const LOAD_BYTE: u16 = 0x30;
        const JUMP_IF_SET: u16 = 0x45;
        const RETURN: u16 = 0x06;
        const FLAGS: u32 = 13;
        const SYN: u32 = 0x02;
        let filter = [
            SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
            SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ];
        // Where it is not allowed, the window between the last look and the close is left.
        let _: io::Result<()> = SockRef::from(listener).attach_filter(&filter);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = listener;
}

/// A descriptor kept for when there is none left: given up for a moment, it lets us take a client from the kernel's queue
/// and close its connection, so that it need not wait for a timeout of its own.
struct Spare(Option<std::fs::File>);

impl Spare {
    fn new() -> Self {
        Self(std::fs::File::open("/dev/null").ok())
    }

    /// Turns away who waits in the queue now.
    fn shed(&mut self, listener: &tokio::net::TcpListener, refused: impl Fn()) {
        self.0 = None;
        for _ in 0..BACKLOG {
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(Ok((stream, _))) = listener.poll_accept(&mut cx) else {
                break;
            };
            drop(stream);
            refused();
        }
        *self = Self::new();
    }
}

async fn converse(
    io: Io,
    caller: Rc<Caller>,
    seat: Seat,
    version: detect::Version,
    _open: OpenConnection,
) {
    match version {
        detect::Version::Http1 | detect::Version::Tls => {
            http1::server::serve(io, caller, seat).await;
        }
        // Neither is boxed: both are smaller than the first, and a box would come on top of the room that is there for it.
        detect::Version::Http2 => http2::server::serve(io, caller, seat).await,
        detect::Version::Opaque => tcp::serve(io, caller, seat).await,
        detect::Version::Broken => {
            caller.connections.parse_error();
            let _: Result<_, _> = timeout(GOODBYE, http2::server::refuse_preface(io)).await;
        }
    }
}

/// A connection that has come in.
struct Entered {
    io: Io,
    identity: Option<Arc<SpiffeId>>,
    version: detect::Version,
    /// Where it was going, when it was redirected to us.
    original: Option<SocketAddr>,
}

/// Through the listener's door: TLS, who the peer is, and what it speaks.
async fn enter(
    core: &Core,
    site: &Site,
    stream: TcpStream,
    address: SocketAddr,
    cells: &ConnectionCells,
    seat: &Seat,
) -> Option<Entered> {
    let config = match &site.door {
        Door::Plain => {
            if let Some(capture) = &site.capture {
                let came = Came {
                    from: address,
                    to: original(&stream),
                };
                if came.to.is_some() || matches!(capture, Capture::Inbound(_)) {
                    // Boxed: it may carry the connection to its end.
                    let entering =
                        captured::enter(core, site, capture, Io::plain(stream), came, cells, seat);
                    let (io, version) = Box::pin(entering).await?;
                    return Some(Entered {
                        io,
                        identity: None,
                        version,
                        original: came.to,
                    });
                }
            }
            let mut io = Io::plain(stream);
            let version = match &site.opaque {
                Opaque::All(_) => detect::Version::Opaque,
                Opaque::Refused | Opaque::Tunnels { .. } => {
                    let patience = (site.timeouts.idle, site.timeouts.head);
                    let leaving = || core.is_draining(site.outlasts);
                    detect::version(&mut io, patience, seat, leaving).await?
                }
            };
            if version == detect::Version::Tls {
                misplaced::tls(core, site, address, site.address.port());
            }
            return Some(Entered {
                io,
                identity: None,
                version,
                original: None,
            });
        }
        Door::Tls(config) => config.load_full(),
        Door::Mesh => match core.identity() {
            Some(identity) => identity.server_config(),
            None => {
                cells.handshake_failed(HandshakeFailure::IdentityMissing);
                return None;
            }
        },
    };
    let port = stream.local_addr().ok().map(|local| local.port());
    let client = Client {
        core,
        site,
        address,
        port,
        cells,
    };
    let accepting = noting(TlsAcceptor::from(config).accept(stream).into_fallible());
    let stream = match timeout(site.timeouts.handshake, accepting).await {
        Ok((Ok(stream), _)) => stream,
        Ok((Err((error, stream)), claim)) => {
            let problem = PeerProblem::from_io_error(&error);
            client.refused(problem.as_ref(), &error, claim.as_deref());
            let _: Result<_, _> = timeout(GOODBYE, let_alert_arrive(stream)).await;
            return None;
        }
        Err(_) => {
            cells.handshake_failed(HandshakeFailure::Timeout);
            tracing::debug!(listener = %site.name, peer = %address, "the TLS handshake did not end in time");
            return None;
        }
    };
    let (tcp, session) = stream.get_ref();
    let version = match session.alpn_protocol() {
        Some(b"h2") => detect::Version::Http2,
        _ => detect::Version::Http1,
    };
    let identity = match &site.door {
        Door::Mesh => match peer_identity(session.peer_certificates().unwrap_or_default()) {
            Ok(identity) => {
                if version == detect::Version::Http2 {
                    vanished::must_take(tcp, vanished::OF_CALLER);
                }
                Some(identity)
            }
            Err(problem) => {
                let error = io::Error::other("no identity");
                client.refused(Some(&problem), &error, None);
                return None;
            }
        },
        _ => None,
    };
    Some(Entered {
        io: Io::tls(stream.into()),
        identity,
        version,
        original: None,
    })
}

/// The alert that names the cause is lost when the socket is closed with bytes unread: the peer gets a reset instead.
/// So: end our side, then read on until the peer has ended its own.
async fn let_alert_arrive(mut stream: TcpStream) {
    let _: Result<_, _> = stream.shutdown().await;
    let mut rest = [0; 1024];
    let mut left = GOODBYE_BYTES;
    while let Ok(length @ 1..) = stream.read(&mut rest).await {
        left = match left.checked_sub(length) {
            Some(left) => left,
            None => return,
        };
    }
}

/// Somebody who came to us.
struct Client<'a> {
    core: &'a Core,
    site: &'a Site,
    address: SocketAddr,
    /// The port that it came to.
    port: Option<u16>,
    cells: &'a ConnectionCells,
}

impl Client<'_> {
    /// Notes why a handshake failed, and with whom. At the edge that is everyday; in the mesh somebody should look.
    fn refused(&self, problem: Option<&PeerProblem>, error: &io::Error, claim: Option<&str>) {
        let kind = PeerProblem::kind_of(problem, error);
        self.cells.handshake_failed(cause(kind));
        let (site, peer, cause) = (&self.site.name, &self.address, kind.as_str());
        let words = problem.map_or_else(|| error.to_string(), ToString::to_string);
        if matches!(self.site.door, Door::Mesh) {
            let service = &self.site.service;
            let sighting = Sighting::came(kind, service, peer.ip(), self.port, claim);
            // Anybody may come as often as they like: the log names each once in a while.
            if self.core.foreign(&sighting) {
                tracing::warn!(listener = %site, %peer, cause, claim, problem = %words, "refused a peer");
            }
        } else {
            tracing::debug!(listener = %site, %peer, cause, problem = %words, "refused a client");
        }
    }
}

/// The metric's word for it, which knows of clients what they may do wrong as such.
fn cause(kind: Foreign) -> HandshakeFailure {
    match kind {
        Foreign::NoCertificate => HandshakeFailure::NoCertificate,
        Foreign::Expired => HandshakeFailure::Expired,
        Foreign::NotYetValid => HandshakeFailure::NotYetValid,
        Foreign::UnknownAuthority => HandshakeFailure::UnknownAuthority,
        Foreign::TrustDomain => HandshakeFailure::TrustDomain,
        Foreign::NotAnIdentity | Foreign::WrongService => HandshakeFailure::NotAnIdentity,
        Foreign::Plaintext => HandshakeFailure::Plaintext,
        Foreign::Protocol => HandshakeFailure::Protocol,
        Foreign::Closed => HandshakeFailure::Closed,
        _ => HandshakeFailure::Other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cluster::Speaks;
    use crate::testing::{Stage, story};

    #[test]
    fn a_listener_that_cannot_accept_closes_all_the_same() {
        story(async {
            let stage = Stage::new(Speaks::Http1, &[]).await;
            // One that does not listen is readable and has an error at each turn, as one has that finds no descriptor left
            // while a client waits.
            let deaf = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
                .unwrap();
            deaf.set_nonblocking(true).unwrap();
            let deaf: TcpListener = deaf.into();
            let listening = listen(Rc::clone(&stage.core), "stage".into(), deaf).unwrap();
            let meets_an_error = tokio::time::sleep(2 * REST);
            meets_an_error.await;
            let closing = timeout(Duration::from_secs(10), listening.close());
            closing.await.expect("it hears that it is to close");
        });
    }
}
