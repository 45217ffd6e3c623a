//! The authority from outside: real sockets, real TLS, a tonic client that has nothing but a token.
#![allow(clippy::unwrap_used)]

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{aws_lc_rs, verify_tls13_signature};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use weft_proto::ca::certificate_authority_client::CertificateAuthorityClient;
use weft_proto::ca::{FollowBundleRequest, IssueRequest, IssueResponse};
use weft_runtime::config::units::Period;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::authority::only_uri;
use crate::journal;
use crate::token::{Token, sha256};

type Client = CertificateAuthorityClient<Channel>;

/// For what must happen, however long it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it happens")
}

/// A running authority.
struct Running {
    address: SocketAddr,
    config: Config,
    /// How far its clock is ahead, in seconds.
    ahead: Arc<AtomicU64>,
    bundle: Arc<Publisher>,
    stop: oneshot::Sender<()>,
    /// Ends what was not over by then.
    cut: oneshot::Sender<()>,
    task: JoinSet<Result<(), Error>>,
    _temp: Arc<tempfile::TempDir>,
}

impl Running {
    async fn start() -> Self {
        Self::with(Bounds::default(), |_| {}).await
    }

    async fn with(bounds: Bounds, change: impl FnOnce(&mut Config)) -> Self {
        let temp = Arc::new(tempfile::tempdir().unwrap());
        let mut config = Config {
            state: temp.path().join("state"),
            ..Config::default()
        };
        change(&mut config);
        Self::on(config, bounds, temp).await
    }

    async fn on(config: Config, bounds: Bounds, temp: Arc<tempfile::TempDir>) -> Self {
        let ahead = Arc::new(AtomicU64::new(0));
        let clock: Clock = {
            let ahead = Arc::clone(&ahead);
            Arc::new(move || SystemTime::now() + Duration::from_secs(ahead.load(Ordering::Relaxed)))
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (cut, cutting) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let mut task = JoinSet::new();
        let ready = move |address, bundle: &Arc<Publisher>| {
            assert!(tell.send((address, Arc::clone(bundle))).is_ok());
        };
        let until = async |told: oneshot::Receiver<()>| drop(told.await);
        let ending = (until(stopped), until(cutting));
        task.spawn(run_with(settings(&config), bounds, clock, ready, ending));
        let (address, bundle) = tokio::select! {
            told = told => told.unwrap(),
            ended = task.join_next() => panic!("it ended before it was ready: {ended:?}"),
        };
        Self {
            address,
            config,
            ahead,
            bundle,
            stop,
            cut,
            task,
            _temp: temp,
        }
    }

    async fn stop(mut self) -> (Config, Arc<tempfile::TempDir>) {
        self.stop.send(()).unwrap();
        soon(self.task.join_next()).await.unwrap().unwrap().unwrap();
        (self.config, self._temp)
    }

    fn token(&self, service: &str) -> String {
        token(&self.config, service)
    }

    /// A client that trusts whoever has the root of this token.
    async fn client(&self, token: &str, identity: Option<&Identity>) -> Client {
        let token: Token = token.parse().unwrap();
        client(self.address, *token.fingerprint(), identity).await
    }

    /// Joins with a fresh token.
    async fn join(&self, service: &str) -> Identity {
        let token = self.token(service);
        let mut client = self.client(&token, None).await;
        issue(&mut client, &token).await.unwrap()
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        trust_domain: "shop.internal".into(),
        config: config.clone(),
        listen: "127.0.0.1:0".parse().unwrap(),
    }
}

fn token(config: &Config, service: &str) -> String {
    create_token(
        &config.state,
        config,
        Some("shop.internal"),
        service,
        SystemTime::now(),
    )
    .unwrap()
}

/// What a service has after it has joined.
#[derive(Debug)]
struct Identity {
    key: KeyPair,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<Vec<u8>>,
}

impl Identity {
    fn uri(&self) -> String {
        only_uri(&X509Certificate::from_der(&self.chain[0]).unwrap().1).unwrap()
    }
}

async fn issue(client: &mut Client, token: &str) -> Result<Identity, Status> {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .der()
        .to_vec();
    let request = IssueRequest {
        csr,
        join_token: token.to_owned(),
    };
    let IssueResponse { chain, bundle } = soon(client.issue(request)).await?.into_inner();
    let bundle = bundle.unwrap();
    assert_eq!(bundle.trust_domain, "shop.internal");
    Ok(Identity {
        key,
        chain: chain.into_iter().map(CertificateDer::from).collect(),
        roots: bundle.roots,
    })
}

/// Trusts the root with this fingerprint, when the server sends it last, and the authority's name.
#[derive(Debug)]
struct Pinned {
    root: [u8; 32],
    /// How far its clock is ahead, in seconds.
    ahead: u64,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = others.last().filter(|last| sha256(last) == self.root);
        let root = root.ok_or(CertificateError::UnknownIssuer)?;
        let anchors = [webpki::anchor_from_trusted_cert(root).unwrap()];
        let end = webpki::EndEntityCert::try_from(leaf).unwrap();
        let usage = webpki::KeyUsage::server_auth();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + self.ahead));
        end.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            others,
            now,
            usage,
            None,
            None,
        )
        .map_err(|error| rustls::Error::General(format!("{error:?}")))?;
        let uri = only_uri(&X509Certificate::from_der(leaf).unwrap().1).unwrap();
        assert_eq!(uri, "spiffe://shop.internal/service/ca");
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn tls(fingerprint: [u8; 32], identity: Option<&Identity>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned {
            root: fingerprint,
            ahead: 0,
        }));
    let mut config = match identity {
        Some(identity) => {
            let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
            builder
                .with_client_auth_cert(identity.chain.clone(), key)
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn connect(address: SocketAddr, tls: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("ca").unwrap();
    TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await
}

async fn client(address: SocketAddr, fingerprint: [u8; 32], identity: Option<&Identity>) -> Client {
    let connector = Connector {
        address,
        tls: tls(fingerprint, identity),
    };
    let endpoint = Endpoint::from_static("https://ca");
    Client::new(
        soon(endpoint.connect_with_connector(connector))
            .await
            .unwrap(),
    )
}

#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    tls: ClientConfig,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, tls } = self.clone();
        Box::pin(async move { Ok(TokioIo::new(connect(address, tls).await?)) })
    }
}

/// A root that every token of `config` names.
fn fingerprint(config: &Config) -> [u8; 32] {
    *token(config, "someone")
        .parse::<Token>()
        .unwrap()
        .fingerprint()
}

#[tokio::test]
async fn a_service_joins_with_nothing_but_a_token_then_renews_itself() {
    let ca = Running::start().await;
    let token = ca.token("orders");
    let mut client = ca.client(&token, None).await;
    let identity = issue(&mut client, &token).await.unwrap();
    assert_eq!(identity.uri(), "spiffe://shop.internal/service/orders");
    assert_eq!(
        sha256(&identity.roots[0]),
        *token.parse::<Token>().unwrap().fingerprint()
    );

    let mut client = ca.client(&token, Some(&identity)).await;
    let renewed = issue(&mut client, "").await.unwrap();
    assert_eq!(renewed.uri(), identity.uri());
    assert_ne!(renewed.chain[0], identity.chain[0]);
    // The connection that was made with the old one is as good for the next.
    issue(&mut client, "").await.unwrap();

    let journal = Directory::open(ca.config.state.join(store::JOURNAL)).unwrap();
    let mut proofs = Vec::new();
    journal::read(&journal, |entry| proofs.push(entry.proof)).unwrap();
    assert_eq!(proofs, ["authority", "token", "renewal", "renewal"]);
}

#[tokio::test]
async fn every_refusal_says_why() {
    let ca = Running::start().await;
    let token = ca.token("orders");
    let mut client = ca.client(&token, None).await;
    let identity = issue(&mut client, &token).await.unwrap();
    let check = async |client: &mut Client, token: &str, code: Code, words: &str| {
        let status = issue(client, token).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    };
    check(
        &mut client,
        &token,
        Code::PermissionDenied,
        "the join token was already used",
    )
    .await;
    check(
        &mut client,
        "weft1.x",
        Code::InvalidArgument,
        "not a join token",
    )
    .await;
    check(
        &mut client,
        "",
        Code::Unauthenticated,
        "no proof of identity",
    )
    .await;
    let elsewhere = Running::start().await.token("orders");
    check(
        &mut client,
        &elsewhere,
        Code::PermissionDenied,
        "another certificate authority",
    )
    .await;
    let garbage = IssueRequest {
        csr: vec![1, 2, 3],
        join_token: ca.token("orders"),
    };
    let status = client.issue(garbage).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    let mut own = ca.client(&token, Some(&identity)).await;
    issue(&mut own, "").await.unwrap();
    let tokens = [ca.token("orders"), ca.token("orders")];
    ca.ahead.store(11 * 60, Ordering::Relaxed);
    let early = ca.client(&token, Some(&identity)).await;
    check(
        &mut early.clone(),
        &tokens[0],
        Code::PermissionDenied,
        "the join token expired",
    )
    .await;
    ca.ahead.store(25 * 3600, Ordering::Relaxed);
    // Both the connection from before the end and a new one.
    check(&mut own, "", Code::Unauthenticated, "expired at").await;
    check(&mut early.clone(), "", Code::Unauthenticated, "expired at").await;
}

#[tokio::test]
async fn a_strangers_certificate_renews_nothing() {
    let (ours, theirs) = (Running::start().await, Running::start().await);
    let stranger = theirs.join("orders").await;
    let mut client = ours.client(&ours.token("orders"), Some(&stranger)).await;
    let status = issue(&mut client, "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("did not issue it"), "{status}");
    // It does not stand in the way of a token either.
    issue(&mut client, &ours.token("orders")).await.unwrap();
}

#[tokio::test]
async fn a_client_with_a_token_of_another_authority_does_not_trust_this_one() {
    let (ours, theirs) = (Running::start().await, Running::start().await);
    let connected = connect(ours.address, tls(fingerprint(&theirs.config), None)).await;
    assert!(connected.unwrap_err().to_string().contains("UnknownIssuer"));
}

#[tokio::test]
async fn the_bundle_is_followed_until_the_authority_ends() {
    let ca = Running::start().await;
    let identity = ca.join("orders").await;
    let mut client = ca.client(&ca.token("orders"), Some(&identity)).await;
    let mut stream = soon(client.follow_bundle(FollowBundleRequest {}))
        .await
        .unwrap()
        .into_inner();
    let bundle = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(
        (bundle.trust_domain.as_str(), bundle.sequence),
        ("shop.internal", 1)
    );
    assert_eq!(bundle.roots, identity.roots);
    // A change comes by the same stream, and whoever asks later has it at once.
    let both = [bundle.roots.clone(), vec![b"another root".to_vec()]].concat();
    ca.bundle.publish(both.clone());
    let mut late = soon(client.follow_bundle(FollowBundleRequest {}))
        .await
        .unwrap()
        .into_inner();
    for stream in [&mut stream, &mut late] {
        let changed = soon(stream.message()).await.unwrap().unwrap();
        assert_eq!((changed.sequence, &changed.roots), (2, &both));
    }
    let (config, _temp) = ca.stop().await;
    assert_eq!(
        soon(stream.message()).await.unwrap(),
        None,
        "an end, not an error"
    );
    let pem = bundle_pem(&config.state).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    assert_eq!(
        CertificateDer::from_pem_slice(pem.as_bytes())
            .unwrap()
            .as_ref(),
        bundle.roots[0]
    );
}

#[tokio::test]
async fn what_was_given_out_holds_after_a_restart() {
    let ca = Running::start().await;
    let before = ca.join("orders").await;
    let (used, open) = (ca.token("orders"), ca.token("orders"));
    issue(&mut ca.client(&used, None).await, &used)
        .await
        .unwrap();
    let (config, temp) = ca.stop().await;
    let ca = Running::on(config, Bounds::default(), temp).await;
    let mut client = ca.client(&used, Some(&before)).await;
    issue(&mut client, "").await.unwrap();
    issue(&mut client, &open).await.unwrap();
    let status = issue(&mut client, &used).await.unwrap_err();
    assert!(status.message().contains("already used"), "{status}");
}

#[tokio::test]
async fn a_token_is_good_for_its_time_whether_the_authority_restarts_or_not() {
    let first = Running::start().await;
    let (early, late) = (first.token("orders"), first.token("orders"));
    let (config, temp) = first.stop().await;
    let again = Running::on(config, Bounds::default(), temp).await;
    let mut client = again.client(&early, None).await;
    again.ahead.store(590, Ordering::Relaxed);
    issue(&mut client, &early).await.unwrap();
    again.ahead.store(601, Ordering::Relaxed);
    let refused = issue(&mut client, &late).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("expired"), "{refused}");
    let (config, temp) = again.stop().await;
    // Time is not given back either.
    let third = Running::on(config, Bounds::default(), temp).await;
    third.ahead.store(602, Ordering::Relaxed);
    let mut client = third.client(&late, None).await;
    issue(&mut client, &late).await.unwrap_err();
}

#[tokio::test]
async fn who_does_not_let_go_is_cut_at_the_end_of_the_drain_and_not_before() {
    let mut running = Running::start().await;
    let token = running.token("orders");
    let fingerprint = *token.parse::<Token>().unwrap().fingerprint();
    // One who begins a request and never ends it.
    let mut held = connect(running.address, tls(fingerprint, None))
        .await
        .unwrap();
    let mut head = vec![0x83, 0x87];
    for (name, value) in [
        (&[0x04][..], "/weft.ca.v1.CertificateAuthority/Issue"),
        (&[0x01], "ca"),
        (&[0x0f, 0x10], "application/grpc"),
    ] {
        head.extend_from_slice(name);
        head.push(u8::try_from(value.len()).unwrap());
        head.extend_from_slice(value.as_bytes());
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend([0, 0, u8::try_from(head.len()).unwrap(), 1, 4, 0, 0, 0, 1]);
    bytes.extend(head);
    bytes.extend(*b"\0\0\x08\x06\0\0\0\0\0are you?");
    held.write_all(&bytes).await.unwrap();
    let mut read = Vec::new();
    while !read.windows(8).any(|window| window == b"are you?") {
        assert!(soon(held.read_buf(&mut read)).await.unwrap() > 0);
    }
    running.stop.send(()).unwrap();
    soon(async { while TcpStream::connect(running.address).await.is_ok() {} }).await;
    assert!(running.task.try_join_next().is_none(), "it waits for it");
    running.cut.send(()).unwrap();
    soon(running.task.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn tokens_can_be_made_before_the_first_start() {
    let temp = Arc::new(tempfile::tempdir().unwrap());
    let config = Config {
        state: temp.path().join("state"),
        ..Config::default()
    };
    let token = token(&config, "orders");
    let ca = Running::on(config, Bounds::default(), temp).await;
    issue(&mut ca.client(&token, None).await, &token)
        .await
        .unwrap();
}

#[tokio::test]
async fn making_tokens_checks_what_it_is_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let config = Config::default();
    let (state, now) = (temp.path().join("state"), SystemTime::now());
    let create = |domain, service| create_token(&state, &config, domain, service, now);
    let error = create(None, "orders").unwrap_err();
    assert!(matches!(error, Error::NoState(_)), "{error}");
    assert!(!state.exists(), "and nothing was made");
    assert!(matches!(
        create(Some("shop.internal"), "Orders").unwrap_err(),
        Error::Name(_)
    ));
    assert!(matches!(
        create(Some("Shop"), "orders").unwrap_err(),
        Error::Name(_)
    ));
    assert!(matches!(
        create(Some("shop.internal"), "ca").unwrap_err(),
        Error::Reserved
    ));
    create(Some("shop.internal"), "orders").unwrap();
    create(None, "orders").unwrap();
    assert!(matches!(
        create(Some("other.internal"), "orders").unwrap_err(),
        Error::TrustDomain { .. }
    ));
    assert!(matches!(
        bundle_pem(temp.path()).unwrap_err(),
        Error::State { .. } | Error::NoState(_)
    ));
}

#[tokio::test]
async fn two_authorities_never_serve_one_state() {
    let ca = Running::start().await;
    let second = run(
        settings(&ca.config),
        |_| panic!("it must not get ready"),
        std::future::pending(),
        std::future::pending(),
    );
    let error = soon(second).await.unwrap_err();
    assert!(matches!(error, Error::InUse(_)), "{error}");
    ca.join("orders").await;
}

#[tokio::test]
async fn of_many_clients_with_one_token_one_joins() {
    let ca = Running::start().await;
    let token = ca.token("orders");
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let (mut client, token) = (ca.client(&token, None).await, token.clone());
        tasks.spawn(async move { issue(&mut client, &token).await.map(|_| ()) });
    }
    let results = soon(tasks.join_all()).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for status in results.into_iter().filter_map(Result::err) {
        assert!(status.message().contains("already used"), "{status}");
    }
}

#[tokio::test]
async fn the_authoritys_own_certificates_are_renewed_while_it_serves() {
    let ca = Running::with(Bounds::default(), |config| {
        config.leaf_lifetime = Period::seconds(10);
        config.intermediate_lifetime = Period::seconds(20);
        config.root_lifetime = Period::seconds(3600);
    })
    .await;
    let first = ca.join("orders").await;
    let fingerprint = fingerprint(&ca.config);
    // Past the end of everything that was made at the start, except the root.
    ca.ahead.store(25, Ordering::Relaxed);
    let mut config = tls(fingerprint, None);
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Pinned {
            root: fingerprint,
            ahead: 25,
        }));
    let stream = soon(async {
        loop {
            match connect(ca.address, config.clone()).await {
                Ok(stream) => break stream,
                Err(error) => assert!(error.to_string().contains("Expired"), "{error}"),
            }
        }
    })
    .await;
    let own = stream.get_ref().1.peer_certificates().unwrap();
    assert_ne!(own[1], first.chain[1], "another intermediate");
    assert_eq!(own[2].as_ref(), first.roots[0], "and the same root");
}

#[tokio::test]
async fn a_client_that_sits_still_keeps_nobody_out() {
    let bounds = Bounds {
        connections: 3,
        per_address: 3,
        idle: Duration::from_millis(200),
        ..Bounds::default()
    };
    let ca = Running::with(bounds, |_| {}).await;
    let fingerprint = fingerprint(&ca.config);
    // One finishes its handshake and says nothing more, two do not even begin it.
    let mut idle = connect(ca.address, tls(fingerprint, None)).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(TcpStream::connect(ca.address).await.unwrap());
    }
    // Beyond the bound: closed at once.
    let mut extra = TcpStream::connect(ca.address).await.unwrap();
    let closed = soon(extra.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    // The idle one is closed from the other side; what came before were HTTP/2 settings.
    let mut received = Vec::new();
    let _ = soon(idle.read_to_end(&mut received)).await;
    // Its seat is free, so a client gets through beside the two that never spoke.
    soon(async {
        loop {
            if let Ok(stream) = connect(ca.address, tls(fingerprint, None)).await {
                break stream;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_is_cut_off() {
    let bounds = Bounds {
        connections: 1,
        handshake: Duration::from_millis(200),
        ..Bounds::default()
    };
    let ca = Running::with(bounds, |_| {}).await;
    let mut stream = TcpStream::connect(ca.address).await.unwrap();
    // The beginning of a ClientHello, on the only seat.
    stream.write_all(&[22, 3, 1, 1, 0, 1]).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
    ca.join("orders").await;
}

#[tokio::test]
async fn plaintext_and_old_tls_get_nothing() {
    let ca = Running::start().await;
    let mut stream = TcpStream::connect(ca.address).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert_eq!(answer.first(), Some(&21), "a TLS alert and nothing else");
    let mut old = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned {
            root: fingerprint(&ca.config),
            ahead: 0,
        }))
        .with_no_client_auth();
    old.alpn_protocols = vec![b"h2".to_vec()];
    let refused = soon(connect(ca.address, old))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
}

#[tokio::test]
async fn a_message_beyond_the_bound_is_refused_and_the_next_one_served() {
    let ca = Running::start().await;
    let token = ca.token("orders");
    let mut client = ca.client(&token, None).await;
    let large = IssueRequest {
        csr: vec![0x30; MESSAGE + 1],
        join_token: token.clone(),
    };
    let status = soon(client.issue(large)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let large = IssueRequest {
        csr: vec![0x30; crate::csr::LARGEST + 1],
        join_token: token.clone(),
    };
    let status = soon(client.issue(large)).await.unwrap_err();
    assert!(status.message().contains("longer than 16 KiB"), "{status}");
    issue(&mut client, &token).await.unwrap();
}
