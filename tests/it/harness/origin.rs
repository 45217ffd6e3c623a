//! The app behind a sidecar, living in the test: it answers, counts, and misbehaves as told.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::listening;
use super::wire::{Head, Wire};

/// What a script does with a connection, from its first byte.
pub(crate) type Script =
    Arc<dyn Fn(Wire<TcpStream>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What the app does with each request.
#[derive(Clone, Default)]
pub(crate) enum Behaviour {
    /// 200 with its name.
    #[default]
    Answer,
    /// This status, with its name.
    Status(u16),
    /// 200 with the request's body, in chunks, with its trailers.
    Echo,
    /// 200 with its name, this much later.
    Slow(Duration),
    /// These bytes, after the request was read.
    Bytes(Vec<u8>),
    /// Reads the request and resets the connection.
    Reset,
    /// Reads the request and closes the connection.
    Close,
    /// Reads the request and says nothing.
    Hang,
    /// Reads the request, promises 100 bytes, sends 10 and closes.
    Cut,
    /// Answers this status as soon as it has the head, and reads the body then.
    Early(u16),
    /// Does with each new connection whatever it wants.
    Script(Script),
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Behaviour")
    }
}

impl Behaviour {
    /// Every new connection is handed to `script`.
    pub(crate) fn script<F>(script: impl Fn(Wire<TcpStream>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::Script(Arc::new(move |wire| Box::pin(script(wire))))
    }
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) head: Head,
    /// Its body, when it came whole.
    pub(crate) body: Option<Vec<u8>>,
}

impl Seen {
    pub(crate) fn method(&self) -> &str {
        self.head.word(0)
    }

    pub(crate) fn target(&self) -> &str {
        self.head.word(1)
    }
}

#[derive(Debug)]
struct Shared {
    name: String,
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    count: AtomicUsize,
    connections: AtomicUsize,
}

/// An app server on one address.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    /// The listener and its connections, while it runs.
    running: Mutex<Option<JoinSet<()>>>,
}

/// Requests that are remembered; further ones are only counted.
const REMEMBERED: usize = 50_000;

impl Origin {
    /// Listens and answers.
    pub(crate) async fn start(name: &str, address: SocketAddr) -> Self {
        let origin = Self {
            address,
            shared: Arc::new(Shared {
                name: name.to_owned(),
                behaviour: Mutex::default(),
                seen: Mutex::default(),
                count: AtomicUsize::new(0),
                connections: AtomicUsize::new(0),
            }),
            running: Mutex::default(),
        };
        origin.resume().await;
        origin
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// Behaves like this from the next request on.
    pub(crate) fn does(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// Ends: the port is closed, and so are all connections.
    pub(crate) async fn stop(&self) {
        let running = self.running.lock().unwrap().take();
        if let Some(mut running) = running {
            running.shutdown().await;
        }
    }

    /// Listens again.
    pub(crate) async fn resume(&self) {
        self.stop().await;
        let listener = listening(self.address);
        let mut running = JoinSet::new();
        running.spawn(accept(listener, Arc::clone(&self.shared)));
        *self.running.lock().unwrap() = Some(running);
    }

    /// The requests since the last [`Origin::forget`].
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How many requests of a method there were.
    pub(crate) fn count(&self, method: &str) -> usize {
        let seen = self.shared.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.method() == method).count()
    }

    /// How often each target was asked for with a method.
    pub(crate) fn by_target(&self, method: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for seen in self.shared.seen.lock().unwrap().iter() {
            if seen.method() == method {
                *counts.entry(seen.target().to_owned()).or_default() += 1;
            }
        }
        counts
    }

    /// How many requests there were.
    pub(crate) fn total(&self) -> usize {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Counts from nothing again.
    pub(crate) fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
        self.shared.count.store(0, Ordering::Relaxed);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Here, so that they end with the listener.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(converse(Wire::new(stream), Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Shared {
    fn now(&self) -> Behaviour {
        self.behaviour.lock().unwrap().clone()
    }

    /// Remembers a request and gives its place.
    fn note(&self, head: &Head) -> usize {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap();
        if seen.len() < REMEMBERED {
            seen.push(Seen {
                head: head.clone(),
                body: None,
            });
        }
        seen.len() - 1
    }

    fn note_body(&self, place: usize, head: &Head, body: &[u8]) {
        // The test may have asked to forget in the meantime.
        if let Some(seen) = self.seen.lock().unwrap().get_mut(place)
            && seen.head == *head
        {
            seen.body = Some(body.to_vec());
        }
    }
}

async fn converse(mut wire: Wire<TcpStream>, shared: Arc<Shared>) {
    if let Behaviour::Script(script) = shared.now() {
        script(wire).await;
        return;
    }
    while let Some(head) = wire.head().await {
        let place = shared.note(&head);
        let behaviour = shared.now();
        if head
            .field("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
            && !matches!(behaviour, Behaviour::Early(_))
            && wire
                .try_write("HTTP/1.1 100 Continue\r\n\r\n")
                .await
                .is_err()
        {
            return;
        }
        if let Behaviour::Early(status) = behaviour {
            let answer = plain(&shared.name, status, head.word(0));
            if wire.try_write(answer).await.is_err() {
                return;
            }
        }
        let Some(content) = wire.content(&head).await else {
            return;
        };
        shared.note_body(place, &head, &content.bytes);
        let answer = match behaviour {
            Behaviour::Early(_) => continue,
            Behaviour::Answer | Behaviour::Script(_) => plain(&shared.name, 200, head.word(0)),
            Behaviour::Status(status) => plain(&shared.name, status, head.word(0)),
            Behaviour::Slow(delay) => {
                tokio::time::sleep(delay).await;
                plain(&shared.name, 200, head.word(0))
            }
            Behaviour::Bytes(bytes) => bytes,
            Behaviour::Echo => {
                let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                for piece in content.bytes.chunks(1000) {
                    answer.extend(format!("{:x}\r\n", piece.len()).bytes());
                    answer.extend(piece);
                    answer.extend(b"\r\n");
                }
                answer.extend(b"0\r\n");
                for line in content.trailers {
                    answer.extend(format!("{line}\r\n").bytes());
                }
                answer.extend(b"\r\n");
                answer
            }
            Behaviour::Reset => return wire.reset(),
            Behaviour::Close => return,
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Cut => {
                let _ = wire
                    .try_write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")
                    .await;
                return;
            }
        };
        if wire.try_write(answer).await.is_err() {
            return;
        }
    }
}

fn plain(name: &str, status: u16, method: &str) -> Vec<u8> {
    let body = if method == "HEAD" { "" } else { name };
    format!(
        "HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\nX-Origin: {name}\r\n\r\n{body}",
        name.len()
    )
    .into_bytes()
}
