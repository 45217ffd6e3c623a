//! Foreign peers through the ledger: what is lost, repeated or too much.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::*;
use crate::collector::ledger::{Ledger, MAX_COUNT, MAX_NAME, Outcome, Peer, Refusal, SILENT};
use weft_proto::report::{ForeignCount, ForeignPeer, ReportRequest};

fn peer(service: &str) -> Peer {
    Peer {
        identity: Arc::from(format!("spiffe://shop.internal/service/{service}")),
        services: Arc::from([Arc::from(service)]),
    }
}

fn count(direction: report::Direction, kind: &str, service: &str, count: u64) -> ForeignCount {
    ForeignCount {
        direction: direction.into(),
        kind: kind.into(),
        service: service.into(),
        count,
    }
}

/// Strangers who came to `orders`, so often.
fn came(times: u64) -> Vec<ForeignCount> {
    let direction = report::Direction::Inbound;
    vec![count(direction, "unknown_authority", "orders", times)]
}

fn stranger(n: usize) -> ForeignPeer {
    ForeignPeer {
        direction: report::Direction::Inbound.into(),
        kind: "unknown_authority".into(),
        service: "orders".into(),
        peer: format!("10.0.{}.{}", n >> 8, n & 255),
        count: 1,
        ..ForeignPeer::default()
    }
}

fn request(
    run: u64,
    sequence: u64,
    counts: Vec<ForeignCount>,
    peers: Vec<ForeignPeer>,
) -> ReportRequest {
    ReportRequest {
        run,
        sequence,
        foreign: Some(report::Foreign {
            counts,
            peers,
            left_out: 0,
        }),
        ..ReportRequest::default()
    }
}

/// What the mesh counts of a kind.
fn sum(ledger: &Ledger, kind: Foreign) -> u64 {
    let series = ledger.strangers().series().iter();
    let of_kind = series.filter(|(key, _)| key.kind == kind);
    of_kind.map(|(_, count)| count).sum()
}

fn left_out(outcome: Result<Outcome, Refusal>) -> u64 {
    match outcome.unwrap() {
        Outcome::Taken(missing) => missing.foreign_left_out,
        Outcome::Stale => panic!("it was stale"),
    }
}

#[test]
fn lost_repeated_late_and_restarted_lose_and_double_nothing() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let mut take = |run, sequence, times| {
        let report = request(run, sequence, came(times), vec![]);
        ledger.take(&peer("orders"), report, now).unwrap();
        sum(&ledger, Foreign::UnknownAuthority)
    };
    assert_eq!(take(1, 1, 3), 3);
    // The second is lost, the third comes twice, and then the second after all.
    assert_eq!(take(1, 3, 10), 10);
    assert_eq!(take(1, 3, 10), 10);
    assert_eq!(take(1, 2, 5), 10);
    // Another run of it begins at nothing, and the one before may still have something to say.
    assert_eq!(take(2, 1, 4), 14);
    assert_eq!(take(1, 4, 11), 15);
    // Counts that fall are no new ones when they rise again.
    assert_eq!(take(2, 2, 1), 15);
    assert_eq!(take(2, 3, 5), 16);
}

#[test]
fn a_run_that_was_forgotten_is_not_counted_again() {
    let (mut ledger, start) = (Ledger::default(), Instant::now());
    let report = |run, sequence, times| request(run, sequence, came(times), vec![stranger(1)]);
    let orders = peer("orders");
    ledger.take(&orders, report(0, 1, 7), start).unwrap();
    let later = start + SILENT;
    for run in 1..=crate::collector::ledger::MAX_RUNS as u64 {
        ledger.take(&orders, report(run, 1, 0), later).unwrap();
    }
    assert_eq!(sum(&ledger, Foreign::UnknownAuthority), 7);
    // It comes back, and somebody else has to go; that needs somebody silent.
    let much_later = later + SILENT;
    ledger.take(&orders, report(0, 2, 9), much_later).unwrap();
    assert_eq!(sum(&ledger, Foreign::UnknownAuthority), 7);
    ledger.take(&orders, report(0, 3, 10), much_later).unwrap();
    assert_eq!(sum(&ledger, Foreign::UnknownAuthority), 8);
}

#[test]
fn a_reporter_speaks_for_itself_and_in_our_words() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let (inbound, outbound) = (report::Direction::Inbound, report::Direction::Outbound);
    let counts = vec![
        count(inbound, "expired", "inventory", 1),
        count(outbound, "trust_domain", "inventory", 2),
        count(outbound, "of\ntomorrow", "inven\x1btory", 4),
        count(report::Direction::Unspecified, "expired", "inventory", 8),
    ];
    let mut loud = stranger(1);
    loud.kind = "<b>".into();
    loud.identity = "spiffe://x/\r\n\x1b[31m".into();
    let report = request(1, 1, counts, vec![loud]);
    let outcome = ledger.take(&peer("orders"), report, now);
    let Ok(Outcome::Taken(missing)) = outcome else {
        panic!("{outcome:?}")
    };
    // One does not say who went to whom.
    assert_eq!((missing.refused, missing.foreign_left_out), (1, 0));
    let series = ledger.strangers().series().iter();
    let series: Vec<_> = series
        .map(|(key, count)| (&*key.source, &*key.destination, key.kind.as_str(), *count))
        .collect();
    assert_eq!(
        series,
        [
            ("orders", "inven?tory", "other", 4),
            ("orders", "inventory", "trust_domain", 2),
            ("unknown", "orders", "expired", 1),
        ]
    );
    let (_, _, run) = ledger.reporters(now).next().unwrap();
    let shown = &run.foreign.peers[0];
    assert_eq!(
        (shown.kind.as_str(), shown.identity.as_str()),
        ("other", "spiffe://x/???[31m")
    );
}

#[test]
fn peers_are_what_the_last_report_said() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let mut take = |sequence, peers: Vec<usize>| {
        let peers = peers.into_iter().map(stranger).collect();
        ledger
            .take(&peer("orders"), request(1, sequence, vec![], peers), now)
            .unwrap();
        let (_, _, run) = ledger.reporters(now).next().unwrap();
        run.foreign.peers.len()
    };
    assert_eq!(take(1, vec![1, 2, 3]), 3);
    assert_eq!(take(1, vec![1, 2, 3]), 3);
    assert_eq!(take(2, vec![4]), 1);
    assert_eq!(take(3, vec![]), 0);
    assert_eq!(ledger.strangers().peers, 0);
}

#[test]
fn what_is_out_of_bounds_is_refused_whole() {
    let refused = |change: fn(&mut report::Foreign)| {
        let mut report = request(1, 1, came(1), vec![stranger(1)]);
        change(report.foreign.as_mut().unwrap());
        let mut ledger = Ledger::default();
        let outcome = ledger.take(&peer("orders"), report, Instant::now());
        assert!(matches!(outcome, Err(Refusal::Malformed(_))), "{outcome:?}");
        assert_eq!(ledger.runs(), 0);
    };
    refused(|foreign| foreign.counts = vec![came(1)[0].clone(); MAX_COUNTS + 1]);
    refused(|foreign| foreign.peers = vec![stranger(1); MAX_PEERS + 1]);
    refused(|foreign| foreign.left_out = MAX_COUNT + 1);
    refused(|foreign| foreign.counts[0].count = MAX_COUNT + 1);
    refused(|foreign| foreign.counts[0].service.clear());
    refused(|foreign| foreign.counts[0].kind = "x".repeat(MAX_NAME + 1));
    refused(|foreign| foreign.peers[0].identity = "x".repeat(MAX_NAME + 1));
    refused(|foreign| foreign.peers[0].count = MAX_COUNT + 1);
    refused(|foreign| foreign.peers[0].port = 65_536);
}

#[test]
fn what_is_remembered_is_bounded_and_the_silent_make_room() {
    let (mut ledger, start) = (Ledger::default(), Instant::now());
    let peers = || (0..MAX_PEERS).map(stranger).collect::<Vec<_>>();
    let runs = (MAX_PEERS_REMEMBERED / MAX_PEERS) as u64;
    for run in 0..runs {
        let report = request(run, 1, vec![], peers());
        assert_eq!(left_out(ledger.take(&peer("orders"), report, start)), 0);
    }
    let one_more = |sequence| request(runs, sequence, vec![], peers());
    let outcome = ledger.take(&peer("orders"), one_more(1), start);
    assert_eq!(left_out(outcome), MAX_PEERS as u64);
    assert_eq!(ledger.strangers().peers, MAX_PEERS_REMEMBERED);
    let said = ledger
        .reporters(start)
        .map(|(_, _, run)| run.foreign.left_out);
    assert_eq!(said.sum::<u64>(), MAX_PEERS as u64);
    // When others have been silent for long enough there is room.
    let later = start + SILENT + Duration::from_secs(2);
    let outcome = ledger.take(&peer("orders"), one_more(2), later);
    assert_eq!(left_out(outcome), 0);
    assert!(ledger.strangers().peers <= MAX_PEERS_REMEMBERED);
}

#[test]
fn a_full_table_costs_the_silent_nothing_unless_somebody_needs_their_room() {
    let (mut ledger, start) = (Ledger::default(), Instant::now());
    let peers = |count| (0..count).map(stranger).collect::<Vec<_>>();
    let runs = (MAX_PEERS_REMEMBERED / MAX_PEERS) as u64;
    let orders = peer("orders");
    // The oldest holds nothing foreign, and the second oldest some of it.
    for (run, count) in [(runs, 0), (0, MAX_PEERS)] {
        let at = start + Duration::from_secs(1 - run.min(1));
        ledger
            .take(&orders, request(run, 1, vec![], peers(count)), at)
            .unwrap();
    }
    let later = start + SILENT + Duration::from_secs(2);
    for run in 1..runs {
        let report = request(run, 1, vec![], peers(MAX_PEERS));
        assert_eq!(left_out(ledger.take(&orders, report, later)), 0);
    }
    // All is taken. The same again, and less, needs nobody's.
    for (sequence, count) in [(2, MAX_PEERS), (3, MAX_PEERS - 1), (4, MAX_PEERS)] {
        let report = request(1, sequence, came(1), peers(count));
        assert_eq!(left_out(ledger.take(&orders, report, later)), 0);
        assert_eq!(ledger.runs(), runs as usize + 1);
    }
    let one_more = request(runs + 1, 1, vec![], peers(1));
    assert_eq!(left_out(ledger.take(&orders, one_more, later)), 0);
    assert_eq!(ledger.runs(), runs as usize + 1);
    assert_eq!(
        ledger.strangers().peers,
        MAX_PEERS_REMEMBERED - MAX_PEERS + 1
    );
}

/// As many counts as a report may have: each reporter has services of its own, which no honest ones have.
fn counts(run: usize) -> Vec<ForeignCount> {
    let outbound = report::Direction::Outbound;
    (0..MAX_COUNTS)
        .map(|n| count(outbound, "plaintext", &format!("s-{run}-{n}"), 1))
        .collect()
}

#[test]
fn the_silent_make_room_for_peers_also_where_there_is_none_for_counts() {
    let (mut ledger, start) = (Ledger::default(), Instant::now());
    let (orders, shop) = (peer("orders"), peer("storefront"));
    let peers = || (0..MAX_PEERS).map(stranger).collect::<Vec<_>>();
    for run in 0..MAX_PEERS_REMEMBERED / MAX_PEERS {
        let report = request(run as u64, 1, vec![], peers());
        assert_eq!(left_out(ledger.take(&orders, report, start)), 0);
    }
    let later = start + SILENT + Duration::from_secs(2);
    for run in 0..MAX_COUNTS_REMEMBERED / MAX_COUNTS {
        let report = request(run as u64, 1, counts(run), vec![]);
        assert_eq!(left_out(ledger.take(&shop, report, later)), 0);
    }
    let report = request(9_999, 1, came(1), peers());
    assert_eq!(
        left_out(ledger.take(&orders, report, later)),
        1,
        "the count"
    );
}

#[test]
fn counts_beyond_the_bounds_are_others_or_wait_for_room() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let runs = MAX_COUNTS_REMEMBERED / MAX_COUNTS;
    for run in 0..runs {
        let report = request(run as u64, 1, counts(run), vec![]);
        assert_eq!(left_out(ledger.take(&peer("orders"), report, now)), 0);
    }
    assert_eq!(
        sum(&ledger, Foreign::Plaintext),
        MAX_COUNTS_REMEMBERED as u64
    );
    // One for what was too much, of this end and kind.
    assert_eq!(ledger.strangers().series().len(), MAX_SERIES + 1);
    let report = |sequence| request(runs as u64, sequence, counts(runs), vec![]);
    let outcome = ledger.take(&peer("orders"), report(1), now);
    assert_eq!(left_out(outcome), MAX_COUNTS as u64);
    let later = now + SILENT + Duration::from_secs(2);
    assert_eq!(left_out(ledger.take(&peer("orders"), report(2), later)), 0);
    assert_eq!(
        sum(&ledger, Foreign::Plaintext),
        (MAX_COUNTS_REMEMBERED + MAX_COUNTS) as u64
    );
}
