//! Keys over time: a file that changes, an issuer that goes away, and floods of unknown keys.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Mutex;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::super::testing::{ec_key, ed_key, rsa_key};
use super::*;

const SOON: Duration = Duration::from_millis(5);

/// Quick enough for tests; the order of things is that of the real one.
fn quick() -> Pace {
    Pace::new(SOON, SOON, SOON)
}

fn document(ids: &[&str]) -> String {
    let keys: Vec<_> = ids.iter().map(|id| ed_key().jwk(id)).collect();
    json!({ "keys": keys }).to_string()
}

/// An issuer that answers each request with the next of its answers, and then with the last again and again.
struct FakeIssuer {
    answers: Mutex<VecDeque<Vec<u8>>>,
    asked: AtomicU32,
    heads: Mutex<Vec<String>>,
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn status(status: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

impl FakeIssuer {
    fn new(answers: impl IntoIterator<Item = Vec<u8>>) -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::new(answers.into_iter().collect()),
            asked: AtomicU32::new(0),
            heads: Mutex::new(Vec::new()),
        })
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>) {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            match &tls {
                None => self.answer(tcp).await,
                // A client that does not trust us goes away here.
                Some(acceptor) => {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        self.answer(tls).await;
                    }
                }
            }
        }
    }

    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        self.heads
            .lock()
            .unwrap()
            .push(String::from_utf8(head).unwrap());
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            match answers.len() {
                1 => answers[0].clone(),
                _ => answers.pop_front().unwrap(),
            }
        };
        self.asked.fetch_add(1, Ordering::SeqCst);
        // The client may have seen enough.
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn key_set(url: &str, ca: Option<PathBuf>, pace: Pace) -> Arc<KeySet> {
    let source = Source {
        url: Some(url.to_owned()),
        ca,
        file: None,
    };
    let mut problems = Problems::new();
    let built = KeySet::build(&Path::root(), &source, &mut problems);
    let mut set = built.unwrap_or_else(|| panic!("{problems:?}"));
    set.pace = pace;
    Arc::new(set)
}

/// Runs `story` beside an issuer with these `answers` and a key set that is kept from it.
async fn with_issuer<F>(
    answers: Vec<Vec<u8>>,
    pace: Pace,
    story: impl FnOnce(Arc<FakeIssuer>, Arc<KeySet>) -> F,
) where
    F: Future<Output = ()>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys?v=1", listener.local_addr().unwrap());
    let issuer = FakeIssuer::new(answers);
    let set = key_set(&url, None, pace);
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&issuer).serve(listener, None));
    let keeper = JoinSet::from_iter([Arc::clone(&set).keep(stopped)]);
    story(issuer, set).await;
    stop.send(true).unwrap();
    // It ends when it is told to.
    tokio::time::timeout(Duration::from_secs(10), keeper.join_all())
        .await
        .unwrap();
}

/// Waits for a condition, not for a time; the time only ends a test that fails.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(waited.is_ok(), "waited in vain until {what}");
}

fn has(set: &KeySet, id: &str) -> bool {
    set.current()
        .as_ref()
        .is_some_and(|keys| keys.named(Some(id)).count() == 1)
}

fn generation(set: &KeySet) -> u64 {
    set.current().as_ref().unwrap().generation()
}

#[tokio::test]
async fn keys_come_from_the_url_and_follow_it() {
    let answers = vec![
        ok(&document(&["a"])),
        ok(&document(&["a"])),
        ok(&document(&["b"])),
    ];
    with_issuer(answers, quick(), async |issuer, set| {
        assert!(!set.is_ready());
        until("there are keys", || has(&set, "a")).await;
        until("keys change", || has(&set, "b")).await;
        assert_eq!((set.len(), set.failures()), (1, 0));
        assert!(issuer.asked() >= 3);
        let head = issuer.heads.lock().unwrap()[0].to_ascii_lowercase();
        assert!(head.starts_with("get /keys?v=1 http/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nhost: 127.0.0.1:"), "{head}");
    })
    .await;
}

#[tokio::test]
async fn unchanged_keys_keep_their_generation() {
    with_issuer(vec![ok(&document(&["a"]))], quick(), async |issuer, set| {
        until("there are keys", || set.is_ready()).await;
        let before = generation(&set);
        let asked = issuer.asked();
        until("it asked again", || issuer.asked() > asked + 2).await;
        assert_eq!(generation(&set), before);
    })
    .await;
}

#[tokio::test]
async fn nothing_takes_keys_away_but_better_ones() {
    let bad = [
        status("500 Internal Server Error"),
        status("302 Found"),
        status("204 No Content"),
        ok("<html>maintenance</html>"),
        ok(r#"{"keys": []}"#),
        ok(r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#),
        ok(&" ".repeat(MOST_BYTES + 1)),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"keys\"".to_vec(),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz".to_vec(),
        b"SSH-2.0-OpenSSH\r\n".to_vec(),
        Vec::new(),
    ];
    let count = bad.len() as u32;
    let mut answers = vec![ok(&document(&["a"]))];
    answers.extend(bad);
    answers.push(ok(&document(&["b"])));
    with_issuer(answers, quick(), async |issuer, set| {
        until("there are keys", || has(&set, "a")).await;
        let first = generation(&set);
        while issuer.asked() <= count {
            assert!(has(&set, "a") || has(&set, "b"));
            assert!(has(&set, "b") || generation(&set) == first);
            tokio::task::yield_now().await;
        }
        until("there are new keys", || has(&set, "b")).await;
        until("the failures are forgotten", || set.failures() == 0).await;
    })
    .await;
}

/// Notes how loud each event is.
#[derive(Clone, Default)]
struct Loudness(Arc<Mutex<Vec<Level>>>);

impl Loudness {
    fn times(&self, level: Level) -> usize {
        let levels = self.0.lock().unwrap();
        levels.iter().filter(|have| **have == level).count()
    }
}

impl Subscriber for Loudness {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(*event.metadata().level());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn an_outage_that_outlasts_patience_is_said_loudly_and_the_keys_stay() {
    let down = || vec![ok(&document(&["a"])), status("503 Service Unavailable")];
    for (patience, level) in [(PATIENCE, Level::WARN), (SOON, Level::ERROR)] {
        let heard = Loudness::default();
        let _hearing = tracing::subscriber::set_default(heard.clone());
        let pace = Pace {
            patience,
            ..quick()
        };
        with_issuer(down(), pace, async |_, set| {
            until("there are keys", || has(&set, "a")).await;
            until("failures are said like this", || heard.times(level) > 3).await;
            assert!(has(&set, "a"));
        })
        .await;
        assert_eq!(heard.times(Level::ERROR) > 0, level == Level::ERROR);
    }
}

#[tokio::test]
async fn before_the_first_keys_failures_are_counted_and_tried_again() {
    let answers = vec![
        status("503 Service Unavailable"),
        status("503 Service Unavailable"),
        ok(&document(&["a"])),
    ];
    with_issuer(answers, quick(), async |issuer, set| {
        until("a failure is counted", || {
            set.failures() > 0 || set.is_ready()
        })
        .await;
        until("there are keys", || set.is_ready()).await;
        assert!(issuer.asked() >= 3);
    })
    .await;
}

#[tokio::test]
async fn unknown_keys_ask_again_but_not_more_often_than_the_pace_allows() {
    let hour = Duration::from_secs(3_600);
    let pace = Pace {
        refresh: hour,
        least: Duration::from_millis(50),
        ..quick()
    };
    with_issuer(
        vec![ok(&document(&["a"])), ok(&document(&["b"]))],
        pace,
        async |issuer, set| {
            let began = Instant::now();
            until("there are keys", || has(&set, "a")).await;
            until("unknown keys made it ask again", || {
                for _ in 0..1_000 {
                    set.ask_again();
                }
                has(&set, "b")
            })
            .await;
            until("some more attempts", || {
                set.ask_again();
                issuer.asked() >= 5
            })
            .await;
            // Five attempts have four pauses between them.
            assert!(
                began.elapsed() >= Duration::from_millis(200),
                "{:?}",
                began.elapsed()
            );
        },
    )
    .await;
}

#[tokio::test]
async fn over_https_the_issuer_must_prove_its_name() {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let signer = Issuer::new(authority, authority_key);
    let leaf = CertificateParams::new(["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &signer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let issuer = FakeIssuer::new([ok(&document(&["a"]))]);
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&issuer).serve(listener, Some(TlsAcceptor::from(Arc::new(config)))));

    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("ca.pem");
    std::fs::write(&good, root.pem()).unwrap();
    let stranger = directory.path().join("stranger.pem");
    let other = CertificateParams::new([])
        .unwrap()
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap();
    std::fs::write(&stranger, other.pem()).unwrap();

    let attempt = async |host: &str, ca: &std::path::Path| {
        let set = key_set(
            &format!("https://{host}:{port}/"),
            Some(ca.to_owned()),
            quick(),
        );
        set.attempt().await.map(|()| has(&set, "a"))
    };
    assert_eq!(attempt("localhost", &good).await, Ok(true));
    let error = attempt("localhost", &stranger).await.unwrap_err();
    assert!(error.contains("TLS with localhost"), "{error}");
    let error = attempt("127.0.0.1", &good).await.unwrap_err();
    assert!(error.contains("TLS with 127.0.0.1"), "{error}");
    assert_eq!(issuer.asked(), 1);

    // What it trusts is renewed like anything else, and is not lost to a file that is broken for a moment.
    let url = format!("https://localhost:{port}/");
    let set = key_set(&url, Some(stranger.clone()), quick());
    assert!(set.attempt().await.is_err());
    std::fs::write(&stranger, root.pem()).unwrap();
    assert_eq!(set.attempt().await, Ok(()));
    std::fs::write(&stranger, "half a").unwrap();
    assert_eq!(set.attempt().await, Ok(()));
    assert_eq!(issuer.asked(), 3);
}

#[test]
fn what_a_url_asks_with_is_told_to_the_issuer_and_to_nobody_else() {
    let set = key_set("http://127.0.0.1:1/keys?token=s3cret", None, quick());
    assert_eq!(set.origin(), "http://127.0.0.1:1/keys?REDACTED");
    assert!(!format!("{set:?}").contains("s3cret"), "{set:?}");
    for wrong in [
        "ftp://id.example/keys?token=s3cret",
        "id.example/keys?token=s3cret",
    ] {
        let source = Source {
            url: Some(wrong.to_owned()),
            ..Source::default()
        };
        let mut problems = Problems::new();
        assert!(KeySet::build(&Path::root(), &source, &mut problems).is_none());
        let said = format!("{problems:?}");
        assert!(
            said.contains("id.example/keys") && !said.contains("s3cret"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn an_issuer_that_is_not_there_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let set = key_set(&format!("http://{address}"), None, quick());
    let error = set.attempt().await.unwrap_err();
    assert!(error.contains("cannot connect"), "{error}");
    assert!(!set.is_ready());
}

#[tokio::test]
async fn a_file_is_there_at_once_and_followed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.json");
    std::fs::write(&file, document(&["a"])).unwrap();
    let source = Source {
        file: Some(file.clone()),
        ..Source::default()
    };
    let mut set = KeySet::build(&Path::root(), &source, &mut Problems::new()).unwrap();
    assert!(has(&set, "a"));
    set.pace = quick();
    let set = Arc::new(set);
    let (stop, stopped) = watch::channel(false);
    let keeper = JoinSet::from_iter([Arc::clone(&set).keep(stopped)]);
    let two = json!({"keys": [rsa_key().jwk("b"), ec_key().jwk("c")]});
    std::fs::write(&file, two.to_string()).unwrap();
    until("the file was read again", || has(&set, "c")).await;
    std::fs::write(&file, "half a fi").unwrap();
    until("the broken file was noticed", || set.failures() > 0).await;
    assert!(has(&set, "b"));
    std::fs::remove_file(&file).unwrap();
    let failures = set.failures();
    until("the missing file was noticed", || {
        set.failures() > failures + 1
    })
    .await;
    assert!(has(&set, "b"));
    std::fs::write(&file, document(&["d"])).unwrap();
    until("the good file was read", || {
        has(&set, "d") && set.failures() == 0
    })
    .await;
    // Gone without a word: the keeper ends all the same.
    drop(stop);
    tokio::time::timeout(Duration::from_secs(10), keeper.join_all())
        .await
        .unwrap();
}

#[test]
fn the_pace_is_ten_minutes_and_one_to_thirty_seconds_after_failures() {
    let pace = Pace::of_url();
    let check = |failures, random, millis| {
        assert_eq!(
            pace.wait(failures, random),
            Duration::from_millis(millis),
            "{failures} {random}"
        );
    };
    check(0, 0.0, 600_000);
    check(0, 1.0, 540_000);
    check(1, 0.0, 1_000);
    check(1, 1.0, 500);
    check(2, 0.0, 2_000);
    check(5, 0.0, 16_000);
    check(6, 0.0, 30_000);
    check(u32::MAX, 0.0, 30_000);
    assert_eq!(pace.least, Duration::from_secs(10));
}
