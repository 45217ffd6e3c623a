//! A new connection to an endpoint: within the time limit, encrypted and checked where the endpoint is of the mesh.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::limits::{Patience, Way, way_for_one_more};
use super::{Cluster, Spec};
use crate::accept::Io;
use crate::core::Core;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::http1::{Connection, Handle, Peer, Wire};
use crate::identity::{Alpn, Identity, PeerProblem, server_name};
use crate::reason::Reason;

/// A connection for one HTTP/1.1 exchange: a new one, or one that becomes idle while there may not be one more.
pub(crate) async fn take_or_open(
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
        Wire::new(io),
        Peer::Endpoint,
    ))))
}

/// A connection for HTTP/2 exchanges.
pub(crate) async fn open_shared(
    core: &Core,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<Io, Error> {
    let mut patience = Patience::new(Instant::now() + cluster.spec.limits.wait);
    match way_for_one_more(core, cluster, endpoint, &mut patience, false).await? {
        Way::Open(held) => Ok(open(core, cluster, endpoint.address, Alpn::H2)
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
    reach(core.identity.as_deref(), &cluster.spec, address, alpn).await
}

/// The same from anywhere.
pub(crate) async fn reach(
    identity: Option<&Identity>,
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
    timeout(limit, dial(identity, spec, address, alpn))
        .await
        .map_err(too_slow)?
}

async fn dial(
    identity: Option<&Identity>,
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
    let Some(expected) = &spec.mesh else {
        return Ok(Io::plain(stream));
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
        Ok(stream) => Ok(Io::tls(stream.into())),
        Err(error) => {
            let problem = PeerProblem::from_io_error(&error);
            let reason = match &problem {
                Some(problem) if problem.is_identity() => Reason::PeerIdentity,
                _ => Reason::TlsFailed,
            };
            let words = problem.map_or_else(|| error.to_string(), |problem| problem.to_string());
            tracing::warn!(service = %spec.name, endpoint = %address, expected = expected.as_str(), problem = %words,
                "the handshake with a peer failed");
            Err(Error::not_processed(reason, format!("{address}: {words}")))
        }
    }
}
