//! The upstream side of HTTP/2: one connection per peer and core, opened when it is first needed, shared by all
//! exchanges. A second one is opened only when the peer's limit of streams is reached.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::fast::RandomState;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::uri::{Parts, Scheme};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};

use super::frames::Trouble;
use super::pressure::Pressure;
use super::resets::Resets;
use super::stall::Stall;
use super::watch::Watch;
use super::{Coalesce, Flusher, Received, broken_off, failure, length_value, trim};
use crate::body::{Body, Length};
use crate::cluster::limits::{COME_BACK, Demand, Held, Patience};
use crate::cluster::{Cluster, Speaks, connect, departure};
use crate::core::Core;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::head::Head;
use crate::http::answer::REASON;
use crate::http::hop::Told;
use crate::http::interim::{Interim, Interims};
use crate::http::parting;
use crate::http::relay::{Failed, Relay, Sink};
use crate::http1::{Peer as Side, parse};
use crate::plan::Http2;
use crate::reason::Reason;
use crate::timer::Timer;

/// Connections to one peer at most; beyond them exchanges wait for a stream. Those do not count whose places are mostly kept
/// for what was taken back.
const MOST_CONNECTIONS: usize = 4;
/// With those.
const MOST_IN_ALL: usize = 16;
/// How long is waited for what was taken back to have its place no more, which nobody tells.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// After a connection beyond the first could not be opened, how long exchanges only wait for streams of the others.
const REST: Duration = Duration::from_secs(1);
/// For a head of an answer from its first byte on, while which nothing else can come on its connection.
const HEAD: Duration = Duration::from_secs(10);
/// A connection that no exchange has used for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// A peer that ends a connection which an exchange has used within this time is about to stop; later it may just have been
/// idle for too long, to the peer's mind.
const IN_USE: Duration = Duration::from_secs(30);
const BOUNDS: Http2 = Http2::MESH;
/// Streams that a stranger gets before it has said how many it takes (RFC 9113 §6.5.2 asks everybody to take as many).
/// h2 would send without a limit until then, and a peer may take what it has to refuse for an attack.
const STREAMS_UNTOLD: usize = 100;
const HEAD_BYTES: u32 = 64 * 1024;
/// The last status that has a class (RFC 9110 §15), as in HTTP/1.1.
const LAST_STATUS: u16 = 599;

/// All peers of one core, by endpoint.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    peers: RefCell<HashMap<u64, Rc<Peer>, RandomState>>,
}

#[derive(Debug, Default)]
struct Peer {
    open: RefCell<Vec<Open>>,
    /// Attempts to connect that were begun, and that have ended. One is under way when they differ.
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// How the last attempt failed, and when, if it did.
    failed: RefCell<Option<(Error, Instant)>>,
    /// Exchanges that wait for the attempt under way, or for a stream.
    waiting: RefCell<Vec<Waker>>,
    /// How many they are. One that was woken counts until it has looked.
    hopeful: Cell<usize>,
}

/// Shared by all who send, one after another: to clone it for each is as much work for h2 as to send.
type Sender = Rc<RefCell<SendRequest<Bytes>>>;

#[derive(Debug)]
struct Open {
    sender: Sender,
    load: Rc<Load>,
    used: Instant,
    /// An exchange has had it.
    taken: bool,
}

impl Open {
    /// A connection that has ended, or is about to, is never ready again.
    fn lasts(&self, cx: &mut Context<'_>) -> bool {
        !self.load.is_spent()
            && matches!(self.sender.borrow_mut().poll_ready(cx), Poll::Ready(Ok(())))
    }

    /// Most of its places are kept for what was taken back.
    fn is_wasted(&self) -> bool {
        let load = &self.load;
        load.taken() > 2 * load.streams.get()
    }

    fn is_full(&self, now: Instant) -> bool {
        let most = self.sender.borrow().current_max_send_streams();
        self.load.taken() >= most && {
            self.load.forget(now);
            self.load.taken() >= most
        }
    }
}

/// Room for one stream on a connection.
#[derive(Debug)]
pub(crate) struct Room {
    sender: Sender,
    place: Place,
    /// When it was found.
    now: Instant,
}

impl Room {
    /// To send by, and to hold for as long as the stream lasts.
    ///
    /// Until the tunnel is one, the place is that of an attempt.
    pub(crate) fn into_parts(self) -> (SendRequest<Bytes>, Rc<Pressure>, Dialled) {
        let pressure = self.place.pressure();
        let dialled = Dialled::new(self.place);
        (self.sender.borrow().clone(), pressure, dialled)
    }

    /// Whether the peer takes extended CONNECT, which it says in its first frame: on a new connection that is waited for.
    pub(crate) async fn takes_extended_connect(&self) -> bool {
        let load = &self.place.load;
        poll_fn(|cx| match load.peer.upgrade() {
            Some(peer) if !load.heard.get() => {
                peer.waits(cx);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
        self.sender.borrow().is_extended_connect_protocol_enabled()
    }
}

/// The exchanges on a connection. Counted here, since h2 keeps whatever is beyond the peer's limit in a queue of its own
/// and says that it is ready.
#[derive(Debug)]
struct Load {
    streams: Cell<usize>,
    pressure: Rc<Pressure>,
    /// The peer has said something, and so what it takes; or it never will.
    heard: Cell<bool>,
    peer: Weak<Peer>,
    endpoint: Arc<Endpoint>,
    /// Where the peer is a member of the mesh.
    abandoned: Option<Abandoned>,
    /// Who waits for the connection's place, where there is a limit on connections.
    demand: Option<Demand>,
}

/// What was reset on a connection to a member of the mesh, which keeps the same account of it as we do.
#[derive(Debug)]
struct Abandoned {
    /// How many streams may still be reset: half of what the peer tolerates, and so it has as many more as there are streams
    /// when these are spent.
    resets: RefCell<Resets>,
    /// They are spent: the connection takes no more exchanges.
    is_spent: Cell<bool>,
    /// What may still have its place at the peer. No more than streams: a place is needed to abandon something.
    kept: RefCell<Vec<parting::Abandoned>>,
    /// When `kept` was last looked through.
    looked: Cell<Instant>,
}

impl Abandoned {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            resets: RefCell::new(Resets::new(BOUNDS.streams / 2, now)),
            is_spent: Cell::new(false),
            kept: RefCell::default(),
            looked: Cell::new(now),
        }
    }

    /// One more that may have its place still.
    fn keep(&self, stream: parting::Abandoned) {
        self.kept.borrow_mut().push(stream);
    }

    /// A stream ends with its answer, or is reset.
    fn ends(&self, whole: bool) {
        let mut resets = self.resets.borrow_mut();
        if whole {
            resets.completed();
        } else if !resets.taken_back(Instant::now) {
            self.is_spent.set(true);
        }
    }

    /// Forgets what the peer has given the place back of by now. Not each time: they may be many, and so may those who wait.
    fn forget(&self, now: Instant) {
        if now.saturating_duration_since(self.looked.get()) >= LOOK_AGAIN / 4 {
            self.looked.set(now);
            self.kept.borrow_mut().retain(|stream| stream.lasts(now));
        }
    }
}

impl Load {
    /// Places that are taken, also by what was reset there, as far as we remember.
    fn taken(&self) -> usize {
        let kept = |abandoned: &Abandoned| abandoned.kept.borrow().len();
        self.streams.get() + self.abandoned.as_ref().map_or(0, kept)
    }

    fn forget(&self, now: Instant) {
        if let Some(abandoned) = &self.abandoned {
            abandoned.forget(now);
        }
    }

    /// Whether another connection is to be taken. Where there is a limit on them, there may be no other.
    fn is_spent(&self) -> bool {
        let abandoned = self.abandoned.as_ref();
        abandoned.is_some_and(|abandoned| abandoned.is_spent.get())
            && self.demand.as_ref().is_none_or(Demand::has_room)
    }

    fn wanted(&self) -> usize {
        self.demand.as_ref().map_or(0, Demand::waiting)
    }

    /// Whoever waits to know what the peer takes need wait no longer.
    fn hear(&self) {
        self.heard.set(true);
        if let Some(peer) = self.peer.upgrade() {
            peer.wake_waiting();
        }
    }
}

/// One of a connection's streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    load: Rc<Load>,
    /// What works on the stream's request is an app of HTTP/1.1: its sidecar sees when it stops, and we do not.
    is_untold: bool,
}

impl Place {
    /// Of the connection that it is on.
    pub(crate) fn pressure(&self) -> Rc<Pressure> {
        Rc::clone(&self.load.pressure)
    }

    /// The stream ends with its answer, or is reset. A member of the mesh ends a connection on which that is done too often,
    /// though it may have been many clients: before it comes to that the next exchanges take another connection.
    fn ends(&self, whole: bool) {
        if let Some(abandoned) = &self.load.abandoned {
            abandoned.ends(whole);
        }
    }

    /// The answer ends, or is broken off. An app of HTTP/2 has stopped then, as far as anybody is concerned.
    pub(super) fn answer_ends(&self, whole: bool) {
        self.ends(whole);
        if !whole && self.is_untold {
            self.keep(parting::Abandoned::new(&self.load.endpoint, Instant::now()));
        }
    }

    /// What was reset may be worked on still, and have its place at a peer of the mesh for as long.
    fn keep(&self, stream: parting::Abandoned) {
        if let Some(abandoned) = &self.load.abandoned {
            abandoned.keep(match self.is_untold {
                true => stream.untold(),
                false => stream,
            });
        }
    }

    /// The stream is a tunnel: nobody works on what is asked for by it.
    pub(crate) fn tunnel(mut self) -> Self {
        self.is_untold = false;
        self
    }

    fn new(load: &Rc<Load>, app: Speaks) -> Self {
        load.streams.set(load.streams.get() + 1);
        Self {
            load: Rc::clone(load),
            is_untold: app == Speaks::Http1,
        }
    }
}

/// A request from its head to that of its answer. Dropped before that, the endpoint may be working on it still.
#[derive(Debug)]
pub(crate) struct Engaged {
    place: Option<Place>,
    asked: Instant,
    /// When the endpoint had all of it; nothing while it does not.
    whole: Option<Instant>,
}

impl Engaged {
    fn new(place: Place, asked: Instant, bodiless: bool) -> Self {
        Self {
            place: Some(place),
            asked,
            whole: bodiless.then_some(asked),
        }
    }

    /// The endpoint has begun its answer, which goes on in the place.
    fn answered(&mut self, headers: &HeaderMap) -> Option<Place> {
        let place = self.place.take()?;
        let load = &place.load;
        // What a sidecar answers itself says nothing of its app.
        let is_apps = load.abandoned.is_none() || !headers.contains_key(REASON);
        if is_apps {
            let took = self.whole.map(|whole| whole.elapsed());
            load.endpoint.slowest.answered(self.asked, took);
        }
        Some(place)
    }

    /// There is no answer.
    fn failed(&mut self, error: &h2::Error) -> Error {
        broken_off(error, Side::Endpoint, &mut self.place)
    }

    /// Nobody waits for the answer any more.
    fn give_up(&mut self) {
        if let Some(place) = self.place.take() {
            place.ends(false);
            let stream = parting::Abandoned::new(&place.load.endpoint, self.asked);
            place.keep(stream.clone());
            parting::note_stream(stream);
        }
    }
}

impl Drop for Engaged {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// A tunnel of bytes that was asked for, until the answer to that. No app works on what is asked for so.
#[derive(Debug)]
pub(crate) struct Dialled {
    place: Option<Place>,
}

impl Dialled {
    fn new(place: Place) -> Self {
        Self {
            place: Some(place.tunnel()),
        }
    }

    /// The tunnel is open, in the place, or refused.
    pub(crate) fn connected(mut self) -> Option<Place> {
        self.place.take()
    }

    /// There is no answer.
    pub(crate) fn failed(&mut self, error: &h2::Error) -> Error {
        broken_off(error, Side::Endpoint, &mut self.place)
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            place.ends(false);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let load = &self.load;
        load.streams.set(load.streams.get() - 1);
        if let Some(peer) = load.peer.upgrade() {
            if load.streams.get() == 0
                && load.wanted() > 0
                && let Ok(mut open) = peer.open.try_borrow_mut()
            {
                // Somebody needs the place more than we do.
                open.retain(|open| !Rc::ptr_eq(&open.load, load));
            }
            peer.wake_waiting();
        }
    }
}

impl Peers {
    /// Room for one more stream to this endpoint: on a connection that is open, or else on one that is opened for it, or
    /// when another stream ends soon enough.
    pub(crate) async fn room(
        &self,
        core: &Rc<Core>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        now: Instant,
        patience: &mut Patience,
    ) -> Result<Room, Error> {
        match self.room_at_once(cluster, endpoint, now).await {
            Some(room) => Ok(room),
            // Boxed: rare, and each exchange would carry the room for it.
            None => Box::pin(self.wait_for_room(core, cluster, endpoint, patience)).await,
        }
    }

    async fn room_at_once(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        now: Instant,
    ) -> Option<Room> {
        let peer = self.peers.borrow().get(&endpoint.id).map(Rc::clone)?;
        poll_fn(|cx| Poll::Ready(peer.room(cluster.spec.app, now, cx))).await
    }

    async fn wait_for_room(
        &self,
        core: &Rc<Core>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        patience: &mut Patience,
    ) -> Result<Room, Error> {
        let peer = Rc::clone(self.peers.borrow_mut().entry(endpoint.id).or_default());
        let _hope = Hope::new(&peer);
        let mut joined = None;
        let mut timer = Timer::new();
        poll_fn(|cx| {
            let now = Instant::now();
            if let Some(room) = peer.room(cluster.spec.app, now, cx) {
                return Poll::Ready(Ok(room));
            }
            let connections = peer.open.borrow().len();
            if let Some(attempt) = joined
                && peer.ended.get() >= attempt
            {
                // If it succeeded, others have taken all its streams, or it is gone already.
                joined = None;
                // As long as there is another connection, there is a stream to wait for.
                if connections == 0 {
                    let failed = peer.failed.borrow().clone();
                    let error = failed.map_or_else(|| gone(endpoint), |(error, _)| error);
                    return Poll::Ready(Err(error));
                }
            }
            if peer.takes_another() && !peer.rests(now, connections) {
                if peer.begun.get() == peer.ended.get() {
                    peer.begun.set(peer.begun.get() + 1);
                    tokio::task::spawn_local(open(
                        Rc::clone(core),
                        Arc::clone(cluster),
                        Arc::clone(endpoint),
                        Rc::clone(&peer),
                    ));
                }
                joined.get_or_insert(peer.begun.get());
            }
            // A connection has a time limit of its own; a stream may run for hours.
            let wait = cluster.spec.limits.wait;
            let until = joined.is_none().then(|| patience.until(wait, now));
            let again = now + LOOK_AGAIN;
            timer.set(until.map_or(again, |until| until.min(again)).into());
            if timer.poll_expired(cx).is_ready() && until.is_some() {
                return Poll::Ready(Err(Error::not_processed(
                    Reason::Overloaded,
                    format!(
                        "{} takes no more streams on {connections} connections, and none ended within {wait:?}",
                        endpoint.address
                    ),
                )
                .retry_after(COME_BACK)));
            }
            peer.waits(cx);
            Poll::Pending
        })
        .await
    }

    /// Closes idle connections whose places somebody waits for, as many as are waited for.
    pub(crate) fn relieve(&self) {
        let mut closed = 0;
        for peer in self.peers.borrow().values() {
            peer.relieve(&mut closed);
        }
    }

    /// Whether a connection to this endpoint can still take exchanges.
    pub(crate) fn is_open(&self, endpoint: u64, cx: &mut Context<'_>) -> bool {
        let peers = self.peers.borrow();
        peers.get(&endpoint).is_some_and(|peer| peer.is_open(cx))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.peers.borrow().is_empty()
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        self.peers.borrow_mut().retain(|_, peer| {
            let mut open = peer.open.borrow_mut();
            for open in open.iter() {
                open.load.forget(now);
            }
            // What streams keep open counts among the connections that there may be.
            open.retain(|open| open.load.streams.get() > 0 || now.duration_since(open.used) < IDLE);
            !open.is_empty() || peer.begun.get() != peer.ended.get()
        });
    }
}

impl Peer {
    /// A place on an open connection, if one has any.
    fn room(&self, app: Speaks, now: Instant, cx: &mut Context<'_>) -> Option<Room> {
        let mut open = self.open.borrow_mut();
        open.retain(|open| open.lasts(cx));
        let found = open.iter_mut().find(|open| !open.is_full(now))?;
        found.used = now;
        found.taken = true;
        Some(Room {
            sender: Rc::clone(&found.sender),
            place: Place::new(&found.load, app),
            now,
        })
    }

    /// Whether there may be one more connection.
    fn takes_another(&self) -> bool {
        let open = self.open.borrow();
        let of_use = open.iter().filter(|open| !open.is_wasted()).count();
        of_use < MOST_CONNECTIONS && open.len() < MOST_IN_ALL
    }

    /// Whether it is too early to try again for one more connection, when that failed and there are others.
    fn rests(&self, now: Instant, connections: usize) -> bool {
        let failed = self.failed.borrow();
        let recent = |(_, at): &(Error, Instant)| now.duration_since(*at) < REST;
        connections > 0 && failed.as_ref().is_some_and(recent)
    }

    /// Closes idle connections whose places somebody waits for, as many as are waited for beyond `closed`.
    ///
    /// Not one that was opened for an exchange which has not got to it yet: that one would open another, and so on both
    /// sides, with each closing what the other has just opened. When it has gone without a look, nothing is held for it.
    fn relieve(&self, closed: &mut usize) {
        let is_hoped_for = self.hopeful.get() > 0;
        // Whoever is at them looks for room, and takes it.
        let Ok(mut open) = self.open.try_borrow_mut() else {
            return;
        };
        open.retain(|open| {
            let is_idle = open.load.streams.get() == 0 && (open.taken || !is_hoped_for);
            let goes = is_idle && open.load.wanted() > *closed;
            *closed += usize::from(goes);
            !goes
        });
    }

    fn is_open(&self, cx: &mut Context<'_>) -> bool {
        let mut open = self.open.borrow_mut();
        open.retain(|open| open.lasts(cx));
        !open.is_empty()
    }

    /// Has this task woken when something changes.
    fn waits(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }

    fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// An exchange that waits for room, for as long as it does.
struct Hope<'a>(&'a Peer);

impl<'a> Hope<'a> {
    fn new(peer: &'a Peer) -> Self {
        peer.hopeful.set(peer.hopeful.get() + 1);
        Self(peer)
    }
}

impl Drop for Hope<'_> {
    fn drop(&mut self) {
        self.0.hopeful.set(self.0.hopeful.get() - 1);
        // It may have given up what was opened for it.
        self.0.relieve(&mut 0);
    }
}

/// Why a connection that was opened takes nothing. Said, and not tried again here: a peer may do this every time.
fn gone(endpoint: &Endpoint) -> Error {
    let address = endpoint.address;
    let detail = format!("{address} ended the connection before anything was sent on it");
    Error::departed(Reason::UpstreamReset, detail)
}

/// Connects and then drives the connection to its end.
async fn open(core: Rc<Core>, cluster: Arc<Cluster>, endpoint: Arc<Endpoint>, peer: Rc<Peer>) {
    let connected = handshake(&core, &cluster, &endpoint).await;
    let identity = core.identity().cloned();
    // Nothing that lives as long as a connection may keep the core.
    let core = Rc::downgrade(&core);
    peer.ended.set(peer.begun.get());
    let driven = match connected {
        Ok(((sender, connection, flusher), pressure, demand)) => {
            *peer.failed.borrow_mut() = None;
            let load = Rc::new(Load {
                streams: Cell::new(0),
                pressure,
                heard: Cell::new(false),
                peer: Rc::downgrade(&peer),
                endpoint: Arc::clone(&endpoint),
                abandoned: cluster.is_mesh().then(Abandoned::new),
                demand,
            });
            peer.open.borrow_mut().push(Open {
                sender: Rc::new(RefCell::new(sender)),
                load: Rc::clone(&load),
                used: Instant::now(),
                taken: false,
            });
            // Whoever it was opened for may have gone meanwhile.
            peer.relieve(&mut 0);
            Some((connection, flusher, load))
        }
        Err(error) => {
            *peer.failed.borrow_mut() = Some((error, Instant::now()));
            None
        }
    };
    peer.wake_waiting();
    drop(peer);
    let Some((connection, flusher, load)) = driven else {
        return;
    };
    let (spec, address) = (&cluster.spec, endpoint.address);
    let tell = |error: &h2::Error| connect::refused(identity.as_deref(), spec, address, error);
    let in_order = drive(connection, &flusher, &load, address, tell).await;
    load.hear();
    let was_used = load.peer.upgrade().is_some_and(|peer| {
        let open = peer.open.borrow();
        // What is not among them any more was closed by us.
        let ours = open.iter().find(|open| Rc::ptr_eq(&open.load, &load));
        ours.is_some_and(|open| open.used.elapsed() < IN_USE)
    });
    if in_order
        && was_used
        && cluster.is_mesh()
        && let Some(core) = core.upgrade()
    {
        departure::noticed(&core, &cluster, &endpoint);
    }
}

type Connection = h2::client::Connection<Coalesce, Bytes>;
/// To send by, to drive and to flush.
type Driven = (SendRequest<Bytes>, Connection, Flusher);

async fn handshake(
    core: &Core,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<(Driven, Rc<Pressure>, Option<Demand>), Error> {
    let io = connect::open_shared(core, cluster, endpoint).await?;
    let demand = io.held().map(Held::demand);
    let pressure = Rc::new(Pressure::new(BOUNDS));
    let (io, flusher) = Coalesce::new(io, false, Rc::clone(&pressure));
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(BOUNDS.stream_window)
        .initial_connection_window_size(BOUNDS.connection_window)
        .max_send_buffer_size(BOUNDS.send_buffer)
        .max_header_list_size(HEAD_BYTES)
        .initial_max_send_streams(match cluster.is_mesh() {
            true => BOUNDS.streams as usize,
            false => STREAMS_UNTOLD,
        })
        .enable_push(false);
    let mut handshake = pin!(builder.handshake(io));
    let (sender, connection) = poll_fn(|cx| {
        let done = handshake.as_mut().poll(cx);
        match flusher.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.to_string())),
            _ => done.map_err(|error| error.to_string()),
        }
    })
    .await
    .map_err(|error| {
        Error::not_processed(
            Reason::ConnectFailed,
            format!("HTTP/2 with {}: {error}", endpoint.address),
        )
    })?;
    Ok(((sender, connection, flusher), pressure, demand))
}

/// Returns whether the connection ended without an error.
async fn drive(
    mut connection: Connection,
    flusher: &Flusher,
    load: &Load,
    address: std::net::SocketAddr,
    tell: impl Fn(&h2::Error),
) -> bool {
    let (mut watch, mut stall) = (Watch::new(connection.ping_pong()), Stall::default());
    poll_fn(|cx| {
        let ended = Pin::new(&mut connection).poll(cx);
        // At once: where the connection is gone, what is left cannot be sent either.
        let ended = ended.map(|ended| ended.inspect_err(&tell).is_ok());
        if !load.heard.get() && flusher.has_received() {
            load.hear();
        }
        if load.pressure.turn(&mut connection) {
            // To be said to the peer.
            cx.waker().wake_by_ref();
        }
        let is_stalled = stall.poll_stalled(cx, flusher.open_head(), HEAD).is_ready();
        if is_stalled {
            flusher.end(Trouble::Stalled);
        }
        if let Poll::Ready(Err(_)) = flusher.poll_flush(cx) {
            return Poll::Ready(false);
        }
        if let Some(trouble) = flusher.trouble() {
            tracing::warn!(endpoint = %address, problem = trouble.words(), "an endpoint's connection was ended");
        }
        if is_stalled {
            return Poll::Ready(false);
        }
        if ended.is_pending() && watch.poll_dead(cx, load.streams.get() > 0, flusher.frames()).is_ready() {
            tracing::warn!(endpoint = %address, exchanges = load.streams.get(), "an endpoint does not answer pings; its connection is given up");
            return Poll::Ready(false);
        }
        ended
    })
    .await
}

/// The head of an endpoint's answer, and what is left to send of the request.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Received,
    pub(crate) request: Option<Box<Relay>>,
}

/// A request on its way over a stream, whose answer has not come yet. Dropping it resets the stream.
#[derive(Debug)]
pub(crate) struct Asked {
    response: ResponseFuture,
    engaged: Engaged,
    pressure: Rc<Pressure>,
    request: Option<Box<Relay>>,
    interims: Interims,
}

/// Sends a request, the beginning of it at least.
pub(crate) fn ask(
    room: Room,
    head: &Head,
    body: Body,
    tls: bool,
    told: &Told<'_>,
) -> Result<Asked, Error> {
    let request = request(head, body.length(), tls, told)?;
    let bodiless = body.is_end();
    let Room { sender, place, now } = room;
    let sent = send(&sender, request, bodiless);
    let (response, stream) = sent.map_err(|error| failure(&error, Side::Endpoint))?;
    Ok(Asked {
        response,
        pressure: place.pressure(),
        engaged: Engaged::new(place, now, bodiless),
        request: (!bodiless).then(|| Box::new(Relay::new(body, Sink::Http2 { stream }))),
        interims: Interims::default(),
    })
}

/// A sender that has sent what may be the last stream which the peer takes waits for that to be begun, holds it until then,
/// and takes the place of whoever else waits for it. There is room as we count it, and a new sender waits for nothing.
fn send(
    sender: &Sender,
    request: Request<()>,
    bodiless: bool,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    let mut sender = sender.borrow_mut();
    let sent = sender.send_request(request, bodiless);
    // Nobody waits for a stream that is this new.
    let nobody = &mut Context::from_waker(Waker::noop());
    if sender.poll_ready(nobody).is_pending() {
        let new = sender.clone();
        *sender = new;
    }
    sent
}

impl Asked {
    /// The head of the answer; sends on what is left of the request meanwhile.
    pub(crate) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        interim: &Interim<'_>,
    ) -> Poll<Result<Answered, Error>> {
        let side = Side::Endpoint;
        if let Some(relay) = &mut self.request {
            match relay.poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    self.request = None;
                    self.engaged.whole = Some(Instant::now());
                }
                Poll::Ready(Err(Failed::Source(error))) => {
                    let ((), left) = parting::collect(|| self.engaged.give_up());
                    interim.keep(left);
                    return Poll::Ready(Err(error));
                }
                // The endpoint takes no more; it may have answered all the same.
                Poll::Ready(Err(Failed::Sink(_))) => self.request = None,
            }
        }
        while let Poll::Ready(Some(answer)) = self.response.poll_informational(cx) {
            let mut answer = answer.map_err(|error| self.engaged.failed(&error))?;
            check_fields(answer.headers())?;
            trim(answer.headers_mut());
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                // RFC 9113 §8.6: there is no such thing in HTTP/2, and an HTTP/1.1 client would believe it.
                return Poll::Ready(Err(broken("101")));
            }
            self.interims.count()?;
            interim.send(cx, answer.status(), answer.headers());
        }
        let answer = ready!(Pin::new(&mut self.response).poll(cx));
        let answer = answer.map_err(|error| self.engaged.failed(&error))?;
        let (mut parts, stream) = answer.into_parts();
        // What is refused here is reset, as if there had been no answer.
        check_fields(&parts.headers)?;
        if parts.status.as_u16() > LAST_STATUS {
            return Poll::Ready(Err(broken(&format!("status {}", parts.status.as_u16()))));
        }
        trim(&mut parts.headers);
        let length = content_length(&parts.headers)?;
        let place = self.engaged.answered(&parts.headers);
        let pressure = Rc::clone(&self.pressure);
        Poll::Ready(Ok(Answered {
            status: parts.status,
            headers: parts.headers,
            body: Received::new(stream, side, length, pressure).at(place),
            request: self.request.take(),
        }))
    }
}

/// The one length that an answer has, if it has one. Where there is no body to hold against it (HEAD, 304), h2 lets
/// anything pass, and the client of another version of HTTP would get it.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return match headers.contains_key(CONTENT_LENGTH) {
            true => Err(broken("more than one content-length")),
            false => Ok(None),
        };
    };
    match parse::length(value.as_bytes()) {
        Ok(length) => Ok(Some(length)),
        Err(malformed) => Err(broken(malformed.rule)),
    }
}

/// As many fields as HTTP/1.1 may have: whoever is behind us need not be able to take more.
fn check_fields(headers: &HeaderMap) -> Result<(), Error> {
    let most = parse::Limits::default().fields;
    if headers.len() > most {
        return Err(broken(&format!("more than {most} fields")));
    }
    Ok(())
}

/// What an endpoint may not say in an answer.
pub(super) fn broken(rule: &str) -> Error {
    Error::maybe_processed(
        Reason::UpstreamMalformed,
        format!("the endpoint's answer breaks HTTP/2: {rule}"),
    )
}

/// The answer to extended CONNECT, and the stream that may be a tunnel now.
pub(crate) struct Connected {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) send: SendStream<Bytes>,
    pub(crate) receive: RecvStream,
    pub(crate) pressure: Rc<Pressure>,
    pub(crate) place: Option<Place>,
}

/// Asks for a WebSocket by a head that would ask for it in HTTP/1.1. Dropping the future resets the stream.
pub(crate) async fn extended_connect(
    room: Room,
    head: &Head,
    tls: bool,
    told: &Told<'_>,
) -> Result<Connected, Error> {
    let side = Side::Endpoint;
    let mut request = request(head, Length::None, tls, told)?;
    *request.method_mut() = Method::CONNECT;
    request
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    let Room { sender, place, now } = room;
    let sent = send(&sender, request, false);
    drop(sender);
    let (response, send) = sent.map_err(|error| failure(&error, side))?;
    let pressure = place.pressure();
    let mut engaged = Engaged::new(place, now, true);
    let answer = response.await.map_err(|error| engaged.failed(&error))?;
    let (mut parts, receive) = answer.into_parts();
    trim(&mut parts.headers);
    let place = engaged.answered(&parts.headers);
    Ok(Connected {
        status: parts.status,
        headers: parts.headers,
        send,
        receive,
        pressure,
        place,
    })
}

fn request(head: &Head, length: Length, tls: bool, told: &Told<'_>) -> Result<Request<()>, Error> {
    let mut parts = Parts::default();
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(head.authority.clone());
    parts.path_and_query = Some(head.path.clone());
    let uri = Uri::from_parts(parts).map_err(|error| {
        Error::new(
            Reason::MalformedRequest,
            format!("the target cannot be said in HTTP/2: {error}"),
        )
    })?;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    // A copy, because the same head may have to be sent again.
    *request.headers_mut() = head.headers.clone();
    told.write(request.headers_mut());
    if let Length::Exact(length) = length {
        request
            .headers_mut()
            .insert(CONTENT_LENGTH, length_value(length));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::duplex;
    use tokio::task::JoinSet;

    use super::*;
    use crate::gate::Gate;

    const STREAMS: usize = 3;

    /// Connections to members of the mesh that take so many streams.
    async fn connect(peer: &Rc<Peer>, count: usize, limit: Option<&Arc<Gate>>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (ours, theirs) = duplex(1 << 16);
            let mut server = h2::server::Builder::new();
            server.max_concurrent_streams(STREAMS as u32);
            let server = server.handshake::<_, Bytes>(theirs);
            let (client, server) = tokio::join!(h2::client::handshake(ours), server);
            let ((sender, connection), mut server) = (client.unwrap(), server.unwrap());
            tasks.spawn(async move {
                let _: Result<(), h2::Error> = connection.await;
            });
            tasks.spawn(async move { while server.accept().await.is_some() {} });
            let limited = |gate: &Arc<Gate>| Demand::of([Some(Arc::clone(gate)), None]);
            let sender = Rc::new(RefCell::new(sender));
            // Until it knows how many it may have.
            while sender.borrow().current_max_send_streams() != STREAMS {
                tokio::task::yield_now().await;
            }
            peer.open.borrow_mut().push(Open {
                sender,
                load: Rc::new(Load {
                    streams: Cell::new(0),
                    pressure: Rc::new(Pressure::new(BOUNDS)),
                    heard: Cell::new(true),
                    peer: Rc::downgrade(peer),
                    endpoint: Endpoint::new("10.0.0.1:80".parse().unwrap()),
                    abandoned: Some(Abandoned::new()),
                    demand: limit.map(limited),
                }),
                used: Instant::now(),
                taken: false,
            });
        }
        tasks
    }

    /// Room for a call to an app that speaks so.
    fn room(peer: &Peer, app: Speaks, now: Instant) -> Option<Room> {
        peer.room(app, now, &mut Context::from_waker(Waker::noop()))
    }

    /// Abandons as many calls as there is room for; how many.
    fn abandon_all(peer: &Peer, app: Speaks, now: Instant) -> usize {
        let abandon = || {
            let room = room(peer, app, now)?;
            drop(Engaged::new(room.place, now, true));
            Some(())
        };
        std::iter::from_fn(abandon).count()
    }

    fn after(moment: Instant, millis: u64) -> Instant {
        moment + Duration::from_millis(millis)
    }

    #[tokio::test]
    async fn what_was_abandoned_has_its_place_until_it_is_over() {
        for (app, over) in [(Speaks::Http1, 10_100), (Speaks::Http2, 300)] {
            let (peer, now) = (Rc::new(Peer::default()), Instant::now());
            let _tasks = connect(&peer, 1, None).await;
            assert_eq!(abandon_all(&peer, app, now), STREAMS);
            // It answers what it was asked later, and at once.
            let endpoint = Arc::clone(&peer.open.borrow()[0].load.endpoint);
            let took = Some(Duration::from_millis(1));
            endpoint.slowest.answered(after(Instant::now(), 50), took);
            assert!(room(&peer, app, after(now, over / 4)).is_none());
            assert!(room(&peer, app, after(now, over)).is_some());
        }
    }

    #[tokio::test]
    async fn connections_full_of_what_was_abandoned_are_not_counted_up_to_a_bound() {
        let (peer, now) = (Rc::new(Peer::default()), Instant::now());
        let mut tasks = vec![connect(&peer, MOST_CONNECTIONS - 1, None).await];
        assert!(peer.takes_another());
        tasks.push(connect(&peer, 1, None).await);
        assert!(!peer.takes_another());
        // Places that are in use are no reason.
        let rooms: Vec<_> = std::iter::from_fn(|| room(&peer, Speaks::Http1, now)).collect();
        assert_eq!(rooms.len(), MOST_CONNECTIONS * STREAMS);
        assert!(!peer.takes_another());
        drop(rooms);
        for open in MOST_CONNECTIONS..MOST_IN_ALL {
            assert!(abandon_all(&peer, Speaks::Http1, now) > 0);
            assert!(peer.takes_another(), "{open}");
            tasks.push(connect(&peer, 1, None).await);
        }
        assert_eq!(abandon_all(&peer, Speaks::Http1, now), STREAMS);
        assert!(!peer.takes_another(), "no more than {MOST_IN_ALL}");
    }

    #[tokio::test]
    async fn a_connection_counts_as_long_as_streams_keep_it() {
        let (peers, now) = (Peers::default(), Instant::now());
        let peer = Rc::new(Peer::default());
        peers.peers.borrow_mut().insert(1, Rc::clone(&peer));
        let _tasks = connect(&peer, 2, None).await;
        let tunnel = room(&peer, Speaks::Http2, now).unwrap();
        peers.sweep(now + IDLE * 60);
        assert_eq!(peer.open.borrow().len(), 1);
        drop(tunnel);
        peers.sweep(now + IDLE * 60);
        assert!(peers.is_empty());
    }

    /// How many calls can be abandoned one after another, when each is over at once.
    fn abandoned_in_turn(peer: &Peer) -> usize {
        let start = Instant::now();
        let most = BOUNDS.streams as usize + 500;
        (0..most)
            .take_while(|number| {
                let now = start + Duration::from_secs(20) * u32::try_from(*number).unwrap();
                let room = room(peer, Speaks::Http1, now);
                room.map(|room| drop(Engaged::new(room.place, now, true)))
                    .is_some()
            })
            .count()
    }

    #[tokio::test]
    async fn a_connection_whose_resets_are_spent_is_left_where_there_can_be_another() {
        let spent = (BOUNDS.streams as usize)..(BOUNDS.streams as usize + 100);
        let peer = Rc::new(Peer::default());
        let _tasks = connect(&peer, 1, None).await;
        assert!(spent.contains(&abandoned_in_turn(&peer)));
        for (limit, stays) in [(1, true), (2, false)] {
            let (peer, gate) = (Rc::new(Peer::default()), Gate::new(limit, 10));
            let _held = gate.enter().unwrap();
            let _tasks = connect(&peer, 1, Some(&gate)).await;
            let count = abandoned_in_turn(&peer);
            assert_eq!(!spent.contains(&count), stays, "{limit}: {count}");
        }
    }

    #[tokio::test]
    async fn what_the_peer_ends_itself_and_tunnels_have_no_place_afterwards() {
        let (peer, now) = (Rc::new(Peer::default()), Instant::now());
        let _tasks = connect(&peer, 1, None).await;
        let kept = || peer.open.borrow()[0].load.taken();
        let tunnel = room(&peer, Speaks::Http1, now).unwrap().into_parts().2;
        assert_eq!(kept(), 1);
        drop(tunnel);
        assert_eq!(kept(), 0);
        // An answer that is broken off: of an app of HTTP/1.1 its sidecar waits for the end.
        for (app, is_tunnel, wanted) in [
            (Speaks::Http2, false, 0),
            (Speaks::Http1, true, 0),
            (Speaks::Http1, false, 1),
        ] {
            let mut engaged = Engaged::new(room(&peer, app, now).unwrap().place, now, true);
            let place = engaged.answered(&HeaderMap::new()).unwrap();
            let place = match is_tunnel {
                true => place.tunnel(),
                false => place,
            };
            place.answer_ends(false);
            drop(place);
            assert_eq!(kept(), wanted, "{app:?}");
        }
    }
}
