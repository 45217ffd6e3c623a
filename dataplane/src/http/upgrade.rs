//! Exchanges that become tunnels (WebSocket): agreed on with an endpoint in the version that it speaks, and then bytes
//! both ways.
//!
//! Over HTTP/2 the tunnel is a stream of the connection that carries everything else (extended CONNECT, RFC 8441). A peer
//! that has not said that it takes those gets an HTTP/1.1 connection for each.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HeaderName};

use super::forward::Answered;
use super::hop::Told;
use super::interim::Interim;
use super::{Caller, unread, websocket};
use crate::body::Body;
use crate::cluster::{self, Cluster, Speaks, connect};
use crate::core::Core;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::head::Head;
use crate::http1::{self, Peer};
use crate::http2::client::{Place, Room};
use crate::http2::{self, Received};
use crate::reason::Reason;
use crate::tcp::copy::{Ending, Patience, copy};
use crate::tcp::end::End;

/// How long a side may be silent after the other has ended. A WebSocket is over when one side is gone.
const HALF_CLOSED: Duration = Duration::from_secs(10);

/// Says between sidecars that a success is the app's ordinary answer, and no tunnel: in HTTP/2 that could not be told
/// otherwise.
pub(crate) const NOT_UPGRADED: HeaderName = HeaderName::from_static("weft-not-upgraded");

/// One try at one endpoint.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one exchange, handed down once"
)]
pub(super) async fn attempt(
    core: &Rc<Core>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    head: &Head,
    interim: &Interim<'_>,
    now: Instant,
    told: &Told<'_>,
    patience: &mut cluster::limits::Patience,
) -> Result<Answered, Error> {
    if cluster.spec.speaks() == Speaks::Http2 {
        let room = core
            .peers
            .room(core, cluster, endpoint, now, patience)
            .await?;
        if room.takes_extended_connect().await {
            return over_http2(room, head, cluster.is_mesh(), told).await;
        }
    }
    over_http1(core, cluster, endpoint, head, interim, told, patience).await
}

async fn over_http2(
    room: Room,
    head: &Head,
    mesh: bool,
    told: &Told<'_>,
) -> Result<Answered, Error> {
    let mut head = head.clone();
    let key = websocket::take_key(&mut head.headers)?;
    let http2::client::Connected {
        status,
        mut headers,
        mut send,
        receive,
        pressure,
        place,
    } = http2::client::extended_connect(room, &head, mesh, told).await?;
    let refused = mesh && headers.remove(NOT_UPGRADED).is_some();
    let is_tunnel = !refused && websocket::agrees(status);
    let length = match is_tunnel {
        true => None,
        false => http2::client::content_length(&headers)?,
    };
    let place = match is_tunnel {
        true => place.map(Place::tunnel),
        false => place,
    };
    let receive = Received::new(receive, Peer::Endpoint, length, pressure).at(place);
    if is_tunnel {
        if headers.contains_key(CONTENT_LENGTH) {
            // h2 holds what comes on the stream against that length, and would break off in the middle a tunnel that carries
            // more, or ends earlier.
            return Err(Error::new(
                Reason::UpstreamMalformed,
                "the endpoint agreed to a tunnel, and said how long it is",
            ));
        }
        if let Some(key) = key {
            websocket::prove(&mut headers, &key);
        }
        return Ok(Answered {
            status,
            headers,
            body: Body::Empty,
            request: None,
            lease: None,
            upgraded: Some(Box::new(End::stream(send, receive))),
        });
    }
    // Nothing more comes from us; the answer is an ordinary one.
    let _: Result<(), _> = send.send_data(bytes::Bytes::new(), true);
    Ok(Answered {
        status,
        headers,
        body: Body::Http2(receive),
        request: None,
        lease: None,
        upgraded: None,
    })
}

async fn over_http1(
    core: &Rc<Core>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    head: &Head,
    interim: &Interim<'_>,
    told: &Told<'_>,
    patience: &mut cluster::limits::Patience,
) -> Result<Answered, Error> {
    let limits = http1::Limits::default();
    let connection = connect::take_or_open(core, cluster, endpoint, patience).await?;
    let mut head = head.clone();
    // A client of HTTP/2 has none. One of HTTP/1.1 has its own, and checks the answer to it itself.
    let key = match head.version {
        http::Version::HTTP_2 => {
            let random = [fastrand::u64(..), fastrand::u64(..)];
            Some(websocket::make_key(&mut head.headers, random))
        }
        _ => None,
    };
    let mut answered = http1::client::exchange(
        &connection,
        &head,
        Body::Empty,
        true,
        &limits,
        interim,
        told,
    )
    .await?;
    // Only a sidecar says so.
    answered.headers.remove(NOT_UPGRADED);
    if answered.upgraded {
        if let Some(key) = key {
            websocket::check(&mut answered.headers, &key)?;
        }
        return Ok(Answered {
            status: answered.status,
            headers: answered.headers,
            body: Body::Empty,
            request: None,
            lease: None,
            upgraded: Some(Box::new(End::upgraded(connection))),
        });
    }
    Ok(Answered::over_http1(answered, connection))
}

/// Runs a tunnel to its end; `answer` is the exchange's, which is told what moved.
pub(crate) async fn tunnel(
    caller: &Caller,
    client: &mut End,
    endpoint: &mut End,
    answer: &mut Body,
) {
    let timeouts = caller.site().timeouts;
    let patience = Patience {
        idle: timeouts.tunnel_idle,
        half_closed: HALF_CLOSED.min(timeouts.tunnel_idle),
        unread: timeouts.unread,
        clogged: Some(&caller.clogged),
    };
    let ending = copy(client, endpoint, patience, |up, down| {
        if let Body::Upstream(exchange) = answer {
            exchange.tunnelled(up, down);
        }
    })
    .await;
    if matches!(ending, Ending::Unread) {
        unread::given_up(caller);
    }
    tracing::debug!(%ending, "a tunnel ended");
}
