//! A new connection to an endpoint: within the time limit, encrypted and checked where the endpoint is of the mesh.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dials::Dials;
use super::limits::{Patience, Way, way_for_one_more};
use super::{Cluster, Speaks, Spec, vanished};
use crate::accept::Io;
use crate::core::Core;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::foreign::{Foreign, Sighting};
use crate::http1::{self, Connection, Handle};
use crate::identity::{Alpn, Identity, PeerProblem, Refusal, SpiffeId, noting, server_name};
use crate::reason::Reason;

/// A connection for one HTTP/1.1 exchange: an idle one, or else a new one, or one that becomes idle while there may not
/// be one more.
pub(crate) async fn take_or_open(
    core: &Core,
    cluster: &Cluster,
    endpoint: &Endpoint,
    patience: &mut Patience,
) -> Result<Handle, Error> {
    let idle = poll_fn(|cx| Poll::Ready(core.pool.take(endpoint.id, cx))).await;
    match idle {
        Some(connection) => Ok(connection),
        // Boxed: a handshake is large and rare, and each exchange would carry the room for it.
        None => Box::pin(wait_or_open(core, cluster, endpoint, patience)).await,
    }
}

async fn wait_or_open(
    core: &Core,
    cluster: &Cluster,
    endpoint: &Endpoint,
    patience: &mut Patience,
) -> Result<Handle, Error> {
    let io = match way_for_one_more(core, cluster, endpoint, patience, true).await? {
        Way::Reuse(idle) => return Ok(idle),
        Way::Open(held) => open(core, cluster, endpoint.address, Alpn::Http1)
            .await?
            .holding(held),
    };
    Ok(Rc::new(RefCell::new(Connection::new(
        io,
        http1::Peer::Endpoint,
    ))))
}

/// A connection for HTTP/2 exchanges.
pub(crate) async fn open_shared(
    core: &Core,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<Io, Error> {
    let mut patience = Patience::new(Instant::now() + cluster.spec.limits.wait);
    open_new(core, cluster, endpoint, Alpn::H2, &mut patience).await
}

/// A connection that nothing else has used.
pub(crate) async fn open_new(
    core: &Core,
    cluster: &Cluster,
    endpoint: &Endpoint,
    alpn: Alpn,
    patience: &mut Patience,
) -> Result<Io, Error> {
    match way_for_one_more(core, cluster, endpoint, patience, false).await? {
        Way::Open(held) => Ok(open(core, cluster, endpoint.address, alpn)
            .await?
            .holding(held)),
        Way::Reuse(_) => Err(Error::new(
            Reason::Internal,
            "an HTTP/1.1 connection was found where none was asked for",
        )),
    }
}

/// Connects. Whatever fails here, the endpoint has not seen the request.
pub(crate) async fn open(
    core: &Core,
    cluster: &Cluster,
    address: SocketAddr,
    alpn: Alpn,
) -> Result<Io, Error> {
    let identity = core.identity().map(Arc::as_ref);
    let dials = Some(&core.dials);
    reach(identity, dials, &cluster.spec, address, alpn).await
}

/// The same from anywhere; noted in `dials`, where connections may come back to us.
pub(crate) async fn reach(
    identity: Option<&Identity>,
    dials: Option<&Arc<Dials>>,
    spec: &Spec,
    address: SocketAddr,
    alpn: Alpn,
) -> Result<Io, Error> {
    let limit = spec.connect_timeout;
    let until = tokio::time::Instant::now() + limit;
    let nobody = |_| {
        Error::no_way(
            Reason::ConnectTimeout,
            format!("{address} did not accept a connection within {limit:?}"),
        )
    };
    let stream = timeout_at(until, connect(address))
        .await
        .map_err(nobody)??;
    // Small messages go out at once: they are whole already.
    let _: Result<(), _> = stream.set_nodelay(true);
    match alpn {
        // Whether it is there is asked by PING, as soon as it owes an answer.
        Alpn::H2 => vanished::must_take(&stream, vanished::OF_ENDPOINT),
        // An app may be silent in a tunnel, and read nothing for as long as it likes.
        Alpn::Http1 => {
            let _: Result<(), _> = vanished::ask(&SockRef::from(&stream));
        }
    }
    let noted = dials.and_then(|dials| dials.note(&stream));
    let Some(expected) = &spec.mesh else {
        return Ok(Io::plain(stream).with_dial(noted));
    };
    // Its kernel has answered, so there is a way to it. The process itself may be stopped, or have too much to do.
    let unfinished = |_| {
        Error::not_processed(
            Reason::ConnectTimeout,
            format!(
                "{address} accepted a connection and did not finish the TLS handshake within {limit:?}"
            ),
        )
    };
    let secured = secure(identity, spec, expected, address, stream, alpn);
    let stream = timeout_at(until, secured).await.map_err(unfinished)??;
    Ok(Io::tls(stream.into()).with_dial(noted))
}

/// Whether this process, or the system, has no descriptor left (EMFILE, ENFILE).
pub(crate) fn is_starved(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Error> {
    TcpStream::connect(address).await.map_err(|error| {
        let detail = format!("connecting to {address}: {error}");
        if is_starved(&error) {
            // No other endpoint could be reached either, and none of them is to blame.
            return Error::new(Reason::Overloaded, detail);
        }
        match error.kind() {
            // Somebody is there, and says so.
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => {
                Error::not_processed(Reason::ConnectFailed, detail)
            }
            _ => Error::no_way(Reason::ConnectFailed, detail),
        }
    })
}

/// Encrypts, and checks who it is.
async fn secure(
    identity: Option<&Identity>,
    spec: &Spec,
    expected: &SpiffeId,
    address: SocketAddr,
    stream: TcpStream,
    alpn: Alpn,
) -> Result<TlsStream<TcpStream>, Error> {
    let identity = identity.ok_or_else(|| {
        Error::not_processed(Reason::IdentityMissing, "this process has no identity")
    })?;
    // The peer would refuse us, and it would not be its fault.
    if let Some(problem) = identity.problem(SystemTime::now()) {
        return Err(Error::new(Reason::IdentityMissing, problem));
    }
    let config = identity.client_config(expected, alpn);
    let connecting = TlsConnector::from(config).connect(server_name(), stream);
    let (connected, claim) = noting(connecting).await;
    match connected {
        Ok(stream) => Ok(stream),
        Err(error) => {
            let problem = PeerProblem::from_io_error(&error);
            let reason = match &problem {
                Some(problem) if problem.is_identity() => Reason::PeerIdentity,
                _ => Reason::TlsFailed,
            };
            let kind = PeerProblem::kind_of(problem.as_ref(), &error);
            let words = problem.map_or_else(|| error.to_string(), |problem| problem.to_string());
            tell(identity, spec, address, kind, &words, claim.as_deref());
            Err(Error::not_processed(reason, format!("{address}: {words}")))
        }
    }
}

/// Notes that a peer refused us, if that is what the error says. In TLS 1.3 our handshake is over before the peer has looked
/// at our certificate, and exchanges that are answered elsewhere leave no trace of its verdict.
pub(crate) fn refused(
    identity: Option<&Identity>,
    spec: &Spec,
    address: SocketAddr,
    error: &(dyn std::error::Error + 'static),
) {
    if let Some(problem @ PeerProblem::Refused(_)) = PeerProblem::from_error(error)
        && let Some(identity) = identity
    {
        let (kind, words) = (problem.kind(), problem.to_string());
        tell(identity, spec, address, kind, &words, None);
    }
}

/// Notes an endpoint that answered in TLS to our plaintext, if that is how an exchange over HTTP/1.1 has failed. Its
/// connections have nobody else who would note it. As every exchange may find that again, it is noted once a second.
pub(crate) fn failed(core: &Core, cluster: &Cluster, endpoint: &Endpoint, error: &Error) {
    let spec = &cluster.spec;
    if error.reason == Reason::TlsFailed
        && spec.mesh.is_none()
        && spec.speaks() == Speaks::Http1
        && let Some(identity) = core.identity()
        && endpoint.takes_note(Instant::now())
    {
        let (kind, words) = (Refusal::Plaintext.kind(), &error.detail);
        tell(identity, spec, endpoint.address, kind, words, None);
    }
}

/// Names a peer with whom something is wrong: where the rest is read from, and in the log if it is not there already.
fn tell(
    identity: &Identity,
    spec: &Spec,
    address: SocketAddr,
    kind: Foreign,
    words: &str,
    claim: Option<&str>,
) {
    let sighting = Sighting::met(kind, &spec.name, address, claim);
    if !identity.foreigners().saw(&sighting, SystemTime::now()) {
        return;
    }
    let expected = spec.mesh.as_ref().map(SpiffeId::as_str);
    tracing::warn!(service = %spec.name, endpoint = %address, expected, cause = kind.as_str(), claim, problem = words, "the handshake with a peer failed");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::error::Retry;
    use crate::foreign::Row;
    use crate::identity::testing;
    use crate::testing::{Stage, spec, story};

    #[test]
    fn who_accepts_and_then_says_nothing_is_reached_all_the_same() {
        story(async {
            // Nobody takes the connection from the kernel, which has made it.
            let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = frozen.local_addr().unwrap();
            let (identity, orders) = testing::good();
            let spec = Spec {
                mesh: Some(orders),
                connect_timeout: Duration::from_millis(50),
                ..spec(Speaks::Http2, &[address])
            };
            let reached = reach(Some(&identity), None, &spec, address, Alpn::H2).await;
            let error = reached.unwrap_err();
            assert_eq!(error.reason, Reason::ConnectTimeout);
            assert_eq!(
                error.retry,
                Retry::NotProcessed,
                "its family is not to blame"
            );
            assert!(error.detail.contains("handshake"), "{error}");
        });
    }

    #[test]
    fn an_app_that_speaks_tls_is_noted_once_a_second() {
        story(async {
            let app = "127.0.0.1:9".parse().unwrap();
            let (identity, _) = testing::good();
            let with_us = Arc::clone(&identity);
            let stage = Stage::with(Speaks::Http1, &[app], |setting| {
                setting.identity = Some(with_us);
            })
            .await;
            let endpoint = Arc::clone(&stage.cluster.members.load().endpoints()[0]);
            let error = Error::not_processed(Reason::TlsFailed, "it speaks TLS");
            for _ in 0..1_000 {
                failed(&stage.core, &stage.cluster, &endpoint, &error);
            }
            let rows = identity.foreigners().snapshot().rows;
            let [Row { kind, count, .. }] = &rows[..] else {
                panic!("one row: {rows:?}");
            };
            assert_eq!(*kind, Foreign::RefusedPlaintext);
            // A machine that stands still may see seconds pass.
            assert!((1..=60).contains(count), "{count}");
        });
    }
}
