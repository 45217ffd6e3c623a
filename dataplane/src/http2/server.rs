//! The downstream side of HTTP/2: all streams of a connection in the connection's own task, so that what they have to
//! say at one wake-up leaves in one send.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Either;
use h2::RecvStream;
use h2::ext::Protocol;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request as HttpRequest, Response, StatusCode, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::coop::has_budget_remaining;
use tokio::time::Instant;

use super::frames::Trouble;
use super::lanes::{Job, Running};
use super::pressure::Pressure;
use super::resets::Resets;
use super::stall::Stall;
use super::streams::Streams;
use super::{Coalesce, Flusher, Received, is_padded, length_value, trim};
use crate::accept::Io;
use crate::body::{Body, Length};
use crate::core::Seat;
use crate::error::Error;
use crate::head::Head;
use crate::http::answer::{self, Answer};
use crate::http::exchange::{Request, exchange};
use crate::http::interim::{Interim, Stream};
use crate::http::parting::{self, Parted};
use crate::http::relay::{Failed, Relay, Sink, Unsent};
use crate::http::unread::{self, Late, Reader};
use crate::http::{Caller, upgrade, websocket};
use crate::http1::{Peer, parse};
use crate::reason::Reason;
use crate::tcp;
use crate::tcp::end::End;
use crate::timer::Timer;

const HEAD_BYTES: u32 = 64 * 1024;
/// Streams that we reset for the peer's mistakes: beyond these the connection ends with ENHANCE_YOUR_CALM. So it does when
/// more than all its streams were reset before there was a place for them.
const LOCAL_RESETS: usize = 256;
/// How often h2 and the streams are looked at in turn at one wake-up: others have a right to the core, too.
const ROUNDS: usize = 16;
/// For how many bytes a peer that was refused is listened to.
const GOODBYE_BYTES: usize = 64 * 1024;

type Connection = h2::server::Connection<Coalesce, Bytes>;

/// Serves a connection to its end.
pub(crate) async fn serve(io: Io, caller: Rc<Caller>, seat: Seat) {
    let site = caller.site();
    let pressure = Rc::new(Pressure::new(site.http2));
    let (io, flusher) = Coalesce::new(io, true, Rc::clone(&pressure));
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(site.http2.stream_window)
        .initial_connection_window_size(site.http2.connection_window)
        .max_concurrent_streams(site.http2.streams)
        .max_send_buffer_size(site.http2.send_buffer)
        .max_header_list_size(HEAD_BYTES)
        .max_pending_accept_reset_streams(site.http2.streams as usize)
        .max_local_error_reset_streams(Some(LOCAL_RESETS))
        // WebSocket, by RFC 8441.
        .enable_connect_protocol();
    let mut timer = Timer::new();
    timer.set(Instant::now() + site.timeouts.head);
    // Copied: a listener that is held here is not let go of as long as the connection lives.
    let (bounds, idle) = (site.http2, site.timeouts.idle);
    let (mut stall, patience) = (Stall::default(), site.timeouts.head);
    drop(site);
    // In a block of its own, whose room the connection takes over: an idle one holds no more than it needs.
    let connection = {
        let mut handshake = pin!(builder.handshake::<_, Bytes>(io));
        poll_fn(|cx| {
            let done = handshake.as_mut().poll(cx);
            let flushed = flusher.poll_flush(cx);
            if timer.poll_expired(cx).is_ready() || matches!(flushed, Poll::Ready(Err(_))) {
                return Poll::Ready(None);
            }
            done.map(Result::ok)
        })
        .await
    };
    let Some(mut connection) = connection else {
        return;
    };
    let mut streams = Streams::new(bounds.streams as usize);
    let waker = streams.waker();
    let mut resets = Resets::new(bounds.streams, std::time::Instant::now());
    let mut told = false;
    let mut closed = false;
    let mut calming = false;
    let mut busy = true;
    let (mut reader, mut lagging) = (Reader::default(), Timer::new());
    poll_fn(|cx| {
        streams.enter(cx);
        seat.wake_at_drain(cx);
        if !told && caller.is_draining() {
            told = true;
            connection.graceful_shutdown();
        }
        let mut goes_on = true;
        for _ in 0..ROUNDS {
            let was_full = take_in(
                &mut Context::from_waker(&waker),
                &mut connection,
                &mut streams,
                &caller,
                &pressure,
                &flusher,
                &mut closed,
            );
            pressure.unseen(was_full);
            goes_on = false;
            while let Some(ended) = streams.poll_ended() {
                goes_on |= was_full;
                match ended {
                    Ended::Whole => resets.completed(),
                    Ended::TakenBack if calming || resets.taken_back(std::time::Instant::now) => {}
                    Ended::TakenBack => {
                        calming = true;
                        caller.connections.parse_error();
                        connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                        goes_on = true;
                    }
                }
            }
            goes_on |= streams.is_rung();
            if closed || !goes_on || !has_budget_remaining() {
                break;
            }
        }
        if goes_on {
            cx.waker().wake_by_ref();
        }
        if pressure.turn(&mut connection) {
            // To be said to the client.
            cx.waker().wake_by_ref();
        }
        if stall
            .poll_stalled(cx, flusher.open_head(), patience)
            .is_ready()
        {
            caller.connections.parse_error();
            flusher.end(Trouble::Stalled);
            closed = true;
        }
        match flusher.poll_flush(cx) {
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) if reader.is_lagging() => {
                caller.clogged.set(false);
                reader.keeps_up();
                lagging.clear();
            }
            Poll::Ready(Ok(())) => {}
            Poll::Pending => {
                caller.clogged.set(true);
                if lagging.poll_expired(cx).is_ready() || !reader.is_lagging() {
                    let patience = caller.site().timeouts.unread;
                    match reader.lags(flusher.sent(), patience, Instant::now()) {
                        Some(until) => lagging.set(until),
                        None => {
                            unread::given_up(&caller);
                            flusher.reset();
                            return Poll::Ready(());
                        }
                    }
                    let _: Poll<()> = lagging.poll_expired(cx);
                }
            }
        }
        if closed {
            return Poll::Ready(());
        }
        if streams.len() == 0 {
            streams.rest();
            if busy {
                busy = false;
                timer.set(Instant::now() + idle);
            }
            if timer.poll_expired(cx).is_ready() {
                if told {
                    return Poll::Ready(());
                }
                // GOAWAY first; the connection ends when the peer has taken note, or after one more such time.
                told = true;
                connection.graceful_shutdown();
                timer.set(Instant::now() + idle);
                cx.waker().wake_by_ref();
            }
        } else {
            busy = true;
        }
        streams.leave();
        Poll::Pending
    })
    .await;
}

/// Takes in what the client asks for, until it asks for nothing more or has no room for it. Says whether it has no room.
fn take_in(
    cx: &mut Context<'_>,
    connection: &mut Connection,
    streams: &mut Streams,
    caller: &Rc<Caller>,
    pressure: &Rc<Pressure>,
    flusher: &Flusher,
    closed: &mut bool,
) -> bool {
    streams.look_at_connection();
    while !*closed {
        if streams.is_full() {
            // All places are taken, also by what was taken back a moment ago: the others wait.
            *closed = connection.poll_closed(cx).is_ready();
            return true;
        }
        match connection.poll_accept(cx) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                let caller = Rc::clone(caller);
                streams.push(match *request.method() {
                    // Boxed: rare, and it would make every exchange as large.
                    Method::CONNECT => Either::Right(
                        connect(caller, request, respond, Rc::clone(pressure)).boxed_local(),
                    ),
                    ref method => {
                        let is_head = method == Method::HEAD;
                        let request = received(request, &caller, pressure);
                        Either::Left(Running::new(Job {
                            caller,
                            request,
                            is_head,
                            respond,
                        }))
                    }
                });
            }
            Poll::Ready(Some(Err(error))) => {
                if (error.is_library() && error.is_go_away()) || flusher.trouble().is_some() {
                    caller.connections.parse_error();
                }
                *closed = true;
            }
            Poll::Ready(None) => *closed = true,
            Poll::Pending => break,
        }
    }
    false
}

/// How an exchange ended for the connection's account.
pub(crate) enum Ended {
    /// Its answer was taken.
    Whole,
    /// Reset, by the client or for its mistakes, before it had come to its end.
    TakenBack,
}

/// Ends a connection that began as HTTP/2 and went on as nothing, in HTTP/2's own words (RFC 9113 §3.4).
pub(crate) async fn refuse_preface(mut io: Io) {
    // Empty SETTINGS, then GOAWAY: no stream was taken, PROTOCOL_ERROR.
    const GOAWAY: [u8; 26] = *b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";
    if io.write_all(&GOAWAY).await.is_err() || io.shutdown().await.is_err() {
        return;
    }
    // Closed with bytes unread, the connection would be reset and the words lost.
    let mut rest = [0; 1024];
    let mut left = GOODBYE_BYTES;
    while let Ok(length @ 1..) = io.read(&mut rest).await {
        left = match left.checked_sub(length) {
            Some(left) => left,
            None => return,
        };
    }
}

/// A request in the one form that it has for either version.
fn received(
    request: HttpRequest<RecvStream>,
    caller: &Caller,
    pressure: &Rc<Pressure>,
) -> Result<Request, Error> {
    let (parts, stream) = request.into_parts();
    // Before the head is looked at: what came of the body counts, whatever becomes of it.
    let body = (!stream.is_end_stream())
        .then(|| Received::new(stream, Peer::Client, None, Rc::clone(pressure)));
    let (head, length) = head(parts)?;
    let is_paced = || !head.is_grpc() && caller.site().paces_uploads;
    let body = match body.map(|body| body.of_length(length)) {
        None => Body::Empty,
        Some(body) if is_paced() => Body::Http2(body.paced()),
        Some(body) => Body::Http2(body),
    };
    Ok(Request {
        head,
        body,
        upgrade: false,
    })
}

/// One exchange. Whatever goes wrong ends this stream only.
///
/// What needs no waiting is done by functions beside this one: a future has room for all that lives in it.
pub(super) async fn stream(job: Job) -> Ended {
    let Job {
        caller,
        mut request,
        is_head,
        respond,
    } = job;
    let stream = Stream::new(respond);
    let taken_back = exchanged(&caller, &mut request, is_head, &stream).await;
    drop(request);
    over(&caller, stream, taken_back).await
}

/// How an exchange ended, once endpoints have stopped working on it, also where its client has an answer.
async fn over(caller: &Caller, stream: Stream, taken_back: Option<Parted>) -> Ended {
    let late = stream.take_late();
    // With the last handle h2 tells a client that still sends to stop.
    drop(stream);
    let (ended, parted) = match (taken_back, late) {
        (None, None) => return Ended::Whole,
        (None, Some(late)) => (Ended::Whole, late),
        (Some(parted), late) => (Ended::TakenBack, parted.and(late.unwrap_or_default())),
    };
    // Boxed: rare, and each exchange would carry the room for it.
    Box::pin(parted.gone(|| caller.gives_back_early())).await;
    ended
}

/// Returns what the endpoint may still be working on, if the client did not take the answer.
async fn exchanged(
    caller: &Rc<Caller>,
    request: &mut Result<Request, Error>,
    is_head: bool,
    stream: &Stream,
) -> Option<Parted> {
    let answer = match request {
        Ok(request) => {
            let interim = Interim::Http2(stream);
            let mut exchange = pin!(Some(exchange(caller, caller.site(), request, &interim)));
            match unless_reset(exchange.as_mut(), stream).await {
                Some(answer) => answer,
                // Whoever asked has gone away, and so does the attempt.
                None => return Some(parting::collect(|| exchange.set(None)).1),
            }
        }
        Err(error) => answer::refused(caller, error),
    };
    respond_with(caller, &stream.respond, answer, is_head).await
}

/// The answer, if the client waits for it.
async fn unless_reset(
    mut exchange: Pin<&mut Option<impl Future<Output = Answer>>>,
    stream: &Stream,
) -> Option<Answer> {
    poll_fn(|cx| {
        let answer = match exchange.as_mut().as_pin_mut() {
            Some(exchange) => exchange.poll(cx),
            None => return Poll::Ready(None),
        };
        match answer {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if stream.respond.borrow_mut().poll_reset(cx).is_ready() => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Sends an answer; returns what the endpoint may still be working on, if the client did not take it.
async fn respond_with(
    caller: &Caller,
    respond: &RefCell<SendResponse<Bytes>>,
    answer: Answer,
    is_head: bool,
) -> Option<Parted> {
    let is_ours = answer.is_ours();
    let (begun, parted) = parting::collect(|| begin(respond, answer, is_head));
    let left = match begun {
        Ok(Some(relay)) => finish(caller, respond, relay).await,
        Ok(None) => None,
        Err(_) => Some(parted),
    };
    if left.is_none() && !is_ours {
        caller.answered();
    }
    left
}

/// CONNECT, to its tunnel's end. Taken back is one that the client gave up before it was one, like any exchange.
async fn connect(
    caller: Rc<Caller>,
    request: HttpRequest<RecvStream>,
    mut respond: SendResponse<Bytes>,
    pressure: Rc<Pressure>,
) -> Ended {
    let (parts, receive) = request.into_parts();
    let protocol = parts.extensions.get::<Protocol>();
    match protocol.map(Protocol::as_str) {
        None => {
            let to = parts.uri.authority();
            match tcp::tunnel(&caller, to, receive, &mut respond, pressure).await {
                ControlFlow::Break(ended) => {
                    if matches!(ended, Ended::TakenBack) {
                        Parted::default().gone(|| true).await;
                    }
                    ended
                }
                ControlFlow::Continue(answer) => send(&caller, Stream::new(respond), answer).await,
            }
        }
        Some("websocket") => websocket_exchange(&caller, parts, receive, respond, pressure).await,
        Some(_) => {
            let error = Error::new(
                Reason::MethodUnsupported,
                "of the extended CONNECT protocols, `websocket` is the one that is forwarded",
            );
            let answer = answer::refused(&caller, &error);
            send(&caller, Stream::new(respond), answer).await
        }
    }
}

/// An answer that opens no tunnel.
async fn send(caller: &Caller, stream: Stream, answer: Answer) -> Ended {
    let taken_back = respond_with(caller, &stream.respond, answer, false).await;
    over(caller, stream, taken_back).await
}

/// A WebSocket (RFC 8441): everybody after us sees the request that HTTP/1.1 would have made.
async fn websocket_exchange(
    caller: &Caller,
    mut parts: http::request::Parts,
    receive: RecvStream,
    respond: SendResponse<Bytes>,
    pressure: Rc<Pressure>,
) -> Ended {
    parts.method = Method::GET;
    let stream = Stream::new(respond);
    let answered = match handshake(parts, &receive) {
        Ok(head) => {
            let interim = Interim::Http2(&stream);
            let mut request = Request {
                head,
                body: Body::Empty,
                upgrade: true,
            };
            let site = caller.site();
            let mut exchange = pin!(Some(exchange(caller, site, &mut request, &interim)));
            let answer = unless_reset(exchange.as_mut(), &stream).await;
            answer.ok_or_else(|| parting::collect(|| exchange.set(None)).1)
        }
        Err(error) => Ok(answer::refused(caller, &error)),
    };
    let mut answer = match answered {
        Ok(answer) => answer,
        Err(parted) => return over(caller, stream, Some(parted)).await,
    };
    let Some(mut endpoint) = answer.upgraded.take() else {
        if let Some(error) = websocket::not_a_tunnel(answer.status) {
            if caller.identity.is_some() {
                // A sidecar, which can tell its client.
                let yes = HeaderValue::from_static("true");
                answer.headers.insert(upgrade::NOT_UPGRADED, yes);
            } else {
                answer = answer::refused(caller, &error);
            }
        }
        return send(caller, stream, answer).await;
    };
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = answer.headers;
    let Ok(sent) = stream.respond.borrow_mut().send_response(response, false) else {
        return Ended::TakenBack;
    };
    let receive = Received::new(receive, Peer::Client, None, pressure);
    let mut client = End::stream(sent, receive);
    upgrade::tunnel(caller, &mut client, &mut endpoint, &mut answer.body).await;
    Ended::Whole
}

/// The head that asks for a WebSocket. A tunnel has neither a length nor an end that comes with its head.
fn handshake(parts: http::request::Parts, receive: &RecvStream) -> Result<Head, Error> {
    let refuse = |detail| Err(Error::new(Reason::UpgradeRefused, detail));
    let (head, length) = head(parts)?;
    if length.is_some() {
        return refuse("a WebSocket's handshake has no content-length");
    }
    if receive.is_end_stream() {
        return refuse("the stream of a WebSocket ended with its handshake");
    }
    Ok(head)
}

/// Sends the head of an answer; returns the body where there is one to send.
fn begin(
    respond: &RefCell<SendResponse<Bytes>>,
    answer: Answer,
    is_head: bool,
) -> Result<Option<Relay>, h2::Error> {
    let Answer {
        status,
        mut headers,
        body,
        ..
    } = answer;
    let bodiless = is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if !bodiless && let Length::Exact(length) = body.length() {
        headers.insert(CONTENT_LENGTH, length_value(length));
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = headers;
    let ends = bodiless || body.is_end();
    let stream = respond.borrow_mut().send_response(response, ends)?;
    Ok((!ends).then(|| Relay::new(body, Sink::Http2 { stream })))
}

async fn finish(
    caller: &Caller,
    respond: &RefCell<SendResponse<Bytes>>,
    mut relay: Relay,
) -> Option<Parted> {
    let mut timer = Timer::pooled();
    let Err(unsent) = relay.send(&mut timer, caller).await else {
        return None;
    };
    // The end is missing, and the client must know.
    let reason = match unsent {
        Unsent::Late(Late::Unread) => h2::Reason::CANCEL,
        _ => h2::Reason::INTERNAL_ERROR,
    };
    respond.borrow_mut().send_reset(reason);
    let is_client = match &unsent {
        // The end of what the endpoint sent, or of what it was sent.
        Unsent::Failed(Failed::Source(error)) => !error.is_of_endpoint(),
        _ => true,
    };
    is_client.then(|| parting::collect(|| drop(relay)).1)
}

/// The one form of a head. What h2 has checked (RFC 9113 §8.2, §8.3) is not checked again; it does not look at the ends of values.
fn head(parts: http::request::Parts) -> Result<(Head, Option<u64>), Error> {
    let mut headers = parts.headers;
    // One look at the names instead of a search for each of these.
    let (mut cookie, mut host, mut length, mut padded) = (false, false, false, false);
    for (name, value) in &headers {
        cookie |= *name == COOKIE;
        host |= *name == HOST;
        length |= *name == CONTENT_LENGTH;
        padded |= is_padded(value);
    }
    if padded {
        trim(&mut headers);
    }
    if cookie {
        join_cookies(&mut headers);
    }
    let limits = parse::Limits::default();
    if headers.len() > limits.fields {
        return Err(Error::new(
            Reason::HeadTooLarge,
            format!("more than {} fields", limits.fields),
        ));
    }
    let uri = parts.uri.into_parts();
    let path = uri
        .path_and_query
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    if path.as_str().len() > limits.target_bytes {
        return Err(Error::new(
            Reason::TargetTooLong,
            format!("longer than {} bytes", limits.target_bytes),
        ));
    }
    let authority = authority(uri.authority, host.then_some(&mut headers))?;
    let length = if length {
        headers.remove(CONTENT_LENGTH)
    } else {
        None
    };
    let length = length
        .map(|value| {
            parse::length(value.as_bytes())
                .map_err(|malformed| Error::new(malformed.reason, malformed.rule))
        })
        .transpose()?;
    Ok((
        Head {
            method: parts.method,
            version: Version::HTTP_2,
            authority,
            path,
            headers,
        },
        length,
    ))
}

/// RFC 9113 §8.2.3: cookies may come in crumbs, and are one field again for whoever does not speak HTTP/2.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut whole = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(mut whole) = HeaderValue::from_maybe_shared(Bytes::from(whole)) {
        whole.set_sensitive(headers.get(COOKIE).is_some_and(HeaderValue::is_sensitive));
        headers.insert(COOKIE, whole);
    }
}

/// `:authority`, or `host` where there is none; both only when they agree. `headers` only when there is a `host`.
fn authority(
    authority: Option<Authority>,
    headers: Option<&mut HeaderMap>,
) -> Result<Authority, Error> {
    let bad = |detail: &'static str| Error::new(Reason::MalformedRequest, detail);
    let host = match headers {
        Some(headers) => {
            if headers.get_all(HOST).iter().nth(1).is_some() {
                return Err(bad("more than one host"));
            }
            headers.remove(HOST)
        }
        None => None,
    };
    let authority = match (authority, host) {
        (Some(authority), Some(host))
            if !authority
                .as_str()
                .as_bytes()
                .eq_ignore_ascii_case(host.as_bytes()) =>
        {
            return Err(bad("host and :authority differ"));
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => Authority::try_from(host.as_bytes())
            .map_err(|_| bad("host is not a valid authority"))?,
        (None, None) => return Err(bad("neither :authority nor host")),
    };
    parse::check_authority(authority.as_str().as_bytes())
        .map_err(|malformed| bad(malformed.rule))?;
    Ok(authority)
}
