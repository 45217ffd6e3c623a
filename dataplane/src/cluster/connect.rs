//! A new connection to an endpoint: within the time limit, encrypted and checked where the endpoint is of the mesh.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::dials::Dials;
use super::{Cluster, Spec};
use crate::accept::Io;
use crate::core::Core;
use crate::error::Error;
use crate::identity::{Alpn, Identity, PeerProblem, server_name};
use crate::reason::Reason;

/// Connects. Whatever fails here, the endpoint has not seen the request.
pub(crate) async fn open(
    core: &Core,
    cluster: &Cluster,
    address: SocketAddr,
    alpn: Alpn,
) -> Result<Io, Error> {
    let (identity, dials) = (core.identity.as_deref(), Some(&core.dials));
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
    let too_slow = |_| {
        Error::not_processed(
            Reason::ConnectTimeout,
            format!("{address} did not accept a connection within {limit:?}"),
        )
    };
    timeout(limit, dial(identity, dials, spec, address, alpn))
        .await
        .map_err(too_slow)?
}

async fn dial(
    identity: Option<&Identity>,
    dials: Option<&Arc<Dials>>,
    spec: &Spec,
    address: SocketAddr,
    alpn: Alpn,
) -> Result<Io, Error> {
    let stream = TcpStream::connect(address).await.map_err(|error| {
        Error::not_processed(
            Reason::ConnectFailed,
            format!("connecting to {address}: {error}"),
        )
    })?;
    // Small messages go out at once: they are whole already.
    let _: Result<(), _> = stream.set_nodelay(true);
    let noted = dials.and_then(|dials| dials.note(&stream));
    let Some(expected) = &spec.mesh else {
        return Ok(Io::plain(stream).with_dial(noted));
    };
    let identity = identity.ok_or_else(|| {
        Error::not_processed(Reason::IdentityMissing, "this process has no identity")
    })?;
    // The peer would refuse us, and it would not be its fault.
    if let Some(problem) = identity.problem(SystemTime::now()) {
        return Err(Error::new(Reason::IdentityMissing, problem));
    }
    let config = identity.client_config(expected, alpn);
    match TlsConnector::from(config)
        .connect(server_name(), stream)
        .await
    {
        Ok(stream) => Ok(Io::tls(stream.into()).with_dial(noted)),
        Err(error) => {
            let problem = PeerProblem::from_io_error(&error);
            let reason = match &problem {
                Some(problem) if problem.is_identity() => Reason::PeerIdentity,
                _ => Reason::TlsFailed,
            };
            let words = problem.map_or_else(|| error.to_string(), |problem| problem.to_string());
            warn(spec, address, &words);
            Err(Error::not_processed(reason, format!("{address}: {words}")))
        }
    }
}

/// Notes that a peer refused us, if that is what the error says. In TLS 1.3 our handshake is over before the peer has looked
/// at our certificate, and exchanges that are answered elsewhere leave no trace of its verdict.
pub(crate) fn refused(spec: &Spec, address: SocketAddr, error: &(dyn std::error::Error + 'static)) {
    if let Some(problem @ PeerProblem::Refused(_)) = PeerProblem::from_error(error) {
        warn(spec, address, &problem.to_string());
    }
}

fn warn(spec: &Spec, address: SocketAddr, words: &str) {
    let expected = spec.mesh.as_ref().map(|id| id.as_str());
    tracing::warn!(service = %spec.name, endpoint = %address, expected, problem = words, "the handshake with a peer failed");
}
