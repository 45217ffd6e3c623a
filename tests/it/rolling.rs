//! Rolling restarts: six replicas are replaced one after another under a steady load of GET and POST, while DNS says that
//! its answers are good for ten minutes. No exchange fails, and no order is placed twice.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::Request;

use crate::harness::client::whole;
use crate::harness::{Behaviour, Load, Mesh, Service, eventually};

const REPLICAS: u8 = 6;

/// The mesh, and what is asked of it all the time.
struct Shop {
    mesh: Mesh,
    reads: Load,
    orders: Load,
}

impl Shop {
    async fn open() -> Self {
        let mesh = Mesh::new()
            .service(Service::new("orders").replicas(REPLICAS))
            .route("/orders/*", "orders")
            .with("drain: { delay: 1s }")
            .start()
            .await;
        mesh.dns.ttl(600);
        for origin in mesh.origins("orders") {
            origin.does(Behaviour::Slow(Duration::from_millis(5)));
        }
        let pause = Duration::from_millis(10);
        let reads = Load::start(&mesh.client, &mesh.url("/orders/1"), 4, pause);
        let (url, number) = (mesh.url("/orders/new-"), Arc::new(AtomicUsize::new(0)));
        // Each order is one of a kind, so that one that is placed twice is seen.
        let order = move || {
            let url = format!("{url}{}", number.fetch_add(1, Relaxed));
            Request::post(url).body(whole("an order")).unwrap()
        };
        let orders = Load::of(&mesh.client, order, 4, pause);
        orders.more(50).await;
        Self {
            mesh,
            reads,
            orders,
        }
    }

    /// Waits until an instance takes part.
    async fn is_used(&self, number: usize) {
        let before = self.mesh.origin("orders", number).total();
        eventually("the new instance is used", async || {
            (self.mesh.origin("orders", number).total() > before).then_some(())
        })
        .await;
    }

    /// Nothing failed, and each order that was answered arrived once.
    async fn close(self) {
        self.orders.more(100).await;
        self.reads.stop().await.assert_all_answered();
        let orders = self.orders.stop().await;
        orders.assert_all_answered();
        let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
        for origin in self.mesh.origins("orders") {
            for (target, times) in origin.by_target("POST") {
                *arrived.entry(target).or_default() += times;
            }
        }
        let twice: Vec<_> = arrived.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "placed more than once: {twice:?}");
        assert_eq!(arrived.len(), orders.answered());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn six_replicas_restart_where_they_are() {
    let mut shop = Shop::open().await;
    for number in 0..usize::from(REPLICAS) {
        shop.mesh.sidecar("orders", number).terminate();
        let ended = shop.mesh.replica_mut("orders", number).sidecar.end().await;
        assert!(ended.success(), "{ended}");
        shop.mesh.origin("orders", number).stop().await;
        shop.mesh.origin("orders", number).resume().await;
        shop.mesh.restart_sidecar("orders", number).await;
        shop.is_used(number).await;
    }
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_replicas_are_replaced_by_others_elsewhere() {
    let mut shop = Shop::open().await;
    for number in 0..usize::from(REPLICAS) {
        let new = shop.mesh.add_replica("orders").await;
        shop.mesh
            .dns
            .add("orders", shop.mesh.replica("orders", new).host);
        shop.is_used(new).await;
        // DNS hears of it when it is over, as orchestrators have it.
        shop.mesh.sidecar("orders", number).terminate();
        let ended = shop.mesh.replica_mut("orders", number).sidecar.end().await;
        assert!(ended.success(), "{ended}");
        shop.mesh.origin("orders", number).stop().await;
        shop.mesh
            .dns
            .remove("orders", shop.mesh.replica("orders", number).host);
    }
    shop.close().await;
}
