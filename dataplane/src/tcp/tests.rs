//! Listeners for connections whose bytes are none of ours to understand: they go on as they are.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use crate::cluster::{Cluster, Speaks};
use crate::plan::Opaque;
use crate::testing::{Origin, Stage, rule, spec, story, until};

/// A stage whose connections go to `origin`, and what they are counted by there.
async fn stage(origin: &Origin) -> (Stage, Arc<Cluster>) {
    let cluster = Cluster::new(spec(Speaks::Tcp, &[origin.address]), false);
    cluster.members.apply(vec![origin.address], Instant::now());
    let stage = Stage::with(Speaks::Http1, &[], |setting| {
        setting.site.opaque = Opaque::All(rule(&cluster));
        setting.site.is_edge = false;
    })
    .await;
    (stage, cluster)
}

fn in_flight(cluster: &Cluster) -> u32 {
    let members = cluster.members.load();
    members.endpoints().iter().map(|e| e.in_flight()).sum()
}

#[test]
fn bytes_go_on_as_they_are_even_those_of_http() {
    story(async {
        let origin = Origin::new().await;
        let (stage, cluster) = stage(&origin).await;
        for said in ["GET  / HTTP/9.9\r\nhost: a\r\n\r\n", "*1\r\n$4\r\nPING\r\n"] {
            let mut client = stage.client().await;
            client.send(said).await;
            let mut endpoint = origin.accept().await;
            endpoint.read_to(said).await;
            endpoint.send("+PONG\r\n").await;
            endpoint.finish().await;
            assert_eq!(client.rest().await, "+PONG\r\n");
            client.finish().await;
            assert_eq!(endpoint.rest().await, "");
        }
        until("the endpoint is let go of", || in_flight(&cluster) == 0).await;
    });
}

#[test]
fn a_server_may_speak_first_and_is_let_go_of_when_its_client_breaks_off() {
    story(async {
        let origin = Origin::new().await;
        let (stage, cluster) = stage(&origin).await;
        let mut client = stage.client().await;
        let mut endpoint = origin.accept().await;
        endpoint.send("220 ready\r\n").await;
        client.read_to("220 ready\r\n").await;
        assert_eq!(in_flight(&cluster), 1);
        client.reset();
        until("the endpoint is let go of", || in_flight(&cluster) == 0).await;
    });
}
