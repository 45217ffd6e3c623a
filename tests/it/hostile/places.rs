//! Places of a connection's streams: as many exchanges are in hand at the app as it was granted, and no more, also when
//! some of them were taken back or ran out of time. At every door, through one proxy and two, to apps of either version.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};

use super::Scene;
use super::frames::*;
use super::hoarding::connected;
use crate::alone::{Host, Origin, PATIENCE, Way, until};
use crate::harness::app::{App, Asked};
use crate::harness::{listening, settled};

/// How many of them are taken back, and asked again: fewer than would be cut for it.
const BACK: usize = 100;

/// What the edge grants a connection, and what the mesh does.
const EDGE: usize = 100;
const MESH: usize = 1000;

/// What an app has in hand, and the most that it ever had.
#[derive(Default)]
struct Work {
    begun: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Work {
    /// One request, until the app is told to answer.
    async fn done(&self, mut answer: watch::Receiver<usize>) {
        let turn = *answer.borrow();
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        answer.wait_for(|told| *told > turn).await.unwrap();
        // Before the other side can know.
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn forget(&self) {
        for count in [&self.begun, &self.most] {
            count.store(0, Ordering::SeqCst);
        }
    }
}

/// An app that works on each request until it is told to answer, and does not look whether anybody waits. What is asked for at
/// `/now` it answers at once.
async fn app(address: SocketAddr, answer: watch::Receiver<usize>) -> (JoinSet<()>, Arc<Work>) {
    let listener = listening(address);
    let (work, mut tasks) = (Arc::<Work>::default(), JoinSet::new());
    let noted = Arc::clone(&work);
    tasks.spawn(async move {
        let mut conversations = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (noted, answer) = (Arc::clone(&noted), answer.clone());
            conversations.spawn(async move {
                let _: Option<()> = converse(stream, &noted, answer).await;
            });
        }
    });
    (tasks, work)
}

async fn converse(
    mut stream: TcpStream,
    work: &Work,
    answer: watch::Receiver<usize>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    if !head.windows(5).any(|bytes| bytes == b" /now") {
        work.done(answer).await;
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    stream.write_all(answer).await.ok()
}

/// The same of HTTP/2.
async fn app_of_http2(address: SocketAddr, told: watch::Receiver<usize>) -> (App, Arc<Work>) {
    let work = Arc::<Work>::default();
    let noted = Arc::clone(&work);
    let act = move |asked: Asked| {
        let (noted, told) = (Arc::clone(&noted), told.clone());
        async move {
            let Asked {
                request,
                mut respond,
            } = asked;
            if request.uri().path() != "/now" {
                noted.done(told).await;
            }
            let _ = respond.send_response(Response::new(()), true);
        }
    };
    (App::start(address, usize::MAX, act).await, work)
}

/// How a client has its exchanges end before they are answered by the app.
#[derive(Debug)]
enum Ends {
    /// It resets their streams.
    Reset,
    /// It gives them little time.
    Late,
    /// It has their streams reset: their bodies are longer than they said.
    Broken,
}

/// What one connection has in hand at the app after some of its exchanges have ended before their answers.
struct Case {
    door: usize,
    /// Through which service the door leads to the app.
    host: &'static [u8],
    places: usize,
    ends: Ends,
}

#[rustfmt::skip] // a row a line
const CASES: &[Case] = &[
    Case { door: 0, host: b"plain", places: EDGE, ends: Ends::Reset },
    Case { door: 0, host: b"plain", places: EDGE, ends: Ends::Late },
    Case { door: 0, host: b"plain", places: EDGE, ends: Ends::Broken },
    Case { door: 0, host: b"orders", places: EDGE, ends: Ends::Reset },
    Case { door: 0, host: b"orders", places: EDGE, ends: Ends::Late },
    Case { door: 0, host: b"orders", places: EDGE, ends: Ends::Broken },
    Case { door: 1, host: b"plain", places: EDGE, ends: Ends::Reset },
    Case { door: 2, host: b"plain", places: MESH, ends: Ends::Reset },
    Case { door: 2, host: b"orders", places: MESH, ends: Ends::Reset },
    Case { door: 3, host: b"orders", places: MESH, ends: Ends::Reset },
    Case { door: 3, host: b"orders", places: MESH, ends: Ends::Late },
    Case { door: 3, host: b"orders", places: MESH, ends: Ends::Broken },
];

impl Case {
    /// Requests from this number on, of which those before `ended` are to end before their answers.
    fn heads(&self, from: usize, count: usize, ended: usize) -> impl Iterator<Item = Vec<u8>> {
        let mut fields = request();
        fields[2].1 = self.host;
        fields.push((b"content-type", b"application/grpc"));
        let mut other = fields.clone();
        let mut flags = WHOLE_HEAD;
        match self.ends {
            Ends::Reset => {}
            Ends::Late => other.push((b"grpc-timeout", b"5S")),
            Ends::Broken => {
                other.push((b"content-length", b"1"));
                flags = END_HEADERS;
            }
        }
        (from..from + count).map(move |number| match number < ended {
            true => frame(HEADERS, flags, id(number), &block(&other)),
            false => frame(HEADERS, WHOLE_HEAD, id(number), &block(&fields)),
        })
    }

    async fn holds(&self, scene: &Scene, work: &Work, answer: &watch::Sender<usize>) {
        work.forget();
        let (door, way) = &scene.doors(&["h2"])[self.door];
        let what = format!(
            "{door} to {}, {:?}",
            String::from_utf8_lossy(self.host),
            self.ends
        );
        let mut stream = way.connect().await.unwrap();
        let first: Vec<_> = self.heads(0, self.places, BACK).collect();
        stream.write_all(&opened(&first)).await.unwrap();
        stream.flush().await.unwrap();
        until(&format!("{what}: all to be worked on"), async || {
            (work.begun() == self.places).then_some(())
        })
        .await;
        let ends: Vec<_> = (0..BACK)
            .filter_map(|number| match self.ends {
                Ends::Reset => Some(frame(RST_STREAM, 0, id(number), &[0, 0, 0, 8])),
                Ends::Late => None,
                Ends::Broken => Some(frame(DATA, 0, id(number), b"xx")),
            })
            .collect();
        stream.write_all(&ends.concat()).await.unwrap();
        stream.flush().await.unwrap();
        // By what the client is told that they have ended, where it does not know.
        let told = match self.ends {
            Ends::Reset => None,
            Ends::Late => Some(HEADERS),
            Ends::Broken => Some(RST_STREAM),
        };
        for _ in 0..told.map_or(0, |_| BACK) {
            while Some(heard(&mut stream, &what).await.0) != told {}
        }
        let again: Vec<_> = self
            .heads(self.places, BACK, 0)
            .chain([frame(PING, 0, 0, b"all read")])
            .collect();
        stream.write_all(&again.concat()).await.unwrap();
        stream.flush().await.unwrap();
        // Everything in front of it was read when this is answered.
        while heard(&mut stream, &what).await != (PING, b"all read".to_vec()) {}
        settled(&work.begun).await;
        assert_eq!(work.most(), self.places, "{what}: at the same time");
        // Once the app has ended them, those that waited for a place have it.
        answer.send_modify(|turn| *turn += 1);
        until(&format!("{what}: the others to be worked on"), async || {
            (work.begun() == self.places + BACK).then_some(())
        })
        .await;
        answer.send_modify(|turn| *turn += 1);
        let mut answers = self.places;
        while answers > 0 {
            answers -= usize::from(heard(&mut stream, &what).await.0 == HEADERS);
        }
        let most = work.most();
        assert!(most <= self.places, "{what}: {most} at the same time");
    }
}

fn id(number: usize) -> u32 {
    2 * u32::try_from(number).unwrap() + 1
}

/// The next frame, which is no goodbye.
async fn heard(stream: &mut (impl AsyncRead + Unpin), what: &str) -> (u8, Vec<u8>) {
    let read = timeout(PATIENCE, read_frame(stream)).await.unwrap();
    let (kind, payload) = read.unwrap();
    assert_ne!(kind, GOAWAY, "{what}: {payload:?}");
    (kind, payload)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_door_has_more_in_hand_than_it_granted_when_some_was_taken_back() {
    let host = Host::new();
    let (answer, told) = watch::channel(0);
    let (_tasks, work) = app(host.app(), told).await;
    let mut scene = Scene::of(host, Origin::nobody()).await;
    for case in CASES {
        case.holds(&scene, &work, &answer).await;
    }
    scene.assert_alive().await;
}

/// In parts, since an app of HTTP/2 shows that it has stopped by nothing but time.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_http2_has_no_more_in_hand_by_the_edge_either() {
    no_more_of_http2(|case| case.places == EDGE && case.host == b"plain").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_http2_has_no_more_in_hand_behind_two_proxies_either() {
    no_more_of_http2(|case| case.places == EDGE && case.host == b"orders").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_http2_has_no_more_in_hand_by_the_mesh_either() {
    no_more_of_http2(|case| case.places == MESH).await;
}

async fn no_more_of_http2(which: impl Fn(&Case) -> bool) {
    let host = Host::new();
    let (answer, told) = watch::channel(0);
    let (_app, work) = app_of_http2(host.app(), told).await;
    let mut scene = Scene::of_calls(host, Origin::nobody()).await;
    for case in CASES.iter().filter(|case| which(case)) {
        case.holds(&scene, &work, &answer).await;
    }
    scene.assert_alive().await;
}

/// A gateway has one connection for many clients, whose resets are its own to the other side: no number of them ends what
/// others have on it, or takes all places.
#[tokio::test(flavor = "multi_thread")]
async fn what_many_take_back_ends_nothing_that_others_have() {
    let host = Host::new();
    let (answer, told) = watch::channel(0);
    let (_app, work) = app_of_http2(host.app(), told).await;
    let scene = Scene::of_calls(host, Origin::nobody()).await;
    many_take_back(scene, &work, &answer).await;
}

/// Its sidecar sees when it stops, and the gateway does not: places that the one keeps are free to none.
#[tokio::test(flavor = "multi_thread")]
async fn what_many_take_back_of_an_app_of_http1_ends_nothing_either() {
    let host = Host::new();
    let (answer, told) = watch::channel(0);
    let (_tasks, work) = app(host.app(), told).await;
    let scene = Scene::of(host, Origin::nobody()).await;
    many_take_back(scene, &work, &answer).await;
}

async fn many_take_back(mut scene: Scene, work: &Work, answer: &watch::Sender<usize>) {
    const CLIENTS: usize = 30;
    let public = Way::Plain(scene.host.public());
    let post = || Request::post("http://orders/later").body(()).unwrap();
    let mut tasks = JoinSet::new();
    // On each of the gateway's cores.
    let mut others = Vec::new();
    for _ in 0..8 {
        let mut sender = connected(&public, 1 << 16, 1 << 20, &mut tasks).await;
        let (response, _) = sender.send_request(post(), true).unwrap();
        others.push((response, sender));
    }
    // First the app is silent, and then it answers others, so that what was taken back is counted soon.
    for (round, answers) in [false, true].into_iter().enumerate() {
        let begun = Instant::now();
        for client in 1..=CLIENTS {
            // Gone with what it took back.
            let mut sender = connected(&public, 1 << 16, 1 << 20, &mut tasks).await;
            if answers {
                let now = Request::get("http://orders/now").body(()).unwrap();
                let (answer, _) = sender.send_request(now, true).unwrap();
                let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
                assert_eq!(answer.status(), 200);
            }
            let mut taken_back = Vec::new();
            for _ in 0..EDGE {
                sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
                taken_back.push(sender.send_request(post(), true).unwrap());
            }
            let wanted = others.len() + (round * CLIENTS + client) * EDGE;
            until(&format!("{wanted} to be worked on"), async || {
                (work.begun() == wanted).then_some(())
            })
            .await;
        }
        // Where all places of a connection are kept there is another one.
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(9), "{took:?}");
    }
    answer.send_modify(|turn| *turn += 1);
    for (response, _) in others {
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), 200, "{:?}", response.headers());
    }
    scene.assert_alive().await;
}

/// Who changes their mind often has their places again as soon as can be: when the app has had its time, and answers others.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_back_much_need_not_wait_where_the_app_answers_others() {
    let host = Host::new();
    let (_answer, told) = watch::channel(0);
    let (_app, work) = app_of_http2(host.app(), told).await;
    let mut scene = Scene::of_calls(host, Origin::nobody()).await;
    let mut tasks = JoinSet::new();
    let public = Way::Plain(scene.host.public());
    let get = |path: &str| {
        let uri = format!("http://orders{path}");
        Request::get(uri).body(()).unwrap()
    };
    // Others, who are answered all the time.
    let mut other = connected(&public, 1 << 16, 1 << 20, &mut tasks).await;
    let (asking, asked) = (get("/now"), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    tasks.spawn(async move {
        let mut beat = interval(Duration::from_millis(20));
        loop {
            beat.tick().await;
            let (response, _) = other.send_request(asking.clone(), true).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    until("others to be answered", async || {
        (asked.load(Ordering::SeqCst) > 5).then_some(())
    })
    .await;
    let mut sender = connected(&public, 1 << 16, 1 << 20, &mut tasks).await;
    for round in 1..=2 {
        let mut taken_back = Vec::new();
        for _ in 0..EDGE {
            sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
            taken_back.push(sender.send_request(get("/later"), true).unwrap());
        }
        until("all to be worked on", async || {
            (work.begun() == round * EDGE).then_some(())
        })
        .await;
        let begun = Instant::now();
        drop(taken_back);
        let mut answers = Vec::new();
        for _ in 0..EDGE {
            sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
            answers.push(sender.send_request(get("/now"), true).unwrap().0);
        }
        for answer in answers {
            let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
        }
        // Without the others it would be ten seconds, and without places none.
        let waited = begun.elapsed();
        let wanted = Duration::from_millis(100)..Duration::from_secs(9);
        assert!(wanted.contains(&waited), "{waited:?}");
    }
    scene.assert_alive().await;
}
