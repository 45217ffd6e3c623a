//! Interception as it is in use: hosts of their own with real rules, real sidecars, and apps that know nothing of either. And
//! a cable that is cut between them.
//! Needs root; where CI runs it is an error not to have it, elsewhere the tests say that they were left out.

#![allow(clippy::unwrap_used)]

mod app;
mod egress;
mod ground;
mod half_open;
mod mesh;
mod packets;
mod plaintext;
mod rules;
mod vanished;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ground::Host;
use tempfile::TempDir;

use crate::harness::mesh::sample;
use crate::harness::{Authority, Process};

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + crate::harness::PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `weft ARGUMENTS` on a host, to its end.
fn weft(host: &Host, arguments: &str) -> Output {
    host.run(|| {
        Command::new(crate::harness::told::WEFT.as_str())
            .args(arguments.split_whitespace())
            .output()
            .unwrap()
    })
}

/// The same, which must succeed; what it printed.
fn weft_says(host: &Host, arguments: &str) -> String {
    let output = weft(host, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "weft {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A sidecar on a host, started: what it is called, of which service, and on how many cores. Its identity is of files.
fn start_sidecar(
    files: &TempDir,
    authority: &Authority,
    yaml: &str,
    (name, service, workers): (&str, &str, u8),
    host: &Host,
    environment: &[(String, String)],
) -> Process {
    let directory = files.path().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    authority.write(&authority.service(service), &directory);
    let file = directory.join("weft.yaml");
    std::fs::write(&file, yaml).unwrap();
    let workers = workers.to_string();
    let arguments = [
        "sidecar",
        "--service",
        service,
        "--workers",
        &workers,
        "--config",
    ];
    let mut arguments = arguments.map(str::to_owned).to_vec();
    arguments.push(file.display().to_string());
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    host.run(|| Process::start(files.path(), name, &arguments, &environment))
}

/// Waits until the process on this host is ready.
fn is_ready(host: &Host) {
    until("it is ready", || {
        app::get_on_admin(host, "/ready").is_ok_and(|answer| answer.status == 200)
    });
}

/// Two hosts with a sidecar each, `storefront` and `orders`, and one outside of the mesh. Storefront is the caller, and
/// has a cable to each of the others; so has the outsider to orders.
struct World {
    // Before the hosts: what runs on them ends first.
    storefront_sidecar: Process,
    orders_sidecar: Process,
    storefront: Host,
    orders: Host,
    outside: Host,
    authority: Authority,
    files: TempDir,
}

/// Addresses in the order of [`World`]'s cables.
const ORDERS: &str = "10.77.1.2";
const ORDERS_V6: &str = "[fd77:1::2]";
const OUTSIDE: &str = "10.77.2.2";
const OUTSIDE_V6: &str = "[fd77:2::2]";
/// Orders, as the outsider reaches it.
const ORDERS_FROM_OUTSIDE: &str = "10.77.3.2";
const ORDERS_FROM_OUTSIDE_V6: &str = "[fd77:3::2]";

impl World {
    /// With these lines more for the service `orders`, and these under `sidecar`; they may be in place of what is usual of
    /// `endpoints` and `intercept`. Both hosts intercept.
    fn new(orders: &str, sidecar: &str) -> Self {
        let world = Self::without_rules(orders, sidecar);
        for host in [&world.storefront, &world.orders] {
            weft_says(host, "intercept install --user 0");
        }
        world
    }

    /// The same, with nothing redirected yet.
    fn without_rules(orders: &str, sidecar: &str) -> Self {
        Self::with_environment(orders, sidecar, &[])
    }

    /// The same, with this as the environment of orders' sidecar.
    fn with_environment(orders: &str, sidecar: &str, environment: &[(String, String)]) -> Self {
        let [storefront, orders_host, outside] = std::array::from_fn(|_| Host::new());
        storefront.cable(&orders_host, 1);
        storefront.cable(&outside, 2);
        outside.cable(&orders_host, 3);
        let files = tempfile::tempdir().unwrap();
        let unless = |said: &str, key: &str, line: String| match said.contains(key) {
            true => String::new(),
            false => line,
        };
        let intercept = unless(sidecar, "intercept:", "  intercept: {}\n".to_owned());
        let both = format!("    endpoints: [ \"{ORDERS}:15008\", \"{ORDERS_V6}:15008\" ]\n");
        let endpoints = unless(orders, "endpoints:", both);
        let yaml = format!(
            "trust_domain: {domain}\n\
             identity: {{ cert: cert.pem, key: key.pem, bundle: bundle.pem }}\n\
             sidecar:\n  inbound: {{ address: \"[::]:15008\" }}\n{intercept}{sidecar}\
             services:\n  storefront:\n    endpoints: [ \"10.77.1.1:15008\" ]\n    port: 8080\n  \
             orders:\n{endpoints}    port: 8080\n{orders}",
            domain = crate::harness::certs::DOMAIN,
        );
        let authority = Authority::new();
        let start = |name: &str, host: &Host, environment: &[(String, String)]| {
            let who = (name, name, 2);
            start_sidecar(&files, &authority, &yaml, who, host, environment)
        };
        let world = Self {
            storefront_sidecar: start("storefront", &storefront, &[]),
            orders_sidecar: start("orders", &orders_host, environment),
            storefront,
            orders: orders_host,
            outside,
            authority,
            files,
        };
        [&world.storefront, &world.orders]
            .into_iter()
            .for_each(is_ready);
        world
    }

    /// Changes the file of storefront's sidecar.
    fn change(&self, from: &str, to: &str) {
        let file = self.files.path().join("storefront").join("weft.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        let beside = file.with_extension("new");
        std::fs::write(&beside, text.replace(from, to)).unwrap();
        std::fs::rename(&beside, &file).unwrap();
    }

    /// An ingress on the host outside, with the collector that `collector` tells the sidecars of.
    fn ingress(&self, collector: &str) -> Process {
        let directory = self.files.path().join("ingress");
        std::fs::create_dir_all(&directory).unwrap();
        self.authority
            .write(&self.authority.service("ingress"), &directory);
        let yaml = format!(
            "trust_domain: {domain}\n\
             identity: {{ cert: cert.pem, key: key.pem, bundle: bundle.pem }}\n{collector}\
             services:\n  plain: {{ mesh: false, endpoints: [ \"127.0.0.1:9\" ] }}\n\
             ingress:\n  listeners: [ {{ name: public, address: \"127.0.0.1:18080\" }} ]\n  \
             routes: [ {{ match: {{ host: x }}, to: plain }} ]\n",
            domain = crate::harness::certs::DOMAIN,
        );
        let file = directory.join("weft.yaml");
        std::fs::write(&file, yaml).unwrap();
        let mut arguments = vec!["ingress".to_owned(), "--config".to_owned()];
        arguments.push(file.display().to_string());
        let started = self
            .outside
            .run(|| Process::start(self.files.path(), "ingress", &arguments, &[]));
        is_ready(&self.outside);
        started
    }

    /// The sum of a metric of the sidecar on this host.
    fn metric(&self, host: &Host, name: &str, parts: &[&str]) -> f64 {
        let page = app::get_on_admin(host, "/metrics").unwrap();
        sample(&page.body, name, parts)
    }
}

/// What keeps the rules.
const BACKENDS: [&str; 2] = ["nft", "iptables"];

/// Tells a story in a world whose hosts intercept, once by each backend.
fn under_either(orders: &str, sidecar: &str, story: impl Fn(&World)) {
    if !ground::is_possible() {
        return;
    }
    for backend in BACKENDS {
        let world = World::without_rules(orders, sidecar);
        for host in [&world.storefront, &world.orders] {
            let install = format!("intercept install --user 0 --backend {backend}");
            weft_says(host, &install);
        }
        story(&world);
    }
}

/// Counts packets that come in on a host, apart from the rules under test.
fn count_packets(host: &Host) {
    let rules = "table inet seen {\n\
        chain watch {\n\
        type filter hook prerouting priority -300\n\
        iifname lo return\n\
        tcp dport 15008 counter comment \"mesh\"\n\
        tcp dport 8080 counter comment \"app\"\n\
        }\n}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    host.system(&format!("nft -f {}", file.path().display()));
}

/// How many packets with this comment have come.
fn counted(host: &Host, comment: &str) -> u64 {
    let rules = host.rules();
    let line = rules
        .lines()
        .find(|line| line.contains(&format!("comment \"{comment}\"")))
        .unwrap_or_else(|| panic!("no {comment} in {rules}"));
    let (_, rest) = line.split_once("packets ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}
