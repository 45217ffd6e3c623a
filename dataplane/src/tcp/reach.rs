//! From a decided connection to an endpoint's: one after another until one takes it, since a connection that was refused
//! has done nothing anywhere.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::SendStream;
use http::uri::Authority;
use http::{Method, Request, Response, Uri, Version};

use super::account::Account;
use super::end::End;
use super::refusal;
use crate::balance::Ask;
use crate::cluster::limits::Patience;
use crate::cluster::retry::{self, Tried};
use crate::cluster::{Cluster, connect, departure};
use crate::core::Core;
use crate::endpoint::latency::Stopwatch;
use crate::endpoint::{Endpoint, InFlight, Outcome};
use crate::error::Error;
use crate::gate::Slot;
use crate::http::forward::explain;
use crate::http1::Peer;
use crate::http2::client::Room;
use crate::http2::{Received, failure};
use crate::identity::Alpn;
use crate::plan::Site;
use crate::reason::Reason;

/// An endpoint's end of a connection, and what ends with it.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) end: End,
    pub(crate) address: SocketAddr,
    _flight: InFlight,
    _slot: Slot,
}

/// Connects to an endpoint of the cluster, at others when that fails, within the service's `timeout`.
pub(super) async fn reach(
    core: &Rc<Core>,
    cluster: &Arc<Cluster>,
    site: &Site,
    account: &mut Account,
) -> Result<Reached, Error> {
    let limit = cluster.spec.timeout;
    let mut patience = Patience::new(account.started + limit);
    let pass = cluster.pass(account.started)?;
    let slot = match cluster.admit() {
        Some(slot) => slot,
        None => cluster.wait_for_place(&mut patience).await?,
    };
    let attempts = attempts(core, cluster, site, account, &mut patience);
    let reached = tokio::time::timeout(limit, attempts).await;
    let reached = reached.unwrap_or_else(|_| {
        Err(Error::not_processed(
            Reason::UpstreamTimeout,
            format!("{} took no connection within {limit:?}", cluster.name),
        ))
    });
    if let Some(pass) = pass {
        match &reached {
            Ok(_) => pass.judge(Outcome::Success, Instant::now()),
            Err(error) => pass.fail(error, Instant::now()),
        }
    }
    let (end, flight) = reached?;
    Ok(Reached {
        end,
        address: flight.endpoint().address,
        _flight: flight,
        _slot: slot,
    })
}

async fn attempts(
    core: &Rc<Core>,
    cluster: &Arc<Cluster>,
    site: &Site,
    account: &mut Account,
    patience: &mut Patience,
) -> Result<(End, InFlight), Error> {
    let spec = &cluster.spec;
    let wired = core.wired(cluster, site);
    cluster.budget.request(account.started);
    let mut tried = Tried::default();
    loop {
        let mut ask = Ask {
            tried: tried.endpoints(),
            shuns: tried.shuns(),
            now: Instant::now(),
            random: fastrand::u64(..),
            key: account.key,
            session: None,
        };
        let mut flight = cluster.begin(&mut ask, patience).await?;
        let now = ask.now;
        let endpoint = Arc::clone(flight.endpoint());
        account.tries(endpoint.address, tried.count() + 1);
        let is_timed = spec.balance.is_timed();
        let watch = is_timed.then(|| Stopwatch::start(&endpoint, now));
        let attempt = attempt(core, cluster, &endpoint, now, patience).await;
        let random = fastrand::u64(..);
        if let Some(watch) = watch {
            let outcome = match &attempt {
                Ok(_) => Some(Outcome::Success),
                Err(failed) => failed.outcome(),
            };
            watch.stop(outcome, Instant::now());
        }
        let mut failed = match attempt {
            Ok(end) => {
                cluster
                    .members
                    .record(&mut flight, Outcome::Success, now, random);
                return Ok((end, flight));
            }
            Err(failed) => failed,
        };
        if tried.goes_on_after(failed.error_mut()) {
            continue;
        }
        if let Some(outcome) = failed.outcome() {
            cluster
                .members
                .record(&mut flight, outcome, Instant::now(), random);
        }
        let error = failed.error();
        if !error.is_not_processed()
            || tried.count() >= spec.retry.attempts
            || !cluster.budget.take(&spec.retry.limits, Instant::now())
        {
            return Err(error);
        }
        drop(flight);
        tried.add(&endpoint, &error);
        let retries = tried.count();
        if let Some(cells) = &wired.cells {
            cells.retried();
        }
        tracing::debug!(service = %cluster.name, endpoint = %endpoint.address, %error, retries, "trying another endpoint");
        tokio::time::sleep(retry::backoff(retries, random)).await;
    }
}

/// Who failed.
enum Failed {
    /// We could not get there.
    Here(Error),
    /// The peer's sidecar says that it could not get to its app, or that we may not.
    There(Error),
}

impl Failed {
    /// What that says of the endpoint.
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Here(error) if error.is_of_endpoint() => Some(Outcome::LocalFailure),
            Self::There(error) if error.is_of_endpoint() => Some(Outcome::RemoteFailure),
            _ => None,
        }
    }

    fn error_mut(&mut self) -> &mut Error {
        match self {
            Self::Here(error) | Self::There(error) => error,
        }
    }

    fn error(self) -> Error {
        match self {
            Self::Here(error) | Self::There(error) => error,
        }
    }
}

/// One try at one endpoint: straight, or through its sidecar.
async fn attempt(
    core: &Rc<Core>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    now: Instant,
    patience: &mut Patience,
) -> Result<End, Failed> {
    if !cluster.is_mesh() {
        let io = connect::open_new(core, cluster, endpoint, Alpn::Http1, patience).await;
        return io.map(End::socket).map_err(|mut error| {
            explain(&mut error, core, cluster);
            Failed::Here(error)
        });
    }
    let Some(authority) = &cluster.spec.authority else {
        return Err(Failed::Here(Error::new(
            Reason::Internal,
            format!("{} does not take connections", cluster.name),
        )));
    };
    let room = core
        .peers
        .room(core, cluster, endpoint, now, patience)
        .await;
    let response = ask(room.map_err(Failed::Here)?, authority).await;
    let (response, send) = response.map_err(Failed::Here)?;
    if response.headers().contains_key(departure::DRAINING) {
        departure::noticed(core, cluster, endpoint);
    }
    if !response.status().is_success() {
        return Err(Failed::There(refusal(&response)));
    }
    Ok(End::stream(send, response.into_body()))
}

/// Asks for a tunnel on a peer's connection. Dropping the future resets the stream.
async fn ask(
    room: Room,
    authority: &Authority,
) -> Result<(Response<Received>, SendStream<Bytes>), Error> {
    let broken = |error: h2::Error| failure(&error, Peer::Endpoint);
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::from(authority.clone());
    *request.version_mut() = Version::HTTP_2;
    let (mut sender, pressure, mut dialled) = room.into_parts();
    let (response, send) = sender.send_request(request, false).map_err(broken)?;
    drop(sender);
    let response = response.await.map_err(|error| dialled.failed(&error))?;
    Ok((
        response.map(|body| {
            Received::new(body, Peer::Endpoint, None, pressure).at(dialled.connected())
        }),
        send,
    ))
}
