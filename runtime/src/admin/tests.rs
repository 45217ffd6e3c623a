//! The admin pages over real sockets.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Admin, Config};
use crate::config::{self, Document, Problems, Status};
use crate::drain::{self, Trigger};
use crate::ready::Readiness;
use crate::task::Group;
use crate::telemetry::metrics::Metrics;

/// A process with admin pages.
struct Process {
    address: SocketAddr,
    readiness: Readiness,
    status: Status,
    trigger: Trigger,
    group: Group,
}

impl Process {
    async fn start() -> Self {
        Self::with(Config {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            allow_remote: false,
        })
        .await
    }

    async fn with(config: Config) -> Self {
        let (trigger, watch) = drain::channel();
        let readiness = Readiness::new();
        let (_, metrics) = Metrics::detached("1.2.3");
        let status = Status::new(
            Path::new("/etc/weft.yaml"),
            "trust_domain: x\n",
            SystemTime::UNIX_EPOCH,
        );
        let mut admin = Admin::new(readiness.clone(), metrics, &trigger);
        admin.config(status.clone());
        admin.page(
            "/endpoints",
            "who serves what",
            Arc::new(|| ("application/json", "[]".to_owned())),
        );
        let settings = config
            .build(&config::Path::root(), &mut Problems::new())
            .unwrap();
        let bound = admin.bind(&settings).await.unwrap();
        let address = bound.address().unwrap();
        let group = Group::new();
        group.spawn("admin", bound.serve(watch));
        Self {
            address,
            readiness,
            status,
            trigger,
            group,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request head and reads until the connection is closed.
    async fn ask(&self, head: &str) -> String {
        let mut stream = self.connect().await;
        let head = head.replace('\n', "\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self
            .ask(&format!(
                "GET {path} HTTP/1.1\nHost: {}\nConnection: close\n\n",
                self.address
            ))
            .await;
        (status(&answer), body(&answer).to_owned())
    }
}

fn status(answer: &str) -> u16 {
    answer[9..12].parse().unwrap()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn ready_says_what_is_missing() {
    let process = Process::start().await;
    let guard = process.readiness.guard("certificate");
    assert_eq!(
        process.get("/ready").await,
        (
            503,
            "{\"draining\":false,\"missing\":[\"certificate\"],\"ready\":false}\n".to_owned()
        )
    );
    assert_eq!(process.get("/live").await, (200, "live\n".to_owned()));
    guard.ready();
    assert_eq!(process.get("/ready").await.0, 200);
    process.readiness.leave("draining");
    assert_eq!(process.get("/ready").await.0, 503);
}

#[tokio::test]
async fn the_list_shows_all_pages_and_each_is_there() {
    let process = Process::start().await;
    let (status, list) = process.get("/").await;
    assert_eq!(status, 200);
    for path in [
        "/live",
        "/ready",
        "/metrics",
        "/config",
        "/drain",
        "/endpoints",
    ] {
        assert!(list.contains(path), "{list}");
    }
    assert!(
        process
            .get("/metrics")
            .await
            .1
            .contains("weft_build_info{version=\"1.2.3\"} 1")
    );
    assert_eq!(process.get("/endpoints?all").await, (200, "[]".to_owned()));
    let (status, text) = process.get("/nonsense").await;
    assert_eq!(status, 404);
    assert!(text.contains("/endpoints"), "{text}");
}

#[tokio::test]
async fn config_shows_what_is_in_force_and_why_the_file_is_not() {
    let process = Process::start().await;
    let (_, text) = process.get("/config").await;
    assert_eq!(
        text,
        "# source: /etc/weft.yaml\n# generation: 1\n# loaded: 1970-01-01T00:00:00Z\n# refused: never since then\n\ntrust_domain: x\n"
    );
    process
        .status
        .refused(SystemTime::UNIX_EPOCH, "weft.yaml:3:1: unknown key `x`\n");
    let (_, text) = process.get("/config").await;
    assert!(
        text.contains("#   weft.yaml:3:1: unknown key `x`\n"),
        "{text}"
    );
    assert!(text.ends_with("\ntrust_domain: x\n"), "{text}");
}

#[tokio::test]
async fn drain_wants_a_post_and_not_from_a_website() {
    let process = Process::start().await;
    let (status_of_get, text) = process.get("/drain").await;
    assert_eq!((status_of_get, text.as_str()), (405, "/drain wants POST\n"));
    let from_page = process
        .ask("POST /drain HTTP/1.1\nHost: localhost:15000\nOrigin: http://evil.example\nConnection: close\n\n")
        .await;
    assert_eq!(status(&from_page), 403);
    let requested = process.trigger.requested();
    tokio::pin!(requested);
    assert!(
        tokio::time::timeout(Duration::ZERO, &mut requested)
            .await
            .is_err(),
        "nothing so far has begun a drain"
    );
    let answer = process
        .ask("POST /drain HTTP/1.1\nHost: localhost\nConnection: close\n\n")
        .await;
    assert_eq!((status(&answer), body(&answer)), (202, "draining\n"));
    requested.await;
}

#[tokio::test]
async fn other_names_are_another_websites() {
    let process = Process::start().await;
    let check = async |host: &str, expected: u16| {
        let answer = process
            .ask(&format!("GET /live HTTP/1.1\n{host}Connection: close\n\n"))
            .await;
        assert_eq!(status(&answer), expected, "{host}");
    };
    check("Host: localhost:15000\n", 200).await;
    check("Host: 127.0.0.1\n", 200).await;
    check("Host: [::1]:15000\n", 200).await;
    check("Host: evil.example\n", 403).await;
    check("Host: 127.0.0.1.evil.example\n", 403).await;
    check("Host: a@b@c\n", 403).await;
    check("Host: localhost\nHost: evil.example\n", 403).await;
    check("", 403).await;
}

#[tokio::test]
async fn methods_and_bodies_that_no_page_takes() {
    let process = Process::start().await;
    let answer = process
        .ask("PUT /config HTTP/1.1\nHost: localhost\nConnection: close\n\n")
        .await;
    assert_eq!(status(&answer), 405);
    assert!(answer.contains("allow: GET\r\n"), "{answer}");
    // The connection is closed, although the client did not ask for it.
    let answer = process
        .ask("POST /drain HTTP/1.1\nHost: localhost\nContent-Length: 1000000\n\n")
        .await;
    assert_eq!(status(&answer), 413);
    let answer = process
        .ask("GET /live HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n")
        .await;
    assert_eq!(status(&answer), 413);
    let answer = process
        .ask("HEAD /live HTTP/1.1\nHost: localhost\nConnection: close\n\n")
        .await;
    assert_eq!((status(&answer), body(&answer)), (200, ""));
    let fields = "x: y\n".repeat(65);
    let answer = process
        .ask(&format!("GET /live HTTP/1.1\nHost: localhost\n{fields}\n"))
        .await;
    assert_eq!(status(&answer), 431);
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_cut_off() {
    let process = Process::start().await;
    let mut silent = process.connect().await;
    let mut slow = process.connect().await;
    slow.write_all(b"GET /live HTTP/1.1\r\nHost: loc")
        .await
        .unwrap();
    let begun = tokio::time::Instant::now();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    slow.read_to_end(&mut rest).await.unwrap();
    let waited = begun.elapsed();
    assert!(
        waited >= Duration::from_secs(10) && waited < Duration::from_secs(20),
        "{waited:?}"
    );
}

#[tokio::test]
async fn the_connection_after_the_last_waits_for_its_turn() {
    let process = Process::start().await;
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut stream = process.connect().await;
        stream
            .write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        // Its answer shows that it has a seat.
        let mut first = [0; 9];
        stream.read_exact(&mut first).await.unwrap();
        held.push(stream);
    }
    let late = process.get("/live");
    tokio::pin!(late);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), &mut late)
            .await
            .is_err(),
        "all seats are taken"
    );
    held.pop();
    assert_eq!(late.await.0, 200);
}

#[tokio::test]
async fn the_pages_stay_until_the_drain_has_ended() {
    let process = Process::start().await;
    let work = process.trigger.watch().guard();
    let asked = async {
        process.trigger.watch().draining().await;
        let (status, text) = process.get("/ready").await;
        drop(work);
        (status, text)
    };
    let (cut, (status, text)) = tokio::join!(process.trigger.drain(Duration::from_secs(30)), asked);
    assert_eq!((cut, status), (0, 200));
    assert!(text.contains("\"draining\":true"), "{text}");
    // The task ends by itself; this waits for it.
    process
        .group
        .run_until(process.trigger.watch().ended())
        .await
        .unwrap();
    assert!(TcpStream::connect(process.address).await.is_err());
}

#[test]
fn strangers_are_kept_out_unless_the_configuration_says_so() {
    let check = |text: &str, expected: &str| {
        let document = Document::parse("w", text).unwrap();
        let mut problems = Problems::new();
        let config: Config = document.decode(&mut problems).unwrap();
        let settings = config.build(&config::Path::root(), &mut problems);
        problems.locate(&document);
        assert_eq!(settings.is_none(), !problems.is_empty());
        assert_eq!(problems.render(), expected);
    };
    check("{}", "");
    check("address: 127.9.0.2:15000", "");
    check("address: \"[::1]:15000\"", "");
    check("address: \"[::ffff:127.0.0.1]:15000\"", "");
    check("{ address: 0.0.0.0:15000, allow_remote: true }", "");
    for address in ["0.0.0.0:15000", "10.0.0.1:15000", "'[::]:15000'"] {
        check(
            &format!("allow_remote: false\naddress: {address}\n"),
            &format!(
                "w:2:10: `{}` can be reached from other hosts, and the admin pages ask nobody who they are: \
                 whoever reaches them reads the configuration and drains the process\n    \
                 use a loopback address such as `127.0.0.1:15000`, or write `allow_remote: true` beside it if a firewall is in front\n",
                address.trim_matches('\'')
            ),
        );
    }
}

#[test]
fn another_host_is_checked_like_the_first() {
    let mut problems = Problems::new();
    let settings = Config::default()
        .build(&config::Path::root(), &mut problems)
        .unwrap();
    let moved = settings.on(IpAddr::from([127, 9, 0, 3])).unwrap();
    assert_eq!(moved.address().to_string(), "127.9.0.3:15000");
    assert!(settings.on(IpAddr::from([10, 0, 0, 1])).is_err());
}
