//! The data path's threads: one per core, each with a runtime, listeners, connection pools and counters of its own.
//!
//! Nothing on the path of an exchange is `Send` or locked. What cores share is the plan, which is swapped whole, and the
//! endpoints' load and health, which are atomics. Everything slow or rare lives on the process's other runtime and talks
//! to the cores through [`Cores`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use foldhash::fast::RandomState;
use slab::Slab;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::accept;
use crate::cluster::dials::Dials;
use crate::cluster::{Pool, Wired};
use crate::error::Error;
use crate::foreign::Sighting;
use crate::http::{Caller, Settled};
use crate::http1::encode;
use crate::http2::client::Peers;
use crate::identity::{Identity, Ours, SpiffeId};
use crate::observe::{
    AccessLog, AnswerCells, Direction, EdgeCells, EdgeKey, Lines, Registry, RouteCells, RouteKey,
};
use crate::plan::current::Current;
use crate::plan::{Plan, Purpose, Rule, Site};

/// Commands to a core that are under way at most; a core takes them at once.
const COMMANDS: usize = 16;
/// Callers whose counters a core keeps at hand.
const CALLERS: usize = 1024;
/// How often they are let go of, so that those who call no more are not counted for ever.
const CALLERS_ANEW: Duration = Duration::from_secs(60);
/// How long a connection that is idle when the drain begins waits for a request that may be on its way.
pub(crate) const LEAVE: Duration = Duration::from_millis(100);
/// How often a core looks after its pools.
const UPKEEP: Duration = Duration::from_secs(1);

/// What the cores share with the rest of the process.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The plan that new exchanges run under.
    pub plan: Arc<ArcSwap<Plan>>,
    /// Our identity, where there is a mesh and as soon as there is one.
    pub identity: Ours,
    /// Where the cores count.
    pub registry: Arc<Registry>,
    /// Connections open in all cores.
    pub open: Arc<Open>,
    /// Where exchanges are told one by one.
    pub access_log: Arc<AccessLog>,
    /// How many of them there may be.
    pub max_connections: usize,
    /// Connections that the process makes itself.
    pub dials: Arc<Dials>,
    /// Failures that went to our app and are not to be tried again in front of us.
    pub settled: Arc<Settled>,
    /// Changes when an exchange waits for a connection because there are as many as there may be.
    pub pressure: Arc<watch::Sender<u64>>,
}

/// How many downstream connections are open.
#[derive(Debug, Default)]
pub struct Open {
    count: AtomicUsize,
    /// Those that drain first.
    first: AtomicUsize,
    /// Told whenever there may be none left, of all or of those that drain first.
    none_left: Notify,
}

impl Open {
    /// In all cores.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Those that drain first.
    fn first(&self) -> usize {
        self.first.load(Ordering::Relaxed)
    }

    /// Waits until the part that `drains` has no connection any more.
    async fn none_left(&self, drains: Draining) {
        loop {
            let notified = self.none_left.notified();
            let left = match drains {
                Draining::First => self.first(),
                _ => self.count(),
            };
            if left == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// How far a core is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Draining {
    /// It works.
    Not,
    /// What comes in ends; the app's way out stays.
    First,
    /// Everything ends.
    All,
}

impl Draining {
    /// Whether it is time for a listener, and for its connections.
    fn takes(self, outlasts: bool) -> bool {
        match self {
            Self::Not => false,
            Self::First => !outlasts,
            Self::All => true,
        }
    }
}

/// Which listeners are to close.
#[derive(Debug, Clone)]
enum Closing {
    /// That of this site.
    Site(Arc<str>),
    /// Those that drain now.
    Part(Draining),
}

enum Command {
    Listen {
        site: Arc<str>,
        listener: TcpListener,
        /// Dropped when it listens there, and nowhere else for this site.
        taken: oneshot::Sender<()>,
    },
    /// Stop listening.
    Close {
        what: Closing,
        /// Dropped when the socket is closed.
        closed: oneshot::Sender<()>,
    },
    Leave,
    Drain(Draining),
}

/// The running cores.
#[derive(Debug)]
pub struct Cores {
    commands: Vec<mpsc::Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
    open: Arc<Open>,
}

impl Cores {
    /// Starts this many threads. They listen nowhere yet.
    pub fn start(workers: usize, shared: &Shared) -> io::Result<Self> {
        let mut cores = Self {
            commands: Vec::new(),
            threads: Vec::new(),
            open: Arc::clone(&shared.open),
        };
        for index in 0..workers.max(1) {
            let (sender, receiver) = mpsc::channel(COMMANDS);
            let shared = shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("core-{index}"))
                .spawn(move || {
                    if let Err(error) = run(&shared, receiver) {
                        tracing::error!(%error, core = index, "a core could not start");
                    }
                })?;
            cores.commands.push(sender);
            cores.threads.push(thread);
        }
        Ok(cores)
    }

    /// Listens for a site of the plan on every core. Fails when the address is taken, also by another process of ours; then
    /// it goes on listening where it did, and else that is over when this returns.
    pub async fn listen(&self, site: &Site) -> io::Result<()> {
        let mut taking = Vec::new();
        for (sender, listener) in self.commands.iter().zip(accept::bind(
            site.address,
            site.capture.is_some(),
            self.commands.len(),
        )?) {
            let (taken, is_taken) = oneshot::channel();
            let command = Command::Listen {
                site: Arc::clone(&site.name),
                listener,
                taken,
            };
            sender
                .send(command)
                .await
                .map_err(|_| io::Error::other("a core has ended"))?;
            taking.push(is_taken);
        }
        for is_taken in taking {
            // An error says that the core is done with it.
            let _: Result<(), _> = is_taken.await;
        }
        Ok(())
    }

    /// Stops listening for a site; its connections go on. The address is free when this returns.
    pub async fn close(&self, site: &Arc<str>) {
        self.stop_listening(Closing::Site(Arc::clone(site))).await;
    }

    async fn stop_listening(&self, what: Closing) {
        let mut closing = Vec::new();
        for sender in &self.commands {
            let (closed, is_closed) = oneshot::channel();
            let command = Command::Close {
                what: what.clone(),
                closed,
            };
            let _: Result<_, _> = sender.send(command).await;
            closing.push(is_closed);
        }
        for is_closed in closing {
            // An error says that the core has let go of it, or is gone, and its sockets with it.
            let _: Result<(), _> = is_closed.await;
        }
    }

    /// Has every answer to a peer of the mesh say that we are about to stop.
    pub async fn leave(&self) {
        for sender in &self.commands {
            let _: Result<_, _> = sender.send(Command::Leave).await;
        }
    }

    /// Stops listening but where the app goes out, tells every connection that came in by the others to end after its
    /// exchange, and waits for that or for the deadline. Returns how many of them were still open then.
    pub async fn drain_first(&self, deadline: impl Future<Output = ()>) -> usize {
        self.begin(Draining::First).await;
        tokio::select! {
            () = self.open.none_left(Draining::First) => 0,
            () = deadline => self.open.first(),
        }
    }

    /// Stops listening, tells every connection to end after its exchange, and waits for that or for the deadline. Returns
    /// how many connections were still open then.
    pub async fn drain(self, deadline: impl Future<Output = ()>) -> usize {
        self.begin(Draining::All).await;
        tokio::select! {
            () = self.open.none_left(Draining::All) => 0,
            () = deadline => self.open.count(),
        }
    }

    async fn begin(&self, part: Draining) {
        // All cores have closed before any connection is told: who is told and finds somebody listening knows that it is
        // not us any more.
        self.stop_listening(Closing::Part(part)).await;
        for sender in &self.commands {
            let _: Result<_, _> = sender.send(Command::Drain(part)).await;
        }
    }
}

/// One core.
#[derive(Debug)]
pub struct Core {
    plan: RefCell<Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>>,
    ours: Ours,
    pub(crate) registry: Arc<Registry>,
    answers: Arc<AnswerCells>,
    pub(crate) lines: Option<Lines>,
    open: Arc<Open>,
    max_connections: usize,
    pub(crate) dials: Arc<Dials>,
    pub(crate) settled: Arc<Settled>,
    pub(crate) pressure: Arc<watch::Sender<u64>>,
    /// The same moment on both clocks, so that telling the time of day costs nothing.
    clocks: Cell<(Instant, SystemTime)>,
    leaving: Cell<bool>,
    draining: Cell<Draining>,
    /// What a `Date` says, at most a moment more than a second old.
    date: Cell<[u8; 29]>,
    seats: RefCell<Slab<Option<Waker>>>,
    pub(crate) pool: Pool,
    pub(crate) peers: Peers,
    wired: RefCell<HashMap<u64, Rc<Wired>, RandomState>>,
    /// By the caller's identity.
    inbound: RefCell<HashMap<Arc<str>, Arc<EdgeCells>, RandomState>>,
    /// When they were let go of last, and the plan that gave them their names.
    inbound_anew: Cell<(Instant, u64)>,
    routes: RefCell<HashMap<u64, Arc<RouteCells>, RandomState>>,
    /// Of the listeners that have connections here.
    currents: RefCell<Vec<Weak<Current>>>,
}

impl Core {
    pub(crate) fn new(shared: &Shared) -> Rc<Self> {
        Rc::new(Self {
            plan: RefCell::new(Cache::new(Arc::clone(&shared.plan))),
            ours: shared.identity.clone(),
            answers: shared.registry.answers(),
            lines: shared.access_log.lines(),
            registry: Arc::clone(&shared.registry),
            open: Arc::clone(&shared.open),
            max_connections: shared.max_connections,
            dials: Arc::clone(&shared.dials),
            settled: Arc::clone(&shared.settled),
            pressure: Arc::clone(&shared.pressure),
            clocks: Cell::new((Instant::now(), SystemTime::now())),
            leaving: Cell::new(false),
            draining: Cell::new(Draining::Not),
            date: Cell::new(encode::date(SystemTime::now())),
            seats: RefCell::default(),
            pool: Pool::default(),
            peers: Peers::default(),
            wired: RefCell::default(),
            inbound: RefCell::default(),
            inbound_anew: Cell::new((Instant::now(), 0)),
            routes: RefCell::default(),
            currents: RefCell::default(),
        })
    }

    /// The plan of this moment.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        Arc::clone(self.plan.borrow_mut().load())
    }

    /// The listener `site` of `plan`, and of those that come after it.
    pub(crate) fn follow(&self, plan: Arc<Plan>, site: Arc<Site>) -> Rc<Current> {
        let current = Rc::new(Current::new(plan, site));
        self.currents.borrow_mut().push(Rc::downgrade(&current));
        current
    }

    /// Who we are, as far as that is known.
    pub(crate) fn identity(&self) -> Option<&Arc<Identity>> {
        self.ours.get()
    }

    /// Whether peers are to be told that this process is about to stop.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    pub(crate) fn announce(&self) {
        self.leaving.set(true);
    }

    /// Notes somebody with whom something is wrong, where there is a mesh. Gives whether that is worth a line in the log.
    pub(crate) fn foreign(&self, sighting: &Sighting<'_>) -> bool {
        self.identity()
            .is_some_and(|identity| identity.foreigners().saw(sighting, SystemTime::now()))
    }

    /// What the time of day is at `at`.
    pub(crate) fn wall(&self, at: Instant) -> SystemTime {
        let (then, wall) = self.clocks.get();
        wall + at.saturating_duration_since(then)
    }

    /// Closes idle connections of ours whose places somebody waits for.
    pub(crate) fn relieve(&self) {
        self.pool.relieve();
        self.peers.relieve();
    }

    /// The time of day, as an answer's `date` field has it.
    pub(crate) fn date(&self) -> [u8; 29] {
        self.date.get()
    }

    /// Whether connections are to end after their exchange: those of a listener that `outlasts` the others, or those.
    pub(crate) fn is_draining(&self, outlasts: bool) -> bool {
        self.draining.get().takes(outlasts)
    }

    /// A place for one more connection of such a listener, if there is one.
    pub(crate) fn seat(self: &Rc<Self>, outlasts: bool) -> Option<Seat> {
        let open = &self.open;
        open.first
            .fetch_add(usize::from(!outlasts), Ordering::Relaxed);
        if open.count.fetch_add(1, Ordering::Relaxed) >= self.max_connections {
            self.leave(outlasts);
            return None;
        }
        Some(Seat {
            key: self.seats.borrow_mut().insert(None),
            core: Rc::clone(self),
            outlasts,
        })
    }

    fn leave(&self, outlasts: bool) {
        let open = &self.open;
        let last_of_first = !outlasts && open.first.fetch_sub(1, Ordering::Relaxed) == 1;
        let last = open.count.fetch_sub(1, Ordering::Relaxed) == 1;
        if last || last_of_first {
            open.none_left.notify_waiters();
        }
    }

    /// What this core keeps for a cluster.
    pub(crate) fn wired(&self, cluster: &Arc<crate::cluster::Cluster>, site: &Site) -> Rc<Wired> {
        // The edge's source is the site's service: the same for all sites of a process that speak for it.
        if let Some(wired) = self.wired.borrow().get(&cluster.id) {
            return Rc::clone(wired);
        }
        let cells = (!cluster.is_local).then(|| {
            self.registry.edge(EdgeKey {
                source: Arc::clone(&site.service),
                destination: Arc::clone(&cluster.name),
                direction: Direction::Outbound,
                mtls: cluster.is_mesh(),
            })
        });
        let wired = Rc::new(Wired::new(cells));
        self.wired
            .borrow_mut()
            .insert(cluster.id, Rc::clone(&wired));
        wired
    }

    /// The counters of a caller that comes in from the mesh, for what is traffic.
    pub(crate) fn inbound(
        &self,
        caller: &Caller,
        site: &Site,
        rule: &Rule,
    ) -> Option<Arc<EdgeCells>> {
        if rule.purpose != Purpose::Traffic {
            return None;
        }
        self.edge_from(caller, site)
    }

    fn edge_from(&self, caller: &Caller, site: &Site) -> Option<Arc<EdgeCells>> {
        if !site.tells_identity {
            return None;
        }
        let identity = caller.identity.as_deref();
        let text = identity.map_or("", SpiffeId::as_str);
        if let Some(cells) = self.inbound.borrow().get(text) {
            return Some(Arc::clone(cells));
        }
        let source = identity.map_or_else(|| "unknown".into(), |id| site.callers.name(id));
        let cells = self.registry.edge(EdgeKey {
            source,
            destination: Arc::clone(&site.service),
            direction: Direction::Inbound,
            mtls: caller.tls,
        });
        let mut inbound = self.inbound.borrow_mut();
        if inbound.len() >= CALLERS {
            // The registry keeps what was counted; whoever still calls is asked for again.
            inbound.clear();
        }
        inbound.insert(text.into(), Arc::clone(&cells));
        Some(cells)
    }

    /// The counters of a route, where routes are counted.
    pub(crate) fn route(&self, site: &Site, rule: &Rule) -> Option<Arc<RouteCells>> {
        if !site.is_edge {
            return None;
        }
        if let Some(cells) = self.routes.borrow().get(&rule.id) {
            return Some(Arc::clone(cells));
        }
        let cells = self.registry.route(RouteKey {
            listener: Arc::clone(&site.name),
            route: Arc::clone(&rule.name),
            service: Arc::clone(&rule.target.name),
        });
        self.routes.borrow_mut().insert(rule.id, Arc::clone(&cells));
        Some(cells)
    }

    /// Counts an answer of ours.
    pub(crate) fn account_refusal(
        &self,
        site: &Site,
        rule: Option<&Rule>,
        caller: &Caller,
        error: &Error,
        started: Instant,
    ) {
        self.answers.answered(error.reason);
        let status = Some(error.reason.status().as_u16());
        let cells = [
            rule.and_then(|rule| self.route(site, rule)),
            match rule {
                Some(rule) => self.inbound(caller, site, rule),
                None => self.edge_from(caller, site),
            },
        ];
        for cells in cells.into_iter().flatten() {
            cells.answered(error.reason);
            cells.record(status, started.elapsed());
        }
    }

    #[cfg(test)]
    pub(crate) fn drain(&self) {
        self.begin_draining(Draining::All);
    }

    #[cfg(test)]
    pub(crate) fn drain_first(&self) {
        self.begin_draining(Draining::First);
    }

    fn begin_draining(&self, part: Draining) {
        self.announce();
        self.draining.set(self.draining.get().max(part));
        // Whoever is not meant asks to be woken again when it goes on.
        let wakers: Vec<Waker> = self
            .seats
            .borrow_mut()
            .iter_mut()
            .filter_map(|(_, waker)| waker.take())
            .collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Closes what has been idle for too long, and forgets what no plan names any more.
    pub(crate) fn upkeep(&self) {
        if let Some(lines) = &self.lines {
            lines.flush();
        }
        let now = Instant::now();
        // Somebody may have set the clock.
        self.clocks.set((now, SystemTime::now()));
        self.date.set(encode::date(SystemTime::now()));
        self.pool.sweep();
        self.peers.sweep(now);
        let plan = self.plan();
        self.wired
            .borrow_mut()
            .retain(|id, _| plan.has_cluster(*id));
        self.routes.borrow_mut().retain(|id, _| plan.has_rule(*id));
        let (last, named_by) = self.inbound_anew.get();
        if now.saturating_duration_since(last) >= CALLERS_ANEW || named_by != plan.generation {
            // The registry keeps what was counted; whoever still calls is asked for again.
            self.inbound.borrow_mut().clear();
            self.inbound_anew.set((now, plan.generation));
        }
        self.currents.borrow_mut().retain(|current| {
            let current = current.upgrade();
            current.is_some_and(|current| {
                current.site(Arc::clone(&plan));
                true
            })
        });
    }
}

/// A connection's place: counted, and woken when the process drains.
#[derive(Debug)]
pub(crate) struct Seat {
    core: Rc<Core>,
    key: usize,
    outlasts: bool,
}

impl Seat {
    /// Has this task woken when the drain begins.
    pub(crate) fn wake_at_drain(&self, cx: &mut Context<'_>) {
        if let Some(slot) = self.core.seats.borrow_mut().get_mut(self.key)
            && !slot
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *slot = Some(cx.waker().clone());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.core.seats.borrow_mut().try_remove(self.key);
        self.core.leave(self.outlasts);
    }
}

fn run(shared: &Shared, mut commands: mpsc::Receiver<Command>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())?;
    runtime.block_on(async {
        let core = Core::new(shared);
        let mut listeners = HashMap::new();
        let mut upkeep = tokio::time::interval(UPKEEP);
        let mut pressure = shared.pressure.subscribe();
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                _ = upkeep.tick() => {
                    core.upkeep();
                    continue;
                }
                // Never an error: we hold a sender ourselves.
                _ = pressure.changed() => {
                    core.relieve();
                    continue;
                }
            };
            match command {
                Some(Command::Listen {
                    site,
                    listener,
                    taken,
                }) => {
                    match accept::listen(Rc::clone(&core), Arc::clone(&site), listener) {
                        Ok(task) => {
                            if let Some(old) = listeners.insert(site, task) {
                                old.close().await;
                            }
                        }
                        // The other listeners and all connections go on.
                        Err(error) => {
                            tracing::error!(listener = %site, %error, "a core cannot listen");
                        }
                    }
                    drop(taken);
                }
                Some(Command::Close { what, closed }) => {
                    let plan = core.plan();
                    let closes = |name: &Arc<str>| match &what {
                        Closing::Site(site) => site == name,
                        Closing::Part(part) => {
                            part.takes(plan.site(name).is_some_and(|site| site.outlasts))
                        }
                    };
                    let names: Vec<_> = listeners
                        .keys()
                        .filter(|&name| closes(name))
                        .cloned()
                        .collect();
                    let closing: Vec<_> = names
                        .iter()
                        .filter_map(|name| listeners.remove(name))
                        .collect();
                    futures_util::future::join_all(
                        closing.into_iter().map(accept::Listening::close),
                    )
                    .await;
                    drop(closed);
                }
                Some(Command::Leave) => core.announce(),
                Some(Command::Drain(part)) => core.begin_draining(part),
                // The process has finished draining, or gave up; what is still open is cut.
                None => return Ok(()),
            }
        }
    })
}
