//! Addresses to listen on: which of them two listeners cannot share.

use std::net::SocketAddr;

/// Whether listeners on both would be in each other's way: the same port, on the same address or on all of them.
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |all: SocketAddr, one: SocketAddr| {
        let any = all.ip().is_unspecified();
        any && (all.is_ipv6() || one.is_ipv4())
    };
    one.port() == other.port() && (one.ip() == other.ip() || takes(one, other) || takes(other, one))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn all_addresses_of_a_host_overlap_each_of_them() {
        let check = |one: &str, other: &str, expected: bool| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(one, other), expected, "{one} {other}");
            assert_eq!(overlap(other, one), expected, "{other} {one}");
        };
        check("127.0.0.1:80", "127.0.0.1:80", true);
        check("127.0.0.1:80", "127.0.0.2:80", false);
        check("127.0.0.1:80", "127.0.0.1:81", false);
        check("0.0.0.0:80", "127.0.0.1:80", true);
        check("0.0.0.0:80", "127.0.0.1:81", false);
        check("[::]:80", "[::1]:80", true);
        // A socket of all IPv6 addresses takes what comes by IPv4, too.
        check("[::]:80", "127.0.0.1:80", true);
        check("[::]:80", "0.0.0.0:80", true);
        check("[::1]:80", "0.0.0.0:80", false);
    }
}
