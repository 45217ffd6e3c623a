//! Where a connection was going before the system redirected it to us.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Where it was going; `None` when it was going where it has arrived.
///
/// The system remembers it for connections that it rewrote, and for others that it follows it gives their own address. So
/// what an explicit proxy's client sends is told apart from what was redirected to the same port.
pub(super) fn original(stream: &TcpStream) -> Option<SocketAddr> {
    let arrived = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    let meant = match arrived {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    other(meant.ok()?.as_socket()?, arrived)
}

fn other(meant: SocketAddr, arrived: SocketAddr) -> Option<SocketAddr> {
    let place = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    (place(meant) != place(arrived)).then(|| {
        let (ip, port) = place(meant);
        SocketAddr::new(ip, port)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_has_arrived_where_it_was_going_was_not_redirected() {
        let check = |meant: &str, arrived: &str, expected: Option<&str>| {
            let found = other(meant.parse().unwrap(), arrived.parse().unwrap());
            assert_eq!(found, expected.map(|address| address.parse().unwrap()));
        };
        check("127.0.0.1:15001", "127.0.0.1:15001", None);
        check("127.0.0.1:15001", "[::ffff:127.0.0.1]:15001", None);
        check("10.0.0.1:80", "127.0.0.1:15001", Some("10.0.0.1:80"));
        check("127.0.0.1:80", "127.0.0.1:15001", Some("127.0.0.1:80"));
        check("[fd00::1]:80", "[::1]:15001", Some("[fd00::1]:80"));
        // The interface's index is not a part of the place.
        check("[fe80::1%3]:80", "[fe80::1]:80", None);
    }

    #[tokio::test]
    async fn a_connection_that_nobody_rewrote_has_no_other_destination() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(address).await else {
                continue;
            };
            let address = listener.local_addr().unwrap();
            let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            assert_eq!(original(&accepted.unwrap().0), None);
            drop(client);
        }
    }
}
