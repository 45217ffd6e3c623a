//! The ledger against a model, and at its bounds.
#![allow(clippy::unwrap_used)]

use super::*;
use weft_proto::report::Edge;

fn peer(service: &str) -> Peer {
    Peer {
        identity: Arc::from(format!("spiffe://shop.internal/service/{service}")),
        services: Arc::from([Arc::from(service)]),
    }
}

/// An outbound edge with this many good exchanges of 3 ms.
fn edge(source: &str, destination: &str, count: u64) -> Edge {
    let mut latency_counts = vec![0; BOUNDS_US.len() + 1];
    latency_counts[5] = count;
    Edge {
        source: source.into(),
        destination: destination.into(),
        direction: report::Direction::Outbound.into(),
        mtls: true,
        by_class: vec![0, count],
        latency_counts,
        latency_bounds_us: BOUNDS_US.to_vec(),
        latency_sum_us: 3_000 * count,
        ..Edge::default()
    }
}

fn request(run: u64, sequence: u64, edges: Vec<Edge>) -> ReportRequest {
    ReportRequest {
        instance: "127.0.0.1:15000".into(),
        run,
        sequence,
        edges,
        ..ReportRequest::default()
    }
}

fn good(ledger: &Ledger, destination: &str) -> u64 {
    let edges = ledger.series().into_iter();
    edges
        .filter(|edge| &*edge.key.destination == destination)
        .map(|edge| edge.totals.by_class[1])
        .sum()
}

const TAKEN: Result<Outcome, Refusal> = missing(NOTHING);

const NOTHING: Missing = Missing {
    refused: 0,
    edges_left_out: 0,
    endpoints_left_out: 0,
    foreign_left_out: 0,
};

/// It was taken but for this.
const fn missing(missing: Missing) -> Result<Outcome, Refusal> {
    Ok(Outcome::Taken(missing))
}

/// One process in the model: what it has counted, and the reports that are on their way.
struct Process {
    run: u64,
    sequence: u64,
    counted: [u64; 3],
    under_way: Vec<(u64, [u64; 3])>,
}

impl Process {
    fn new(run: u64) -> Self {
        Self {
            run,
            sequence: 0,
            counted: [0; 3],
            under_way: Vec::new(),
        }
    }
}

/// Where an edge was forgotten and came back, the collector may have been away in between: no report without it was taken.
#[test]
fn an_edge_that_came_back_counts_from_zero_whether_or_not_a_report_without_it_was_taken() {
    let now = Instant::now();
    for missed in [false, true] {
        let mut ledger = Ledger::default();
        let mut sequence = 0;
        let mut told = |edges| {
            sequence += 1;
            let report = request(1, sequence, edges);
            assert_eq!(ledger.take(&peer("storefront"), report, now), TAKEN);
            good(&ledger, "orders")
        };
        let orders = |life, count| {
            vec![Edge {
                life,
                ..edge("storefront", "orders", count)
            }]
        };
        assert_eq!(told(orders(1, 1_000)), 1_000);
        if !missed {
            assert_eq!(told(Vec::new()), 1_000);
        }
        assert_eq!(told(orders(2, 60)), 1_060, "missed: {missed}");
        assert_eq!(told(orders(2, 60)), 1_060);
        assert_eq!(told(orders(2, 1_200)), 2_200);
    }
}

const DESTINATIONS: [&str; 3] = ["orders", "inventory", "payments"];

/// Random growth, reports lost, repeated, late, and processes that restart: at each moment the series are the sum, over
/// all runs that ever were, of the newest report that arrived from each.
#[test]
fn lost_repeated_late_and_restarted_lose_and_double_nothing() {
    for seed in 0..300 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut ledger = Ledger::default();
        let start = Instant::now();
        let mut arrived = HashMap::<u64, (u64, [u64; 3])>::new();
        // The first three live, the others are gone.
        let mut processes: Vec<_> = (0..3).map(Process::new).collect();
        let mut next_run = 2;
        let mut before = [0; 3];
        for step in 0..200 {
            let now = start + Duration::from_secs(step);
            if dice.u8(..) < 8 {
                // One restarts. The reports of the run before may still arrive: they stay under way.
                next_run += 1;
                let last = processes.len();
                processes.push(Process::new(next_run));
                processes.swap(dice.usize(..3), last);
            }
            let living = dice.usize(..3);
            let process = &mut processes[living];
            process.counted[dice.usize(..3)] += dice.u64(..100);
            process.sequence += 1;
            process.under_way.push((process.sequence, process.counted));

            let any = dice.usize(..processes.len());
            let process = &mut processes[any];
            if process.under_way.is_empty() {
                continue;
            }
            let which = dice.usize(..process.under_way.len());
            let (sequence, counted) = process.under_way[which];
            match dice.u8(..4) {
                0 => {
                    process.under_way.remove(which);
                    continue; // lost
                }
                1 => {} // arrives, and may arrive again
                _ => {
                    process.under_way.remove(which);
                }
            }
            let edges = (DESTINATIONS.iter().zip(counted))
                .filter(|(_, count)| *count > 0)
                .map(|(name, count)| edge("storefront", name, count))
                .collect();
            let outcome = ledger.take(
                &peer("storefront"),
                request(process.run, sequence, edges),
                now,
            );
            let newest = arrived.get(&process.run).map_or(0, |newest| newest.0);
            if sequence > newest {
                assert_eq!(outcome, TAKEN, "seed {seed}");
                arrived.insert(process.run, (sequence, counted));
            } else {
                assert_eq!(outcome, Ok(Outcome::Stale), "seed {seed}");
            }
            for (index, name) in DESTINATIONS.iter().enumerate() {
                let expected: u64 = arrived.values().map(|(_, counted)| counted[index]).sum();
                let shown = good(&ledger, name);
                assert_eq!(shown, expected, "seed {seed}, step {step}, {name}");
                assert!(shown >= before[index], "seed {seed}: {name} went back");
                before[index] = shown;
            }
        }
        let totals = ledger.series().into_iter().map(|edge| edge.totals);
        for totals in totals {
            assert_eq!(totals.latency.iter().sum::<u64>(), totals.requests());
            assert_eq!(totals.latency_sum_us, 3_000 * totals.requests());
        }
    }
}

#[test]
fn a_sidecar_speaks_for_its_own_service_only() {
    let mut ledger = Ledger::default();
    let direction = |direction: report::Direction, edge: Edge| Edge {
        direction: direction.into(),
        ..edge
    };
    use report::Direction::{Inbound, Outbound, Unspecified};
    let edges = vec![
        direction(Outbound, edge("orders", "inventory", 1)),
        direction(Inbound, edge("storefront", "orders", 2)),
        // Foreign: another's calls, another's callers, and no word about who counted.
        direction(Outbound, edge("storefront", "orders", 100)),
        direction(Inbound, edge("orders", "inventory", 100)),
        direction(Unspecified, edge("orders", "inventory", 100)),
        Edge {
            direction: 77,
            ..edge("orders", "inventory", 100)
        },
    ];
    let outcome = ledger.take(&peer("orders"), request(1, 1, edges), Instant::now());
    let refused = Missing {
        refused: 4,
        ..NOTHING
    };
    assert_eq!(outcome, missing(refused));
    assert_eq!(ledger.series().len(), 2);
    assert_eq!(
        (good(&ledger, "inventory"), good(&ledger, "orders")),
        (1, 2)
    );
}

#[test]
fn whoever_shares_an_identity_speaks_for_the_service_that_its_report_names() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let both = Peer {
        identity: Arc::from("spiffe://shop.internal/ns/shop/sa/all"),
        services: Arc::from([Arc::from("audit"), Arc::from("reports")]),
    };
    let mut take = |run, service: &str| {
        let report = ReportRequest {
            service: service.into(),
            ..request(
                run,
                1,
                vec![edge("audit", "orders", 1), edge("reports", "stock", 2)],
            )
        };
        let outcome = ledger.take(&both, report, now);
        (outcome, good(&ledger, "orders"), good(&ledger, "stock"))
    };
    let one_refused = missing(Missing {
        refused: 1,
        ..NOTHING
    });
    assert_eq!(take(1, "reports"), (one_refused, 0, 2));
    // A reporter of before names none.
    assert_eq!(take(2, ""), (one_refused, 1, 2));
    assert_eq!(take(3, "orders"), (Err(Refusal::Foreign), 1, 2));
    let mut services: Vec<_> = ledger
        .reporters(now)
        .map(|(_, _, run)| &*run.service)
        .collect();
    services.sort_unstable();
    assert_eq!(services, ["audit", "reports"]);
}

#[test]
fn replicas_of_one_service_add_up_although_their_instances_have_one_name() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    for run in 1..=3 {
        let edges = vec![edge("orders", "inventory", 10)];
        assert_eq!(
            ledger.take(&peer("orders"), request(run, 5, edges), now),
            TAKEN
        );
    }
    assert_eq!(good(&ledger, "inventory"), 30);
    assert_eq!(ledger.reporters(now).count(), 3);
}

#[test]
fn a_report_at_the_bound_is_taken_and_one_beyond_is_not() {
    let base = || edge("orders", "inventory", 1);
    let with = |edge: Edge| request(1, 1, vec![edge]);
    let endpoint = |address: &str| report::Endpoint {
        service: "inventory".into(),
        address: address.into(),
        state: "healthy".into(),
        ..report::Endpoint::default()
    };
    let long = "x".repeat(MAX_NAME);
    let longer = "x".repeat(MAX_NAME + 1);
    let edges = |count: usize| {
        let edge = |n| edge("orders", &format!("service-{n}"), 1);
        request(1, 1, (0..count).map(edge).collect())
    };
    let endpoints = |count: usize| ReportRequest {
        endpoints: vec![endpoint("127.0.0.1:1"); count],
        ..request(1, 1, vec![])
    };
    let reasons = |count: usize| {
        let reasons = (0..count).map(|n| (format!("reason-{n}"), 1));
        with(Edge {
            reasons: reasons.collect(),
            ..base()
        })
    };
    let buckets = |bounds: Vec<u64>, counts: usize| {
        with(Edge {
            latency_bounds_us: bounds,
            latency_counts: vec![1; counts],
            ..base()
        })
    };
    let certificate = |spiffe_id: usize, serial: usize| ReportRequest {
        certificate: Some(report::Certificate {
            spiffe_id: "s".repeat(spiffe_id),
            serial: "0".repeat(serial),
            ..report::Certificate::default()
        }),
        ..request(1, 1, vec![])
    };
    let pairs = [
        (edges(MAX_EDGES), edges(MAX_EDGES + 1)),
        (endpoints(MAX_ENDPOINTS), endpoints(MAX_ENDPOINTS + 1)),
        (
            ReportRequest {
                instance: long.clone(),
                ..with(base())
            },
            ReportRequest {
                instance: longer.clone(),
                ..with(base())
            },
        ),
        (
            with(edge("orders", &long, 1)),
            with(edge("orders", &longer, 1)),
        ),
        (with(base()), with(edge("orders", "", 1))),
        (
            with(Edge {
                by_class: vec![1; 6],
                ..base()
            }),
            with(Edge {
                by_class: vec![1; 7],
                ..base()
            }),
        ),
        (
            buckets((1..64).collect(), 64),
            buckets((1..65).collect(), 65),
        ),
        (buckets(vec![1, 2], 0), buckets(vec![1, 2], 2)),
        (buckets(vec![1, 2], 3), buckets(vec![2, 1], 3)),
        (reasons(64), reasons(65)),
        (
            with(Edge {
                retries: MAX_COUNT,
                ..base()
            }),
            with(Edge {
                retries: MAX_COUNT + 1,
                ..base()
            }),
        ),
        (
            with(Edge {
                by_class: vec![MAX_COUNT],
                ..base()
            }),
            with(Edge {
                by_class: vec![u64::MAX],
                ..base()
            }),
        ),
        (
            ReportRequest {
                endpoints: vec![endpoint(&long)],
                ..request(1, 1, vec![])
            },
            ReportRequest {
                endpoints: vec![endpoint(&longer)],
                ..request(1, 1, vec![])
            },
        ),
        (certificate(2_048, MAX_NAME), certificate(2_049, MAX_NAME)),
        (
            certificate(2_048, MAX_NAME),
            certificate(2_048, MAX_NAME + 1),
        ),
    ];
    for (number, (within, beyond)) in pairs.into_iter().enumerate() {
        let take = |request| Ledger::default().take(&peer("orders"), request, Instant::now());
        assert_eq!(take(within), TAKEN, "pair {number}");
        let refusal = take(beyond);
        assert!(
            matches!(refusal, Err(Refusal::Malformed(_))),
            "pair {number}: {refusal:?}"
        );
    }
}

#[test]
fn an_edge_that_its_reporter_forgot_begins_anew_and_nothing_is_lost_or_doubled() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let mut report = |sequence, edges| {
        let taken = ledger.take(&peer("orders"), request(1, sequence, edges), now);
        assert_eq!(taken, TAKEN);
        good(&ledger, "inventory")
    };
    assert_eq!(report(1, vec![edge("orders", "inventory", 500)]), 500);
    assert_eq!(report(2, vec![edge("orders", "stock", 1)]), 500);
    // Late, and of before: it does not count.
    assert_eq!(report(3, vec![edge("orders", "inventory", 3)]), 503);
    assert_eq!(report(4, vec![edge("orders", "inventory", 7)]), 507);
    assert_eq!(ledger.remembered, 1);
}

#[test]
fn series_that_no_report_names_make_room_after_a_while() {
    let mut ledger = Ledger::default();
    let start = Instant::now();
    let mut report = |run, seconds, name: &str, count| {
        let edges = vec![edge("orders", name, count)];
        let at = start + Duration::from_secs(seconds);
        assert_eq!(
            ledger.take(&peer("orders"), request(run, seconds, edges), at),
            TAKEN
        );
        let mut names: Vec<_> = ledger
            .series()
            .iter()
            .map(|edge| (edge.key.destination.to_string(), edge.totals.by_class[1]))
            .collect();
        names.sort();
        names
    };
    let named = |names: &[(&str, u64)]| -> Vec<(String, u64)> {
        names
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    };
    report(1, 1, "old", 5);
    assert_eq!(report(2, 500, "new", 1), named(&[("new", 1), ("old", 5)]));
    assert_eq!(report(2, 700, "new", 2), named(&[("new", 2)]));
    // A run that was cut off for long goes on where it was: what is new of it is counted, and nothing twice.
    assert_eq!(report(1, 800, "old", 8), named(&[("new", 2), ("old", 3)]));
}

#[test]
fn largest_counts_of_many_runs_do_not_overflow() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let largest = Edge {
        by_class: vec![MAX_COUNT; 6],
        latency_counts: vec![MAX_COUNT; BOUNDS_US.len() + 1],
        latency_sum_us: MAX_COUNT,
        ..edge("orders", "inventory", 0)
    };
    for run in 0..4_000 {
        let report = request(run, 1, vec![largest.clone()]);
        assert_eq!(ledger.take(&peer("orders"), report, now), TAKEN);
    }
    let totals = ledger.series().remove(0).totals;
    assert_eq!(totals.requests(), u64::MAX);
    assert!(totals.quantile(0.99).is_some());
}

#[test]
fn a_sum_may_be_larger_than_any_count_and_its_reporter_is_heard_all_the_same() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    for (run, sum) in [(1, MAX_COUNT + 1), (2, u64::MAX), (3, u64::MAX)] {
        let long = Edge {
            latency_sum_us: sum,
            request_bytes: sum,
            response_bytes: sum,
            ..edge("orders", "inventory", 1)
        };
        let report = request(run, 1, vec![long]);
        assert_eq!(ledger.take(&peer("orders"), report, now), TAKEN);
    }
    let totals = ledger.series().remove(0).totals;
    assert_eq!(totals.requests(), 3);
    let sums = [
        totals.latency_sum_us,
        totals.request_bytes,
        totals.response_bytes,
    ];
    assert_eq!(sums, [u64::MAX; 3]);
}

#[test]
fn when_full_only_a_silent_run_makes_room_and_its_return_doubles_nothing() {
    let mut ledger = Ledger::default();
    let start = Instant::now();
    let one =
        |run, sequence, count| request(run, sequence, vec![edge("orders", "inventory", count)]);
    let orders = peer("orders");
    for run in 0..MAX_RUNS as u64 {
        // Run 0 is heard first and so is silent longest.
        let now = start + Duration::from_millis(run);
        assert_eq!(ledger.take(&orders, one(run, 1, 10), now), TAKEN);
    }
    let newcomer = MAX_RUNS as u64;
    let soon = start + SILENT - Duration::from_millis(1);
    assert_eq!(
        ledger.take(&orders, one(newcomer, 1, 10), soon),
        Err(Refusal::Full)
    );
    // Those who are known are heard all the same.
    assert_eq!(ledger.take(&orders, one(7, 2, 11), soon), TAKEN);
    assert_eq!(good(&ledger, "inventory"), 10 * MAX_RUNS as u64 + 1);

    let later = soon + LOOK_AGAIN;
    assert_eq!(ledger.take(&orders, one(newcomer, 1, 10), later), TAKEN);
    assert_eq!(ledger.runs(), MAX_RUNS);
    let sum = 10 * MAX_RUNS as u64 + 11;
    assert_eq!(good(&ledger, "inventory"), sum);

    // Run 0 was forgotten. It comes back with all that it ever counted: nothing of that is new for sure.
    assert_eq!(ledger.take(&orders, one(0, 2, 500), later), TAKEN);
    assert_eq!(good(&ledger, "inventory"), sum);
    // From there on it counts again.
    assert_eq!(ledger.take(&orders, one(0, 3, 505), later), TAKEN);
    assert_eq!(good(&ledger, "inventory"), sum + 5);
}

#[test]
fn whoever_makes_up_runs_keeps_out_nobody_but_itself() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let mut take = |service: &str, run, sequence, count| {
        let report = request(run, sequence, vec![edge(service, "inventory", count)]);
        let outcome = ledger.take(&peer(service), report, now);
        let of = |name| ledger.by_identity.get(&peer(name).identity).copied();
        let runs = [of("orders"), of("billing"), of("stock")];
        assert_eq!(runs.iter().flatten().sum::<usize>(), ledger.runs());
        (outcome, runs.map(Option::unwrap_or_default))
    };
    let (all, crowd) = (MAX_RUNS as u64, CROWD as u64);
    for run in 0..crowd {
        assert_eq!(take("billing", run, 1, 1).0, TAKEN);
    }
    for run in 0..all - crowd {
        assert_eq!(take("orders", run, 1, 1).0, TAKEN);
    }
    let refused = Err(Refusal::Full);
    let (orders, billing) = (MAX_RUNS - CROWD, CROWD);
    // One more of its own gets no place, and one of another has it.
    assert_eq!(take("orders", all, 1, 1), (refused, [orders, billing, 0]));
    assert_eq!(take("stock", 0, 1, 1), (TAKEN, [orders - 1, billing, 1]));
    assert_eq!(
        take("billing", crowd, 1, 1),
        (TAKEN, [orders - 2, billing + 1, 1])
    );
    // They are as many as may be, and all go on.
    for run in 1..all {
        let _ = take("stock", run, 1, 1);
        let _ = take("billing", crowd + run, 1, 1);
    }
    let (outcome, mut runs) = take("orders", all, 1, 1);
    assert_eq!(outcome, refused);
    runs.sort_unstable();
    assert!(runs[2] - runs[0] <= 1, "{runs:?}");
}

#[test]
fn nobody_makes_room_where_each_has_its_share() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    for run in 0..MAX_RUNS as u64 {
        let service = format!("service-{}", run % 8);
        assert_eq!(
            ledger.take(&peer(&service), request(run, 1, vec![]), now),
            TAKEN
        );
    }
    let newcomer = request(0, 1, vec![]);
    assert_eq!(
        ledger.take(&peer("orders"), newcomer, now),
        Err(Refusal::Full)
    );
}

#[test]
fn a_run_that_was_cut_off_for_long_goes_on_where_it_was() {
    let mut ledger = Ledger::default();
    let start = Instant::now();
    let one = |sequence, count| request(1, sequence, vec![edge("orders", "inventory", count)]);
    assert_eq!(ledger.take(&peer("orders"), one(1, 10), start), TAKEN);
    let later = start + SILENT * 10;
    assert_eq!(ledger.reporters(later).count(), 0);
    assert_eq!(ledger.take(&peer("orders"), one(2, 15), later), TAKEN);
    assert_eq!(good(&ledger, "inventory"), 15);
    assert_eq!(ledger.reporters(later).count(), 1);
}

#[test]
fn edges_that_cannot_be_remembered_are_refused_until_there_is_room() {
    let mut ledger = Ledger::default();
    let start = Instant::now();
    let full = |run| {
        let edges = (0..MAX_EDGES).map(|n| edge("orders", &format!("service-{n}"), 1));
        request(run, 1, edges.collect())
    };
    let runs = (MAX_REMEMBERED / MAX_EDGES) as u64;
    for run in 0..runs {
        assert_eq!(ledger.take(&peer("orders"), full(run), start), TAKEN);
    }
    let outcome = ledger.take(&peer("orders"), full(runs), start);
    let no_room = Missing {
        edges_left_out: MAX_EDGES as u64,
        ..NOTHING
    };
    assert_eq!(outcome, missing(no_room));
    assert_eq!(ledger.remembered, MAX_REMEMBERED);
    let later = start + SILENT;
    assert_eq!(ledger.take(&peer("orders"), full(runs + 1), later), TAKEN);
    assert!(ledger.remembered <= MAX_REMEMBERED);
    let counted: usize = ledger.runs.values().map(|run| run.edges.len()).sum();
    assert_eq!(ledger.remembered, counted);
}

#[test]
fn a_run_that_returns_while_there_is_no_room_doubles_nothing_when_there_is() {
    let mut ledger = Ledger::default();
    let start = Instant::now();
    let both = |run, sequence, count| {
        let edges = [
            edge("orders", "inventory", count),
            edge("orders", "stock", count),
        ];
        request(run, sequence, edges.to_vec())
    };
    let one = |sequence, count| both(0, sequence, count);
    let full = |run, sequence, so_many| {
        let edges = (0..so_many).map(|n| edge("orders", &format!("service-{n}"), 1));
        request(run, sequence, edges.collect())
    };
    let orders = peer("orders");
    assert_eq!(ledger.take(&orders, one(1, 10), start), TAKEN);
    let later = start + SILENT;
    // Another one keeps the series, and the rest take all that is left.
    let runs = (MAX_REMEMBERED / MAX_EDGES) as u64;
    assert_eq!(ledger.take(&orders, both(runs + 1, 1, 0), later), TAKEN);
    for run in 1..runs {
        assert_eq!(ledger.take(&orders, full(run, 1, MAX_EDGES), later), TAKEN);
    }
    let rest = MAX_EDGES - 2;
    assert_eq!(ledger.take(&orders, full(runs, 1, rest), later), TAKEN);
    assert!(ledger.runs.keys().all(|key| key.run != 0));
    assert_eq!(ledger.remembered, MAX_REMEMBERED);

    let mut returns = |sequence, count, left_out, room: Option<usize>| {
        if let Some(room) = room {
            let smaller = full(runs, sequence, rest - room);
            assert_eq!(ledger.take(&orders, smaller, later), TAKEN);
        }
        let outcome = ledger.take(&orders, one(sequence, count), later);
        let left_out = Missing {
            edges_left_out: left_out,
            ..NOTHING
        };
        assert_eq!(outcome, missing(left_out), "report {sequence}");
        (good(&ledger, "inventory"), good(&ledger, "stock"))
    };
    // What it counted before it was forgotten stays counted, and nothing of that counts again.
    assert_eq!(returns(2, 12, 2, None), (10, 10));
    assert_eq!(returns(3, 14, 1, Some(1)), (10, 10));
    assert_eq!(returns(4, 16, 0, Some(2)), (12, 10));
    // From there on it is as any other: what it names anew is new.
    assert_eq!(returns(5, 20, 0, Some(3)), (16, 14));
    let new = request(0, 6, vec![edge("orders", "billing", 3)]);
    assert_eq!(ledger.take(&orders, new, later), TAKEN);
    assert_eq!(good(&ledger, "billing"), 3);
}

#[test]
fn series_beyond_the_bound_are_counted_as_other() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let runs = MAX_SERIES / MAX_EDGES + 4;
    for run in 0..runs {
        let name = |n| format!("service-{run}-{n}");
        let edges = (0..MAX_EDGES)
            .map(|n| edge("orders", &name(n), 1))
            .collect();
        assert_eq!(
            ledger.take(&peer("orders"), request(run as u64, 1, edges), now),
            TAKEN
        );
    }
    assert_eq!(ledger.series().len(), MAX_SERIES + 1);
    assert_eq!(
        good(&ledger, "other"),
        (runs * MAX_EDGES - MAX_SERIES) as u64
    );
}

/// A report with so many endpoints, the first of them ejected, and a certificate that ends then.
fn with_endpoints(run: u64, sequence: u64, count: usize, ends: i64) -> ReportRequest {
    let endpoint = |n: usize| report::Endpoint {
        service: "inventory".into(),
        address: format!("127.0.0.1:{n}"),
        state: if n == 0 { "ejected" } else { "healthy" }.into(),
        ..report::Endpoint::default()
    };
    ReportRequest {
        endpoints: (0..count).map(endpoint).collect(),
        certificate: Some(report::Certificate {
            not_after_unix: ends,
            ..report::Certificate::default()
        }),
        ..request(run, sequence, vec![])
    }
}

#[test]
fn when_endpoints_are_too_many_the_first_are_kept_and_the_certificate_is_always() {
    let mut ledger = Ledger::default();
    let (start, orders) = (Instant::now(), peer("orders"));
    let runs = (MAX_ENDPOINTS_REMEMBERED / MAX_ENDPOINTS) as u64;
    for run in 0..runs - 1 {
        let report = with_endpoints(run, 1, MAX_ENDPOINTS, 1);
        assert_eq!(ledger.take(&orders, report, start), TAKEN);
    }
    let mut last = |run, sequence, count: usize, kept: usize| {
        let ends = i64::try_from(sequence).unwrap();
        let report = with_endpoints(run, sequence, count, ends);
        let left_out = missing(Missing {
            endpoints_left_out: (count - kept) as u64,
            ..NOTHING
        });
        assert_eq!(ledger.take(&orders, report, start), left_out);
        let shown = ledger
            .runs
            .iter()
            .find(|(key, _)| key.run == run)
            .unwrap()
            .1;
        assert_eq!(shown.endpoints.len(), kept);
        assert!(kept == 0 || shown.endpoints[0].state == "ejected");
        assert_eq!(shown.certificate.as_ref().unwrap().not_after_unix, ends);
        let counted: usize = ledger.runs.values().map(|run| run.endpoints.len()).sum();
        assert_eq!(ledger.endpoints, counted);
    };
    last(runs, 1, MAX_ENDPOINTS - 3, MAX_ENDPOINTS - 3);
    last(runs + 1, 1, MAX_ENDPOINTS, 3);
    // It has renewed its certificate, and its room is what it was.
    last(runs + 1, 2, MAX_ENDPOINTS, 3);
    last(runs + 2, 1, 5, 0);
    last(runs + 2, 2, 5, 0);
    // Somebody has fewer now.
    last(runs, 2, 1, 1);
    last(runs + 1, 3, MAX_ENDPOINTS, MAX_ENDPOINTS - 1);
}

#[test]
fn an_endpoint_in_no_known_state_is_left_out() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let endpoint = |state: &str| report::Endpoint {
        service: "inventory".into(),
        address: "127.0.0.1:1".into(),
        state: state.into(),
        ..report::Endpoint::default()
    };
    let report = ReportRequest {
        endpoints: vec![endpoint("draining"), endpoint("on fire")],
        ..request(1, 1, vec![])
    };
    assert_eq!(ledger.take(&peer("orders"), report, now), TAKEN);
    let (_, _, run) = ledger.reporters(now).next().unwrap();
    assert_eq!(run.endpoints, [endpoint("draining")]);
}

#[test]
fn forgotten_runs_are_bounded_too() {
    let mut ledger = Ledger::default();
    for name in 0..MAX_FORGOTTEN as u64 + 10 {
        ledger.note_forgotten(name);
        ledger.note_forgotten(name);
    }
    assert_eq!(ledger.forgotten.len(), MAX_FORGOTTEN);
    assert_eq!(ledger.forgotten_order.len(), MAX_FORGOTTEN);
    assert!(!ledger.forgotten.contains(&9) && ledger.forgotten.contains(&10));
}

#[test]
fn buckets_and_reasons_of_another_version_find_their_place() {
    let foreign = Edge {
        // In order: at most 200 µs, at most 1 ms, at most 30 s, more.
        latency_bounds_us: vec![200, 1_000, 30_000_000],
        latency_counts: vec![1, 2, 4, 8],
        reasons: [
            ("no_route".to_owned(), 3),
            ("not_invented_yet".to_owned(), 5),
        ]
        .into(),
        ..edge("orders", "inventory", 0)
    };
    let totals = totals(&foreign);
    assert_eq!(
        (totals.latency[1], totals.latency[3], totals.latency[16]),
        (1, 2, 12)
    );
    assert_eq!(totals.answers(Reason::NoRoute), 3);
    assert_eq!(totals.reasons[Reason::ALL.len()], 5);
}

#[test]
fn one_edge_twice_in_a_report_counts_once() {
    let mut ledger = Ledger::default();
    let edges = vec![
        edge("orders", "inventory", 10),
        edge("orders", "inventory", 10),
    ];
    let outcome = ledger.take(&peer("orders"), request(1, 1, edges), Instant::now());
    assert_eq!(outcome, TAKEN);
    assert_eq!(good(&ledger, "inventory"), 10);
}

#[test]
fn totals_that_fall_and_rise_again_count_once() {
    let mut ledger = Ledger::default();
    for (sequence, count) in [(1, 10), (2, 4), (3, 10), (4, 12)] {
        let edges = vec![edge("orders", "inventory", count)];
        let report = request(1, sequence, edges);
        assert_eq!(ledger.take(&peer("orders"), report, Instant::now()), TAKEN);
    }
    assert_eq!(good(&ledger, "inventory"), 12);
}
