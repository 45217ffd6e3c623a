//! Whoever is not of the mesh is named at both ends, and everywhere that somebody may look: in the log, on `/peers`, in a
//! metric, and in the sidecar's report, so that the ingress knows all of them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::CertificateParams;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::alone::{Host, IDENTITY, Origin, Running, Way, get, until};
use crate::faults::clock::faked;
use crate::harness::certs::{Authority, DOMAIN, lasting, nobody, service};
use crate::hostile::frames::{SETTINGS, frame};
use crate::mtls::Impostor;

const H1: &[&str] = &["http/1.1"];
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";
/// The port of the ingress's collector, unusual as the others.
const COLLECTOR: u16 = 21_597;

/// An ingress that collects reports, and where it is.
struct Collector {
    host: Host,
    running: Running,
}

impl Collector {
    /// With this identity, trusting these roots.
    async fn start(authority: &Authority, roots: &str) -> Self {
        Self::of(DOMAIN, authority, roots).await
    }

    /// The same in any trust domain.
    async fn of(domain: &str, authority: &Authority, roots: &str) -> Self {
        let host = Host::new();
        long_lived(
            &host,
            authority,
            &format!("spiffe://{domain}/service/ingress"),
        );
        host.write("roots.pem", roots);
        host.configure(&format!(
            "{IDENTITY}{}services:\n  plain: {{ mesh: false, endpoints: [\"{}\"] }}\n\
             ingress:\n  listeners: [ {{ name: public, address: \"{}\" }} ]\n  routes: [ {{ match: {{ host: x }}, to: plain }} ]\n",
            collector(&host),
            host.app(),
            host.public(),
        ));
        moved(&host, domain);
        let running = host.ingress().await;
        Self { host, running }
    }

    /// `collector:` of a sidecar's configuration.
    fn configuration(&self) -> String {
        collector(&self.host)
    }
}

/// A certificate that is good by all clocks that are off by some hours.
fn long_lived(host: &Host, authority: &Authority, id: &str) {
    let day = 24 * 3600;
    let leaf = authority.leaf_with(id, |leaf| lasting(leaf, -day, day));
    leaf.write(host.directory(), "own");
    host.write("roots.pem", &authority.bundle());
}

/// Has its file say another trust domain.
fn moved(host: &Host, domain: &str) {
    let file = host.directory().join("weft.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let own = format!("trust_domain: {domain}\n");
    host.write(
        "weft.yaml",
        &text.replace(&format!("trust_domain: {DOMAIN}\n"), &own),
    );
}

fn collector(host: &Host) -> String {
    let address = host.at(COLLECTOR);
    format!("collector: {{ address: \"{address}\", interval: 100ms }}\n")
}

/// A process that has seen somebody.
struct Witness<'a> {
    host: &'a Host,
    running: &'a Running,
    service: &'a str,
}

/// Who was seen, and where everything about it has to be found.
#[derive(Clone, Copy)]
struct Seen<'a> {
    direction: &'a str,
    kind: &'a str,
    /// The service that was meant.
    service: &'a str,
    peer: &'a str,
    /// Who its certificate says that it is.
    identity: Option<&'a str>,
}

impl Seen<'_> {
    fn is_at(&self, row: &Value) -> bool {
        row["direction"] == self.direction
            && row["kind"] == self.kind
            && row["service"] == self.service
            && row["peer"] == self.peer
    }

    /// Checks what a row says besides, on whatever page.
    fn check(&self, row: &Value) -> u64 {
        assert_eq!(row["identity_unproven"].as_str(), self.identity, "{row}");
        let time = |name: &str| row[name].as_i64().unwrap();
        assert!(time("first_seen_unix") > 1_600_000_000, "{row}");
        assert!(time("last_seen_unix") >= time("first_seen_unix"), "{row}");
        match self.direction {
            "inbound" => {
                assert_eq!(row["address"], self.peer, "{row}");
                assert!(row["port"].as_u64().unwrap() > 0, "{row}");
            }
            _ => assert!(row["address"].is_null() && row["port"].is_null(), "{row}"),
        }
        row["count"].as_u64().unwrap()
    }
}

impl Witness<'_> {
    /// It is in this process's own log, page and metric. Gives how often it was seen.
    async fn names(&self, seen: Seen<'_>) -> u64 {
        let message = match seen.direction {
            "inbound" => "refused a peer",
            _ => "the handshake with a peer failed",
        };
        let mut fields = vec![("message", message), ("cause", seen.kind)];
        fields.extend(seen.identity.map(|identity| ("claim", identity)));
        self.running.logged(&fields).await;
        self.shows(seen).await
    }

    /// The same without the log, which does not tell what is everyday.
    async fn shows(&self, seen: Seen<'_>) -> u64 {
        let count = until(&format!("{} on /peers", seen.kind), async || {
            let page = page(self.host, "/peers").await;
            let rows = page["peers"].as_array().unwrap();
            let row = rows.iter().find(|row| seen.is_at(row))?;
            Some(seen.check(row))
        })
        .await;
        assert!(count > 0);
        let labels = [
            ("service", seen.service),
            ("direction", seen.direction),
            ("kind", seen.kind),
        ];
        let metric = self.running.metric("weft_foreign_peers_total", &labels);
        assert!(metric.await >= count as f64);
        count
    }

    /// It is named here and, by this process's report, at the ingress.
    async fn reports(&self, collector: &Collector, seen: Seen<'_>) {
        self.names(seen).await;
        let (source, destination) = match seen.direction {
            "inbound" => ("unknown", self.service),
            _ => (self.service, seen.service),
        };
        // Nobody comes any more, so both ends come to say the same, and then go on saying it.
        until(
            &format!("{} of {} at the ingress", seen.kind, self.service),
            async || {
                let count = self.names(seen).await;
                let mesh = page(&collector.host, "/mesh").await;
                let rows = mesh["foreign"].as_array().unwrap();
                let mut rows = rows.iter().filter(|row| row["reporter"] == self.service);
                let row = rows.find(|row| seen.is_at(row))?;
                assert!(row["instance"].as_str().unwrap().contains(self.service));
                let labels = [
                    ("source", source),
                    ("destination", destination),
                    ("direction", seen.direction),
                    ("kind", seen.kind),
                ];
                let metric = collector
                    .running
                    .metric("weft_mesh_foreign_peers_total", &labels)
                    .await;
                (seen.check(row) == count && metric >= count as f64).then_some(())
            },
        )
        .await;
    }

    /// What this process has counted of all kinds together, by its own metric and by the ingress's.
    async fn totals(&self, collector: &Collector) -> (f64, f64) {
        let own = self.running.metric("weft_foreign_peers_total", &[]).await;
        let inbound = [("destination", self.service), ("direction", "inbound")];
        let outbound = [("source", self.service), ("direction", "outbound")];
        let mut mesh = 0.0;
        for labels in [inbound, outbound] {
            let series = collector
                .running
                .metric("weft_mesh_foreign_peers_total", &labels);
            mesh += series.await;
        }
        (own, mesh)
    }
}

async fn page(host: &Host, path: &str) -> Value {
    let reply = get(host.admin(), path).await.unwrap();
    serde_json::from_slice(&reply.body).unwrap()
}

/// A sidecar of `orders` on a host of its own, as one of this authority who trusts these roots.
fn orders(authority: &Authority, roots: &str, more: &str) -> Host {
    let host = Host::new();
    host.identify(authority, "orders");
    host.write("roots.pem", roots);
    host.configure(&format!(
        "{IDENTITY}{more}services:\n  orders: {{ endpoints: [\"{}\"], port: {} }}\n",
        host.mesh(),
        host.app().port()
    ));
    host
}

#[tokio::test]
async fn whoever_comes_and_is_not_of_the_mesh_is_named_everywhere() {
    let (mesh, foreign) = (Authority::new(), Authority::new());
    let mut collector = Collector::start(&mesh, &mesh.bundle()).await;
    let host = orders(&mesh, &mesh.bundle(), &collector.configuration());
    let app = Origin::fine(host.app()).await;
    let mut sidecar = host.sidecar("orders").await;
    let tls = |config| Way::Tls(host.mesh(), config);
    let storefront = service("storefront");
    let elsewhere = "spiffe://other.internal/service/storefront";
    let timed = |from, until| {
        let leaf = mesh.leaf_with(&storefront, |leaf| lasting(leaf, from, until));
        tls(leaf.client(H1))
    };
    let strangers = [
        ("plaintext", Way::Plain(host.mesh()), None),
        (
            "unknown_authority",
            tls(foreign.leaf(&storefront).client(H1)),
            Some(storefront.as_str()),
        ),
        (
            "trust_domain",
            tls(mesh.leaf(elsewhere).client(H1)),
            Some(elsewhere),
        ),
        ("expired", timed(-7200, -3600), Some(&storefront)),
        ("not_yet_valid", timed(3600, 7200), Some(&storefront)),
        (
            "no_certificate",
            tls(nobody(rustls::ALL_VERSIONS, H1)),
            None,
        ),
        (
            "protocol",
            tls(nobody(&[&rustls::version::TLS12], H1)),
            None,
        ),
        (
            "not_an_identity",
            tls(mesh.leaf("https://shop.internal/x?<y>").client(H1)),
            Some("https://shop.internal/x??y?"),
        ),
    ];
    let witness = Witness {
        host: &host,
        running: &sidecar,
        service: "orders",
    };
    for (kind, way, identity) in strangers {
        let answer = way.send(REQUEST).await.unwrap_or_default();
        assert!(!answer.starts_with(b"HTTP/"), "{kind}");
        let seen = Seen {
            direction: "inbound",
            kind,
            service: "orders",
            peer: "127.0.0.1",
            identity,
        };
        witness.reports(&collector, seen).await;
    }
    // Many reports later, nothing has been counted twice, and another one made up for what was lost.
    let (own, mesh_wide) = witness.totals(&collector).await;
    assert!((own - mesh_wide).abs() < f64::EPSILON, "{own} {mesh_wide}");
    assert_eq!(app.bytes(), 0, "something got through");
    sidecar.assert_alive().await;
    collector.running.assert_alive().await;
}

#[tokio::test]
async fn whoever_is_called_and_is_not_whom_we_meant_is_named_everywhere() {
    let (mesh, foreign) = (Authority::new(), Authority::new());
    let mut collector = Collector::start(&mesh, &mesh.bundle()).await;
    let host = Host::new();
    let at = |port: u16| host.at(21_600 + port);
    let (inventory, billing) = (service("inventory"), service("billing"));
    let elsewhere = "spiffe://other.internal/service/inventory";
    let h2 = &["h2"];
    let timed = |from, until| {
        let leaf = mesh.leaf_with(&inventory, |leaf| lasting(leaf, from, until));
        leaf.server(h2)
    };
    let _impostors = [
        Impostor::plain(at(0)).await,
        Impostor::tls(at(1), foreign.leaf(&inventory).server(h2)).await,
        Impostor::tls(at(2), mesh.leaf(elsewhere).server(h2)).await,
        Impostor::tls(at(3), timed(-7200, -3600)).await,
        Impostor::tls(at(4), timed(3600, 7200)).await,
        Impostor::tls(at(5), mesh.leaf(&billing).server(h2)).await,
        Impostor::tls(at(6), mesh.website("inventory").server(h2)).await,
    ];
    let kinds = [
        ("plaintext", None),
        ("unknown_authority", Some(inventory.as_str())),
        ("trust_domain", Some(elsewhere)),
        ("expired", Some(&inventory)),
        ("not_yet_valid", Some(&inventory)),
        ("wrong_service", Some(&billing)),
        ("not_an_identity", None),
    ];
    let mut services = String::from("services:\n  storefront: {}\n");
    for number in 0..kinds.len() as u16 {
        services.push_str(&format!(
            "  inventory-{number}: {{ endpoints: [\"{}\"], identity: \"{inventory}\", retry: {{ attempts: 0 }} }}\n",
            at(number)
        ));
    }
    host.identify(&mesh, "storefront");
    host.configure(&format!(
        "{IDENTITY}{}{services}",
        collector.configuration()
    ));
    let mut sidecar = host.sidecar("storefront").await;
    let witness = Witness {
        host: &host,
        running: &sidecar,
        service: "storefront",
    };
    for (number, (kind, identity)) in kinds.into_iter().enumerate() {
        let name = format!("inventory-{number}");
        let reply = Way::Plain(host.outbound())
            .ask("GET /stock", &[("host", &name)], "")
            .await;
        assert_eq!(reply.status, 502);
        let seen = Seen {
            direction: "outbound",
            kind,
            service: &name,
            peer: &at(number as u16).to_string(),
            identity,
        };
        witness.reports(&collector, seen).await;
    }
    let (own, mesh_wide) = witness.totals(&collector).await;
    assert!((own - mesh_wide).abs() < f64::EPSILON, "{own} {mesh_wide}");
    sidecar.assert_alive().await;
    collector.running.assert_alive().await;
}

/// Two sidecars of which one does not believe the other: each names the other, and the ingress hears it of both.
struct Pair {
    collector: Collector,
    /// The caller's, where that is another one.
    elsewhere: Option<Collector>,
    calling: (Host, Running),
    called: (Host, Running),
}

/// What is in the environment of a process.
type Environment = Vec<(String, String)>;

impl Pair {
    async fn start(collector: Collector, calling: Host, called: Host) -> Self {
        let nothing = [Environment::new(), Environment::new()];
        Self::start_in(collector, calling, called, nothing).await
    }

    /// With the environment of the one that calls, and of the one that is called.
    async fn start_in(
        collector: Collector,
        calling: Host,
        called: Host,
        [around_calling, around_called]: [Environment; 2],
    ) -> Self {
        let running = sidecar(&called, "orders", &around_called).await;
        let called = (called, running);
        let running = sidecar(&calling, "storefront", &around_calling).await;
        Self {
            collector,
            elsewhere: None,
            calling: (calling, running),
            called,
        }
    }

    /// What the app of the one that calls is told.
    async fn call(&self, reason: &str) -> String {
        let reply = Way::Plain(self.calling.0.outbound())
            .ask("GET /", &[("host", "orders")], "")
            .await;
        reply.refused(502, reason)
    }

    /// What the caller says of the one that it called, and the other of it: kind, and name on the certificate.
    async fn name_one_another(&self, caller: (&str, Option<&str>), callee: (&str, Option<&str>)) {
        let address = self.called.0.mesh().to_string();
        let (host, running) = &self.calling;
        let calling = Witness {
            host,
            running,
            service: "storefront",
        };
        let told = Seen {
            direction: "outbound",
            kind: caller.0,
            service: "orders",
            peer: &address,
            identity: caller.1,
        };
        let collector = self.elsewhere.as_ref().unwrap_or(&self.collector);
        calling.reports(collector, told).await;
        let (host, running) = &self.called;
        let called = Witness {
            host,
            running,
            service: "orders",
        };
        let found = Seen {
            direction: "inbound",
            kind: callee.0,
            service: "orders",
            peer: "127.0.0.1",
            identity: callee.1,
        };
        called.reports(&self.collector, found).await;
    }
}

async fn sidecar(host: &Host, service: &str, environment: &Environment) -> Running {
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let arguments = ["sidecar", "--service", service, "--workers", "1"];
    let mut running = host.start(&arguments, &environment);
    running.ready().await;
    running
}

/// A sidecar of `storefront` that calls `orders` at that host, with this besides in what it knows of it.
fn storefront(authority: &Authority, collector: &Collector, called: &Host, more: &str) -> Host {
    let host = Host::new();
    host.identify(authority, "storefront");
    host.configure(&format!(
        "{IDENTITY}{}services:\n  storefront: {{}}\n  orders: {{ {more}endpoints: [\"{}\"], retry: {{ attempts: 0 }} }}\n",
        collector.configuration(),
        called.mesh(),
    ));
    host
}

/// Of ours, but told that the other has no sidecar: what it sends is not even a handshake.
#[tokio::test]
async fn a_member_that_speaks_plaintext_to_a_sidecar_is_named_by_it_and_names_it() {
    for protocol in ["http", "grpc"] {
        let mesh = Authority::new();
        let collector = Collector::start(&mesh, &mesh.bundle()).await;
        let called = orders(&mesh, &mesh.bundle(), &collector.configuration());
        let app = Origin::fine(called.app()).await;
        let more = format!("mesh: false, protocol: {protocol}, ");
        let calling = storefront(&mesh, &collector, &called, &more);
        let pair = Pair::start(collector, calling, called).await;
        let detail = pair.call("tls_failed").await;
        assert!(
            detail.contains("it speaks TLS and refused plaintext: is it a member of the mesh?"),
            "{protocol}: {detail}"
        );
        pair.name_one_another(("refused_plaintext", None), ("plaintext", None))
            .await;
        assert_eq!(app.bytes(), 0, "something got through");
    }
}

/// The address is that of a port of plaintext: what is called answers the handshake in words, and both ends know why.
#[tokio::test]
async fn a_member_that_speaks_tls_where_plaintext_is_spoken_is_named_and_names_what_answers_so() {
    let mesh = Authority::new();
    let collector = Collector::start(&mesh, &mesh.bundle()).await;
    let called = orders(&mesh, &mesh.bundle(), &collector.configuration());
    let app = Origin::fine(called.app()).await;
    let running = called.sidecar("orders").await;
    let calling = Host::new();
    calling.identify(&mesh, "storefront");
    let doors = [
        ("way-out", called.outbound()),
        ("edge", collector.host.public()),
    ];
    let services = doors.map(|(name, address)| {
        format!("  {name}: {{ endpoints: [\"{address}\"], retry: {{ attempts: 0 }} }}\n")
    });
    calling.configure(&format!(
        "{IDENTITY}{}services:\n  storefront: {{}}\n{}",
        collector.configuration(),
        services.concat()
    ));
    let storefront = calling.sidecar("storefront").await;
    let caller = Witness {
        host: &calling,
        running: &storefront,
        service: "storefront",
    };
    let came = |service| Seen {
        direction: "inbound",
        kind: "unexpected_tls",
        service,
        peer: "127.0.0.1",
        identity: None,
    };
    for (name, address) in doors {
        let reply = Way::Plain(calling.outbound())
            .ask("GET /", &[("host", name)], "")
            .await;
        reply.refused(502, "tls_failed");
        let peer = address.to_string();
        let met = Seen {
            direction: "outbound",
            kind: "plaintext",
            service: name,
            peer: &peer,
            identity: None,
        };
        caller.reports(&collector, met).await;
    }
    let way_out = Witness {
        host: &called,
        running: &running,
        service: "orders",
    };
    way_out.reports(&collector, came("orders")).await;
    // Whoever is outside may speak to the edge as to a website. That is no news, and can be looked up all the same.
    let edge = Witness {
        host: &collector.host,
        running: &collector.running,
        service: "ingress",
    };
    edge.shows(came("ingress")).await;
    assert_eq!(app.bytes(), 0, "something got through");
}

/// A certificate is out of date for one end only when a clock is wrong, or it would not be in use at the other.
#[tokio::test]
async fn a_member_whose_certificate_is_out_of_date_is_told_so_whoever_finds_it() {
    let (short, wrong) = (service("storefront"), service("orders"));
    for (offset, kind) in [("+2h", "expired"), ("-2h", "not_yet_valid")] {
        for found_by_caller in [false, true] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), offset).unwrap();
            let Some(clock) = faked(file.path()) else {
                return;
            };
            let mesh = Authority::new();
            let collector = Collector::start(&mesh, &mesh.bundle()).await;
            let called = orders(&mesh, &mesh.bundle(), &collector.configuration());
            let calling = storefront(&mesh, &collector, &called, "");
            let app = Origin::fine(called.app()).await;
            let told = ("refused_out_of_date", None);
            // By the clock of the one that finds it, its own certificate is good.
            let hour = |leaf: &mut CertificateParams| lasting(leaf, -3600, 3600);
            if found_by_caller {
                long_lived(&calling, &mesh, &short);
                mesh.leaf_with(&wrong, hour)
                    .write(called.directory(), "own");
                let around = [clock, Environment::new()];
                let pair = Pair::start_in(collector, calling, called, around).await;
                pair.call("tls_failed").await;
                let found = (kind, Some(wrong.as_str()));
                pair.name_one_another(found, told).await;
            } else {
                long_lived(&called, &mesh, &wrong);
                mesh.leaf_with(&short, hour)
                    .write(calling.directory(), "own");
                let around = [Environment::new(), clock];
                let pair = Pair::start_in(collector, calling, called, around).await;
                pair.call("tls_failed").await;
                let found = (kind, Some(short.as_str()));
                pair.name_one_another(told, found).await;
            }
            assert_eq!(app.bytes(), 0, "something got through");
        }
    }
}

/// Two meshes of one CA, each with an ingress of its own that hears of it.
#[tokio::test]
async fn a_sidecar_of_another_trust_domain_is_named_and_told_so() {
    const ELSEWHERE: &str = "other.internal";
    let mesh = Authority::new();
    let collector = Collector::start(&mesh, &mesh.bundle()).await;
    let elsewhere = Collector::of(ELSEWHERE, &mesh, &mesh.bundle()).await;
    let called = orders(&mesh, &mesh.bundle(), &collector.configuration());
    let app = Origin::fine(called.app()).await;
    let calling = storefront(&mesh, &elsewhere, &called, "");
    long_lived(
        &calling,
        &mesh,
        &format!("spiffe://{ELSEWHERE}/service/storefront"),
    );
    moved(&calling, ELSEWHERE);
    let mut pair = Pair::start(collector, calling, called).await;
    pair.elsewhere = Some(elsewhere);
    pair.call("peer_identity").await;
    let orders = service("orders");
    let found = ("trust_domain", Some(orders.as_str()));
    pair.name_one_another(found, ("refused_trust_domain", None))
        .await;
    assert_eq!(app.bytes(), 0, "something got through");
}

/// In the middle of a change of roots: `orders` has only the new one yet, `storefront` is still of the old one. Both
/// report, because the ingress has come further.
#[tokio::test]
async fn a_member_that_is_refused_says_so_as_well_as_the_one_that_refuses_it() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = old.bundle() + &new.bundle();
    let collector = Collector::start(&new, &both).await;
    let called = orders(&new, &new.bundle(), &collector.configuration());
    let app = Origin::fine(called.app()).await;
    let calling = storefront(&old, &collector, &called, "");
    calling.write("roots.pem", &both);
    let pair = Pair::start(collector, calling, called).await;
    pair.call("tls_failed").await;
    let storefront = service("storefront");
    let told = ("refused_unknown_authority", None);
    let found = ("unknown_authority", Some(storefront.as_str()));
    pair.name_one_another(told, found).await;
    assert_eq!(app.bytes(), 0, "something got through");
}

/// The other way round: it is the caller that finds fault, and the one that was called hears of it.
#[tokio::test]
async fn a_member_that_is_not_whom_its_caller_meant_says_so_as_well() {
    let mesh = Authority::new();
    let collector = Collector::start(&mesh, &mesh.bundle()).await;
    let called = orders(&mesh, &mesh.bundle(), &collector.configuration());
    let app = Origin::fine(called.app()).await;
    let more = format!("identity: \"{}\", ", service("billing"));
    let calling = storefront(&mesh, &collector, &called, &more);
    let pair = Pair::start(collector, calling, called).await;
    pair.call("peer_identity").await;
    let orders = service("orders");
    let found = ("wrong_service", Some(orders.as_str()));
    pair.name_one_another(found, ("refused_identity", None))
        .await;
    assert_eq!(app.bytes(), 0, "something got through");
}

/// A sidecar that is not of the ingress's mesh can report nothing; that it cannot is known at both ends all the same.
#[tokio::test]
async fn a_sidecar_that_may_not_report_is_named_by_the_collector_and_names_it() {
    let (mesh, foreign) = (Authority::new(), Authority::new());
    let both = mesh.bundle() + &foreign.bundle();
    let collector = Collector::start(&mesh, &mesh.bundle()).await;
    let host = orders(&foreign, &both, &collector.configuration());
    let running = host.sidecar("orders").await;
    let name = service("orders");
    let found = Seen {
        direction: "inbound",
        kind: "unknown_authority",
        service: "ingress",
        peer: "127.0.0.1",
        identity: Some(&name),
    };
    let ingress = Witness {
        host: &collector.host,
        running: &collector.running,
        service: "ingress",
    };
    ingress.names(found).await;
    let told = page(&collector.host, "/mesh").await;
    let rows = told["foreign"].as_array().unwrap();
    let row = rows.iter().find(|row| found.is_at(row)).unwrap();
    assert_eq!(row["reporter"], "ingress");
    let address = collector.host.at(COLLECTOR).to_string();
    let told = Seen {
        direction: "outbound",
        kind: "refused_unknown_authority",
        service: "ingress",
        peer: &address,
        identity: None,
    };
    until("the sidecar names the collector", async || {
        let page = page(&host, "/peers").await;
        let rows = page["peers"].as_array().unwrap();
        rows.iter()
            .find(|row| told.is_at(row))
            .map(|row| told.check(row))
    })
    .await;
    running
        .logged(&[
            ("message", "the collector takes no reports; trying on"),
            ("cause", told.kind),
        ])
        .await;
}

/// A member in the collector's place that is served by `name`'s certificate, and how many bytes it was sent over TLS.
async fn in_the_collectors_place(
    host: &Host,
    authority: &Authority,
    name: &str,
) -> (Impostor, Arc<AtomicUsize>) {
    let acceptor = TlsAcceptor::from(authority.leaf(&service(name)).server(&["h2"]));
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let member = Impostor::start(host.at(COLLECTOR), move |stream| {
        let (acceptor, sent) = (acceptor.clone(), Arc::clone(&counted));
        tokio::spawn(async move {
            let mut stream = acceptor.accept(stream).await?;
            // A collector speaks first.
            stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
            stream.flush().await?;
            let mut bytes = [0; 4096];
            loop {
                match stream.read(&mut bytes).await? {
                    0 => return io::Result::Ok(()),
                    length => sent.fetch_add(length, Ordering::Relaxed),
                };
            }
        });
    });
    (member.await, sent)
}

/// To be of the mesh is not enough: what a sidecar has counted is for the ingress alone.
#[tokio::test]
async fn reports_go_to_the_ingress_and_to_no_other_member() {
    let mesh = Authority::new();
    let elsewhere = Host::new();
    let (_member, sent) = in_the_collectors_place(&elsewhere, &mesh, "billing").await;
    let host = orders(&mesh, &mesh.bundle(), &collector(&elsewhere));
    let mut sidecar = host.sidecar("orders").await;
    let billing = service("billing");
    let found = Seen {
        direction: "outbound",
        kind: "wrong_service",
        service: "ingress",
        peer: &elsewhere.at(COLLECTOR).to_string(),
        identity: Some(&billing),
    };
    sidecar
        .logged(&[
            ("message", "the collector takes no reports; trying on"),
            ("cause", found.kind),
        ])
        .await;
    until("the sidecar finds it again", async || {
        let page = page(&host, "/peers").await;
        let rows = page["peers"].as_array().unwrap();
        let row = rows.iter().find(|row| found.is_at(row))?;
        (found.check(row) >= 2).then_some(())
    })
    .await;
    assert_eq!(sent.load(Ordering::Relaxed), 0, "it was told something");
    sidecar.assert_alive().await;

    // The same with the right certificate is told.
    let elsewhere = Host::new();
    let (_member, sent) = in_the_collectors_place(&elsewhere, &mesh, "ingress").await;
    let host = orders(&mesh, &mesh.bundle(), &collector(&elsewhere));
    let _sidecar = host.sidecar("orders").await;
    until("a report", async || {
        (sent.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
}
