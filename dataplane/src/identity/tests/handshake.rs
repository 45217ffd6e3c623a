//! Real handshakes over a pipe: who is let in, and what either end says when somebody is not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, HandshakeKind, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::identity::testing::{Ca, DOMAIN, Leaf, id, lasting, service, svid, uri};
use crate::identity::verify::{ExactService, MembersOnly, Trust};
use crate::identity::{
    Alpn, Identity, PeerProblem, Refusal, peer_identity, provider, server_name, tls,
};

/// What each end has to say about a handshake.
#[derive(Debug)]
struct Verdicts {
    server: Option<PeerProblem>,
    client: Option<PeerProblem>,
}

/// Connects, and has the server greet the client: with TLS 1.3 a client learns only then that it was refused.
async fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Verdicts {
    let (near, far) = duplex(64 * 1024);
    let serving = async move {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"!").await?;
        stream.shutdown().await
    };
    let asking = async move {
        let mut stream = TlsConnector::from(client)
            .connect(server_name(), near)
            .await?;
        stream.read_exact(&mut [0]).await.map(|_| ())
    };
    let (server, client) = tokio::join!(serving, asking);
    Verdicts {
        server: verdict(server),
        client: verdict(client),
    }
}

fn verdict(result: io::Result<()>) -> Option<PeerProblem> {
    let error = result.err()?;
    Some(PeerProblem::from_io_error(&error).unwrap_or_else(|| panic!("unexplained: {error:?}")))
}

/// A server that checks as ours do, but shows any certificate.
fn rogue_server(ca: &Ca, certificate: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    let verifier = MembersOnly {
        bundle: ca.bundle(),
        trust_domain: DOMAIN.parse().unwrap(),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

fn rogue_client(ca: &Ca, certificate: Option<Arc<CertifiedKey>>) -> Arc<ClientConfig> {
    let verifier = ExactService {
        trust: Trust::Bundle(ca.bundle()),
        expected: service("orders"),
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Arc::new(match certificate {
        Some(certificate) => {
            config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)))
        }
        None => config.with_no_client_auth(),
    })
}

fn spoilt(spoil: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut parameters = svid(service("orders").as_str());
    spoil(&mut parameters);
    parameters
}

/// One certificate, and what happens when a peer shows it.
struct Case {
    name: &'static str,
    leaf: Leaf,
    /// What the end that sees it finds when it is a client's, and when it is a server's (`orders` is meant).
    as_client: Option<&'static str>,
    as_server: Option<&'static str>,
    /// What the end that showed it hears.
    told: Refusal,
}

fn cases(ours: &Ca, foreign: &Ca) -> Vec<Case> {
    let both = |name, leaf, code, told| Case {
        name,
        leaf,
        as_client: Some(code),
        as_server: Some(code),
        told,
    };
    let bad = |name, spoil: fn(&mut CertificateParams)| {
        both(
            name,
            ours.leaf(&spoilt(spoil)),
            "not_an_identity",
            Refusal::Identity,
        )
    };
    let mut unsigned = ours.leaf(&spoilt(|_| {}));
    unsigned.chain.truncate(1);
    let mut swapped = ours.leaf(&spoilt(|_| {}));
    swapped.key = rcgen::KeyPair::generate().unwrap();
    vec![
        Case {
            name: "a member",
            leaf: ours.leaf(&spoilt(|_| {})),
            as_client: None,
            as_server: None,
            told: Refusal::Identity,
        },
        Case {
            name: "another service",
            leaf: ours.leaf(&svid(service("inventory").as_str())),
            as_client: None,
            as_server: Some("wrong_service"),
            told: Refusal::Identity,
        },
        both(
            "expired",
            ours.leaf(&spoilt(|p| lasting(p, -60, -30))),
            "expired",
            Refusal::OutOfDate,
        ),
        both(
            "not yet valid",
            ours.leaf(&spoilt(|p| lasting(p, 30, 60))),
            "not_yet_valid",
            Refusal::OutOfDate,
        ),
        both(
            "foreign root of the same name",
            foreign.leaf(&spoilt(|_| {})),
            "unknown_authority",
            Refusal::ForeignRoot,
        ),
        both(
            "no intermediate",
            unsigned,
            "unknown_authority",
            Refusal::ForeignRoot,
        ),
        both(
            "another trust domain",
            ours.leaf(&svid("spiffe://evil.example/service/orders")),
            "trust_domain",
            Refusal::TrustDomain,
        ),
        both(
            "a trust domain that ours begins",
            ours.leaf(&svid("spiffe://shop.internal.evil/service/orders")),
            "trust_domain",
            Refusal::TrustDomain,
        ),
        both(
            "a trust domain below ours",
            ours.leaf(&svid("spiffe://a.shop.internal/service/orders")),
            "trust_domain",
            Refusal::TrustDomain,
        ),
        both(
            "another's certificate",
            swapped,
            "not_an_identity",
            Refusal::Crypto,
        ),
        bad("two URI names", |p| {
            p.subject_alt_names
                .push(uri("spiffe://shop.internal/service/admin"));
        }),
        bad("the same URI name twice", |p| {
            p.subject_alt_names
                .push(uri("spiffe://shop.internal/service/orders"));
        }),
        bad("no names", |p| p.subject_alt_names.clear()),
        bad("DNS name only", |p| {
            p.subject_alt_names = vec![SanType::DnsName("orders".try_into().unwrap())];
        }),
        bad("a URI that is no SPIFFE ID", |p| {
            p.subject_alt_names = vec![uri("https://shop.internal/service/orders")];
        }),
        bad("a SPIFFE ID with a query", |p| {
            p.subject_alt_names = vec![uri("spiffe://shop.internal/service/orders?x")];
        }),
        bad("a trust domain only", |p| {
            p.subject_alt_names = vec![uri("spiffe://shop.internal")];
        }),
        bad("a CA", |p| {
            p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }),
        bad("may sign certificates", |p| {
            p.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }),
        bad("may sign revocation lists", |p| {
            p.key_usages.push(KeyUsagePurpose::CrlSign);
        }),
        bad("no digital signature", |p| {
            p.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        }),
        bad("no key usage", |p| p.key_usages.clear()),
        bad("no extended key usage", |p| p.extended_key_usages.clear()),
        bad("for signing code", |p| {
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        }),
        bad("for anything", |p| {
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        }),
        Case {
            name: "for servers only",
            leaf: ours.leaf(&spoilt(|p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            })),
            as_client: Some("not_an_identity"),
            as_server: None,
            told: Refusal::Identity,
        },
        Case {
            name: "for clients only",
            leaf: ours.leaf(&spoilt(|p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            })),
            as_client: None,
            as_server: Some("not_an_identity"),
            told: Refusal::Identity,
        },
    ]
}

#[tokio::test]
async fn every_bad_certificate_is_refused_and_both_ends_say_why() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let server = ours.identity("orders");
    let client = ours.identity("storefront");
    for case in cases(&ours, &foreign) {
        let name = case.name;
        let told = |seen: Option<&str>| seen.map(|_| PeerProblem::Refused(case.told.clone()));
        let shown = rogue_client(&ours, Some(case.leaf.certified()));
        let got = shake(server.server_config(), shown).await;
        let codes = got.server.as_ref().map(|problem| problem.kind().as_str());
        assert_eq!(codes, case.as_client, "{name} as a client: {got:?}");
        assert_eq!(got.client, told(case.as_client), "{name} as a client");

        let shown = rogue_server(&ours, case.leaf.certified());
        let asked = client.client_config(&service("orders"), Alpn::H2);
        let got = shake(shown, asked).await;
        let codes = got.client.as_ref().map(|problem| problem.kind().as_str());
        assert_eq!(codes, case.as_server, "{name} as a server: {got:?}");
        assert_eq!(got.server, told(case.as_server), "{name} as a server");
    }
}

#[tokio::test]
async fn problems_carry_their_particulars() {
    let ours = Ca::new();
    let client = ours.identity("storefront");
    let cases = [
        (
            ours.leaf(&svid(service("inventory").as_str())),
            "the peer is spiffe://shop.internal/service/inventory, but spiffe://shop.internal/service/orders was meant",
        ),
        (
            ours.leaf(&svid("spiffe://evil/service/orders")),
            "the peer is spiffe://evil/service/orders, which is not of the trust domain shop.internal",
        ),
        (
            ours.leaf(&spoilt(|p| p.subject_alt_names.clear())),
            "the peer's certificate is not an acceptable X.509-SVID: it has no URI name",
        ),
    ];
    for (leaf, text) in cases {
        let server = rogue_server(&ours, leaf.certified());
        let got = shake(
            server,
            client.client_config(&service("orders"), Alpn::Http1),
        )
        .await;
        assert_eq!(got.client.unwrap().to_string(), text);
    }
    let late = ours.leaf(&spoilt(|p| lasting(p, -60, -30)));
    let server = rogue_server(&ours, late.certified());
    let got = shake(server, client.client_config(&service("orders"), Alpn::H2)).await;
    let Some(PeerProblem::Expired { ago }) = got.client else {
        panic!("{got:?}");
    };
    assert!((29..40).contains(&ago.as_secs()), "{ago:?}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ours = Ca::new();
    let server = ours.identity("orders").server_config();
    let got = shake(server, rogue_client(&ours, None)).await;
    assert_eq!(got.server, Some(PeerProblem::NoCertificate));
    assert_eq!(
        got.client,
        Some(PeerProblem::Refused(Refusal::NoCertificate))
    );
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ours = Ca::new();
    let old = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&old))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let server = ours.identity("orders").server_config();
    let got = shake(server, Arc::new(client)).await;
    assert_eq!(got.server, Some(PeerProblem::OldTls));
    assert_eq!(got.client, Some(PeerProblem::Refused(Refusal::Parameters)));

    let certificate = ours.leaf(&spoilt(|_| {})).certified();
    let server = ServerConfig::builder_with_provider(old)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    let client = ours
        .identity("storefront")
        .client_config(&service("orders"), Alpn::H2);
    let got = shake(Arc::new(server), client).await;
    assert_eq!(got.server, Some(PeerProblem::OldTls));
    assert_eq!(got.client, Some(PeerProblem::Refused(Refusal::Parameters)));
}

#[tokio::test]
async fn plaintext_is_recognised_from_either_end() {
    let ours = Ca::new();
    let greetings: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n",
        b"POST /orders HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"220 mail ready\r\n",
        b"\x00\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x16\x00\x00\x00\x10aaaaaaaaaaaaaaaaaaaa",
    ];
    for greeting in greetings {
        let shown = String::from_utf8_lossy(greeting);
        let server = ours.identity("orders").server_config();
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(greeting).await.unwrap();
        let got = TlsAcceptor::from(server).accept(far).await.map(|_| ());
        assert_eq!(verdict(got), Some(PeerProblem::Plaintext), "{shown:?}");

        let client = ours
            .identity("storefront")
            .client_config(&service("orders"), Alpn::H2);
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(greeting).await.unwrap();
        let got = TlsConnector::from(client)
            .connect(server_name(), near)
            .await;
        assert_eq!(
            verdict(got.map(|_| ())),
            Some(PeerProblem::Plaintext),
            "{shown:?}"
        );
    }
}

#[tokio::test]
async fn hanging_up_is_named() {
    let ours = Ca::new();
    let (near, far) = duplex(64 * 1024);
    drop(near);
    let server = ours.identity("orders").server_config();
    let got = TlsAcceptor::from(server).accept(far).await.map(|_| ());
    assert_eq!(verdict(got), Some(PeerProblem::Hangup));

    // Its end of the pipe takes what we say and answers nothing.
    let (near, mut far) = duplex(64 * 1024);
    far.shutdown().await.unwrap();
    let client = ours
        .identity("storefront")
        .client_config(&service("orders"), Alpn::H2);
    let got = TlsConnector::from(client)
        .connect(server_name(), near)
        .await;
    assert_eq!(verdict(got.map(|_| ())), Some(PeerProblem::Hangup));
}

/// What is established between two members.
async fn established(
    server: &Identity,
    client: &Identity,
    alpn: Alpn,
) -> (
    tokio_rustls::server::TlsStream<DuplexStream>,
    tokio_rustls::client::TlsStream<DuplexStream>,
) {
    let (near, far) = duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(server.server_config());
    let connector = TlsConnector::from(client.client_config(&server.spiffe_id(), alpn));
    let (server, client) =
        tokio::join!(acceptor.accept(far), connector.connect(server_name(), near));
    (server.unwrap(), client.unwrap())
}

#[tokio::test]
async fn members_know_each_other_and_agree_on_protocol_and_cipher() {
    let ours = Ca::new();
    let (orders, storefront) = (ours.identity("orders"), ours.identity("storefront"));
    for alpn in [Alpn::H2, Alpn::Http1] {
        for _ in 0..2 {
            let (server, client) = established(&orders, &storefront, alpn).await;
            let (server, client) = (server.get_ref().1, client.get_ref().1);
            let caller = peer_identity(server.peer_certificates().unwrap()).unwrap();
            assert_eq!(*caller, service("storefront"));
            let called = peer_identity(client.peer_certificates().unwrap()).unwrap();
            assert_eq!(*called, service("orders"));
            assert_eq!(client.alpn_protocol(), Some(alpn.name()));
            assert_eq!(
                client.negotiated_cipher_suite().unwrap().suite(),
                CipherSuite::TLS13_AES_128_GCM_SHA256
            );
            // The second time as well: nothing is resumed.
            assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(server.server_name(), None);
        }
    }
}

#[tokio::test]
async fn our_cipher_order_counts_when_the_peer_prefers_another() {
    let ours = Ca::new();
    let mut reversed = (*provider()).clone();
    reversed.cipher_suites.reverse();
    let verifier = ExactService {
        trust: Trust::Bundle(ours.bundle()),
        expected: service("orders"),
    };
    let certificate = ours.leaf(&svid(service("storefront").as_str())).certified();
    let client = ClientConfig::builder_with_provider(Arc::new(reversed))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    let (near, far) = duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(ours.identity("orders").server_config());
    let connector = TlsConnector::from(Arc::new(client));
    let (server, _client) =
        tokio::join!(acceptor.accept(far), connector.connect(server_name(), near));
    let suite = server.unwrap().get_ref().1.negotiated_cipher_suite();
    assert_eq!(
        suite.unwrap().suite(),
        CipherSuite::TLS13_AES_128_GCM_SHA256
    );
}

#[tokio::test]
async fn no_identity_without_a_certificate() {
    assert_eq!(peer_identity(&[]), Err(PeerProblem::NoCertificate));
}

#[tokio::test]
async fn an_rsa_certificate_is_as_good() {
    let ours = Ca::new();
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
        .unwrap();
    let chain = ours.sign(&svid("spiffe://shop.internal/ns/default/sa/client"), &key);
    let leaf = Leaf { chain, key };
    let client = Identity::new(leaf.material(ours.bundle()));
    let (server, _client) = established(&ours.identity("orders"), &client, Alpn::H2).await;
    let caller = peer_identity(server.get_ref().1.peer_certificates().unwrap()).unwrap();
    assert_eq!(*caller, id("spiffe://shop.internal/ns/default/sa/client"));
}

/// `h2` hands the text of an error to many streams, and keeps no more of it.
#[tokio::test]
async fn a_refusal_is_read_through_http2() {
    let ours = Ca::new();
    let late = ours.leaf(&spoilt(|p| lasting(p, -60, -30))).certified();
    let client = rogue_client(&ours, Some(late));
    let (near, far) = duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(ours.identity("orders").server_config());
    let asking = async {
        let stream = TlsConnector::from(client)
            .connect(server_name(), near)
            .await
            .unwrap();
        ask_over_http2(stream).await
    };
    let (server, (stream, connection)) = tokio::join!(acceptor.accept(far), asking);
    assert!(server.is_err());
    let expected = Some(PeerProblem::Refused(Refusal::OutOfDate));
    assert_eq!(PeerProblem::from_error(&stream), expected, "{stream:?}");
    assert_eq!(
        PeerProblem::from_error(&connection),
        expected,
        "{connection:?}"
    );
}

/// The errors of a request and of the connection under it.
async fn ask_over_http2(stream: impl AsyncRead + AsyncWrite + Unpin) -> (h2::Error, h2::Error) {
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    let request = http::Request::get("https://orders/").body(()).unwrap();
    let (response, _) = requests.send_request(request, true).unwrap();
    let (response, connection) = tokio::join!(response, connection);
    (response.unwrap_err(), connection.unwrap_err())
}

#[tokio::test]
async fn a_pinned_root_lets_in_the_ca_and_nobody_else() {
    use crate::identity::verify::sha256;
    let (ours, foreign) = (Ca::new(), Ca::new());
    let with_root = |ca: &Ca, name: &str| {
        let mut leaf = ca.leaf(&svid(service(name).as_str()));
        leaf.chain.push(ca.root.clone());
        leaf
    };
    let mut forged = with_root(&foreign, "ca");
    forged.chain.push(ours.root.clone());
    // What was pinned is no CA's: it vouches for nobody, not even for itself.
    let plain = ours.leaf(&svid(service("ca").as_str()));
    let mut selfish = ours.leaf(&svid(service("ca").as_str()));
    selfish.chain.push(plain.chain[0].clone());
    let mut late = svid(service("ca").as_str());
    lasting(&mut late, -60, -30);
    let mut late = ours.leaf(&late);
    late.chain.push(ours.root.clone());
    let cases = [
        ("the CA", with_root(&ours, "ca"), &ours.root, None),
        (
            "a service",
            with_root(&ours, "orders"),
            &ours.root,
            Some("wrong_service"),
        ),
        (
            "another CA",
            with_root(&foreign, "ca"),
            &ours.root,
            Some("unknown_authority"),
        ),
        (
            "another CA that shows our root",
            forged,
            &ours.root,
            Some("unknown_authority"),
        ),
        (
            "no root shown",
            ours.leaf(&svid(service("ca").as_str())),
            &ours.root,
            Some("unknown_authority"),
        ),
        (
            "not a root",
            selfish,
            &plain.chain[0],
            Some("not_an_identity"),
        ),
        ("expired", late, &ours.root, Some("expired")),
    ];
    for (name, leaf, pinned, expected) in cases {
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified())));
        let client = tls::stranger(sha256(pinned), &service("ca"));
        let got = shake(Arc::new(server), Arc::new(client)).await;
        let code = got.client.as_ref().map(|problem| problem.kind().as_str());
        assert_eq!(code, expected, "{name}: {got:?}");
    }
}

/// A handshake that is cut at any byte ends with a reason, and never with a panic or a wait.
#[tokio::test]
async fn a_cut_handshake_ends() {
    let ours = Ca::new();
    let server = ours.identity("orders");
    let hello = client_hello(&ours).await;
    for length in 0..hello.len() {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(&hello[..length]).await.unwrap();
        drop(near);
        let accepting = TlsAcceptor::from(server.server_config()).accept(far);
        let got = tokio::time::timeout(Duration::from_secs(10), accepting)
            .await
            .unwrap();
        assert_eq!(
            verdict(got.map(|_| ())),
            Some(PeerProblem::Hangup),
            "{length}"
        );
    }
}

async fn client_hello(ca: &Ca) -> Vec<u8> {
    let config = ca
        .identity("storefront")
        .client_config(&service("orders"), Alpn::H2);
    let name: ServerName<'static> = server_name();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}
