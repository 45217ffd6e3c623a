//! Who one is: nobody is ready without an identity, a token works once and for one service, and what is secret stays so.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weft_dataplane::identity::TokenSource;
use weft_dataplane::identity::client::{self, AskError};

use crate::alone::{Host, IDENTITY, Origin, PATIENCE, Running, Way, until};
use crate::harness::certs::{Authority, DOMAIN, lasting, service};
use crate::harness::{Mesh, Service};

/// The port of the CA, on its own host.
const CA_PORT: u16 = 21_512;

/// A CA on a host of its own.
struct Ca {
    host: Host,
    running: Running,
}

impl Ca {
    async fn start() -> Self {
        let host = Host::new();
        host.configure(&Self::section(&host));
        let mut running = host.start(&["ca", "serve"], &[]);
        running.ready().await;
        Self { host, running }
    }

    fn section(host: &Host) -> String {
        format!(
            "ca: {{ address: \"{}\", state: ca-state }}\n\
             services: {{ orders: {{ port: 21590 }}, billing: {{}} }}\n",
            host.at(CA_PORT)
        )
    }

    fn state(&self) -> PathBuf {
        self.host.directory().join("ca-state")
    }

    /// `weft ca token create`, while the CA serves.
    async fn token(&self, service: &str) -> String {
        let made = self
            .command(&["token", "create", "--service", service])
            .await;
        assert!(made.status.success(), "{made:?}");
        let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        assert!(
            !token.is_empty() && !token.contains(char::is_whitespace),
            "the token alone: {token:?}"
        );
        token
    }

    async fn command(&self, arguments: &[&str]) -> Output {
        operate(&self.host, arguments).await
    }

    /// A host whose configuration names this CA.
    fn client(&self) -> Host {
        let host = Host::new();
        host.configure(&Self::section(&self.host));
        host
    }

    async fn restart(self) -> Self {
        self.running.kill().await;
        let mut running = self.host.start(&["ca", "serve"], &[]);
        running.ready().await;
        Self {
            host: self.host,
            running,
        }
    }
}

/// `weft ca ARGUMENTS` on this host.
async fn operate(host: &Host, arguments: &[&str]) -> Output {
    let run = Command::new(crate::harness::told::WEFT.as_str())
        .arg("ca")
        .args(arguments)
        .arg("--config")
        .arg(host.directory().join("weft.yaml"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    timeout(PATIENCE, run).await.unwrap().unwrap()
}

/// The sidecar of a service, with a token, not yet ready.
fn joining(host: &Host, service: &str, token: &str) -> Running {
    host.start(
        &["sidecar", "--service", service, "--workers", "1"],
        &[("WEFT_JOIN_TOKEN", token)],
    )
}

/// Waits for the words with which a sidecar says why it has no certificate, and that it is not ready.
async fn refused(sidecar: &Running, words: &str) {
    sidecar
        .logged(&[
            ("message", "no certificate yet"),
            ("level", "WARN"),
            ("problem", words),
        ])
        .await;
    let ready = until("the admin pages", async || sidecar.readiness().await).await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("identity"), "{}", ready.text());
}

/// Whoever makes a token where there is no authority has made one, and is told; and that nobody knows who is to join.
#[tokio::test]
async fn a_token_of_a_new_authority_or_for_nobody_is_said_so() {
    let host = Host::new();
    host.configure(&Ca::section(&host));
    for (service, wanted) in [
        ("orders", "there was no authority in "),
        ("orders", ""),
        ("ordres", "there is no `ordres` under `services:`"),
    ] {
        let made = operate(&host, &["token", "create", "--service", service]).await;
        assert!(made.status.success(), "{made:?}");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(said.starts_with(wanted), "{made:?}");
        assert_eq!(said.is_empty(), wanted.is_empty(), "{made:?}");
    }
}

#[tokio::test]
async fn a_sidecar_with_the_certificate_of_another_service_says_so() {
    let mesh = Authority::new();
    let host = Host::new();
    host.identify(&mesh, "admin");
    host.configure(&format!(
        "{IDENTITY}services: {{ orders: {{}}, admin: {{}} }}\n"
    ));
    for (service, wanted) in [("orders", true), ("admin", false)] {
        let sidecar = host.sidecar(service).await;
        let is_said = sidecar.log_text().contains("the certificate is another's");
        assert_eq!(is_said, wanted, "{service}: {}", sidecar.log_text());
        sidecar.kill().await;
    }
}

#[tokio::test]
async fn a_sidecar_is_ready_only_with_an_identity_and_a_token_works_once() {
    let ca = Ca::start().await;
    let host = ca.client();
    // Nothing to prove itself with: running, listening to its operator, not ready, not in the mesh.
    let empty_handed = host.start(&["sidecar", "--service", "orders", "--workers", "1"], &[]);
    refused(&empty_handed, "token").await;
    assert!(tokio::net::TcpStream::connect(host.mesh()).await.is_err());
    empty_handed.kill().await;

    let token = ca.token("orders").await;
    let mut first = joining(&host, "orders", &token);
    first.ready().await;
    first
        .logged(&[
            ("message", "certificate obtained"),
            ("id", "spiffe://shop.internal/service/orders"),
        ])
        .await;
    let _app = Origin::fine(host.app()).await;
    let itself = Way::Plain(host.outbound())
        .ask("GET /", &[("host", "orders.invalid")], "")
        .await;
    itself.refused(404, "no_service");

    let second_host = ca.client();
    let second = joining(&second_host, "orders", &token);
    refused(
        &second,
        "the join token was already used; a token is good for one start",
    )
    .await;
    assert!(
        tokio::net::TcpStream::connect(second_host.mesh())
            .await
            .is_err()
    );
    // Nor does the log give away what would let somebody in.
    for log in [first.log_text(), second.log_text(), ca.running.log_text()] {
        assert!(!log.contains(&token), "the token is in a log:\n{log}");
    }
    first.assert_alive().await;
}

#[tokio::test]
async fn a_token_is_for_one_service_of_one_ca() {
    let ca = Ca::start().await;
    let host = ca.client();
    let token = ca.token("billing").await;
    let wrong = joining(&host, "orders", &token);
    refused(&wrong, "billing").await;
    wrong.kill().await;

    let other = Ca::start().await;
    let foreign = joining(&host, "orders", &other.token("orders").await);
    let line = foreign
        .logged(&[("message", "no certificate yet"), ("level", "WARN")])
        .await;
    assert!(!line["problem"].as_str().unwrap().is_empty(), "{line}");
    assert_eq!(
        until("the admin pages", async || foreign.readiness().await)
            .await
            .status,
        503
    );
    foreign.kill().await;

    // A token that is none is a mistake of whoever started it, and is said at once.
    let mut garbled = joining(&host, "orders", "let me in");
    assert!(!garbled.ended().await.success());
    assert!(
        garbled.log_text().contains("WEFT_JOIN_TOKEN"),
        "{}",
        garbled.log_text()
    );

    let nobody = ca.command(&["token", "create", "--service", "ca"]).await;
    assert!(!nobody.status.success());
    let words = String::from_utf8(nobody.stderr).unwrap();
    assert!(words.contains("the authority's own name"), "{words}");
}

#[tokio::test]
async fn the_cas_state_is_private_and_survives_a_restart() {
    let ca = Ca::start().await;
    let shown = async |ca: &Ca| ca.command(&["bundle", "show"]).await.stdout;
    let before = shown(&ca).await;
    assert!(before.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let used = ca.token("orders").await;
    let unused = ca.token("orders").await;
    let host = ca.client();
    let mut sidecar = joining(&host, "orders", &used);
    sidecar.ready().await;
    sidecar.kill().await;
    for entry in std::fs::read_dir(ca.state()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} is {mode:o}", entry.path());
    }
    assert_eq!(
        std::fs::metadata(ca.state()).unwrap().permissions().mode() & 0o077,
        0
    );

    let ca = ca.restart().await;
    assert_eq!(shown(&ca).await, before, "the root is another one");
    let again = joining(&host, "orders", &used);
    refused(&again, "already used").await;
    again.kill().await;
    let mut fresh = joining(&host, "orders", &unused);
    fresh.ready().await;
}

#[tokio::test]
async fn a_ca_whose_keys_others_may_read_does_not_start() {
    let ca = Ca::start().await;
    let Ca { host, running } = ca;
    running.kill().await;
    let state = host.directory().join("ca-state");
    let mut tried = 0;
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        let holds_a_key =
            std::fs::read_to_string(&path).is_ok_and(|text| text.contains("PRIVATE KEY"));
        if !holds_a_key {
            continue;
        }
        tried += 1;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let mut opened = host.start(&["ca", "serve"], &[]);
        assert!(!opened.ended().await.success(), "{}", path.display());
        let words = opened.log_text();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(words.contains(name) && words.contains("chmod"), "{words}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert!(tried >= 2, "the root's key and the intermediate's");
    let mut closed = host.start(&["ca", "serve"], &[]);
    closed.ready().await;
}

/// Who asks this CA, with this token.
fn asking(ca: &Ca, token: Option<&str>) -> client::Authority {
    let address = ca.host.at(CA_PORT).to_string();
    client::Authority::new(address, DOMAIN.parse().unwrap())
        .unwrap()
        .token(token.map(|token| TokenSource::Given(token.parse().unwrap())))
}

/// Whatever the moment: the root stays, no token is good twice, no serial number comes twice, and who has a certificate
/// can renew it.
#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_is_killed_again_and_again_while_it_issues_keeps_its_promises() {
    let mut ca = Ca::start().await;
    let state = ca.state();
    let token = || {
        let config = weft_ca::Config::default();
        weft_ca::create_token(&state, &config, Some(DOMAIN), "orders", SystemTime::now()).unwrap()
    };
    let mut last = Arc::new(asking(&ca, Some(&token())).join().await.unwrap());
    let mut serials = HashSet::from([last.serial().to_owned()]);
    for round in 0..12 {
        let mut at_work = JoinSet::new();
        for token in (0..4).map(|_| token()) {
            let authority = asking(&ca, Some(&token));
            at_work.spawn(async move { (Some(token), authority.join().await) });
        }
        for _ in 0..2 {
            let (authority, current) = (asking(&ca, None), Arc::clone(&last));
            at_work.spawn(async move { (None, authority.renew(&current).await) });
        }
        // They are anywhere in their work then.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..40_000))).await;
        ca = ca.restart().await;
        for (token, outcome) in at_work.join_all().await {
            let mut good: Vec<_> = outcome.into_iter().collect();
            if let Some(token) = &token {
                // Used up for nothing is possible; used twice is not.
                if good.is_empty() {
                    good.extend(asking(&ca, Some(token)).join().await);
                }
                let again = asking(&ca, Some(token)).join().await.unwrap_err();
                assert!(
                    matches!(again, AskError::Refused { .. }),
                    "round {round}: {again}"
                );
            }
            for material in good {
                assert!(
                    serials.insert(material.serial().to_owned()),
                    "round {round}: a serial number came twice"
                );
                assert_eq!(material.bundle(), last.bundle(), "round {round}");
            }
        }
        last = Arc::new(asking(&ca, None).renew(&last).await.unwrap());
        assert!(serials.insert(last.serial().to_owned()));
    }
    ca = ca.restart().await;
    let left = std::fs::read_dir(ca.state()).unwrap();
    let left = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(".tmp-")
    });
    assert_eq!(left.count(), 0, "halves of files are swept");
}

#[tokio::test]
async fn an_identity_from_files_is_taken_again_when_they_change() {
    let mesh = Authority::new();
    let host = Host::new();
    host.identify(&mesh, "orders");
    host.configure(&format!(
        "{IDENTITY}services: {{ orders: {{ port: {} }} }}\n",
        host.app().port()
    ));
    let _app = Origin::fine(host.app()).await;
    let mut sidecar = host.sidecar("orders").await;
    let storefront = mesh.leaf(&service("storefront"));
    let member = Way::Tls(host.mesh(), storefront.client(&["http/1.1"]));
    assert_eq!(
        member.ask("GET /", &[("host", "orders")], "").await.status,
        200
    );
    let first = expiry(&sidecar).await;
    assert!((3000.0..=3600.0).contains(&first), "{first}");

    mesh.leaf_with(&service("orders"), |leaf| lasting(leaf, -60, 36_000))
        .write(host.directory(), "own");
    sidecar
        .logged(&[("message", "certificate taken from files")])
        .await;
    until("the new certificate", async || {
        (expiry(&sidecar).await > 30_000.0).then_some(())
    })
    .await;
    assert_eq!(
        member.ask("GET /", &[("host", "orders")], "").await.status,
        200
    );

    // Another's certificate, or one that goes with another key, is not taken: the last good one stays.
    for spoil in [
        mesh.leaf(&service("billing")),
        Authority::new().leaf(&service("orders")),
        mesh.leaf_with(&service("orders"), |leaf| lasting(leaf, -7200, -3600)),
    ] {
        let said = bad(&sidecar);
        spoil.write(host.directory(), "own");
        until("a word about it", async || {
            (bad(&sidecar) > said).then_some(())
        })
        .await;
        assert!(expiry(&sidecar).await > 30_000.0);
        assert_eq!(
            member.ask("GET /", &[("host", "orders")], "").await.status,
            200
        );
    }

    // The roots are files as well: whom they no longer name is a stranger from then on.
    let next = Authority::new();
    next.leaf(&service("orders")).write(host.directory(), "own");
    host.write("roots.pem", &next.bundle());
    let newcomer = Way::Tls(
        host.mesh(),
        next.leaf(&service("storefront")).client(&["http/1.1"]),
    );
    let request = b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";
    until("the new root", async || {
        let answer = newcomer.send(request).await.unwrap_or_default();
        answer.starts_with(b"HTTP/1.1 200").then_some(())
    })
    .await;
    assert!(
        member.send(request).await.is_err(),
        "the old root still counts"
    );
    sidecar.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ingress_follows_its_identitys_files_too() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let (host, expiry) = (mesh.ingress_host(), "weft_certificate_expiry_seconds");
    assert!(mesh.metric(host, expiry, &[]).await <= 3600.0);
    let longer = mesh
        .authority
        .leaf_with(&service("ingress"), |leaf| lasting(leaf, -60, 36_000));
    mesh.authority.write(&longer, &mesh.directory("ingress"));
    mesh.metric_reaches(host, expiry, &[], 30_000.0).await;
    mesh.metric_reaches(host, "weft_certificate_renewals_total", &[], 1.0)
        .await;
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
}

async fn expiry(sidecar: &Running) -> f64 {
    sidecar.metric("weft_certificate_expiry_seconds", &[]).await
}

/// Warnings so far.
fn bad(sidecar: &Running) -> usize {
    sidecar.log_text().matches("\"level\":\"WARN\"").count()
}

#[tokio::test]
async fn a_sidecar_without_usable_files_does_not_start() {
    let mesh = Authority::new();
    let host = Host::new();
    host.configure(&format!("{IDENTITY}services: {{ orders: {{}} }}\n"));
    let refused = async |words: &str| {
        let mut running = host.start(&["sidecar", "--service", "orders"], &[]);
        let status = running.ended().await;
        assert_eq!(status.code(), Some(2), "{}", running.log_text());
        let text = running.log_text();
        assert!(
            text.contains("weft.yaml:") && text.contains(words),
            "{text}"
        );
    };
    refused("cannot be read").await;
    mesh.leaf("spiffe://other.internal/service/orders")
        .write(host.directory(), "own");
    host.write("roots.pem", &mesh.bundle());
    refused("other.internal").await;
    host.write("own.key", "no key");
    refused("own.key").await;
    host.identify(&mesh, "orders");
    let mut good = host.start(&["sidecar", "--service", "orders", "--workers", "1"], &[]);
    good.ready().await;
}
