//! The mesh's door: only members of the mesh get in, and every refusal says why, on both sides.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::alone::{Host, IDENTITY, Origin, Reply, Way, until};
use crate::harness::certs::{Authority, lasting, nobody, service, uri};

const H1: &[&str] = &["http/1.1"];
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";

/// A sidecar of `orders` on a host of its own.
fn orders(authority: &Authority, more_services: &str) -> Host {
    let host = Host::new();
    host.identify(authority, "orders");
    host.configure(&format!(
        "{IDENTITY}services:\n  orders: {{ endpoints: [\"{}\"], port: {} }}\n{more_services}",
        host.mesh(),
        host.app().port()
    ));
    host
}

#[tokio::test]
async fn strangers_are_refused_each_with_its_reason_in_the_log_and_the_metric() {
    let (mesh, foreign) = (Authority::new(), Authority::new());
    let host = orders(&mesh, "");
    let app = Origin::fine(host.app()).await;
    let mut sidecar = host.sidecar("orders").await;
    let storefront = service("storefront");
    // Each from an address of its own: of one peer the log says the same only once a minute.
    let next = std::cell::Cell::new(0);
    let tls = |config| {
        next.set(next.get() + 1);
        let own = SocketAddr::from(([127, 77, 0, next.get()], 0));
        Way::TlsFrom(own, host.mesh(), config)
    };
    let plain = Way::Plain(host.mesh());
    let spoiled = |spoil: fn(&mut rcgen::CertificateParams)| {
        tls(mesh.leaf_with(&storefront, spoil).client(H1))
    };
    let named = |id: &str| tls(mesh.leaf(id).client(H1));

    // Who comes, the cause in log and metric, the words of the log, the alert that tells the client.
    let strangers = [
        (
            "a stranger",
            tls(foreign.leaf(&storefront).client(H1)),
            "unknown_authority",
            "issued by a CA that is not in our trust bundle",
            "UnknownCA",
        ),
        (
            "another trust domain",
            named("spiffe://other.internal/service/storefront"),
            "trust_domain",
            "spiffe://other.internal/service/storefront, which is not of the trust domain shop.internal",
            "BadCertificate",
        ),
        (
            "a trust domain that ours is a prefix of",
            named("spiffe://shop.internal.example/service/storefront"),
            "trust_domain",
            "not of the trust domain",
            "BadCertificate",
        ),
        (
            "an expired one",
            spoiled(|leaf| lasting(leaf, -7200, -3600)),
            "expired",
            "expired 36",
            "CertificateExpired",
        ),
        (
            "one of tomorrow",
            spoiled(|leaf| lasting(leaf, 3600, 7200)),
            "not_yet_valid",
            "check the clocks of both hosts",
            "CertificateExpired",
        ),
        (
            "nobody",
            tls(nobody(rustls::ALL_VERSIONS, H1)),
            "no_certificate",
            "sent no certificate",
            "CertificateRequired",
        ),
        (
            "TLS 1.2",
            tls(nobody(&[&rustls::version::TLS12], H1)),
            "protocol",
            "speaks no TLS 1.3",
            "ProtocolVersion",
        ),
        (
            "two identities",
            spoiled(|leaf| {
                leaf.subject_alt_names =
                    vec![uri(&service("storefront")), uri(&service("ingress"))];
            }),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "no identity",
            spoiled(|leaf| leaf.subject_alt_names.clear()),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity with a query",
            named("spiffe://shop.internal/service/storefront?x"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity with a port",
            named("spiffe://shop.internal:80/service/storefront"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity with dot segments",
            named("spiffe://shop.internal/service/x/../storefront"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity of another scheme",
            named("https://shop.internal/service/storefront"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity with a fragment",
            named("spiffe://shop.internal/service/storefront#x"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity with a user",
            named("spiffe://storefront@shop.internal/service/storefront"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity with an escape",
            named("spiffe://shop.internal/service/store%66ront"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity in capitals",
            named("spiffe://SHOP.internal/service/storefront"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity with a line end",
            named("spiffe://shop.internal/service/store\nfront"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity with a slash at its end",
            named("spiffe://shop.internal/service/storefront/"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity without a path",
            named("spiffe://shop.internal"),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "an identity of more than 2,048 bytes",
            named(&format!("{}{}", service("storefront"), "x".repeat(2048))),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "a leaf that may sign lists of revoked ones",
            spoiled(|leaf| leaf.key_usages.push(KeyUsagePurpose::CrlSign)),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "a leaf that says nothing of its use",
            spoiled(|leaf| leaf.key_usages.clear()),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "a leaf that may not sign handshakes",
            spoiled(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "a CA's certificate",
            spoiled(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "not_an_identity",
            "a CA's, not a workload's",
            "CertificateUnknown",
        ),
        (
            "a leaf that may sign certificates",
            spoiled(|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            "not_an_identity",
            "X.509-SVID",
            "CertificateUnknown",
        ),
        (
            "a certificate for servers only",
            spoiled(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "not_an_identity",
            "extended key usage",
            "CertificateUnknown",
        ),
    ];
    for (who, way, cause, words, alert) in strangers {
        let before = failures(&sidecar, cause).await;
        // In TLS 1.3 a client's handshake is over before the server has looked at its certificate: the first read tells.
        let error = way.send(REQUEST).await.expect_err(who).to_string();
        assert!(
            error.contains(alert),
            "{who} was told {error:?}, not {alert}"
        );
        until(&format!("{who} in the metric"), async || {
            (failures(&sidecar, cause).await > before).then_some(())
        })
        .await;
        sidecar
            .logged(&[
                ("message", "refused a peer"),
                ("level", "WARN"),
                ("listener", "inbound"),
                ("cause", cause),
                ("problem", words),
            ])
            .await;
    }

    for bytes in [
        REQUEST,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ] {
        let before = failures(&sidecar, "plaintext").await;
        let answer = plain.send(bytes).await.unwrap_or_default();
        assert!(
            !answer.starts_with(b"HTTP/"),
            "plaintext was answered: {answer:?}"
        );
        until("plaintext in the metric", async || {
            (failures(&sidecar, "plaintext").await > before).then_some(())
        })
        .await;
    }
    sidecar
        .logged(&[
            ("cause", "plaintext"),
            ("problem", "does not speak TLS here"),
        ])
        .await;

    assert_eq!(app.bytes(), 0, "something got through");
    let good = tls(mesh.leaf(&storefront).client(H1))
        .send(REQUEST)
        .await
        .unwrap();
    assert_eq!(Reply::parse(&good).status, 200);
    sidecar.assert_alive().await;
}

async fn failures(sidecar: &crate::alone::Running, cause: &str) -> f64 {
    let labels = [("listener", "inbound"), ("cause", cause)];
    sidecar
        .metric("weft_tls_handshake_failures_total", &labels)
        .await
}

/// A server that is not what it should be: shakes hands as far as it gets.
pub(crate) struct Impostor(JoinHandle<()>);

impl Drop for Impostor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Impostor {
    pub(crate) async fn tls(address: SocketAddr, config: Arc<ServerConfig>) -> Self {
        Self::start(address, move |stream| {
            let acceptor = TlsAcceptor::from(Arc::clone(&config));
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        })
        .await
    }

    pub(crate) async fn plain(address: SocketAddr) -> Self {
        Self::start(address, |mut stream| {
            tokio::spawn(async move {
                stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                    .await
            });
        })
        .await
    }

    pub(crate) async fn start(
        address: SocketAddr,
        act: impl Fn(TcpStream) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        Self(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                act(stream);
            }
        }))
    }
}

#[tokio::test]
async fn a_peer_that_is_not_the_service_that_was_meant_gets_no_request() {
    let (mesh, foreign) = (Authority::new(), Authority::new());
    let host = Host::new();
    let at = |port: u16| host.at(21_600 + port);
    let inventory = service("inventory");
    let h2 = &["h2"];
    let spoilt = async |address, spoil: fn(&mut rcgen::CertificateParams)| {
        Impostor::tls(address, mesh.leaf_with(&inventory, spoil).server(h2)).await
    };
    let _peers = [
        Impostor::tls(at(0), mesh.leaf(&service("billing")).server(h2)).await,
        Impostor::tls(
            at(1),
            mesh.leaf("spiffe://other.internal/service/inventory")
                .server(h2),
        )
        .await,
        Impostor::tls(
            at(2),
            mesh.leaf_with(&inventory, |leaf| lasting(leaf, -7200, -3600))
                .server(h2),
        )
        .await,
        Impostor::tls(
            at(3),
            mesh.leaf_with(&inventory, |leaf| lasting(leaf, 3600, 7200))
                .server(h2),
        )
        .await,
        Impostor::tls(at(4), foreign.leaf(&inventory).server(h2)).await,
        Impostor::plain(at(5)).await,
        Impostor::tls(at(6), mesh.website("inventory").server(h2)).await,
        spoilt(at(7), |leaf| {
            leaf.subject_alt_names = vec![uri(&service("inventory")), uri(&service("billing"))];
        })
        .await,
        spoilt(at(8), |leaf| {
            leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        })
        .await,
        spoilt(at(9), |leaf| {
            leaf.key_usages.push(KeyUsagePurpose::KeyCertSign);
        })
        .await,
        spoilt(at(10), |leaf| {
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
        .await,
        spoilt(at(11), |leaf| {
            leaf.subject_alt_names = vec![uri("spiffe://shop.internal/service/inventory?x")];
        })
        .await,
        Impostor::tls(
            at(12),
            mesh.leaf("spiffe://shop.internal.example/service/inventory")
                .server(h2),
        )
        .await,
        Impostor::tls(
            at(13),
            mesh.leaf("spiffe://shop.internal/service/inventory2")
                .server(h2),
        )
        .await,
    ];
    let peers = [
        (
            0,
            "peer_identity",
            "the peer is spiffe://shop.internal/service/billing, but spiffe://shop.internal/service/inventory was meant",
        ),
        (
            1,
            "peer_identity",
            "the peer is spiffe://other.internal/service/inventory, which is not of the trust domain shop.internal",
        ),
        (2, "tls_failed", "the peer's certificate expired 36"),
        (3, "tls_failed", "is not valid for another"),
        (
            4,
            "tls_failed",
            "issued by a CA that is not in our trust bundle",
        ),
        (5, "tls_failed", "does not speak TLS here"),
        (6, "peer_identity", "is not an acceptable X.509-SVID"),
        (7, "peer_identity", "it has more than one URI name"),
        (8, "peer_identity", "it is a CA's, not a workload's"),
        (9, "peer_identity", "its key usage has keyCertSign"),
        (10, "peer_identity", "extended key usage"),
        (11, "peer_identity", "is no SPIFFE ID"),
        (
            12,
            "peer_identity",
            "which is not of the trust domain shop.internal",
        ),
        (
            13,
            "peer_identity",
            "but spiffe://shop.internal/service/inventory was meant",
        ),
    ];
    let mut services = String::from("services:\n  orders: {}\n");
    for (number, ..) in peers {
        services.push_str(&format!(
            "  inventory-{number}: {{ endpoints: [\"{}\"], identity: \"{inventory}\", retry: {{ attempts: 0 }} }}\n",
            at(number)
        ));
    }
    host.identify(&mesh, "orders");
    host.configure(&format!("{IDENTITY}{services}"));
    let mut sidecar = host.sidecar("orders").await;
    for (number, reason, words) in peers {
        let name = format!("inventory-{number}");
        let reply = Way::Plain(host.outbound())
            .ask("POST /stock", &[("host", &name)], "secret")
            .await;
        let detail = reply.refused(502, reason);
        assert!(detail.contains(words), "{name}: {detail}");
        assert!(detail.contains(&at(number).to_string()), "{name}: {detail}");
        sidecar
            .logged(&[
                ("message", "the handshake with a peer failed"),
                ("service", &name),
                ("expected", &inventory),
                ("endpoint", &at(number).to_string()),
                ("problem", words),
            ])
            .await;
    }
    assert!(
        sidecar
            .metric("weft_answers_total", &[("reason", "peer_identity")])
            .await
            >= 3.0
    );
    assert!(
        sidecar
            .metric("weft_answers_total", &[("reason", "tls_failed")])
            .await
            >= 4.0
    );
    sidecar.assert_alive().await;
}

/// The other half of a refusal: the one that was refused can tell its own operator why.
#[tokio::test]
async fn a_sidecar_that_is_refused_tells_its_app_what_the_peer_holds_against_it() {
    let (mesh, foreign) = (Authority::new(), Authority::new());
    let callee = orders(&mesh, "");
    let app = Origin::fine(callee.app()).await;
    let mut called = callee.sidecar("orders").await;

    let caller = Host::new();
    foreign
        .leaf(&service("storefront"))
        .write(caller.directory(), "own");
    caller.write("roots.pem", &(mesh.bundle() + &foreign.bundle()));
    caller.configure(&format!(
        "{IDENTITY}services:\n  storefront: {{}}\n  orders: {{ endpoints: [\"{}\"] }}\n",
        callee.mesh()
    ));
    let mut calling = caller.sidecar("storefront").await;
    let reply = Way::Plain(caller.outbound())
        .ask("GET /", &[("host", "orders")], "")
        .await;
    let detail = reply.refused(502, "tls_failed");
    assert!(
        detail.contains("it does not trust the CA that issued our certificate"),
        "{detail}"
    );
    called
        .logged(&[("cause", "unknown_authority"), ("level", "WARN")])
        .await;
    assert_eq!(app.bytes(), 0);
    called.assert_alive().await;
    calling.assert_alive().await;
}

#[tokio::test]
async fn members_talk_through_both_sidecars() {
    let mesh = Authority::new();
    let callee = orders(&mesh, "");
    let app = Origin::fine(callee.app()).await;
    let _called = callee.sidecar("orders").await;
    let caller = Host::new();
    caller.identify(&mesh, "storefront");
    caller.configure(&format!(
        "{IDENTITY}services:\n  storefront: {{}}\n  orders: {{ endpoints: [\"{}\"] }}\n",
        callee.mesh()
    ));
    let _calling = caller.sidecar("storefront").await;
    let reply = Way::Plain(caller.outbound())
        .ask("GET /orders/7", &[("host", "orders")], "")
        .await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    let seen = app.last();
    assert_eq!(seen.target(), "/orders/7");
    assert_eq!(
        seen.fields("x-forwarded-client-cert"),
        ["By=spiffe://shop.internal/service/orders;URI=spiffe://shop.internal/service/storefront"]
    );
}
