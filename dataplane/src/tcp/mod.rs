//! Opaque TCP: connections whose bytes are none of ours to understand.
//!
//! The path of one: `serve` has it from the listener, or `tunnel` from a stream of a peer's HTTP/2 connection;
//! `forward` decides whether it may and `reach` finds an endpoint, in a CONNECT tunnel where that is of the
//! mesh; `copy` moves the bytes. It counts as one exchange of its service: established is 200, and its
//! latency is the time until then.

mod account;
pub(crate) mod copy;
pub(crate) mod end;
pub(crate) mod reach;

use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::uri::Authority;
use http::{Response, Version};

use crate::accept::Io;
use crate::accept::permitted::{Guest, while_permitted};
use crate::core::Seat;
use crate::error::Error;
use crate::http::answer::Answer;
use crate::http::{Caller, answer, unread};
use crate::http1::Peer;
use crate::http2::server::Ended;
use crate::http2::{Pressure, Received};
use crate::plan::{Opaque, Rule, Site};
use crate::reason::Reason;
use account::Account;
use copy::{Ending, Patience, copy};
use end::End;

/// A connection of a listener that takes them as they are.
pub(crate) async fn serve(io: Io, caller: Rc<Caller>, _seat: Seat) {
    let site = caller.site();
    match site.connection_rule(caller.original) {
        Some(rule) => forward(&caller, &site, rule, End::socket(io)).await,
        // A new plan has changed its mind between the accept and now.
        None => io.reset(),
    }
}

/// Takes a connection to an endpoint of the rule's service and copies to its end. One that cannot be had is reset: the
/// client is not to take it for one that said nothing.
pub(crate) async fn forward(caller: &Caller, site: &Site, rule: &Rule, mut client: End) {
    let mut account = Account::begin(caller, site, rule);
    let reached = match rule.authz.permit_connection(caller.identity.as_deref()) {
        Ok(()) => reach::reach(&caller.core, &rule.target, site, &mut account).await,
        Err(error) => Err(error),
    };
    match reached {
        Ok(mut reached) => {
            account.established();
            let patience = Patience::of(site.timeouts.tunnel_idle);
            let guest = Guest::of(&caller.core, site, caller.address, caller.original);
            let ending = {
                let copying = copy(&mut client, &mut reached.end, patience, |up, down| {
                    account.moved(up, down);
                });
                while_permitted(guest, pin!(copying)).await
            };
            let Some(ending) = ending else {
                client.reset();
                reached.end.reset();
                return;
            };
            if matches!(ending, Ending::Unread) {
                unread::given_up(caller);
            }
            tracing::debug!(service = %rule.target.name, client = %caller.address, endpoint = %reached.address, %ending,
                "a connection ended");
        }
        Err(error) => {
            caller
                .core
                .account_refusal(site, Some(rule), caller, &error, account.started);
            account.refused(&error);
            client.reset();
            tracing::info!(service = %rule.target.name, client = %caller.address, reason = error.reason.code(), detail = %error.detail,
                "refused a connection");
        }
    }
}

/// A CONNECT tunnel that a peer asks for. It goes on with the answer that refuses it, for the stream's owner to send.
pub(crate) async fn tunnel(
    caller: &Caller,
    authority: Option<&Authority>,
    receive: RecvStream,
    respond: &mut SendResponse<Bytes>,
    pressure: Rc<Pressure>,
) -> ControlFlow<Ended, Answer> {
    let started = Instant::now();
    let site = caller.site();
    let rule = match find(&site, authority) {
        Ok(rule) => rule,
        Err(error) => {
            let answer = answer::made(&site, caller, None, &error, false, started);
            return ControlFlow::Continue(answer);
        }
    };
    let mut account = Account::begin(caller, &site, rule);
    let reached = match rule.authz.permit_connection(caller.identity.as_deref()) {
        Ok(()) => {
            let mut reaching = pin!(reach::reach(
                &caller.core,
                &rule.target,
                &site,
                &mut account
            ));
            let reached = poll_fn(|cx| match reaching.as_mut().poll(cx) {
                // Whoever asked has gone away.
                Poll::Pending if respond.poll_reset(cx).is_ready() => Poll::Ready(None),
                reached => reached.map(Some),
            })
            .await;
            match reached {
                Some(reached) => reached,
                None => return ControlFlow::Break(Ended::TakenBack),
            }
        }
        Err(error) => Err(error),
    };
    let mut reached = match reached {
        Ok(reached) => reached,
        Err(error) => {
            let mut answer =
                answer::made(&site, caller, Some(rule), &error, false, account.started);
            caller.tell_leaving(&site, &mut answer.headers);
            account.refused(&error);
            return ControlFlow::Continue(answer);
        }
    };
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    caller.tell_leaving(&site, response.headers_mut());
    let Ok(send) = respond.send_response(response, false) else {
        reached.end.reset();
        return ControlFlow::Break(Ended::TakenBack);
    };
    account.established();
    let receive = Received::new(receive, Peer::Client, None, pressure);
    let mut client = End::stream(send, receive);
    let patience = Patience::of(site.timeouts.tunnel_idle);
    let ending = copy(&mut client, &mut reached.end, patience, |up, down| {
        account.moved(up, down);
    })
    .await;
    if matches!(ending, Ending::Unread) {
        unread::given_up(caller);
    }
    ControlFlow::Break(Ended::Whole)
}

/// The rule of this listener for tunnels to that place.
fn find<'a>(site: &'a Site, authority: Option<&Authority>) -> Result<&'a Arc<Rule>, Error> {
    let Opaque::Tunnels { to, rule } = &site.opaque else {
        return Err(Error::new(
            Reason::MethodUnsupported,
            "CONNECT is for services with `protocol: tcp`, and this is none",
        ));
    };
    match authority {
        Some(authority) if authority.as_str().eq_ignore_ascii_case(to.as_str()) => Ok(rule),
        Some(authority) => Err(Error::new(
            Reason::NoRoute,
            format!("a tunnel to `{authority}` was asked for, and this is `{to}`"),
        )),
        None => Err(Error::new(
            Reason::MalformedRequest,
            "CONNECT without an authority",
        )),
    }
}

/// Why a peer's sidecar refused a tunnel, from what it answered.
pub(crate) fn refusal<T>(response: &Response<T>) -> Error {
    let status = response.status();
    let code = response.headers().get(answer::REASON);
    let reason = code.and_then(|code| Reason::from_code(code.as_bytes()));
    match reason {
        Some(reason @ (Reason::Denied | Reason::NoRoute | Reason::MethodUnsupported)) => {
            Error::new(
                reason,
                format!(
                    "the peer's sidecar refused the tunnel: {status}, {}",
                    reason.code()
                ),
            )
        }
        // Whatever it was, nothing has reached the app.
        Some(reason) => Error::not_processed(
            reason,
            format!(
                "the peer's sidecar could not reach its app: {status}, {}",
                reason.code()
            ),
        ),
        None => Error::new(
            Reason::UpstreamMalformed,
            format!("the endpoint answered {status} to CONNECT"),
        ),
    }
}

#[cfg(test)]
mod tests;
