//! Connects to one thing that has several addresses: the CA, the collector, a key set.
//!
//! "Happy eyeballs" (RFC 8305): the families take turns, and an address that says nothing for [`STAGGER`] does not keep the
//! next one waiting; the first connection wins, the others are dropped. Where the network has no way for one family that
//! costs nothing, since the attempt fails at once.
//!
//! The race is not for the endpoints of a service: their addresses are replicas, not ways to one host, and each is picked,
//! judged and connected to for itself. The order is ([`Family::in_turns`]): where they are taken one after another the
//! families take turns, and an exchange to which an address of one does not answer goes to the other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use crate::endpoint::Family;

/// How long one address is waited for before the next is tried beside it (RFC 8305 §5).
pub const STAGGER: Duration = Duration::from_millis(250);

/// Addresses of one thing that are tried.
pub const MOST_ADDRESSES: usize = 8;

/// In the order to try them: see [`Family::in_turns`].
pub fn interleave(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    Family::in_turns(addresses, SocketAddr::ip)
}

/// The first connection that any of these addresses takes, and which one that was. They are tried in this order; see
/// [`interleave`]. There is no deadline but the system's; dropping the future gives all attempts up.
pub async fn connect(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut left = addresses.iter().take(MOST_ADDRESSES);
    let mut attempts = FuturesUnordered::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "there are no addresses");
    loop {
        if let Some(&address) = left.next() {
            attempts.push(async move { (TcpStream::connect(address).await, address) });
        } else if attempts.is_empty() {
            return Err(failed);
        }
        let patience = tokio::time::sleep(STAGGER);
        tokio::select! {
            biased;
            Some((connected, address)) = attempts.next() => match connected {
                Ok(stream) => return Ok((stream, address)),
                // The next one is tried at once.
                Err(error) => failed = io::Error::new(error.kind(), format!("{address}: {error}")),
            },
            () = patience, if left.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn families_take_turns() {
        let check = |given: &str, wanted: &str| {
            let parse = |text: &str| -> Vec<SocketAddr> {
                let words = text.split_whitespace();
                words.map(|word| word.parse().unwrap()).collect()
            };
            assert_eq!(interleave(parse(given)), parse(wanted));
        };
        check("", "");
        check("1.0.0.1:1 1.0.0.2:1", "1.0.0.1:1 1.0.0.2:1");
        check("1.0.0.1:1 [::1]:1", "[::1]:1 1.0.0.1:1");
        check(
            "1.0.0.1:1 1.0.0.2:1 1.0.0.3:1 [::1]:1 [::2]:1",
            "[::1]:1 1.0.0.1:1 [::2]:1 1.0.0.2:1 1.0.0.3:1",
        );
    }

    /// An address that says nothing: its listener's queue is full.
    fn silent() -> (Socket, Vec<std::net::TcpStream>, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) =
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300))
        {
            queued.push(stream);
            assert!(queued.len() < 10, "the queue has no end");
        }
        (socket, queued, address)
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_costs_a_quarter_of_a_second_and_one_that_refuses_nothing()
    {
        let well = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let well = (well.local_addr().unwrap(), well);
        let nobody = crate::testing::nowhere().await;
        let (_socket, _queued, silent) = silent();
        let begun = std::time::Instant::now();
        let (_, found) = connect(&[nobody, nobody, nobody, well.0]).await.unwrap();
        assert_eq!(found, well.0);
        let refused = begun.elapsed();
        let begun = std::time::Instant::now();
        let (_, found) = connect(&[silent, nobody, well.0]).await.unwrap();
        assert_eq!(found, well.0);
        let waited = begun.elapsed();
        assert!(refused < STAGGER, "{refused:?}");
        assert!(waited >= STAGGER, "{waited:?}");
        assert!(
            waited < Duration::from_secs(1),
            "not the kernel's second try: {waited:?}"
        );
    }

    #[tokio::test]
    async fn a_failure_names_the_address_and_none_is_a_failure_too() {
        let nobody = crate::testing::nowhere().await;
        let error = connect(&[nobody]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&nobody.to_string()));
        let error = connect(&[]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
