//! Every reason that Weft can give, provoked: its status, its problem+json, its `grpc-status` and its count.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use weft_dataplane::reason::Reason;

use crate::alone::{Host, IDENTITY, Origin, Reply, Running, Then, Way, until};
use crate::forge::{ec_key, from_now, other_ec_key, rsa_key};
use crate::harness::certs::{Authority, service};
use crate::mtls::Impostor;

const ISSUER: &str = "https://id.example";

/// How a reason is brought about here.
enum Provoke {
    /// These bytes, at the gateway: they are refused before they are a request, so nobody knows whether they are gRPC.
    Bytes(Vec<u8>),
    /// A request of this path at the gateway, with this token.
    Gateway(&'static str, Option<String>),
    /// A request to this service at the sidecar.
    Sidecar(&'static str),
    /// The same, with no time left for it.
    Hurried(&'static str),
    /// The same, with a body that does not go on.
    Stalled(&'static str),
    /// A request by a member of the mesh to a sidecar that drains, and whose app has ended before it.
    Leaving,
    /// Not at all here, because of this.
    Cannot(&'static str),
}

/// One arm for each reason: a new one does not compile until somebody says how it comes about.
fn provocation(reason: Reason) -> Provoke {
    use Provoke::{Bytes, Cannot, Gateway, Hurried, Leaving, Sidecar, Stalled};
    let head = |line: &str, rest: &str| {
        Bytes(format!("{line} HTTP/1.1\r\nhost: api.example\r\n{rest}\r\n").into_bytes())
    };
    let es256 = |change: &str, value: Value| {
        let mut claims = json!({ "iss": ISSUER, "aud": "shop", "exp": from_now(600) });
        claims[change] = value;
        let token = ec_key().token(&json!({ "alg": "ES256", "kid": "ec" }), &claims);
        Gateway("/users/x", Some(token))
    };
    let signed = |signer: &crate::forge::Signer, algorithm: &str, id: &str| {
        let claims = json!({ "iss": ISSUER, "aud": "shop", "exp": from_now(600) });
        let token = signer.token(&json!({ "alg": algorithm, "kid": id }), &claims);
        Gateway("/users/x", Some(token))
    };
    match reason {
        Reason::MalformedRequest => head("GET /", "x : y\r\n"),
        Reason::HeadTooLarge => head("GET /", &format!("x: {}\r\n", "y".repeat(70_000))),
        Reason::TargetTooLong => head(&format!("GET /{}", "x".repeat(17_000)), ""),
        Reason::HeadTimeout => Bytes(b"GET / HTTP/1.1\r\nhost: api.ex".to_vec()),
        Reason::BodyTimeout => Stalled("slow"),
        Reason::ExpectationUnknown => head("GET /", "expect: miracles\r\n"),
        Reason::VersionUnsupported => {
            Bytes(b"GET / HTTP/1.2\r\nhost: api.example\r\n\r\n".to_vec())
        }
        Reason::MethodUnsupported => head("CONNECT api.example:443", ""),
        Reason::UpgradeRefused => head("POST /", "connection: upgrade\r\nupgrade: websocket\r\n"),
        Reason::NoRoute => Gateway("/nowhere", None),
        Reason::NoService => Sidecar("nobody"),
        Reason::TokenMissing => Gateway("/users/x", None),
        Reason::TokenMalformed => Gateway("/users/x", Some("x".into())),
        Reason::TokenAlgorithm => signed(ec_key(), "ES512", "ec"),
        Reason::TokenKeyUnknown => signed(ec_key(), "ES256", "next"),
        Reason::TokenSignature => signed(other_ec_key(), "ES256", "ec"),
        Reason::TokenExpired => es256("exp", json!(from_now(-3600))),
        Reason::TokenNotYetValid => es256("nbf", json!(from_now(3600))),
        Reason::TokenIssuer => es256("iss", json!("https://other.example")),
        Reason::TokenAudience => es256("aud", json!("bank")),
        Reason::KeySetUnavailable => Gateway("/away/x", Some("x.y.z".into())),
        Reason::EgressDenied | Reason::PlaintextRefused => {
            Cannot("it takes redirected connections: tests/netns")
        }
        Reason::Denied => Sidecar("closed"),
        Reason::RateLimited => Gateway("/limited/x", None),
        Reason::Overloaded => Sidecar("narrow"),
        Reason::CircuitOpen => Sidecar("broken"),
        Reason::NoEndpoints => Sidecar("unresolved"),
        Reason::ConnectFailed => Sidecar("dead"),
        Reason::ConnectTimeout => Sidecar("silent"),
        Reason::TlsFailed => Sidecar("plaintext"),
        Reason::PeerIdentity => Sidecar("usurped"),
        Reason::IdentityMissing => Gateway("/mesh/x", None),
        Reason::UpstreamReset => Sidecar("resetting"),
        Reason::UpstreamMalformed => Sidecar("babbling"),
        Reason::UpstreamTimeout => Sidecar("slow"),
        Reason::Draining => Leaving,
        Reason::DeadlineExceeded => Hurried("plain"),
        // Of this process's own limit nobody is told: a connection beyond it is closed unread, because an answer would
        // cost what the limit saves.
        Reason::TooManyConnections => Sidecar("crowded"),
        Reason::Internal => Cannot("it takes a fault of ours: dataplane/src/http/answer.rs"),
    }
}

/// A gateway without an identity, a sidecar, and all that can be wrong behind them.
struct Scene {
    host: Host,
    sidecar: Running,
    ingress: Running,
    /// A sidecar that drains, without an app, and how members of the mesh come in.
    leaving: Running,
    mesh: Way,
    _left: Host,
    _edge: Host,
    _origins: Vec<Origin>,
    _silent: TcpListener,
    _plaintext: Impostor,
    _busy: JoinHandle<()>,
}

impl Scene {
    async fn set() -> Self {
        let mesh = Authority::new();
        let host = Host::new();
        let at = |number: u16| host.at(21_600 + number);
        let origins = vec![
            Origin::fine(at(0)).await,
            // Takes a request and closes without an answer.
            Origin::start(at(1), |_| Then::Close(Vec::new())).await,
            Origin::start(at(2), |_| Then::Close(b"200 OK\r\n\r\n".to_vec())).await,
            Origin::start(at(3), |_| Then::Hang).await,
        ];
        let plaintext = Impostor::plain(at(4)).await;
        let silent = TcpListener::bind(at(5)).await.unwrap();
        host.identify(&mesh, "orders");
        host.write(
            "keys.json",
            &json!({ "keys": [ec_key().jwk("ec"), rsa_key().jwk("rsa")] }).to_string(),
        );
        let keys = host.directory().join("keys.json");
        let outside = |number: u16, more: &str| {
            format!(
                "{{ mesh: false, endpoints: [\"{}\"], retry: {{ attempts: 0 }}, outlier: {{ enabled: false }}{more} }}",
                at(number)
            )
        };
        let services = format!(
            "services:
  orders: {{ port: {app}, endpoints: [\"{mesh}\"], identity: \"{orders}\" }}
  closed: {{ endpoints: [\"{mesh}\"], identity: \"{orders}\" }}
  usurped: {{ endpoints: [\"{mesh}\"] }}
  plaintext: {{ endpoints: [\"{babbling}\"] }}
  silent: {{ endpoints: [\"{silent}\"], connect_timeout: 200ms, retry: {{ attempts: 0 }} }}
  unresolved: {{ mesh: false, dns: nobody.invalid }}
  plain: {plain}
  dead: {dead}
  resetting: {resetting}
  babbling: {garbage}
  slow: {slow}
  narrow: {narrow}
  crowded: {crowded}
  broken: {broken}
",
            app = at(0).port(),
            mesh = host.mesh(),
            orders = service("orders"),
            babbling = at(4),
            silent = at(5),
            plain = outside(0, ""),
            dead = outside(9, ""),
            resetting = outside(1, ""),
            garbage = outside(2, ""),
            slow = outside(3, ", timeout: 200ms"),
            narrow = outside(3, ", limits: { in_flight: 1 }, timeout: 10m"),
            crowded = outside(3, ", limits: { connections: 1 }, timeout: 10m"),
            broken = outside(
                9,
                ", breaker: { enabled: true, requests: 1, open: 10m, max_open: 10m }"
            ),
        );
        let resolver = format!("resolver: {{ servers: [\"{}\"] }}\n", at(10));
        let closed = services.replace(
            &format!("orders: {{ port: {}", at(0).port()),
            &format!(
                "orders: {{ allow: [ {{ from: [silent] }} ], port: {}",
                at(0).port()
            ),
        );
        host.configure(&format!("{IDENTITY}{resolver}{closed}"));
        let sidecar = host.sidecar("orders").await;

        // The gateway begins without a route into the mesh, so without an identity; then one is added while the CA is away.
        let gateway = |routes: &str| {
            format!(
                "ca: {{ address: \"{}\" }}\n{resolver}{services}ingress:
  listeners: [ {{ name: public, address: \"{}\" }} ]
  authn:
    users: {{ jwt: {{ issuer: \"{ISSUER}\", audience: [shop], jwks: {{ file: \"{}\" }} }} }}
    away: {{ jwt: {{ issuer: \"{ISSUER}\", jwks: {{ url: \"http://{}/keys\" }} }} }}
  limits: {{ few: {{ key: route, rate: 1/h }} }}
  routes:
    - {{ match: {{ path: /users/* }}, authn: users, to: plain }}
    - {{ match: {{ path: /away/* }}, authn: away, to: plain }}
    - {{ match: {{ path: /limited/* }}, limits: [few], to: plain }}
{routes}",
                at(12),
                host.public(),
                keys.display(),
                at(11),
            )
        };
        let edge = host.beside();
        edge.configure(&gateway(""));
        let ingress = edge.ingress().await;
        edge.configure(&gateway("    - { match: { path: /mesh/* }, to: orders }\n"));
        ingress.reloaded(1).await;
        // The one request that may be in flight there, and the one connection that there may be.
        let busy = tokio::spawn({
            let outbound = host.outbound();
            async move {
                let ask = async |name: &str| {
                    let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\n\r\n");
                    Way::Plain(outbound).send(request.as_bytes()).await
                };
                let _: (std::io::Result<Vec<u8>>, _) = tokio::join!(ask("narrow"), ask("crowded"));
            }
        });
        until("the busy ones to arrive", async || {
            (origins[3].requests().len() == 2).then_some(())
        })
        .await;
        let failed = Way::Plain(host.outbound())
            .ask("GET /x", &[("host", "broken")], "")
            .await;
        assert_eq!(failed.status, 502, "which opens its breaker");
        let limited = Way::Plain(host.public())
            .ask("GET /limited/x", &[("host", "x")], "")
            .await;
        assert_eq!(limited.status, 200);
        let left = Host::new();
        left.identify(&mesh, "orders");
        left.configure(&format!(
            "{IDENTITY}drain: {{ delay: 10m }}\nservices: {{ orders: {{ port: {} }} }}\n",
            left.app().port()
        ));
        let leaving = left.sidecar("orders").await;
        leaving.terminate();
        leaving.logged(&[("message", "draining")]).await;
        let member = mesh.leaf(&service("storefront")).client(&["http/1.1"]);
        let mut scene = Self {
            host,
            sidecar,
            ingress,
            leaving,
            mesh: Way::Tls(left.mesh(), member),
            _left: left,
            _edge: edge,
            _origins: origins,
            _silent: silent,
            _plaintext: plaintext,
            _busy: busy,
        };
        scene.sidecar.assert_alive().await;
        scene
    }

    async fn ask(&self, provoke: &Provoke, grpc: bool) -> Reply {
        let mut fields = vec![];
        if grpc {
            fields.extend([
                ("content-type", "application/grpc+proto"),
                ("te", "trailers"),
            ]);
        }
        match provoke {
            Provoke::Bytes(bytes) => {
                let answer = Way::Plain(self.host.public()).send(bytes).await.unwrap();
                Reply::parse(&answer)
            }
            Provoke::Gateway(path, token) => {
                let bearer = token.as_ref().map(|token| format!("Bearer {token}"));
                fields.push(("host", "api.example"));
                fields.extend(
                    bearer
                        .as_ref()
                        .map(|bearer| ("authorization", bearer.as_str())),
                );
                Way::Plain(self.host.public())
                    .ask(&format!("GET {path}"), &fields, "")
                    .await
            }
            Provoke::Sidecar(name) | Provoke::Hurried(name) => {
                fields.push(("host", name));
                if matches!(provoke, Provoke::Hurried(_)) {
                    fields.push(("weft-timeout", "0"));
                }
                Way::Plain(self.host.outbound())
                    .ask("GET /x", &fields, "")
                    .await
            }
            Provoke::Stalled(name) => {
                fields.extend([("host", *name), ("content-length", "100")]);
                // Sends what it is given and no more.
                Way::Plain(self.host.outbound())
                    .ask("POST /x", &fields, "")
                    .await
            }
            Provoke::Leaving => {
                fields.push(("host", "orders"));
                self.mesh.ask("GET /x", &fields, "").await
            }
            Provoke::Cannot(why) => unreachable!("{why}"),
        }
    }

    /// The process that answers, and how often it did so for this reason.
    async fn answers(&self, provoke: &Provoke, reason: Reason) -> f64 {
        let process = match provoke {
            Provoke::Sidecar(_) | Provoke::Hurried(_) | Provoke::Stalled(_) => &self.sidecar,
            Provoke::Leaving => &self.leaving,
            _ => &self.ingress,
        };
        process
            .metric("weft_answers_total", &[("reason", reason.code())])
            .await
    }
}

#[tokio::test]
async fn every_reason_has_its_status_its_problem_and_its_count() {
    let mut scene = Scene::set().await;
    let mut shown = 0;
    for reason in Reason::ALL.iter().copied() {
        let provoke = provocation(reason);
        if let Provoke::Cannot(why) = provoke {
            assert!(!why.is_empty());
            continue;
        }
        let before = scene.answers(&provoke, reason).await;
        let reply = scene.ask(&provoke, false).await;
        let detail = reply.refused(reason.status().as_u16(), reason.code());
        assert_eq!(
            reply.problem()["cure"],
            reason.cure(),
            "{reason:?}: {detail}"
        );
        assert_eq!(
            reply.field("content-length"),
            Some(reply.body.len().to_string().as_str()),
            "{reason:?}"
        );
        let counted = scene.answers(&provoke, reason).await - before;
        assert!(counted >= 1.0, "{reason:?} was not counted");
        shown += 1;

        if matches!(provoke, Provoke::Bytes(_)) {
            continue;
        }
        let reply = scene.ask(&provoke, true).await;
        assert_eq!(reply.status, 200, "{reason:?} as gRPC: {reply:?}");
        assert_eq!(
            reply.field("content-type"),
            Some("application/grpc"),
            "{reason:?}"
        );
        assert_eq!(
            reply.field("grpc-status"),
            Some(reason.grpc_status().to_string().as_str()),
            "{reason:?}"
        );
        let message = reply.field("grpc-message").unwrap_or_default();
        assert!(
            message.starts_with(&format!("{}: ", reason.code())),
            "{reason:?}: {message}"
        );
        assert!(
            message.bytes().all(|byte| (0x20..0x7f).contains(&byte)),
            "{message}"
        );
        assert_eq!(reply.field("weft-reason"), Some(reason.code()));
        assert!(reply.body.is_empty(), "{reason:?}: {reply:?}");
    }
    assert_eq!(
        shown,
        Reason::ALL.len() - 3,
        "some cannot be shown any more"
    );
    scene.ingress.assert_alive().await;
    scene.sidecar.assert_alive().await;
}

/// What has no body has its reason in a field all the same.
#[tokio::test]
async fn an_answer_to_head_has_the_reason_and_no_body() {
    let host = Host::new();
    host.configure(&format!(
        "ingress: {{ listeners: [ {{ name: public, address: \"{}\" }} ] }}\n",
        host.public()
    ));
    let _ingress = host.ingress().await;
    let reply = Way::Plain(host.public())
        .ask("HEAD /x", &[("host", "x")], "")
        .await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.field("weft-reason"), Some("no_route"));
    assert!(reply.body.is_empty());
}
