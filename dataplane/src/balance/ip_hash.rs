//! IP hash: all exchanges of one client go to the same endpoint, by the client's address.
//!
//! The client is who it is for everything else here (whoever the connection comes from, or whom a trusted proxy in front
//! names). Of an IPv6 address the first half counts: that is what one client has, and it changes the other half as it
//! likes. Clients behind one NAT are one client, so this is as even as clients are alike: where they can be told apart
//! otherwise, `maglev` by a header or a cookie is better. Underneath it is a ring: as clients are not alike, nothing would be gained
//! by being more even, and no client moves that need not, however many endpoints there are.

use std::net::IpAddr;

use super::dice::hash;
use super::hashed::Hashed;
use super::ring::Ring;
use super::{Group, Picker};

/// The policy over one group.
pub(super) fn picker(group: Group, max_load: Option<u32>) -> Box<dyn Picker> {
    let table = Ring::new(&group);
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
    fn neighbours_in_a_network_are_spread_over_all() {
        let set = weighted("ip_hash", &[1; 8]);
        let mut counts = vec![0; 8];
        for n in 0..64_000_u32 {
            let address = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            let ask = keyed(now(), super::client(address), 0);
            counts[position(&set, &ask)] += 1;
        }
        for count in &counts {
            assert!((6_400..9_600).contains(count), "{counts:?}");
        }
    }

    #[test]
    fn when_one_of_n_leaves_its_clients_move_and_no_other() {
        for size in [3, 10, 50, 100, 200] {
            assert_few_move(&policy("ip_hash"), size);
        }
    }
}
