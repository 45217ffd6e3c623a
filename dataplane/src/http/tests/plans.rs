//! Plans come and go under connections that stay.

use std::sync::Arc;

use crate::cluster::Speaks;
use crate::testing::{Origin, Stage, plan, site, story, until};

#[test]
fn connections_that_idle_keep_no_plan_that_is_not_in_force() {
    story(async {
        let origin = Origin::new().await;
        let stage = Stage::new(Speaks::Http1, &[origin.address]).await;
        let mut client = stage.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        client.read_to("ok").await;
        let _other = stage.h2_client().await;
        until("both are there", || stage.seats() == 2).await;

        let mut before = Vec::new();
        for _ in 0..3 {
            before.push(Arc::downgrade(&stage.core.plan()));
            stage.put_in_force(plan(site("stage", stage.address), &stage.cluster));
            stage.core.upkeep();
        }
        let gone = || before.iter().all(|plan| plan.strong_count() == 0);
        until("only the one in force is left", gone).await;
    });
}

/// What a plan no longer has goes too, and with it what only that plan had.
#[test]
fn connections_that_idle_keep_no_listener_that_has_changed() {
    story(async {
        let origin = Origin::new().await;
        let stage = Stage::new(Speaks::Http1, &[origin.address]).await;
        let _client = stage.client().await;
        let _other = stage.h2_client().await;
        until("both are there", || stage.seats() == 2).await;
        let before = Arc::downgrade(stage.core.plan().site("stage").unwrap());
        let mut client = stage.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        client.read_to("ok").await;
        stage.put_in_force(plan(site("stage", stage.address), &stage.cluster));
        stage.core.upkeep();
        // A client that has said nothing yet has not come through the door: it is waited for a minute at most.
        drop(_client);
        until("it is gone", || before.strong_count() == 0).await;
    });
}
