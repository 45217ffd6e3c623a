//! Asks the CA: for a certificate, and for the trust bundle whenever it changes.
//!
//! The connection is made here and handed to tonic as it is: so the CA's own certificate is checked as every peer's of
//! the mesh is, and a failed connection says why. Who asks proves it with a join token or with the certificate it has.

use std::fmt;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use weft_proto::ca::certificate_authority_client::CertificateAuthorityClient;
use weft_proto::ca::{self, FollowBundleRequest, IssueRequest};
use weft_runtime::config::{Watched, watched};

use super::bundle::Bundle;
use super::id::{IdError, SpiffeId, TrustDomain};
use super::keys::Key;
use super::material::{Material, MaterialProblem};
use super::problem::PeerProblem;
use super::tls::{self, Alpn};
use super::token::{JoinToken, TokenSource};
use crate::dial;

/// To reach the CA and agree with it who both are.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A chain and a bundle take some KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// A bundle rarely changes, so only this notices that the CA's host has gone.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Turns the CA's `host:port` into addresses.
pub type Lookup = Arc<
    dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>
        + Send
        + Sync,
>;

/// Why the CA gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Its name could not be resolved.
    #[error("the CA's address {address} cannot be resolved: {source}")]
    Resolve {
        /// As configured.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// It could not be reached.
    #[error("the CA at {address} cannot be reached: {source}")]
    Connect {
        /// Where it was tried last.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is not the CA that we know, or does not know us.
    #[error("no trust between us and the CA at {address}: {problem}")]
    Peer {
        /// Where.
        address: String,
        /// What is wrong, with it or by its judgement with us.
        problem: PeerProblem,
    },
    /// It did not answer in time.
    #[error("the CA at {address} did not answer within {limit:?}")]
    Timeout {
        /// Where.
        address: String,
        /// How long it had.
        limit: Duration,
    },
    /// It said no.
    #[error("the CA refuses: {message} ({code:?})")]
    Refused {
        /// The kind of refusal.
        code: tonic::Code,
        /// Its words.
        message: String,
    },
    /// What it issued is of no use.
    #[error("the CA's answer is of no use: {0}")]
    Answer(String),
    /// There is nothing to prove ourselves with.
    #[error("{0}")]
    Proof(String),
}

impl From<MaterialProblem> for AskError {
    fn from(problem: MaterialProblem) -> Self {
        Self::Answer(problem.what)
    }
}

/// A CA and what we need to ask it.
pub struct Authority {
    /// May change: what it says when somebody asks counts.
    address: Watched<String>,
    trust_domain: TrustDomain,
    id: SpiffeId,
    expected: Option<SpiffeId>,
    token: Option<TokenSource>,
    /// The last token that got us a certificate. A token works once.
    spent: Mutex<Option<JoinToken>>,
    lookup: Lookup,
}

impl Authority {
    /// The CA of `trust_domain` at `address` (`host:port`, the host a name or an IP address).
    pub fn new(address: impl Into<String>, trust_domain: TrustDomain) -> Result<Self, IdError> {
        Self::following(watched(address.into()).1, trust_domain)
    }

    /// The same, wherever the address leads at the time of asking.
    pub fn following(address: Watched<String>, trust_domain: TrustDomain) -> Result<Self, IdError> {
        Ok(Self {
            id: SpiffeId::for_service(&trust_domain, "ca")?,
            address,
            trust_domain,
            expected: None,
            token: None,
            spent: Mutex::new(None),
            lookup: Arc::new(|address| {
                Box::pin(async move { Ok(tokio::net::lookup_host(address).await?.collect()) })
            }),
        })
    }

    /// With a token to prove ourselves while we have no certificate.
    pub fn token(mut self, token: Option<TokenSource>) -> Self {
        self.token = token;
        self
    }

    /// Taking no certificate but for this name.
    pub fn expect(mut self, id: SpiffeId) -> Self {
        self.expected = Some(id);
        self
    }

    /// With another resolver than the system's.
    pub fn lookup(mut self, lookup: Lookup) -> Self {
        self.lookup = lookup;
        self
    }

    /// A first certificate, by join token.
    pub async fn join(&self) -> Result<Material, AskError> {
        let Some(source) = &self.token else {
            return Err(AskError::Proof(
                "there is no valid certificate and no join token; make one with `weft ca token create`".to_owned(),
            ));
        };
        let token = source.read().await.map_err(AskError::Proof)?;
        if self.spent().as_ref() == Some(&token) {
            return Err(AskError::Proof(format!(
                "there is no valid certificate, and the join token {} has been used; make a new one with `weft ca token create`",
                token.id()
            )));
        }
        let config = tls::stranger(token.root_sha256(), &self.id);
        let material = self.issue(config, token.secret()).await?;
        *self.spent() = Some(token);
        Ok(material)
    }

    /// Another certificate, by the one that we have.
    pub async fn renew(&self, current: &Material) -> Result<Material, AskError> {
        let config = tls::client(current, &self.id, Alpn::H2);
        self.issue(config, "").await
    }

    /// The trust bundle now, and again whenever it changes.
    pub async fn follow(&self, current: &Material) -> Result<Bundles, AskError> {
        let config = tls::client(current, &self.id, Alpn::H2);
        let channel = self.connect(config).await?;
        let mut client = limited(channel);
        let stream = self
            .call(client.follow_bundle(FollowBundleRequest {}))
            .await?;
        Ok(Bundles {
            stream,
            trust_domain: self.trust_domain.clone(),
            address: self.address(),
        })
    }

    async fn issue(&self, config: ClientConfig, token: &str) -> Result<Material, AskError> {
        let key = Key::fresh().map_err(AskError::Answer)?;
        let request = IssueRequest {
            csr: key.request().map_err(AskError::Answer)?,
            join_token: token.to_owned(),
        };
        let mut client = limited(self.connect(config).await?);
        let answer = self.call(client.issue(request)).await?;
        let bundle = answer
            .bundle
            .ok_or_else(|| AskError::Answer("it has no trust bundle".to_owned()))?;
        let bundle = read_bundle(bundle, &self.trust_domain)?;
        let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
        let key = key.into_signing_key().map_err(AskError::Answer)?;
        let material = Material::assemble(chain, key, bundle, SystemTime::now())?;
        self.check_name(&material)?;
        Ok(material)
    }

    fn check_name(&self, material: &Material) -> Result<(), AskError> {
        let got = material.spiffe_id();
        if !got.is_member_of(&self.trust_domain) {
            return Err(AskError::Answer(format!(
                "the certificate is for {got}, but our trust domain is {}",
                self.trust_domain
            )));
        }
        match &self.expected {
            Some(want) if **got != *want => Err(AskError::Answer(format!(
                "the certificate is for {got}, but this is {want}; was the token made for another service?"
            ))),
            _ => Ok(()),
        }
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, AskError> {
        match timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(refusal(&self.address(), &status)),
            Err(_) => Err(AskError::Timeout {
                address: self.address(),
                limit: CALL_TIMEOUT,
            }),
        }
    }

    /// One connection for one call: asking is rare, and a connection of its own shows with which certificate we ask.
    async fn connect(&self, config: ClientConfig) -> Result<Channel, AskError> {
        let stream = self.connect_tls(Arc::new(config)).await?;
        let endpoint = Endpoint::from_static("http://ca")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(CALL_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_timeout(CONNECT_TIMEOUT);
        endpoint
            .connect_with_connector(Once(Some(stream)))
            .await
            .map_err(|error| match PeerProblem::from_error(&error) {
                Some(problem) => AskError::Peer {
                    address: self.address(),
                    problem,
                },
                None => AskError::Connect {
                    address: self.address(),
                    source: io::Error::other(error),
                },
            })
    }

    async fn connect_tls(
        &self,
        config: Arc<ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, AskError> {
        let unresolved = |source| AskError::Resolve {
            address: self.address(),
            source,
        };
        let addresses = timeout(CONNECT_TIMEOUT, (self.lookup)(self.address()))
            .await
            .map_err(|_| unresolved(io::ErrorKind::TimedOut.into()))?
            .map_err(unresolved)?;
        let mut left = dial::interleave(addresses);
        if left.is_empty() {
            return Err(unresolved(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no addresses",
            )));
        }
        // One that takes the connection may still not be who it should be; then the others are left.
        let mut refused = None;
        while !left.is_empty() {
            let (tcp, address) = match timeout(CONNECT_TIMEOUT, dial::connect(&left)).await {
                Ok(Ok(connected)) => connected,
                Ok(Err(source)) => {
                    let address = self.address();
                    return Err(refused.unwrap_or(AskError::Connect { address, source }));
                }
                Err(_) => return Err(refused.unwrap_or_else(|| self.too_slow())),
            };
            left.retain(|other| *other != address);
            let attempt = handshake(tcp, address, Arc::clone(&config));
            refused = match timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => Some(error),
                Err(_) => Some(self.too_slow()),
            };
        }
        Err(refused.unwrap_or_else(|| self.too_slow()))
    }

    fn address(&self) -> String {
        self.address.get().as_str().to_owned()
    }

    fn too_slow(&self) -> AskError {
        AskError::Timeout {
            address: self.address(),
            limit: CONNECT_TIMEOUT,
        }
    }

    fn spent(&self) -> std::sync::MutexGuard<'_, Option<JoinToken>> {
        // A token is put there whole or not at all.
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("address", &self.address())
            .field("trust_domain", &self.trust_domain)
            .field("expected", &self.expected)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// The bundles that the CA sends.
pub struct Bundles {
    stream: tonic::Streaming<ca::Bundle>,
    trust_domain: TrustDomain,
    address: String,
}

impl Bundles {
    /// Waits for the next one; nothing when the CA has ended the stream. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> Result<Option<Bundle>, AskError> {
        match self.stream.message().await {
            Ok(Some(bundle)) => read_bundle(bundle, &self.trust_domain).map(Some),
            Ok(None) => Ok(None),
            Err(status) => Err(refusal(&self.address, &status)),
        }
    }
}

async fn handshake(
    tcp: TcpStream,
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, AskError> {
    let unreached = |source| AskError::Connect {
        address: address.to_string(),
        source,
    };
    tcp.set_nodelay(true).map_err(unreached)?;
    TlsConnector::from(config)
        .connect(tls::server_name(), tcp)
        .await
        .map_err(|error| match PeerProblem::from_io_error(&error) {
            Some(problem) => AskError::Peer {
                address: address.to_string(),
                problem,
            },
            None => unreached(error),
        })
}

fn limited(channel: Channel) -> CertificateAuthorityClient<Channel> {
    CertificateAuthorityClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

fn read_bundle(bundle: ca::Bundle, trust_domain: &TrustDomain) -> Result<Bundle, AskError> {
    if bundle.trust_domain != trust_domain.as_str() {
        return Err(AskError::Answer(format!(
            "its bundle is of the trust domain `{}`, but ours is {trust_domain}",
            bundle.trust_domain.escape_debug()
        )));
    }
    Bundle::from_der(bundle.roots.into_iter().map(CertificateDer::from)).map_err(AskError::Answer)
}

/// With TLS 1.3 a client learns only from the first answer that its certificate was refused.
fn refusal(address: &str, status: &tonic::Status) -> AskError {
    match PeerProblem::from_error(status) {
        Some(problem) => AskError::Peer {
            address: address.to_owned(),
            problem,
        },
        None => AskError::Refused {
            code: status.code(),
            message: status.message().to_owned(),
        },
    }
}

/// Hands out one connection that is already there. When it breaks, the call fails and the next one makes its own.
struct Once(Option<TlsStream<TcpStream>>);

impl tower_service::Service<Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        ready(
            self.0
                .take()
                .map(TokioIo::new)
                .ok_or_else(|| io::ErrorKind::ConnectionReset.into()),
        )
    }
}
