//! What the table keeps apart, what it forgets, and what it shows of others' words.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn orders() -> Arc<str> {
    Arc::from("orders")
}

/// Somebody with a foreign certificate who came from this address.
fn from<'a>(service: &'a Arc<str>, address: &str) -> Sighting<'a> {
    let address: IpAddr = address.parse().unwrap();
    Sighting {
        end: End::Inbound,
        kind: Foreign::UnknownAuthority,
        service,
        peer: Peer::from_address(address),
        address: Some(address),
        port: Some(15_008),
        identity: None,
        until: None,
    }
}

/// Address number `n` of many.
fn address(n: usize) -> String {
    format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255)
}

#[test]
fn a_peer_that_comes_again_is_one_row_with_both_times() {
    let (foreigners, orders) = (Foreigners::default(), orders());
    foreigners.saw(&from(&orders, "10.0.0.7"), at(10));
    let named = Sighting {
        identity: Some("spiffe://other.internal/service/x"),
        ..from(&orders, "10.0.0.7")
    };
    foreigners.saw(&named, at(20));
    // Who it was is not forgotten because it was not said again.
    foreigners.saw(&from(&orders, "10.0.0.7"), at(30));
    let Snapshot { rows, counts, .. } = foreigners.snapshot();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((row.count, row.first, row.last), (3, at(10), at(30)));
    assert_eq!(
        row.identity.as_deref(),
        Some("spiffe://other.internal/service/x")
    );
    assert_eq!((counts.len(), counts[0].count), (1, 3));
}

#[test]
fn end_kind_service_peer_and_port_are_told_apart() {
    let (foreigners, orders, other) = (Foreigners::default(), orders(), Arc::from("inventory"));
    let first = from(&orders, "10.0.0.7");
    let each = [
        first.clone(),
        Sighting {
            end: End::Outbound,
            ..first.clone()
        },
        Sighting {
            kind: Foreign::Expired,
            ..first.clone()
        },
        Sighting {
            service: &other,
            ..first.clone()
        },
        Sighting {
            port: Some(8080),
            ..first.clone()
        },
        from(&orders, "10.0.0.8"),
    ];
    for sighting in &each {
        foreigners.saw(sighting, at(1));
    }
    let Snapshot { rows, counts, .. } = foreigners.snapshot();
    assert_eq!(rows.len(), each.len());
    assert!(rows.iter().all(|row| row.count == 1));
    assert_eq!(counts.len(), 4);
}

#[test]
fn the_one_seen_last_is_shown_first_whatever_the_clock_says() {
    let (foreigners, orders) = (Foreigners::default(), orders());
    foreigners.saw(&from(&orders, "10.0.0.1"), at(500));
    foreigners.saw(&from(&orders, "10.0.0.2"), at(100));
    foreigners.saw(&from(&orders, "10.0.0.1"), at(50));
    let rows = foreigners.snapshot().rows;
    assert_eq!(rows[0].peer.to_string(), "10.0.0.1");
    assert_eq!(rows[0].last, at(50));
}

#[test]
fn beyond_the_bound_the_peer_that_was_away_longest_goes_and_is_counted() {
    let (foreigners, orders) = (Foreigners::default(), orders());
    for n in 0..MAX_PEERS {
        foreigners.saw(&from(&orders, &address(n)), at(1));
    }
    assert_eq!(foreigners.snapshot().left_out, 0);
    // The first comes again, so the second is the one that goes.
    foreigners.saw(&from(&orders, &address(0)), at(2));
    foreigners.saw(&from(&orders, &address(MAX_PEERS)), at(3));
    let Snapshot {
        rows,
        counts,
        left_out,
    } = foreigners.snapshot();
    assert_eq!((rows.len(), left_out), (MAX_PEERS, 1));
    let is_there = |n| rows.iter().any(|row| row.peer.to_string() == address(n));
    assert!(is_there(0) && is_there(MAX_PEERS) && !is_there(1));
    // The count has them all, and also after many more.
    assert_eq!(counts[0].count, MAX_PEERS as u64 + 2);
    for n in 0..5_000 {
        foreigners.saw(&from(&orders, &address(n + 1_000)), at(4));
    }
    let after = foreigners.snapshot();
    assert_eq!((after.rows.len(), after.left_out), (MAX_PEERS, 5_001));
    assert_eq!(after.counts[0].count, MAX_PEERS as u64 + 5_002);
}

#[test]
fn counts_beyond_the_bound_are_others_and_none_is_lost() {
    let foreigners = Foreigners::default();
    for n in 0..1_000 {
        let service = Arc::from(format!("service-{n}"));
        for kind in [Foreign::Plaintext, Foreign::Expired] {
            let sighting = Sighting {
                kind,
                ..from(&service, "10.0.0.7")
            };
            foreigners.saw(&sighting, at(1));
        }
    }
    let counts = foreigners.snapshot().counts;
    assert_eq!(counts.len(), MAX_COUNTS + 2);
    assert_eq!(counts.iter().map(|count| count.count).sum::<u64>(), 2_000);
    let others = counts.iter().filter(|count| &*count.service == OTHER);
    assert_eq!(
        others.map(|count| count.count).sum::<u64>(),
        2_000 - MAX_COUNTS as u64
    );
}

#[test]
fn many_at_once_are_all_counted() {
    let (foreigners, orders) = (Foreigners::default(), orders());
    std::thread::scope(|scope| {
        for core in 0..4 {
            let (foreigners, orders) = (&foreigners, &orders);
            scope.spawn(move || {
                for n in 0..1_000 {
                    foreigners.saw(&from(orders, &address(core * 1_000 + n)), at(1));
                }
            });
        }
    });
    let Snapshot {
        rows,
        counts,
        left_out,
    } = foreigners.snapshot();
    assert_eq!(counts[0].count, 4_000);
    assert_eq!(
        (rows.len(), left_out),
        (MAX_PEERS, 4_000 - MAX_PEERS as u64)
    );
}

#[test]
fn what_others_call_themselves_is_cut_and_cleaned() {
    let check = |name: &str, shown: &str| assert_eq!(clean(name), shown, "{name:?}");
    check(
        "spiffe://shop.internal/service/x",
        "spiffe://shop.internal/service/x",
    );
    check("a\r\nb\0c\u{1b}[31m", "a??b?c?[31m");
    check("<script>\"'`&\\", "?script??????");
    check("Ünïcode \u{202e}", "?n?code??");
    check(&"x".repeat(100_000), &"x".repeat(MAX_NAME));
    check(&"\u{1f980}".repeat(1_000), &"?".repeat(MAX_NAME));

    let (foreigners, orders) = (Foreigners::default(), orders());
    let loud = "\u{1b}".repeat(5_000);
    let sighting = Sighting {
        identity: Some(&loud),
        ..from(&orders, "10.0.0.7")
    };
    foreigners.saw(&sighting, at(1));
    let identity = foreigners.snapshot().rows[0].identity.clone();
    assert_eq!(&*identity.unwrap(), "?".repeat(MAX_NAME));
}

#[test]
fn whoever_has_one_address_of_a_network_has_all() {
    let check = |address: &str, shown: &str| {
        let peer = Peer::from_address(address.parse().unwrap());
        assert_eq!(peer.to_string(), shown);
    };
    check("10.1.2.3", "10.1.2.3");
    check("::ffff:10.1.2.3", "10.1.2.3");
    check("fd00:1:2:3:4:5:6:7", "fd00:1:2:3::/64");
    check("::1", "::/64");
    let endpoint = Peer::Endpoint("[fd00::5]:15008".parse().unwrap());
    assert_eq!(endpoint.to_string(), "[fd00::5]:15008");
}

#[test]
fn words_are_unique_and_lead_back() {
    let words: HashSet<_> = Foreign::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(words.len(), Foreign::ALL.len());
    for kind in Foreign::ALL {
        assert_eq!(Foreign::from_name(kind.as_str()), *kind);
    }
    assert_eq!(Foreign::from_name("of tomorrow"), Foreign::Other);
}

#[test]
fn a_peer_that_comes_all_the_time_is_a_line_in_the_log_once_a_minute() {
    let (foreigners, orders) = (Foreigners::default(), orders());
    let saw = |address, seconds| foreigners.saw(&from(&orders, address), at(seconds));
    let told: Vec<u64> = (100..300)
        .filter(|&second| saw("10.0.0.7", second))
        .collect();
    assert_eq!(told, [100, 160, 220, 280]);
    assert!(saw("10.0.0.8", 299), "another one");
    // By a clock that was set back nobody knows how long ago it was.
    assert!(saw("10.0.0.7", 50) && !saw("10.0.0.7", 51));
}
