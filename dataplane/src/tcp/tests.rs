//! Listeners for anything: what is HTTP is an exchange, and the rest goes on as it is.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_runtime::config::{Path, Problems};

use crate::authz::Rules;
use crate::cluster::{Cluster, Speaks};
use crate::plan::{Opaque, Purpose, Rule};
use crate::testing::{Origin, Raw, Stage, spec, story, until};

/// A stage for anything, whose connections that are not HTTP lead to `opaque`.
async fn stage(http: &Origin, opaque: &Origin) -> (Stage, Arc<Cluster>) {
    let cluster = Cluster::new(spec(Speaks::Tcp, &[opaque.address]), false);
    cluster.members.apply(vec![opaque.address], Instant::now());
    let rule = Rule {
        id: Rule::next_id(),
        name: "the rest".into(),
        authn: None,
        authz: Arc::new(
            Rules::build(
                "db",
                &Path::root(),
                &[],
                &Default::default(),
                &mut Problems::new(),
            )
            .unwrap(),
        ),
        limits: Vec::new(),
        target: Arc::clone(&cluster),
        purpose: Purpose::Traffic,
    };
    let stage = Stage::with(Speaks::Http1, &[http.address], |setting| {
        setting.site.opaque = Opaque::Others(Arc::new(rule));
        setting.site.is_edge = false;
    })
    .await;
    (stage, cluster)
}

#[test]
fn what_is_http_is_an_exchange_and_the_rest_is_carried() {
    story(async {
        let (http, opaque) = (Origin::new().await, Origin::new().await);
        let (stage, _) = stage(&http, &opaque).await;
        let mut client = stage.client().await;
        client.send("GET /a HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let mut endpoint = http.accept().await;
        assert!(endpoint.head().await.starts_with("GET /a HTTP/1.1\r\n"));
        endpoint
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        client.read_to("ok").await;

        let mut client = stage.client().await;
        client.send("*1\r\n$4\r\nPING\r\n").await;
        let mut endpoint = opaque.accept().await;
        endpoint.read_to("*1\r\n$4\r\nPING\r\n").await;
        endpoint.send("+PONG\r\n").await;
        endpoint.finish().await;
        assert_eq!(client.rest().await, "+PONG\r\n");
        client.finish().await;
        assert_eq!(endpoint.rest().await, "");
    });
}

#[test]
fn a_server_that_speaks_first_is_connected_after_a_short_silence() {
    story(async {
        let (http, opaque) = (Origin::new().await, Origin::new().await);
        let (stage, cluster) = stage(&http, &opaque).await;
        let start = Instant::now();
        let mut client: Raw = stage.client().await;
        let mut endpoint = opaque.accept().await;
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(190), "only {waited:?}");
        endpoint.send("220 ready\r\n").await;
        client.read_to("220 ready\r\n").await;
        let in_flight = || {
            let members = cluster.members.load();
            members
                .endpoints()
                .iter()
                .map(|e| e.in_flight())
                .sum::<u32>()
        };
        assert_eq!(in_flight(), 1);
        client.reset();
        until("the endpoint is let go of", || in_flight() == 0).await;
    });
}
