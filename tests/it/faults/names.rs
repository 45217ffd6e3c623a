//! A DNS server that is slow, and one that changes its mind. (One that fails, is silent, or denies a name for good is told
//! of in `discovery`.)

use std::time::{Duration, Instant};

use super::{HALT, Traffic, unfelt};
use crate::harness::mesh::Builder;
use crate::harness::{Mesh, Mood, Service, eventually, within};

/// How long an answer takes that is slow: longer than any exchange may that does not wait for it.
const SLOW: Duration = Duration::from_secs(6);

fn orders(replicas: u8) -> Builder {
    Mesh::new()
        .service(Service::new("orders").replicas(replicas))
        .route("/orders/*", "orders")
}

/// May fail: what a process is asked that has just started and does not know yet where its services are. A new replica is seen
/// later than usual, by the time that an answer takes.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_take_seconds_to_resolve_make_no_exchange_wait() {
    const { assert!(HALT.as_secs() < SLOW.as_secs()) };
    let mut mesh = orders(1).resolver_with("timeout: 20s").start().await;
    mesh.dns.mood(Mood::Slow(SLOW));
    let traffic = Traffic::start(&mesh, 4);
    let added = mesh.add_replica("orders").await;
    mesh.dns.add("orders", mesh.replica("orders", added).host);
    // It may have been asked for just before it was there, and is asked for again when that answer has lived its second.
    within(4 * SLOW, "it is used", async || {
        (mesh.origin("orders", added).total() > 0).then_some(())
    })
    .await;
    traffic.more(100).await;
    let outcome = traffic.stop().await;
    outcome.assert_all_within(SLOW / 2);
    outcome.assert_nothing_twice(&mesh, "orders");
    let failing = mesh
        .metric(mesh.ingress_host(), "weft_discovery_failing", &[])
        .await;
    assert!(failing < 0.5, "slow is not away");
    // Who starts now does not keep everybody waiting for one name, and says so.
    mesh.restart_ingress().await;
    eventually("the new gateway knows where to go", async || {
        let reply = mesh.get("/orders/1").await;
        if reply.code() == 200 {
            return Some(());
        }
        assert_eq!(reply.reason(), Some("no_endpoints"), "{}", reply.text());
        None
    })
    .await;
}

/// May fail: nothing. A name that is there every now and then is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_comes_and_goes_for_longer_than_absence_is_believed_after_is_there() {
    let mesh = orders(2).start().await;
    let traffic = Traffic::start(&mesh, 4);
    let begun = Instant::now();
    let (mut denials, mut moods) = (0, [Mood::NxDomain, Mood::Answer].into_iter().cycle());
    // Absence is believed after ten seconds.
    while begun.elapsed() < Duration::from_secs(13) {
        let mood = moods.next().unwrap();
        mesh.dns.mood(mood);
        // Both families, by the gateway and by each of two sidecars: everybody has heard it about once.
        eventually("the resolvers ask", async || {
            (mesh.dns.asked() >= 6).then_some(())
        })
        .await;
        denials += usize::from(mood == Mood::NxDomain);
    }
    assert!(denials >= 3, "{denials}");
    traffic.more(50).await;
    let outcome = traffic.stop().await;
    outcome.assert_all_within(unfelt());
    outcome.assert_nothing_twice(&mesh, "orders");
}
