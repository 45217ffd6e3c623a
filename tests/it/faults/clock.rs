//! A host whose clock is wrong by ten minutes, with certificates of a real CA: libfaketime between one sidecar and its
//! system.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use super::Traffic;
use crate::harness::mesh::Builder;
use crate::harness::told::{WEFT, left_out};
use crate::harness::{Mesh, Service, eventually, tools};

/// What makes a process see the clock that `file` tells, such as `-10m`, and changes with it. `None`: the test is left
/// out.
pub(crate) fn faked(file: &Path) -> Option<Vec<(String, String)>> {
    if !loads_libraries() {
        left_out("a static binary loads no library: RUSTFLAGS='-C target-feature=-crt-static'");
        return None;
    }
    let library = tools::file(
        ["/usr/lib", "faketime/libfaketimeMT.so.1"],
        "Debian's package libfaketime",
    )?;
    let variables = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        // Only the time of day: a clock that is wrong does not change how long a second is.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("NO_FAKE_STAT", "1".to_owned()),
    ];
    Some(variables.map(|(key, value)| (key.to_owned(), value)).into())
}

/// Whether the binary under test has a loader, whose name is at its beginning.
fn loads_libraries() -> bool {
    let mut head = Vec::new();
    let file = std::fs::File::open(WEFT.as_str()).unwrap();
    file.take(4096).read_to_end(&mut head).unwrap();
    let loader = b"/ld-linux";
    head.windows(loader.len()).any(|part| part == loader)
}

/// `orders` twice, the first with a clock of its own, and `storefront`.
fn shop(clock: &[(String, String)]) -> Builder {
    Mesh::new()
        .service(Service::new("orders").replicas(2))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .ca("")
        .environment("orders-0", clock)
}

/// May fail: nothing. (Certificates that end within those ten minutes would: they live for a day.)
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_ten_minutes_fast_fails_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "+10m").unwrap();
    let Some(clock) = faked(file.path()) else {
        return;
    };
    let mesh = shop(&clock).start().await;
    let traffic = Traffic::start(&mesh, 4);
    for number in [0, 1] {
        eventually("both serve", async || {
            (mesh.origin("orders", number).total() >= 20).then_some(())
        })
        .await;
    }
    // It calls, too.
    let reply = mesh.get_from("orders", 0, "http://storefront/").await;
    assert_eq!(reply.text(), "storefront-0");
    let outcome = traffic.stop().await;
    outcome.assert_all_within(Duration::from_secs(2));
    outcome.assert_nothing_twice(&mesh, "orders");
    for number in [0, 1] {
        let log = mesh.sidecar("orders", number).log();
        assert!(!log.contains("check the clocks"), "{log}");
    }
}

/// May fail: new connections with the host whose clock is slow, because certificates of the last ten minutes are of the
/// future there. What was connected stays so, who is refused is answered by the other replica, POSTs too, and both ends
/// say that it is the clock.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_falls_ten_minutes_behind_is_named_at_both_ends_and_fails_no_exchange() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "+0").unwrap();
    let Some(clock) = faked(file.path()) else {
        return;
    };
    let mut mesh = shop(&clock).start().await;
    let door = mesh.outbound("storefront", 0);
    let connected = Traffic::through(&mesh, door, "orders", 4);
    eventually("it serves", async || {
        (mesh.origin("orders", 0).total() >= 10).then_some(())
    })
    .await;
    std::fs::write(file.path(), "-10m").unwrap();
    let before = mesh.origin("orders", 0).total();
    // Its connections are as good as before.
    eventually("it serves on", async || {
        (mesh.origin("orders", 0).total() >= before + 20).then_some(())
    })
    .await;
    // A caller that has none yet.
    mesh.restart_ingress().await;
    let newcomers = Traffic::start(&mesh, 4);
    let refusal = mesh
        .sidecar("orders", 0)
        .says(&["refused a peer", "not_yet_valid"])
        .await;
    assert!(
        refusal.contains("check the clocks of both hosts"),
        "{refusal}"
    );
    let told = mesh
        .ingress()
        .says(&["the handshake with a peer failed", "by its clock"])
        .await;
    assert!(told.contains("WARN"), "{told}");
    let host = mesh.replica("orders", 0).host;
    let cause = ["cause=\"not_yet_valid\""];
    mesh.metric_reaches(host, "weft_tls_handshake_failures_total", &cause, 1.0)
        .await;
    // The admin pages of both have it, too.
    for (host, direction, kind) in [
        (host, "inbound", "not_yet_valid"),
        (mesh.ingress_host(), "outbound", "refused_out_of_date"),
    ] {
        eventually("the page names it", async || {
            let page = mesh.page(host, "/peers").await.json();
            let mut rows = page["peers"].as_array()?.iter();
            rows.find(|row| row["direction"] == direction && row["kind"] == kind)
                .map(|row| assert_eq!(row["service"], "orders", "{row}"))
        })
        .await;
    }
    newcomers.more(100).await;
    for outcome in [connected.stop().await, newcomers.stop().await] {
        outcome.assert_all_within(Duration::from_secs(2));
    }
    // Set right, it takes part again without a restart.
    std::fs::write(file.path(), "+0").unwrap();
    mesh.origin("orders", 0).forget();
    eventually("the newcomer reaches it", async || {
        mesh.get("/orders/1").await;
        (mesh.origin("orders", 0).total() > 0).then_some(())
    })
    .await;
}

/// May fail: the start of a host whose clock is slow, while the CA's own certificate is of the future there. It is not
/// ready, gets no traffic, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_starts_with_a_slow_clock_waits_and_says_why() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "+0").unwrap();
    let Some(clock) = faked(file.path()) else {
        return;
    };
    let mut mesh = shop(&clock).start().await;
    std::fs::write(file.path(), "-10m").unwrap();
    mesh.respawn_sidecar("orders", 0).await;
    let traffic = Traffic::start(&mesh, 4);
    let said = mesh
        .sidecar("orders", 0)
        .says(&["no certificate yet", "check the clocks of both hosts"])
        .await;
    assert!(said.contains("WARN"), "{said}");
    let host = mesh.replica("orders", 0).host;
    let page = mesh.page(host, "/ready").await;
    assert_eq!(page.code(), 503, "{}", page.text());
    traffic.more(100).await;
    let outcome = traffic.stop().await;
    outcome.assert_all_within(Duration::from_secs(2));
    outcome.assert_nothing_twice(&mesh, "orders");
    // Set right, it starts as if nothing had been.
    std::fs::write(file.path(), "+0").unwrap();
    mesh.ready().await;
}
