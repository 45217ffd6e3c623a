//! Against a real DNS server on loopback whose answers the test controls.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_resolver::net::xfer::Protocol;
use hickory_resolver::proto::op::{Header, HeaderCounts, MessageType, Metadata, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use weft_runtime::config::{Path, Problems};

use super::resolver::{Family, LookupError, Pacing};
use super::*;

/// What the server says to one kind of question.
#[derive(Debug, Clone)]
enum Say {
    Addresses(Vec<IpAddr>, u32),
    /// Too long for UDP; over TCP, these.
    Long(Vec<IpAddr>),
    Alias(&'static str, u32),
    /// SRV records (priority, weight, port, host), good for so long, and addresses that come along.
    Instances(
        Vec<(u16, u16, u16, &'static str)>,
        u32,
        Vec<(&'static str, IpAddr)>,
    ),
    /// NOERROR without records, with an SOA of this TTL.
    Empty(u32),
    NxDomain,
    Error(ResponseCode),
    Silence,
}

#[derive(Default)]
struct Script {
    says: Mutex<HashMap<(String, RecordType), Say>>,
    asked: Mutex<HashMap<(RecordType, Protocol), usize>>,
    total: AtomicUsize,
    changed: tokio::sync::Notify,
}

/// A DNS server of a few names.
struct FakeDns {
    address: SocketAddr,
    script: Arc<Script>,
    _server: Server<Handler>,
}

struct Handler(Arc<Script>);

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: hickory_resolver::net::runtime::Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let query = request.request_info().unwrap().query;
        let name = Name::from(query.name().clone());
        let kind = query.query_type();
        let say = {
            let says = self.0.says.lock().unwrap();
            says.get(&(name.to_string(), kind))
                .cloned()
                .unwrap_or(Say::NxDomain)
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let record = |rdata: RData, ttl| Record::from_rdata(name.clone(), ttl, rdata);
        let addresses = |ips: Vec<IpAddr>, ttl| -> Vec<Record> {
            ips.into_iter()
                .map(|ip| match ip {
                    IpAddr::V4(ip) => record(RData::A(A(ip)), ttl),
                    IpAddr::V6(ip) => record(RData::AAAA(AAAA(ip)), ttl),
                })
                .collect()
        };
        let mut soa = Vec::new();
        let mut beside = Vec::new();
        let answers = match say {
            Say::Addresses(ips, ttl) => addresses(ips, ttl),
            Say::Long(_) if request.protocol() == Protocol::Udp => {
                metadata.truncation = true;
                Vec::new()
            }
            Say::Long(ips) => addresses(ips, 5),
            Say::Alias(target, ttl) => {
                let target = Name::from_ascii(target).unwrap();
                vec![record(RData::CNAME(CNAME(target)), ttl)]
            }
            Say::Instances(instances, ttl, along) => {
                for (name, ip) in along {
                    let name = Name::from_ascii(name).unwrap();
                    let data = match ip {
                        IpAddr::V4(ip) => RData::A(A(ip)),
                        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
                    };
                    beside.push(Record::from_rdata(name, ttl, data));
                }
                let data = |(priority, weight, port, host)| {
                    let host = Name::from_ascii(host).unwrap();
                    RData::SRV(SRV::new(priority, weight, port, host))
                };
                let records = instances.into_iter().map(data);
                records.map(|data| record(data, ttl)).collect()
            }
            Say::Empty(ttl) => {
                let data = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, ttl);
                soa.push(record(RData::SOA(data), ttl));
                Vec::new()
            }
            Say::NxDomain => {
                metadata.response_code = ResponseCode::NXDomain;
                Vec::new()
            }
            Say::Error(code) => {
                metadata.response_code = code;
                Vec::new()
            }
            Say::Silence => {
                self.0.count(kind, request.protocol());
                let id = request.metadata.id;
                return ResponseInfo::from(Header {
                    metadata: Metadata::new(id, MessageType::Response, request.metadata.op_code),
                    counts: HeaderCounts::default(),
                });
            }
        };
        let message = MessageResponseBuilder::from_message_request(request).build(
            metadata,
            &answers,
            [],
            &soa,
            &beside,
        );
        let info = response.send_response(message).await.unwrap();
        self.0.count(kind, request.protocol());
        info
    }
}

impl Script {
    fn count(&self, kind: RecordType, protocol: Protocol) {
        *self
            .asked
            .lock()
            .unwrap()
            .entry((kind, protocol))
            .or_insert(0) += 1;
        self.total.fetch_add(1, SeqCst);
        self.changed.notify_waiters();
    }
}

impl FakeDns {
    async fn start() -> Self {
        // UDP and TCP on the same port, as resolvers expect.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let script = Arc::new(Script::default());
        let mut server = Server::new(Handler(Arc::clone(&script)));
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 32);
        Self {
            address,
            script,
            _server: server,
        }
    }

    fn say(&self, name: &str, kind: RecordType, say: Say) {
        let key = (format!("{name}."), kind);
        self.script.says.lock().unwrap().insert(key, say);
    }

    /// The A records of `orders`.
    fn orders(&self, say: Say) {
        self.say("orders", RecordType::A, say);
    }

    fn asked(&self, kind: RecordType, protocol: Protocol) -> usize {
        let asked = self.script.asked.lock().unwrap();
        asked.get(&(kind, protocol)).copied().unwrap_or(0)
    }

    /// Waits until `count` more questions of this kind were answered (or left unanswered).
    async fn after(&self, kind: RecordType, count: usize) {
        let now = || self.asked(kind, Protocol::Udp) + self.asked(kind, Protocol::Tcp);
        let wanted = now() + count;
        loop {
            let changed = self.script.changed.notified();
            if now() >= wanted {
                return;
            }
            changed.await;
        }
    }
}

fn v4(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn v6(last: u16) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])
}

fn at(ips: &[IpAddr]) -> Vec<Place> {
    let address = |&ip| SocketAddr::new(ip, 8080);
    ips.iter().map(address).map(Place::new).collect()
}

fn resolver(servers: &[SocketAddr], timeout: &str) -> Resolver {
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let config: Config =
        serde_json::from_value(serde_json::json!({ "servers": servers, "timeout": timeout }))
            .unwrap();
    let mut problems = Problems::new();
    config.build(&Path::root(), &mut problems).unwrap()
}

fn target(name: &str) -> Source {
    let mut problems = Problems::new();
    let target = dns::Target::build(name, 8080, &Path::root(), &mut problems);
    Source::Dns(vec![target.unwrap()])
}

const QUICK: Pacing = Pacing {
    min_ttl: Duration::from_millis(20),
    max_ttl: Duration::from_millis(50),
    stale: Duration::from_millis(300),
    absent_for: Duration::from_millis(400),
};

/// Follows `orders` while `body` runs, and fails if it takes too long.
async fn following<R>(
    dns: &FakeDns,
    pacing: Pacing,
    body: impl AsyncFnOnce(&mut mpsc::Receiver<Vec<Place>>, &Status) -> R,
) -> R {
    following_source(dns, pacing, target("orders"), body).await
}

async fn following_source<R>(
    dns: &FakeDns,
    pacing: Pacing,
    source: Source,
    body: impl AsyncFnOnce(&mut mpsc::Receiver<Vec<Place>>, &Status) -> R,
) -> R {
    let resolver = resolver(&[dns.address], "100ms").with_pacing(pacing);
    let status = Status::new();
    let (sender, mut published) = mpsc::channel(100);
    let (_stop, stopped) = watch::channel(false);
    let publish = move |addresses| sender.try_send(addresses).unwrap();
    let follow = follow(&source, &resolver, &status, publish, stopped);
    let limited = tokio::time::timeout(Duration::from_secs(60), body(&mut published, &status));
    tokio::select! {
        () = follow => panic!("follow ended by itself"),
        result = limited => result.expect("in time"),
    }
}

async fn until(status: &Status, dns: &FakeDns, wanted: impl Fn(&Report) -> bool) -> Report {
    loop {
        let report = status.report();
        if wanted(&report) {
            return report;
        }
        dns.after(RecordType::A, 1).await;
    }
}

#[tokio::test]
async fn both_families_are_merged() {
    let dns = FakeDns::start().await;
    dns.orders(Say::Addresses(vec![v4(2), v4(1), v4(2)], 600));
    let say = Say::Addresses(vec![v6(1)], 600);
    dns.say("orders", RecordType::AAAA, say);
    following(&dns, QUICK, async |published, status| {
        let mut last = published.recv().await.unwrap();
        while last.len() < 3 {
            last = published.recv().await.unwrap();
        }
        assert_eq!(last, at(&[v4(1), v4(2), v6(1)]));
        let report = status.report();
        assert!(report.known && !report.stale && report.last_error.is_none());
    })
    .await;
}

#[tokio::test]
async fn replicas_come_and_go_within_the_longest_ttl_though_dns_says_600() {
    let dns = FakeDns::start().await;
    dns.say("orders", RecordType::AAAA, Say::Empty(600));
    dns.orders(Say::Addresses(vec![v4(1)], 600));
    following(&dns, QUICK, async |published, _| {
        assert_eq!(published.recv().await.unwrap(), at(&[v4(1)]));
        for say in [vec![v4(1), v4(2)], vec![v4(2)], vec![v4(3)]] {
            let since = Instant::now();
            dns.orders(Say::Addresses(say.clone(), 600));
            assert_eq!(published.recv().await.unwrap(), at(&say));
            // A wide margin: the point is that it is nowhere near 600 s.
            assert!(since.elapsed() < Duration::from_secs(60));
        }
        // What does not change is not published: nothing new after some more rounds.
        dns.after(RecordType::A, 4).await;
        assert!(published.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn a_family_that_fails_costs_the_other_nothing() {
    for failure in [Say::Silence, Say::Error(ResponseCode::ServFail)] {
        let dns = FakeDns::start().await;
        dns.say("orders", RecordType::AAAA, failure);
        dns.orders(Say::Addresses(vec![v4(1)], 1));
        following(&dns, QUICK, async |published, status| {
            assert_eq!(published.recv().await.unwrap(), at(&[v4(1)]));
            dns.after(RecordType::AAAA, 3).await;
            dns.orders(Say::Addresses(vec![v4(2)], 1));
            assert_eq!(published.recv().await.unwrap(), at(&[v4(2)]));
            let report = until(status, &dns, |report| report.last_error.is_some()).await;
            assert!(!report.stale, "nothing in use is in doubt");
        })
        .await;
    }
}

#[tokio::test]
async fn a_family_that_starts_to_fail_keeps_what_was_known_of_it() {
    let dns = FakeDns::start().await;
    dns.orders(Say::Addresses(vec![v4(1)], 1));
    dns.say("orders", RecordType::AAAA, Say::Addresses(vec![v6(1)], 1));
    following(&dns, QUICK, async |published, status| {
        while published.recv().await.unwrap().len() < 2 {}
        dns.say(
            "orders",
            RecordType::AAAA,
            Say::Error(ResponseCode::Refused),
        );
        until(status, &dns, |report| report.stale).await;
        dns.orders(Say::Addresses(vec![v4(2)], 1));
        assert_eq!(published.recv().await.unwrap(), at(&[v4(2), v6(1)]));
    })
    .await;
}

#[tokio::test]
async fn failures_keep_the_last_known_good_and_say_so() {
    for failure in [
        Say::Silence,
        Say::Error(ResponseCode::ServFail),
        Say::Error(ResponseCode::Refused),
        Say::Error(ResponseCode::FormErr),
    ] {
        let dns = FakeDns::start().await;
        dns.say("orders", RecordType::AAAA, Say::Empty(1));
        dns.orders(Say::Addresses(vec![v4(1)], 1));
        following(&dns, QUICK, async |published, status| {
            assert_eq!(published.recv().await.unwrap(), at(&[v4(1)]));
            dns.orders(failure.clone());
            let report = until(status, &dns, |report| report.stale).await;
            let age = report.last_success.unwrap().elapsed();
            assert!(!report.expired || age >= QUICK.stale);
            assert!(report.last_error.unwrap().contains("DNS server"));
            // Beyond the time that is bearable, it is said louder, and still kept.
            let report = until(status, &dns, |report| report.expired).await;
            assert_eq!(report.addresses, 1);
            assert!(published.try_recv().is_err());
            // And all is well again at once.
            dns.orders(Say::Addresses(vec![v4(1), v4(2)], 1));
            assert_eq!(published.recv().await.unwrap(), at(&[v4(1), v4(2)]));
            let report = until(status, &dns, |report| report.last_error.is_none()).await;
            assert!(!report.stale && !report.expired);
        })
        .await;
    }
}

#[tokio::test]
async fn absence_is_believed_when_it_lasts() {
    for absence in [Say::NxDomain, Say::Empty(600)] {
        let dns = FakeDns::start().await;
        dns.say("orders", RecordType::AAAA, absence.clone());
        dns.orders(Say::Addresses(vec![v4(1)], 1));
        following(&dns, QUICK, async |published, status| {
            assert_eq!(published.recv().await.unwrap(), at(&[v4(1)]));
            let since = Instant::now();
            dns.orders(absence.clone());
            assert_eq!(published.recv().await.unwrap(), at(&[]));
            assert!(since.elapsed() >= QUICK.absent_for);
            let report = status.report();
            assert!(report.known && !report.stale);
            // Scaled from zero.
            dns.orders(Say::Addresses(vec![v4(7)], 1));
            assert_eq!(published.recv().await.unwrap(), at(&[v4(7)]));
        })
        .await;
    }
}

#[tokio::test]
async fn flapping_to_nxdomain_changes_nothing() {
    let dns = FakeDns::start().await;
    dns.say("orders", RecordType::AAAA, Say::Empty(1));
    dns.orders(Say::Addresses(vec![v4(1)], 1));
    following(&dns, QUICK, async |published, _| {
        assert_eq!(published.recv().await.unwrap(), at(&[v4(1)]));
        let start = Instant::now();
        while start.elapsed() < 2 * QUICK.absent_for {
            dns.orders(Say::NxDomain);
            dns.after(RecordType::A, 1).await;
            dns.orders(Say::Addresses(vec![v4(1)], 1));
            dns.after(RecordType::A, 1).await;
        }
        assert!(published.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn the_order_of_starting_does_not_matter() {
    let dns = FakeDns::start().await;
    dns.say(
        "orders",
        RecordType::AAAA,
        Say::Error(ResponseCode::ServFail),
    );
    dns.orders(Say::Error(ResponseCode::ServFail));
    // The real times: what is not known yet is asked for soon, not after the TTL.
    let pacing = resolver(&[dns.address], "1s").pacing();
    following(&dns, pacing, async |published, status| {
        dns.after(RecordType::A, 4).await;
        assert!(!status.report().known);
        assert!(published.try_recv().is_err());
        let since = Instant::now();
        dns.orders(Say::Addresses(vec![v4(1)], 600));
        assert_eq!(published.recv().await.unwrap(), at(&[v4(1)]));
        assert!(since.elapsed() < Duration::from_secs(4));
    })
    .await;
}

#[tokio::test]
async fn following_ends_with_the_process() {
    let dns = FakeDns::start().await;
    let resolver = resolver(&[dns.address], "100ms");
    let status = Status::new();
    let fixed = Source::Fixed(at(&[v4(1)]));
    for source in [target("orders"), fixed] {
        for announced in [true, false] {
            let (stop, stopped) = watch::channel(false);
            let follow = follow(&source, &resolver, &status, |_| {}, stopped);
            let end = async {
                tokio::task::yield_now().await;
                if announced {
                    stop.send(true).unwrap();
                }
                drop(stop);
            };
            let both = async { tokio::join!(follow, end) };
            tokio::time::timeout(Duration::from_secs(5), both)
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn fixed_addresses_are_published_once() {
    let source = Source::Fixed(at(&[v4(1), v4(2)]));
    let resolver = resolver(&["127.0.0.1:9".parse().unwrap()], "100ms");
    let (status, published) = (Status::new(), Mutex::new(Vec::new()));
    let (_stop, stopped) = watch::channel(true);
    let publish = |addresses| published.lock().unwrap().push(addresses);
    // Already stopped: what stands in the configuration may or may not be published, but nothing hangs.
    follow(&source, &resolver, &status, publish, stopped).await;
    let (stop, stopped) = watch::channel(false);
    published.lock().unwrap().clear();
    let publish = |addresses| {
        published.lock().unwrap().push(addresses);
        stop.send(true).unwrap();
    };
    follow(&source, &resolver, &status, publish, stopped).await;
    assert_eq!(*published.lock().unwrap(), [at(&[v4(1), v4(2)])]);
    let report = status.report();
    assert!(report.known && !report.stale);
    assert_eq!(report.addresses, 2);
}

const SERVICE: &str = "_http._tcp.orders";

/// The instances behind [`SERVICE`], each on its own port unless there is one for all.
fn instances(port: Option<u16>) -> Source {
    let mut problems = Problems::new();
    let target = dns::Target::instances(SERVICE, port, &Path::root(), &mut problems);
    Source::Dns(vec![target.unwrap()])
}

fn place(ip: IpAddr, port: u16, priority: u16, weight: u16) -> Place {
    Place {
        priority,
        weight,
        ..Place::new(SocketAddr::new(ip, port))
    }
}

/// Waits until exactly these are published.
async fn becomes(published: &mut mpsc::Receiver<Vec<Place>>, wanted: &[Place]) {
    let mut last = published.recv().await.unwrap();
    while last != wanted {
        last = published.recv().await.unwrap();
    }
}

#[tokio::test]
async fn instances_have_ports_tiers_and_shares_of_their_own() {
    let dns = FakeDns::start().await;
    let records = vec![
        (0, 60, 8081, "One.Orders."),
        (0, 40, 8082, "one.orders."),
        (1, 0, 8080, "two.orders."),
    ];
    dns.say(
        SERVICE,
        RecordType::SRV,
        Say::Instances(records, 600, vec![]),
    );
    dns.say(
        "one.orders",
        RecordType::A,
        Say::Addresses(vec![v4(1)], 600),
    );
    dns.say(
        "two.orders",
        RecordType::A,
        Say::Addresses(vec![v4(2)], 600),
    );
    dns.say(
        "two.orders",
        RecordType::AAAA,
        Say::Addresses(vec![v6(2)], 600),
    );
    let wanted = [
        place(v4(1), 8081, 0, 60),
        place(v4(1), 8082, 0, 40),
        place(v4(2), 8080, 1, 0),
        place(v6(2), 8080, 1, 0),
    ];
    following_source(&dns, QUICK, instances(None), async |published, _| {
        becomes(published, &wanted).await;
        // A share changes, an instance goes, another comes: within the longest TTL, though DNS says 600.
        let records = vec![(0, 10, 8081, "one.orders."), (0, 5, 80, "three.orders.")];
        dns.say(
            "three.orders",
            RecordType::A,
            Say::Addresses(vec![v4(3)], 600),
        );
        dns.say(
            SERVICE,
            RecordType::SRV,
            Say::Instances(records, 600, vec![]),
        );
        becomes(
            published,
            &[place(v4(1), 8081, 0, 10), place(v4(3), 80, 0, 5)],
        )
        .await;
    })
    .await;
    // In the mesh all sidecars listen on the same port, whatever the records say; of one address the first tier counts
    // where it is applied.
    following_source(&dns, QUICK, instances(Some(15008)), async |published, _| {
        becomes(
            published,
            &[place(v4(1), 15008, 0, 10), place(v4(3), 15008, 0, 5)],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn addresses_that_come_along_are_not_asked_for() {
    let dns = FakeDns::start().await;
    let records = || vec![(0, 1, 80, "one.orders."), (0, 1, 80, "two.orders.")];
    let along = vec![
        ("one.orders.", v4(1)),
        ("TWO.orders.", v4(2)),
        ("stranger.", v4(9)),
    ];
    let say = Say::Instances(records(), 600, along);
    dns.say(SERVICE, RecordType::SRV, say);
    let wanted = [place(v4(1), 80, 0, 1), place(v4(2), 80, 0, 1)];
    following_source(&dns, QUICK, instances(None), async |published, _| {
        becomes(published, &wanted).await;
        dns.after(RecordType::SRV, 10).await;
        for kind in [RecordType::A, RecordType::AAAA] {
            assert_eq!(dns.asked(kind, Protocol::Udp), 0, "{kind}");
        }
        // Only when they do not come along any more.
        dns.say("one.orders", RecordType::A, Say::Addresses(vec![v4(1)], 1));
        dns.say("two.orders", RecordType::A, Say::Addresses(vec![v4(7)], 1));
        dns.say(
            SERVICE,
            RecordType::SRV,
            Say::Instances(records(), 600, vec![]),
        );
        becomes(published, &[place(v4(1), 80, 0, 1), place(v4(7), 80, 0, 1)]).await;
    })
    .await;
}

#[tokio::test]
async fn a_family_that_comes_along_no_more_is_asked_for_until_it_is_gone() {
    let dns = FakeDns::start().await;
    let say = |along| {
        let records = vec![(0, 1, 80, "one.orders.")];
        dns.say(
            SERVICE,
            RecordType::SRV,
            Say::Instances(records, 600, along),
        );
    };
    say(vec![("one.orders.", v4(1)), ("one.orders.", v6(1))]);
    dns.say("one.orders", RecordType::AAAA, Say::Addresses(vec![], 1));
    let both = [place(v4(1), 80, 0, 1), place(v6(1), 80, 0, 1)];
    following_source(&dns, QUICK, instances(None), async |published, _| {
        becomes(published, &both).await;
        say(vec![("one.orders.", v4(1))]);
        becomes(published, &both[..1]).await;
    })
    .await;
}

#[tokio::test]
async fn instances_are_doubted_as_addresses_are() {
    let dns = FakeDns::start().await;
    let say = |host| Say::Instances(vec![(0, 1, 80, host)], 1, vec![]);
    dns.say(SERVICE, RecordType::SRV, say("one.orders."));
    dns.say("one.orders", RecordType::A, Say::Addresses(vec![v4(1)], 1));
    following_source(&dns, QUICK, instances(None), async |published, status| {
        becomes(published, &[place(v4(1), 80, 0, 1)]).await;
        for failure in [Say::Silence, Say::Error(ResponseCode::ServFail)] {
            dns.say(SERVICE, RecordType::SRV, failure);
            until(status, &dns, |report| report.stale).await;
            assert!(published.try_recv().is_err());
            dns.say(SERVICE, RecordType::SRV, say("one.orders."));
            until(status, &dns, |report| !report.stale).await;
        }
        // RFC 2782: decidedly not available, which is absence as any other, and believed when it lasts.
        let since = Instant::now();
        dns.say(SERVICE, RecordType::SRV, say("."));
        becomes(published, &[]).await;
        assert!(since.elapsed() >= QUICK.absent_for);
        assert!(!status.report().stale);
    })
    .await;
}

#[tokio::test]
async fn several_names_are_one_service() {
    let dns = FakeDns::start().await;
    let source = || {
        let mut problems = Problems::new();
        let mut build = |name: &str| dns::Target::build(name, 8080, &Path::root(), &mut problems);
        Source::Dns(vec![build("orders").unwrap(), build("orders-b").unwrap()])
    };
    dns.orders(Say::Addresses(vec![v4(1), v4(2)], 1));
    dns.say(
        "orders-b",
        RecordType::A,
        Say::Addresses(vec![v4(2), v4(3)], 1),
    );
    following_source(&dns, QUICK, source(), async |published, status| {
        becomes(published, &at(&[v4(1), v4(2), v4(3)])).await;
        // What is wrong with one name takes nothing from the other.
        dns.say(
            "orders-b",
            RecordType::A,
            Say::Error(ResponseCode::ServFail),
        );
        until(status, &dns, |report| report.stale).await;
        dns.orders(Say::Addresses(vec![v4(4)], 1));
        becomes(published, &at(&[v4(2), v4(3), v4(4)])).await;
        dns.say("orders-b", RecordType::A, Say::NxDomain);
        becomes(published, &at(&[v4(4)])).await;
    })
    .await;
}

#[tokio::test]
async fn a_negative_answer_is_good_as_long_as_its_soa_says_within_the_bounds() {
    let dns = FakeDns::start().await;
    let resolver = resolver(&[dns.address], "2s");
    dns.orders(Say::Empty(3));
    assert_eq!(
        lookup(&resolver, "orders").await.unwrap(),
        (vec![], Some(3))
    );
    dns.orders(Say::Empty(600));
    assert_eq!(
        lookup(&resolver, "orders").await.unwrap(),
        (vec![], Some(600))
    );
    // How long it is taken for is the pace's matter: five seconds at most.
    assert_eq!(resolver.pacing().max_ttl, Duration::from_secs(5));
}

#[tokio::test]
async fn a_file_is_followed_and_its_last_good_content_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.yaml");
    let write = |text: &str| {
        let beside = directory.path().join("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &path).unwrap();
    };
    let resolver = resolver(&["127.0.0.1:9".parse().unwrap()], "100ms");
    let (status, source) = (Status::new(), Source::File(path.clone()));
    let (sender, mut published) = mpsc::channel(100);
    let (_stop, stopped) = watch::channel(false);
    let publish = move |places| sender.try_send(places).unwrap();
    let follow = follow(&source, &resolver, &status, publish, stopped);
    let story = async {
        let says = async |words: &str| {
            while !status
                .report()
                .last_error
                .is_some_and(|e| e.contains(words))
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // Nothing there yet: nothing is known, and it is said why.
        says("orders.yaml").await;
        assert!(!status.report().known);
        write("- 10.0.0.1:80\n- { address: 10.0.0.2:80, weight: 3 }\n");
        let good = [place(v4(1), 80, 0, 1), place(v4(2), 80, 0, 3)];
        assert_eq!(published.recv().await.unwrap(), good);
        assert_eq!(status.report().last_error, None);
        // Wrong, then gone: the last good content stays, and the place of the mistake is named.
        write("- 10.0.0.1:80\n- 10.0.0.2\n");
        says("orders.yaml:2:3: `10.0.0.2` is not an address").await;
        assert!(status.report().stale && status.report().addresses == 2);
        std::fs::remove_file(&path).unwrap();
        says("No such file").await;
        assert!(published.try_recv().is_err());
        // JSON is as good, and none at all is what an empty list says.
        write(r#"["10.0.0.3:80"]"#);
        assert_eq!(published.recv().await.unwrap(), [place(v4(3), 80, 0, 1)]);
        assert!(!status.report().stale);
        write("[]");
        assert_eq!(published.recv().await.unwrap(), []);
    };
    tokio::select! {
        () = follow => panic!("follow ended by itself"),
        told = tokio::time::timeout(Duration::from_secs(60), story) => told.unwrap(),
    }
}

async fn lookup(
    resolver: &Resolver,
    name: &str,
) -> Result<(Vec<IpAddr>, Option<u64>), LookupError> {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    let found = resolver.lookup(&name, Family::V4).await?;
    Ok((found.addresses, found.ttl.map(|ttl| ttl.as_secs())))
}

#[tokio::test]
async fn a_long_answer_is_fetched_over_tcp() {
    let dns = FakeDns::start().await;
    let many: Vec<_> = (0..=255).map(v4).collect();
    dns.orders(Say::Long(many.clone()));
    let resolver = resolver(&[dns.address], "2s");
    let (found, _) = lookup(&resolver, "orders").await.unwrap();
    assert_eq!(found, many);
    assert_eq!(dns.asked(RecordType::A, Protocol::Udp), 1);
    assert_eq!(dns.asked(RecordType::A, Protocol::Tcp), 1);
}

#[tokio::test]
async fn nothing_is_cached_below_us() {
    let dns = FakeDns::start().await;
    let resolver = resolver(&[dns.address], "2s");
    for last in 1..=3 {
        dns.orders(Say::Addresses(vec![v4(last)], 600));
        let found = lookup(&resolver, "orders").await.unwrap();
        assert_eq!(found, (vec![v4(last)], Some(600)));
    }
    assert_eq!(dns.asked(RecordType::A, Protocol::Udp), 3);
}

#[tokio::test]
async fn a_single_label_is_asked_for_as_it_is() {
    let dns = FakeDns::start().await;
    let resolver = resolver(&[dns.address], "2s");
    for name in ["orders", "my_app", "compose_orders_1"] {
        dns.say(name, RecordType::A, Say::Addresses(vec![v4(1)], 1));
        assert_eq!(lookup(&resolver, name).await.unwrap().0, [v4(1)]);
    }
    // One question each: no search list.
    assert_eq!(dns.script.total.load(SeqCst), 3);
}

#[tokio::test]
async fn aliases_are_followed_and_the_shortest_ttl_counts() {
    let dns = FakeDns::start().await;
    let resolver = resolver(&[dns.address], "2s");
    dns.orders(Say::Alias("a.example.", 30));
    dns.say("a.example", RecordType::A, Say::Alias("b.example.", 7));
    dns.say("b.example", RecordType::A, Say::Addresses(vec![v4(9)], 60));
    let found = lookup(&resolver, "orders").await.unwrap();
    assert_eq!(found, (vec![v4(9)], Some(7)));
    // To nowhere: an authority's word that there is nothing.
    dns.say("b.example", RecordType::A, Say::NxDomain);
    assert!(lookup(&resolver, "orders").await.unwrap().0.is_empty());
    // In a circle.
    dns.say("b.example", RecordType::A, Say::Alias("orders.", 7));
    assert_eq!(
        lookup(&resolver, "orders").await,
        Err(LookupError::TooManyAliases)
    );
}

#[tokio::test]
async fn addresses_that_nobody_can_have_are_left_out() {
    let dns = FakeDns::start().await;
    let resolver = resolver(&[dns.address], "2s");
    let odd: Vec<IpAddr> = ["0.0.0.0", "224.0.0.1", "255.255.255.255", "10.0.0.1"]
        .iter()
        .map(|ip| ip.parse().unwrap())
        .collect();
    dns.orders(Say::Addresses(odd, 1));
    assert_eq!(lookup(&resolver, "orders").await.unwrap().0, [v4(1)]);
}

#[tokio::test]
async fn a_server_that_fails_hands_over_to_the_next() {
    let (sick, well) = (FakeDns::start().await, FakeDns::start().await);
    well.orders(Say::Addresses(vec![v4(1)], 1));
    for failure in [
        Say::Error(ResponseCode::ServFail),
        Say::Error(ResponseCode::Refused),
        Say::Silence,
    ] {
        sick.orders(failure);
        let resolver = resolver(&[sick.address, well.address], "200ms");
        let before = sick.script.total.load(SeqCst);
        assert_eq!(lookup(&resolver, "orders").await.unwrap().0, [v4(1)]);
        let first = sick.script.total.load(SeqCst);
        assert!(first > before, "the first in the list is asked first");
        // The one that answered is asked first from now on.
        assert_eq!(lookup(&resolver, "orders").await.unwrap().0, [v4(1)]);
        assert_eq!(sick.script.total.load(SeqCst), first);
    }
}

#[tokio::test]
async fn failures_name_the_server() {
    let dns = FakeDns::start().await;
    let resolver = resolver(&[dns.address], "100ms");
    dns.orders(Say::Error(ResponseCode::ServFail));
    let error = lookup(&resolver, "orders").await.unwrap_err();
    assert!(
        matches!(error, LookupError::Refused { server, code: ResponseCode::ServFail } if server == dns.address)
    );
    dns.orders(Say::Silence);
    let start = Instant::now();
    let error = lookup(&resolver, "orders").await.unwrap_err();
    assert!(matches!(error, LookupError::Timeout { server, .. } if server == dns.address));
    assert!(error.to_string().contains(&dns.address.to_string()));
    // Two attempts of 100 ms.
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn localhost_is_no_question_for_dns() {
    let dns = FakeDns::start().await;
    let resolver = resolver(&[dns.address], "100ms");
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    assert_eq!(lookup(&resolver, "localhost").await.unwrap().0, [loopback]);
    assert_eq!(dns.script.total.load(SeqCst), 0);
}

#[test]
fn the_configuration_is_checked() {
    let parse = |json: &str| serde_json::from_str::<Config>(json);
    let config = parse("{}").unwrap();
    assert_eq!(config, Config::default());
    let config =
        parse(r#"{"servers": ["10.0.0.2", "10.0.0.2:5353", "fd00::2", "[fd00::2]:5353"]}"#);
    let servers: Vec<_> = config
        .unwrap()
        .servers
        .iter()
        .map(|s| s.0.to_string())
        .collect();
    assert_eq!(
        servers,
        [
            "10.0.0.2:53",
            "10.0.0.2:5353",
            "[fd00::2]:53",
            "[fd00::2]:5353"
        ]
    );
    let error = parse(r#"{"servers": ["dns.google"]}"#).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`dns.google` is not the address")
    );
    assert!(parse(r#"{"server": []}"#).is_err());

    let wrong = r#"{"attempts": 0, "timeout": "0s", "min_ttl": "9s", "max_ttl": "5s"}"#;
    let mut problems = Problems::new();
    let path = Path::root().key("resolver");
    assert!(parse(wrong).unwrap().build(&path, &mut problems).is_none());
    let places: Vec<_> = problems.iter().map(|p| p.path.to_string()).collect();
    assert_eq!(
        places,
        ["resolver.attempts", "resolver.timeout", "resolver.max_ttl"]
    );
}
