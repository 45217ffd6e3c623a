//! The downstream side of HTTP/1.1: one task per connection, which also drives the upstream side of each exchange.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Buf;
use http::{HeaderMap, Method, StatusCode, Version};
use tokio::time::Instant;

use super::parse::{self, Framing};
use super::{Connection, Handle, Incoming, Peer, encode, spare};
use crate::accept::Io;
use crate::body::{Body, Frame, Length};
use crate::core::{LEAVE, Seat};
use crate::error::Error;
use crate::http::answer::{self, Answer};
use crate::http::exchange::{Request, exchange};
use crate::http::interim::Interim;
use crate::http::relay::{Failed, Relay, Sink, Unsent};
use crate::http::unread::Late;
use crate::http::{Caller, upgrade};
use crate::reason::Reason;
use crate::tcp::end::End;
use crate::timer::{self, Timer};

/// How long a client that has ended its side has before it is asked whether it is still there, and how often that is
/// looked at then.
const GRACE: Duration = Duration::from_millis(50);
/// How long and how much we read on after an answer that ends the connection, so that the client gets to read it
/// before a reset (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// Serves a connection to its end.
pub(crate) async fn serve(io: Io, caller: Rc<Caller>, seat: Seat) {
    let connection: Handle = Rc::new(RefCell::new(Connection::new(io, Peer::Client)));
    timer::now();
    let mut server = Server {
        connection,
        caller,
        seat,
        timer: Timer::new(),
        request: None,
    };
    while let Some(next) = server.next().await {
        let ended = match next {
            Ok(terms) => server.run(terms).await,
            Err(error) => server.refuse(error).await,
        };
        if ended.is_break() {
            break;
        }
    }
}

struct Server {
    connection: Handle,
    caller: Rc<Caller>,
    seat: Seat,
    timer: Timer,
    /// What the exchange under way has asked for. Here, because each function that it is handed through would copy it.
    request: Option<Request>,
}

/// What the head of a request says of the connection.
#[derive(Debug, Clone, Copy)]
struct Terms {
    framing: Framing,
    keep_alive: bool,
}

impl Server {
    /// Receives the next request; `None` when the connection ends between two.
    async fn next(&mut self) -> Option<Result<Terms, Error>> {
        // Copied: a listener that is held here is not let go of as long as the connection idles.
        let site = self.caller.site();
        let (timeouts, limits) = (site.timeouts, site.http1);
        drop(site);
        // The last exchange was timed to its end just now, and the connection when it came.
        self.timer.set(timer::recent() + timeouts.idle);
        let (connection, caller, seat, timer) =
            (&self.connection, &self.caller, &self.seat, &mut self.timer);
        let slot = &mut self.request;
        let mut seen = 0;
        let mut leaving = false;
        connection.borrow_mut().wire.release_space();
        poll_fn(|cx| {
            let mut guard = connection.borrow_mut();
            loop {
                if guard.wire.input.len() > seen {
                    // What comes first is looked at as it is: nearly always it is a whole head.
                    if seen == 0
                        || parse::may_complete(&guard.wire.input[seen..])
                        || guard.wire.input.len() > limits.head_bytes
                    {
                        match parse::request(&guard.wire.input, &limits) {
                            Ok(Some(request)) => {
                                guard.wire.input.advance(request.consumed);
                                *slot = Some(Request {
                                    head: request.head,
                                    body: Body::Empty,
                                    upgrade: request.upgrade.is_some(),
                                });
                                return Poll::Ready(Some(Ok(Terms {
                                    framing: request.framing,
                                    keep_alive: request.keep_alive,
                                })));
                            }
                            Ok(None) => {}
                            Err(malformed) => {
                                return Poll::Ready(Some(Err(guard.malformed(&malformed))));
                            }
                        }
                    }
                    if seen == 0 {
                        timer.set(Instant::now() + timeouts.head);
                    }
                    seen = guard.wire.input.len();
                }
                seat.wake_at_drain(cx);
                match guard.wire.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => {
                        if seen == 0 && !leaving && caller.is_draining() {
                            // Not at once: a request that is on its way is answered, and not reset.
                            leaving = true;
                            timer.set(Instant::now() + LEAVE);
                        }
                        ready!(timer.poll_expired(cx));
                        return Poll::Ready((seen > 0).then(|| {
                            Err(Error::new(
                                Reason::HeadTimeout,
                                format!("the head did not arrive within {:?}", timeouts.head),
                            ))
                        }));
                    }
                }
            }
        })
        .await
    }

    /// One exchange, from its head to the last byte of its answer.
    async fn run(&mut self, terms: Terms) -> ControlFlow<()> {
        let Terms {
            framing,
            keep_alive,
        } = terms;
        let Some(request) = &mut self.request else {
            return ControlFlow::Break(());
        };
        let head = &request.head;
        let site = self.caller.site();
        self.connection
            .borrow_mut()
            .begin_body(framing, &site.http1);
        let head_bytes = site.http1.head_bytes;
        let (version, is_head) = (head.version, head.method == Method::HEAD);
        request.body = match framing {
            Framing::None | Framing::Length(0) => Body::Empty,
            framing => {
                let body = Incoming::new(self.connection.clone(), framing);
                // Calls may stream as slowly as they like, and members of the mesh are no strangers.
                Body::Http1(match site.paces_uploads && !head.is_grpc() {
                    true => body.paced(),
                    false => body,
                })
            }
        };
        let interim = if version == Version::HTTP_10 {
            Interim::Nowhere
        } else {
            Interim::Http1(&self.connection)
        };
        let answer = {
            let exchange = pin!(exchange(&self.caller, site, request, &interim));
            while_there(
                exchange,
                &self.connection,
                &mut self.timer,
                head_bytes,
                &interim,
            )
            .await
        };
        spare::put(std::mem::take(&mut request.head.headers));
        // With it goes its part of the buffer.
        self.request = None;
        let Some(answer) = answer else {
            // Nobody is left to be answered; the attempt has gone with the exchange.
            return ControlFlow::Break(());
        };
        if answer.upgraded.is_some() {
            return Box::pin(self.tunnel(answer)).await;
        }
        let (relay, keep_alive) = self.begin(answer, version, is_head, keep_alive);
        self.finish(&mut Some(relay), keep_alive).await
    }

    /// The exchange has become a tunnel, and with it the connection: to its end.
    async fn tunnel(&mut self, answer: Answer) -> ControlFlow<()> {
        let Answer {
            headers,
            mut body,
            upgraded,
            ..
        } = answer;
        if let Some(mut endpoint) = upgraded {
            encode::response_head(
                self.connection.borrow_mut().wire.stage(),
                StatusCode::SWITCHING_PROTOCOLS,
                &headers,
                Framing::None,
                Version::HTTP_11,
                true,
                b"",
            );
            let mut client = End::upgraded(self.connection.clone());
            upgrade::tunnel(&self.caller, &mut client, &mut endpoint, &mut body).await;
        }
        ControlFlow::Break(())
    }

    /// A message that cannot be understood is answered, and the connection ends: where the next one begins is unknown.
    async fn refuse(&mut self, error: Error) -> ControlFlow<()> {
        if error.reason != Reason::HeadTimeout {
            self.caller.connections.parse_error();
        }
        let answer = answer::refused(&self.caller, &error);
        let (relay, keep_alive) = self.begin(answer, Version::HTTP_11, false, false);
        let _: ControlFlow<()> = self.finish(&mut Some(relay), keep_alive).await;
        ControlFlow::Break(())
    }

    /// Stages the head of an answer; returns its body on its way, and whether another request may follow.
    fn begin(
        &mut self,
        answer: Answer,
        version: Version,
        is_head: bool,
        keep_alive: bool,
    ) -> (Relay, bool) {
        let is_ours = answer.is_ours();
        let Answer {
            status,
            headers,
            body,
            ..
        } = answer;
        let bodiless =
            is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let framing = match body.length() {
            _ if bodiless => Framing::None,
            Length::None => Framing::Length(0),
            Length::Exact(length) => Framing::Length(length),
            // The encoder knows what to do for a client that is too old for chunks.
            Length::Unknown => Framing::Chunked,
        };
        // A refusal does not wait for the body it refuses; an endpoint's early answer of another kind lets it run on.
        let ends_by_closing = framing == Framing::Chunked && version == Version::HTTP_10;
        let refuses = is_ours || status.is_client_error() || status.is_server_error();
        let unread = refuses && !self.connection.borrow().is_complete();
        let keep_alive = keep_alive && !ends_by_closing && !unread && !self.caller.is_draining();
        let framing = encode::response_head(
            self.connection.borrow_mut().wire.stage(),
            status,
            &headers,
            framing,
            version,
            keep_alive,
            &self.caller.core.date(),
        );
        if framing == Framing::UntilClose {
            // Whatever ends this connection before the body has come to its end, a drain or a panic too: closed in good
            // order, what there is would be taken for everything, and cached.
            self.connection.borrow_mut().wire.io().reset();
        }
        spare::put(headers);
        // An answer without a body has nothing to relay, but its exchange may have more to settle.
        let body = if bodiless { Body::Empty } else { body };
        let connection = self.connection.clone();
        let relay = Relay::new(
            body,
            Sink::Http1 {
                connection,
                framing,
            },
        );
        (relay, keep_alive)
    }

    /// Sends what is staged and the body behind it, which is gone then. Borrowed, because a future that takes a large
    /// argument holds it twice.
    async fn finish(&mut self, slot: &mut Option<Relay>, keep_alive: bool) -> ControlFlow<()> {
        let Some(relay) = slot else {
            return ControlFlow::Break(());
        };
        let sent = relay.send(&mut self.timer, &self.caller).await;
        let ends_by_closing = relay.ends_by_closing();
        *slot = None;
        if let Err(unsent) = sent {
            if matches!(unsent, Unsent::Late(Late::Unread)) {
                // Or the system would keep for it what it does not take.
                self.connection.borrow_mut().wire.io().reset();
            }
            // The answer's end is missing: only a closed connection can say so, or a broken one where closing is the end.
            // What there is of it arrives, or the client might take this for a connection that was closed before its
            // request.
            if matches!(unsent, Unsent::Failed(Failed::Source(_))) {
                let (connection, timer) = (&self.connection, &mut self.timer);
                poll_fn(|cx| match connection.borrow_mut().wire.poll_flush(cx) {
                    Poll::Ready(_) => Poll::Ready(()),
                    Poll::Pending => timer.poll_expired(cx),
                })
                .await;
            }
            return ControlFlow::Break(());
        }
        if ends_by_closing {
            self.connection.borrow_mut().wire.io().may_end();
        }
        // A bool of its own: nothing may be borrowed while we wait.
        let is_complete = self.connection.borrow().is_complete();
        if keep_alive && (is_complete || Box::pin(self.discard()).await) {
            return ControlFlow::Continue(());
        }
        self.linger().await;
        ControlFlow::Break(())
    }

    /// Reads what is left of a request that has its answer already, so that the connection can serve the next one: we have
    /// said that it would. Whether that was not too much.
    async fn discard(&mut self) -> bool {
        self.timer.set(Instant::now() + LINGER);
        let (connection, timer) = (&self.connection, &mut self.timer);
        let mut discarded = 0;
        poll_fn(|cx| {
            if timer.poll_expired(cx).is_ready() {
                return Poll::Ready(false);
            }
            while discarded <= LINGER_BYTES {
                match ready!(connection.borrow_mut().poll_frame(cx)) {
                    Some(Ok(Frame::Data(data))) => discarded += data.len(),
                    Some(Ok(Frame::Trailers(_))) => {}
                    Some(Err(_)) => return Poll::Ready(false),
                    None => return Poll::Ready(true),
                }
            }
            Poll::Ready(false)
        })
        .await
    }

    /// Ends the connection so that what was sent arrives: FIN first, then read on for a while.
    async fn linger(&mut self) {
        self.timer.set(Instant::now() + LINGER);
        let (connection, timer) = (&self.connection, &mut self.timer);
        let mut discarded = 0;
        let mut shut = false;
        poll_fn(|cx| {
            if timer.poll_expired(cx).is_ready() {
                return Poll::Ready(());
            }
            let wire = &mut connection.borrow_mut().wire;
            if !shut {
                match ready!(wire.poll_shutdown(cx)) {
                    Ok(()) => shut = true,
                    Err(_) => return Poll::Ready(()),
                }
            }
            while discarded <= LINGER_BYTES {
                wire.input.clear();
                match ready!(wire.poll_fill(cx)) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => discarded += length,
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// Runs an exchange until its answer is there or its client is not.
///
/// A reset says that the client has left. Its end (FIN) does not: it may have ended its own side only, and wait. Whoever
/// has closed its socket answers the next thing that it is sent with a reset, though, and `100 Continue` is a thing that
/// every HTTP/1.1 client takes at any time before the answer (RFC 9110 §15.2), so that is sent, once.
async fn while_there(
    mut exchange: Pin<&mut impl Future<Output = Answer>>,
    connection: &Handle,
    timer: &mut Timer,
    most_pipelined: usize,
    interim: &Interim<'_>,
) -> Option<Answer> {
    let mut client = Client::There;
    poll_fn(|cx| {
        if let Poll::Ready(answer) = exchange.as_mut().poll(cx) {
            return Poll::Ready(Some(answer));
        }
        loop {
            let mut guard = connection.borrow_mut();
            match client {
                // While its body is being read, that notices.
                Client::There if !guard.is_complete() => return Poll::Pending,
                // It sends on what it wants next; that is not ours to hold without end.
                Client::There if guard.wire.input.len() > most_pipelined => return Poll::Pending,
                Client::There => match ready!(guard.wire.poll_fill(cx)) {
                    Ok(1..) => {}
                    Err(_) => return Poll::Ready(None),
                    Ok(0) if matches!(interim, Interim::Nowhere) => client = Client::Silent,
                    Ok(0) => {
                        client = Client::Ended;
                        timer.set(Instant::now() + GRACE);
                    }
                },
                Client::Silent => return Poll::Pending,
                Client::Ended | Client::Asked => {
                    if guard.wire.has_failed() {
                        return Poll::Ready(None);
                    }
                    ready!(timer.poll_expired(cx));
                    timer.set(Instant::now() + GRACE);
                    drop(guard);
                    if matches!(client, Client::Ended) {
                        client = Client::Asked;
                        interim.send(cx, StatusCode::CONTINUE, &HeaderMap::new());
                    }
                }
            }
        }
    })
    .await
}

/// What is known of a client that waits for its answer.
enum Client {
    /// It has not ended its side.
    There,
    /// It has.
    Ended,
    /// It has, and was sent something that it takes only if it is there.
    Asked,
    /// It has, and there is nothing that it could be sent.
    Silent,
}
