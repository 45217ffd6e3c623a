//! A chain of services that all try again, and a dead one at its end: what it gets is what was asked of the first, and a
//! fifth more at most.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::harness::{Behaviour, Load, Mesh, PATIENCE, Service, Wire, eventually};

/// Each calls the next; the last is the leaf.
const CHAIN: [&str; 5] = ["a", "b", "c", "d", "leaf"];
/// Enough for a fifth of them to be more than what a quiet service may have anyway.
const OFFERED: usize = 400;

/// How long a leaf has that never answers: enough for an attempt to get there beside other tests.
const SILENCE: &str = "timeout: 400ms";

/// What retries are counted over.
const WINDOW: Duration = Duration::from_secs(10);

/// What a quiet service may try again in this time: three a second, and those of one window at once.
fn quiet(time: Duration) -> usize {
    3 * time.max(WINDOW).as_secs() as usize
}

/// What an app does with the fields that it was sent, and with a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum App {
    /// It hands nothing on, and answers 502 itself.
    KnowsNothing,
    /// It hands nothing on, and closes the connection.
    Closes,
    /// It hands all fields on, in both directions.
    HandsOn,
}

/// How the leaf is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dead {
    /// It reads a request and closes the connection.
    Breaks,
    /// It answers 503, which is among what is tried again.
    Refuses,
    /// It takes requests and never says a word.
    Silent,
}

/// Asks the next service through the sidecar for whatever was asked of this one.
pub(crate) async fn relay(mut wire: Wire<TcpStream>, outbound: SocketAddr, next: &str, app: App) {
    while let Some(head) = wire.head().await {
        let Some(body) = wire.content(&head).await else {
            return;
        };
        let (method, target) = (head.word(0), head.word(1));
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {next}\r\n");
        if method != "GET" {
            request.push_str(&format!("Content-Length: {}\r\n", body.bytes.len()));
        }
        if app == App::HandsOn {
            let fields = head.text.lines().skip(1).filter(|line| {
                let line = line.to_ascii_lowercase();
                !line.is_empty() && !line.starts_with("host:") && !line.starts_with("content-")
            });
            fields.for_each(|line| request.push_str(&format!("{line}\r\n")));
        }
        request.push_str("\r\n");
        let request = [request.as_bytes(), &body.bytes].concat();
        let mut call = Wire::connect(outbound).await;
        let (answered, content) = call.exchange(request).await;
        if answered.status() == 200 {
            let length = content.bytes.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            if wire.try_write(answer).await.is_err()
                || wire.try_write(&content.bytes).await.is_err()
            {
                return;
            }
            continue;
        }
        let answer = match app {
            App::Closes => return,
            App::KnowsNothing => "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n".to_owned(),
            App::HandsOn => {
                let marks = answered
                    .text
                    .lines()
                    .filter(|line| line.starts_with("weft-"));
                let marks: String = marks.map(|line| format!("{line}\r\n")).collect();
                format!("HTTP/1.1 502 Bad Gateway\r\n{marks}Content-Length: 0\r\n\r\n")
            }
        };
        if wire.try_write(answer).await.is_err() {
            return;
        }
    }
}

/// All five, each ready to try again three times, also after an app's own 502. The leaf may be given this more.
async fn chain(app: App, leaf: &str) -> Mesh {
    let mut mesh = Mesh::new()
        .with("defaults: { retry: { attempts: 3, statuses: [502, 503, 504] } }")
        .route("/*", "a");
    for name in CHAIN {
        let service = Service::new(name);
        mesh = mesh.service(match name == "leaf" && !leaf.is_empty() {
            true => service.with(leaf),
            false => service,
        });
    }
    let mesh = mesh.start().await;
    for pair in CHAIN.windows(2) {
        let outbound = mesh.outbound(pair[0], 0);
        let next = pair[1].to_owned();
        mesh.origin(pair[0], 0).does(Behaviour::script(move |wire| {
            let next = next.clone();
            async move { relay(wire, outbound, &next, app).await }
        }));
    }
    assert_eq!(mesh.get("/whole").await.text(), "leaf-0");
    mesh
}

/// How often the gateway or somebody's sidecar has tried the next in the chain again.
async fn tried_again(mesh: &Mesh, name: &str) -> usize {
    let (host, next) = match CHAIN.iter().position(|in_chain| *in_chain == name) {
        None => (mesh.ingress_host(), CHAIN[0]),
        Some(place) => (mesh.replica(name, 0).host, CHAIN[place + 1]),
    };
    let to = format!("destination=\"{next}\"");
    mesh.metric(host, "weft_retries_total", &[&to]).await as usize
}

async fn a_dead_leaf_sees_hardly_more_than_was_offered(app: App, dead: Dead) {
    // Whoever calls a silent leaf has no time left to try again, which is what all attempts share. The next in front has, and
    // is told 502 by its app: one hop all the same.
    let is_silent = dead == Dead::Silent;
    let (timeout, tries) = match is_silent {
        true => (SILENCE, "c"),
        false => ("", "d"),
    };
    // Fourteen are 29 a second where nobody is answered for 400 ms: few enough for the retries of the first moment to be half of
    // what a window may have, and enough not to be quiet.
    let (callers, lasts) = match is_silent {
        true => (14, 2 * WINDOW + Duration::from_secs(2)),
        false => (8, Duration::ZERO),
    };
    let mesh = chain(app, timeout).await;
    let leaf = mesh.origin("leaf", 0);
    leaf.does(match dead {
        Dead::Breaks => Behaviour::Close,
        Dead::Refuses => Behaviour::Status(503),
        Dead::Silent => Behaviour::Hang,
    });
    let mut others = Vec::new();
    for name in ["gateway", "a", "b", "d"] {
        others.push((name, tried_again(&mesh, name).await));
    }
    let begun = Instant::now();
    let load = Load::start(&mesh.client, &mesh.url("/dead"), callers, Duration::ZERO);
    load.more(OFFERED).await;
    // On a machine that takes its time over these, a quiet service's due is more than a fifth of them: more is offered, then,
    // until it is not.
    while begun.elapsed() < lasts || load.done() / 5 < quiet(begun.elapsed()) {
        let (done, took) = (load.done(), begun.elapsed());
        assert!(
            took < PATIENCE,
            "{done} in {took:?}: fewer than 15 a second are what a quiet service has, and show nothing"
        );
        load.more(OFFERED / 10).await;
    }
    let done = load.stop().await;
    assert_eq!(done.answered(), 0, "{app:?}");
    let at_gateway = async || {
        mesh.metric(mesh.ingress_host(), "weft_gateway_requests_total", &[])
            .await as usize
    };
    let offered = at_gateway().await;
    assert!(offered >= OFFERED, "{offered}");
    let seen = leaf.total();
    assert!(
        seen * 10 <= offered * 12,
        "{app:?}: the leaf saw {seen} for {offered} offered"
    );
    // And whoever is next to it does try again, and nobody else.
    let retried = tried_again(&mesh, tries).await;
    assert!(retried > 0, "{app:?}: nobody tried again");
    match is_silent {
        // Whose time was over on the way did not get there.
        true => {
            assert!(
                seen <= offered + retried,
                "{app:?}: {seen} for {offered} and {retried}"
            );
            for (name, before) in others {
                assert_eq!(tried_again(&mesh, name).await, before, "{app:?}: {name}");
            }
        }
        // The last ones may be written down a moment later.
        false => {
            let what = format!("{app:?}: {seen} are {offered} and {retried}");
            eventually(&what, async || {
                let counted = at_gateway().await + tried_again(&mesh, tries).await;
                (leaf.total() == counted).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leaf_sees_a_fifth_more_at_most_behind_apps_that_know_nothing_of_it() {
    a_dead_leaf_sees_hardly_more_than_was_offered(App::KnowsNothing, Dead::Breaks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leaf_sees_a_fifth_more_at_most_behind_apps_that_break_off() {
    a_dead_leaf_sees_hardly_more_than_was_offered(App::Closes, Dead::Breaks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leaf_sees_a_fifth_more_at_most_behind_apps_that_hand_fields_on() {
    a_dead_leaf_sees_hardly_more_than_was_offered(App::HandsOn, Dead::Breaks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_answers_503_sees_a_fifth_more_at_most() {
    a_dead_leaf_sees_hardly_more_than_was_offered(App::KnowsNothing, Dead::Refuses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_never_answers_sees_a_fifth_more_at_most() {
    a_dead_leaf_sees_hardly_more_than_was_offered(App::KnowsNothing, Dead::Silent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_tried_again_in_front_is_not_tried_again_behind() {
    let mesh = chain(App::HandsOn, "").await;
    // The first try of `b` breaks off by itself, after its call; the second comes marked.
    let leaf = mesh.origin("leaf", 0);
    leaf.forget();
    leaf.does(Behaviour::Close);
    let mut call = Wire::connect(mesh.outbound("d", 0)).await;
    let (head, _) = call
        .exchange("GET /again HTTP/1.1\r\nHost: leaf\r\nweft-attempt: 2\r\n\r\n")
        .await;
    assert_eq!(head.field("weft-reason"), Some("upstream_reset"));
    assert_eq!(head.field("weft-retry"), Some("no"));
    assert_eq!(leaf.total(), 1, "not again");
    assert_eq!(leaf.seen()[0].head.field("weft-attempt"), Some("2"));
    // Without the mark it is.
    let (head, _) = call
        .exchange("GET /first HTTP/1.1\r\nHost: leaf\r\n\r\n")
        .await;
    assert_eq!(head.field("weft-retry"), Some("no"));
    assert_eq!(leaf.total(), 1 + 4);
    let seen = leaf.seen();
    let marks: Vec<_> = seen[1..]
        .iter()
        .map(|seen| seen.head.field("weft-attempt"))
        .collect();
    assert_eq!(marks, [None, Some("2"), Some("2"), Some("2")]);
    // An outsider's mark is not believed, and it is told none.
    let mut outside = Wire::connect(mesh.public()).await;
    let (head, _) = outside
        .exchange("GET /outside HTTP/1.1\r\nHost: shop\r\nweft-attempt: 2\r\n\r\n")
        .await;
    assert_eq!((head.status(), head.field("weft-retry")), (502, None));
    assert_eq!(leaf.seen()[5].head.field("weft-attempt"), None);
}
