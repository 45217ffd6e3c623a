//! A CA in the same process, which the tests can send away, fetch back and make answer nonsense.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rcgen::{CertificateParams, CertificateSigningRequestParams};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use weft_proto::ca::certificate_authority_server::{
    CertificateAuthority, CertificateAuthorityServer,
};
use weft_proto::ca::{Bundle, FollowBundleRequest, IssueRequest, IssueResponse};

use crate::identity::svid::hex;
use crate::identity::testing::{Ca, DOMAIN, lasting, service, svid};
use crate::identity::verify::sha256;
use crate::identity::{JoinToken, peer_identity, provider};

type Spoil = Box<dyn Fn(&mut CertificateParams, &mut IssueResponse) + Send + Sync>;

pub(super) struct FakeCa {
    pub(super) ca: Arc<Ca>,
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<JoinSet<()>>,
}

struct Shared {
    ca: Arc<Ca>,
    life: Duration,
    tokens: Mutex<HashSet<String>>,
    bundle: watch::Sender<Bundle>,
    spoil: Mutex<Option<Spoil>>,
    bundles_sent: AtomicUsize,
}

impl FakeCa {
    /// One whose certificates live so long.
    pub(super) async fn start(life: Duration) -> Self {
        let ca = Arc::new(Ca::new());
        let bundle = Bundle {
            trust_domain: DOMAIN.to_owned(),
            roots: vec![ca.root.to_vec()],
            sequence: 1,
        };
        let shared = Arc::new(Shared {
            ca: Arc::clone(&ca),
            life,
            tokens: Mutex::default(),
            bundle: watch::channel(bundle).0,
            spoil: Mutex::default(),
            bundles_sent: AtomicUsize::new(0),
        });
        let mut fake = Self {
            ca,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            shared,
            running: None,
        };
        fake.come().await;
        fake
    }

    /// Listens where it always has.
    pub(super) async fn come(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&self.shared)));
        self.running = Some(tasks);
    }

    /// As if killed: connections break, and new ones are refused.
    pub(super) async fn go(&mut self) {
        self.running.take().unwrap().shutdown().await;
    }

    pub(super) fn token(&self) -> JoinToken {
        let root = hex(&sha256(&self.ca.root));
        let text = format!("weft1.t{}.secret.{root}", fastrand::u64(..));
        self.shared.tokens.lock().unwrap().insert(text.clone());
        text.parse().unwrap()
    }

    pub(super) fn publish(&self, roots: Vec<Vec<u8>>) {
        self.shared.bundle.send_modify(|bundle| {
            bundle.roots = roots;
            bundle.sequence += 1;
        });
    }

    /// How often any client was handed a bundle.
    pub(super) fn bundles_sent(&self) -> usize {
        self.shared.bundles_sent.load(Ordering::SeqCst)
    }

    /// Changes what is signed and what is answered from now on.
    pub(super) fn spoil(
        &self,
        spoil: impl Fn(&mut CertificateParams, &mut IssueResponse) + Send + Sync + 'static,
    ) {
        *self.shared.spoil.lock().unwrap() = Some(Box::new(spoil));
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&shared.ca)));
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else {
                return;
            };
            let peer = stream.get_ref().1.peer_certificates();
            let caller = peer.map(|peer| peer_identity(peer).unwrap().label().to_owned());
            let service = CertificateAuthorityServer::new(Connection { shared, caller });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .await;
        });
    }
}

fn server_config(ca: &Ca) -> ServerConfig {
    let mut leaf = ca.leaf(&svid(service("ca").as_str()));
    leaf.chain.push(ca.root.clone());
    let mut roots = RootCertStore::empty();
    roots.add(ca.root.clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

struct Connection {
    shared: Arc<Shared>,
    caller: Option<String>,
}

#[tonic::async_trait]
impl CertificateAuthority for Connection {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let request = request.into_inner();
        let name = match &self.caller {
            Some(caller) => caller.clone(),
            None if self
                .shared
                .tokens
                .lock()
                .unwrap()
                .remove(&request.join_token) =>
            {
                "orders".to_owned()
            }
            None => return Err(Status::permission_denied("the join token is not valid")),
        };
        let csr = CertificateSigningRequestDer::from(request.csr);
        let csr = CertificateSigningRequestParams::from_der(&csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut parameters = svid(service(&name).as_str());
        let life = i64::try_from(self.shared.life.as_secs()).unwrap();
        lasting(&mut parameters, -60, life);
        let mut answer = IssueResponse {
            chain: Vec::new(),
            bundle: Some(self.shared.bundle.borrow().clone()),
        };
        let spoil = self.shared.spoil.lock().unwrap();
        if let Some(spoil) = &*spoil {
            spoil(&mut parameters, &mut answer);
        }
        let chain = self.shared.ca.sign(&parameters, &csr.public_key);
        answer.chain = chain.iter().map(|der| der.to_vec()).collect();
        Ok(Response::new(answer))
    }

    type FollowBundleStream =
        Pin<Box<dyn futures_util::Stream<Item = Result<Bundle, Status>> + Send>>;

    async fn follow_bundle(
        &self,
        _request: Request<FollowBundleRequest>,
    ) -> Result<Response<Self::FollowBundleStream>, Status> {
        let shared = Arc::clone(&self.shared);
        let stream = WatchStream::new(self.shared.bundle.subscribe()).map(move |bundle| {
            shared.bundles_sent.fetch_add(1, Ordering::SeqCst);
            Ok(bundle)
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
