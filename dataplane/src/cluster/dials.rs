//! The connections that this process makes itself, so that one of them that is redirected back to us is known for what it
//! is. It must not happen (`weft intercept install --user` spares us), and without this it would never end.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

/// From where to where.
type Pair = (SocketAddr, SocketAddr);

/// Our own connections that are open now. While one is, the system gives its pair of addresses to nobody else.
#[derive(Debug, Default)]
pub struct Dials {
    /// Whether anything is redirected to us at all; nothing is noted otherwise.
    watching: AtomicBool,
    /// Held for a look-up; taken when a connection is made, ended, or accepted.
    open: Mutex<HashSet<Pair, RandomState>>,
}

impl Dials {
    /// From now on.
    pub(crate) fn watch(&self) {
        self.watching.store(true, Ordering::Relaxed);
    }

    /// Notes a connection of ours, before its first byte is sent.
    pub(crate) fn note(self: &Arc<Self>, stream: &tokio::net::TcpStream) -> Option<Box<Dial>> {
        if !self.watching.load(Ordering::Relaxed) {
            return None;
        }
        let pair = (
            plain(stream.local_addr().ok()?),
            plain(stream.peer_addr().ok()?),
        );
        self.lock().insert(pair);
        Some(Box::new(Dial {
            dials: Arc::clone(self),
            pair,
        }))
    }

    /// Whether a connection that was accepted is one of these.
    pub(crate) fn has(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.lock().contains(&(plain(from), plain(to)))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Pair, RandomState>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One form for each address, without an interface's index.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A connection of ours; forgotten when dropped, which must not be before its socket is closed.
#[derive(Debug)]
pub struct Dial {
    dials: Arc<Dials>,
    pair: Pair,
}

impl Drop for Dial {
    fn drop(&mut self) {
        self.dials.lock().remove(&self.pair);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_connection_of_ours_is_known_as_long_as_it_is_open() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let stream = TcpStream::connect(to).await.unwrap();
        let from = stream.local_addr().unwrap();
        let dials = Arc::new(Dials::default());
        assert!(dials.note(&stream).is_none(), "nobody watches");
        dials.watch();
        let dial = dials.note(&stream).unwrap();
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", from.port())
            .parse()
            .unwrap();
        assert!(dials.has(from, to) && dials.has(mapped, to));
        assert!(!dials.has(to, from));
        drop(dial);
        assert!(!dials.has(from, to));
    }
}
