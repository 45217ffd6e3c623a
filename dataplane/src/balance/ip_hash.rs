//! IP hash: all exchanges of one client go to the same endpoint, by the client's address.
//!
//! The client is who it is for everything else here (whoever the connection comes from, or whom a trusted proxy in front
//! names). Of an IPv6 address the first half counts: that is what one client has, and it changes the other half as it
//! likes. Clients behind one NAT are one client, so this is as even as clients are alike: where they can be told apart
//! otherwise, `maglev` by a header or a cookie is better. Underneath it is Maglev.

use std::net::IpAddr;

use super::dice::hash;
use super::hashed::Hashed;
use super::maglev::{self, Maglev};
use super::{Group, Picker};

/// The policy over one group.
pub(super) fn picker(group: Group, max_load: Option<u32>) -> Box<dyn Picker> {
    let table = Maglev::new(&group, maglev::USUAL);
    Box::new(Hashed::new(group, table, max_load))
}

/// The hash of a client: of its IPv4 address, or of its /64.
pub(super) fn client(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()[..8]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn client(address: &str) -> u64 {
        super::client(address.parse().unwrap())
    }

    #[test]
    fn an_ipv6_client_is_its_64_and_a_mapped_one_is_ipv4() {
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:2:3:4"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:192.0.2.7"), client("192.0.2.7"));
        assert_ne!(client("192.0.2.7"), client("192.0.2.8"));
    }

    #[test]
    fn neighbours_in_a_network_are_spread_evenly() {
        let set = weighted("ip_hash", &[1; 8]);
        let mut counts = vec![0; 8];
        for n in 0..64_000_u32 {
            let address = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            let ask = keyed(now(), super::client(address), 0);
            counts[position(&set, &ask)] += 1;
        }
        assert_shares(&counts, &[1; 8]);
    }
}
