//! Wires the authority and runs it: opens the state, listens, keeps certificates fresh, ends in order.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use weft_proto::ca::certificate_authority_server::CertificateAuthorityServer;
use weft_runtime::config::{Path as ConfigPath, Problems};

use crate::admit::token::Tokens;
use crate::authority::{Authority, Root, pem};
use crate::bundle::Publisher;
use crate::connection::{Bounds, Connection, Seat, Seats};
use crate::desk::Desk;
use crate::journal::Journal;
use crate::service::{Clock, Service};
use crate::store::{self, Directory, Lock};
use crate::tls::{Own, objection};
use crate::token::Token;
use crate::{Config, Error, Lifetimes, ServiceName, TrustDomain, telemetry};

/// How long a request may take, its message's arrival included.
const REQUEST: Duration = Duration::from_secs(10);

/// How often certificates and tokens are looked after at least. The clock may have been set in the meantime, or the
/// machine may have slept.
const UPKEEP: Duration = Duration::from_secs(60);

/// Handshakes that are done and wait for the gRPC server; more wait before their handshake.
const ACCEPTED: usize = 16;

/// The largest message. A request is a CSR of at most 16 KiB and a token.
const MESSAGE: usize = 64 * 1024;

/// Calls at the same time on one connection.
const STREAMS: u32 = 16;

/// What [`run`] needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose authority it is.
    pub trust_domain: String,
    /// The part `ca:`.
    pub config: Config,
    /// Where to listen; [`Rules::listen`](crate::Rules) is what the configuration says. Port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Serves until `shutdown` is done (or its sender gone), then lets requests in progress end, until `deadline` at most.
///
/// `on_ready` is called once, with the address, when clients can connect. Dropping the future stops listening at once;
/// connections end with the runtime.
pub async fn run(
    settings: Settings,
    on_ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
    deadline: impl Future<Output = ()>,
) -> Result<(), Error> {
    let clock: Clock = Arc::new(SystemTime::now);
    let ending = (shutdown, deadline);
    let on_ready = |address, _: &Arc<Publisher>| on_ready(address);
    run_with(settings, Bounds::default(), clock, on_ready, ending).await
}

/// [`run`] with bounds and a clock of the caller's, who is told who publishes the bundle, too.
pub(crate) async fn run_with(
    settings: Settings,
    bounds: Bounds,
    clock: Clock,
    on_ready: impl FnOnce(SocketAddr, &Arc<Publisher>),
    (shutdown, deadline): (impl Future<Output = ()>, impl Future<Output = ()>),
) -> Result<(), Error> {
    telemetry::describe();
    let (domain, state, lifetimes) = checked(&settings)?;
    let now = clock();
    let opened = move || open(&state, &domain, &lifetimes, now);
    let (desk, _lock) = tokio::task::spawn_blocking(opened).await??;
    let desk = Arc::new(desk);
    let own = Arc::new(Own::new(&desk, clock())?);
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| Error::Listen {
            address: settings.listen,
            source,
        })?;
    let address = listener.local_addr().map_err(|source| Error::Listen {
        address: settings.listen,
        source,
    })?;
    let acceptor = TlsAcceptor::from(own.server_config()?);

    let root = desk.authority.root().certificate().to_vec();
    let bundle = Arc::new(Publisher::new(&settings.trust_domain, vec![root]));
    let (close, closing) = watch::channel(false);
    let (accepted, incoming) = mpsc::channel(ACCEPTED);
    let service = Service::new(Arc::clone(&desk), Arc::clone(&bundle), Arc::clone(&clock));

    let serve = serve(service.clone(), incoming, closing);
    let seats = Seats::new(bounds);
    let accept = accept(listener, acceptor, Arc::clone(&seats), accepted);
    let upkeep = upkeep(Arc::clone(&desk), own, clock);
    tracing::info!(%address, trust_domain = settings.trust_domain, "the certificate authority is ready");
    on_ready(address, &bundle);

    let mut serve = std::pin::pin!(serve);
    tokio::select! {
        result = &mut serve => return result,
        never = upkeep => match never {},
        never = accept => match never {},
        () = shutdown => {}
    }
    tracing::info!("the certificate authority is closing");
    // First no new connections, then the end of the streams that would never end, then whatever is in progress.
    close.send_replace(true);
    bundle.close();
    tokio::select! {
        _ = serve => {}
        () = deadline => {
            service.close();
            let connections = seats.count();
            tracing::warn!(connections, "cut connections that did not end in time");
        }
    }
    Ok(())
}

/// The settings, checked once more: whoever calls may not have.
fn checked(settings: &Settings) -> Result<(TrustDomain, PathBuf, Lifetimes), Error> {
    let domain = TrustDomain::parse(&settings.trust_domain)?;
    let rules = rules(&settings.config)?;
    Ok((domain, rules.state, rules.lifetimes))
}

fn rules(config: &Config) -> Result<crate::Rules, Error> {
    let mut problems = Problems::new();
    config
        .build(&ConfigPath::root().key("ca"), &mut problems)
        .ok_or_else(|| {
            let list: Vec<_> = problems
                .iter()
                .map(|p| format!("{}: {}; {}", p.path, p.what, p.cure))
                .collect();
            Error::Config(list.join("; "))
        })
}

/// Opens or makes the state, for the one process that serves it.
fn open(
    state: &Path,
    domain: &TrustDomain,
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<(Desk, Lock), Error> {
    let directory = Directory::open(state)?;
    let lock = directory.try_lock(store::SERVE_LOCK)?;
    let _making = directory.lock(store::CREATE_LOCK)?;
    directory.sweep()?;
    let authority = Authority::open(&directory, domain, lifetimes, now)?;
    for inside in [store::TOKENS, store::TOKENS_USED] {
        directory.inside(inside)?.sweep()?;
    }
    let tokens = Tokens::open(&directory)?;
    let journal = Journal::open(directory.inside(store::JOURNAL)?)?;
    Ok((
        Desk {
            authority,
            tokens,
            journal,
            lifetimes: *lifetimes,
        },
        lock,
    ))
}

/// The gRPC server on connections that have done their handshake.
async fn serve(
    service: Service,
    incoming: mpsc::Receiver<Connection>,
    mut closing: watch::Receiver<bool>,
) -> Result<(), Error> {
    let service = CertificateAuthorityServer::new(service)
        .max_decoding_message_size(MESSAGE)
        .max_encoding_message_size(MESSAGE);
    // What clients may send ahead is bounded: one message for each connection, whatever the number of streams.
    Server::builder()
        .timeout(REQUEST)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(MESSAGE as u32)
        .initial_connection_window_size(MESSAGE as u32)
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(STREAMS as usize))
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(service)
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming).map(Ok::<_, Infallible>),
            async move {
                let _ = closing.wait_for(|&closing| closing).await;
            },
        )
        .await?;
    Ok(())
}

/// Takes connections until it is dropped. Handshakes run side by side, each on its seat and with its deadline.
async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    seats: Arc<Seats>,
    accepted: mpsc::Sender<Connection>,
) -> Infallible {
    // As many as there are seats. Dropped, and so cancelled, with this future.
    let mut handshakes = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            Some(_) = handshakes.join_next() => continue,
            connection = listener.accept() => match connection {
                Ok(connection) => connection,
                Err(error) => {
                    // Out of descriptors, most likely: the connection stays in the queue, so pause and do not spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        match seats.take(peer.ip(), tokio::time::Instant::now()) {
            Ok(seat) => {
                let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
                handshakes.spawn(handshake(stream, peer, acceptor, seat, accepted));
            }
            Err(reason) => {
                tracing::debug!(%peer, reason, "turned a connection away");
                telemetry::turned_away(reason);
            }
        }
    }
}

async fn handshake(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    seat: Arc<Seat>,
    accepted: mpsc::Sender<Connection>,
) {
    // Answers are small and each is waited for.
    let _ = stream.set_nodelay(true);
    let reason = match timeout(seat.seats().bounds.handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            // Fails only when the server has ended.
            let _ = accepted.send(Connection::new(stream, seat)).await;
            return;
        }
        Ok(Err(error)) => match objection(&error) {
            Some(problem) => {
                tracing::warn!(%peer, problem, "a client refuses our certificate");
                "refused_us"
            }
            None => {
                tracing::debug!(%peer, %error, "a TLS handshake failed");
                "handshake_failed"
            }
        },
        Err(_) => {
            tracing::debug!(%peer, "a TLS handshake took too long");
            "handshake_timeout"
        }
    };
    telemetry::turned_away(reason);
}

/// Keeps the intermediate and our own certificate fresh and the tokens swept. Ends never; a failure is tried again,
/// and what is in use stays in use.
async fn upkeep(desk: Arc<Desk>, own: Arc<Own>, clock: Clock) -> Infallible {
    loop {
        let (work, ours, now) = (Arc::clone(&desk), Arc::clone(&own), clock());
        let done = tokio::task::spawn_blocking(move || {
            work.authority.keep(now)?;
            ours.keep(&work, now)?;
            work.tokens.sweep(now)
        });
        let done = done.await.map_err(Error::from).and_then(|done| done);
        let (now, authority) = (clock(), &desk.authority);
        telemetry::ends(authority.root().validity(), authority.signer().validity());
        let wait = match done {
            Ok(()) => authority
                .wait(now)
                .min(own.wait(&desk, now))
                .max(Duration::from_secs(1)),
            Err(error) => {
                tracing::error!(%error, "could not renew the authority's certificates");
                (desk.lifetimes.leaf / 10).max(Duration::from_secs(1))
            }
        };
        sleep(wait.min(UPKEEP)).await;
    }
}

/// Makes a join token for `service`, good for `config.token_lifetime`. Works while `weft ca serve` runs on the same
/// state and before it ran the first time; then, the root is made here, for which the trust domain must be given.
pub fn create_token(
    state: &Path,
    config: &Config,
    trust_domain: Option<&str>,
    service: &str,
    now: SystemTime,
) -> Result<String, Error> {
    let service = ServiceName::parse(service)?;
    let domain = trust_domain.map(TrustDomain::parse).transpose()?;
    if service.is_authority() {
        return Err(Error::Reserved);
    }
    let lifetimes = rules(config)?.lifetimes;
    if domain.is_none() && !Directory::exists(state) {
        return Err(Error::NoState(state.to_owned()));
    }
    let directory = Directory::open(state)?;
    let _making = directory.lock(store::CREATE_LOCK)?;
    let root = match (Root::read(&directory)?, &domain) {
        (Some(root), _) => root,
        (None, Some(domain)) => Root::create(&directory, domain, &lifetimes, now)?,
        (None, None) => return Err(Error::NoState(state.to_owned())),
    };
    if let Some(domain) = &domain {
        root.check_domain(domain, &directory)?;
    }
    root.check_time(now)?;
    let token = Tokens::open(&directory)?.create(&service, lifetimes.token, &root, now)?;
    Ok(token.to_string())
}

/// Whether there is an authority in this directory: a root.
pub fn is_founded(state: &Path) -> bool {
    state.join(store::ROOT).exists()
}

/// How long a token of this service is still good, if it is: neither used nor expired.
pub fn token_left(
    state: &Path,
    service: &str,
    text: &str,
    now: SystemTime,
) -> Result<Option<Duration>, Error> {
    let Ok(token) = text.trim().parse::<Token>() else {
        return Ok(None);
    };
    let service = ServiceName::parse(service)?;
    if !Directory::exists(state) {
        return Ok(None);
    }
    let directory = Directory::open(state)?;
    let ours =
        Root::read(&directory)?.is_some_and(|root| root.fingerprint() == *token.fingerprint());
    match ours {
        true => Tokens::open(&directory)?.left(&token, &service, now),
        false => Ok(None),
    }
}

/// The trust bundle of a state, in PEM.
pub fn bundle_pem(state: &Path) -> Result<String, Error> {
    if !Directory::exists(state) {
        return Err(Error::NoState(state.to_owned()));
    }
    let root =
        Root::read(&Directory::open(state)?)?.ok_or_else(|| Error::NoState(state.to_owned()))?;
    Ok(pem(root.certificate()))
}

#[cfg(test)]
mod tests;
