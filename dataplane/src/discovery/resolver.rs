//! Asks DNS servers, through hickory-resolver's connections but without its cache.
//!
//! Three things are ours on purpose. There is no cache: how long an answer is good is [`super::dns`]'s decision, and a
//! cache below it would serve the docker engine's 600 seconds. Names are absolute: no search list is walked, so `orders` asks
//! for `orders.`, one question, the same everywhere. And servers are asked one after another, each of them its own pool: a
//! server that answers SERVFAIL or REFUSED, or not at all, hands over to the next one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::DnsHandle;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Hosts, NameServerPool, PoolContext, TlsConfig};
use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer};
use weft_runtime::config::units::Period;
use weft_runtime::config::{Path, Problems};

use super::belief::ABSENT_FOR;

/// Aliases (CNAME) that are followed, within one answer and over several.
const MOST_ALIASES: usize = 8;

/// Answers up to this size come over UDP: the value that DNS flag day 2020 settled on, to avoid fragments.
const UDP_PAYLOAD: u16 = 1232;

/// `resolver:` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Resolver")]
pub struct Config {
    /// The DNS servers, by address, with a port where it is not 53. Without any, the system's (`/etc/resolv.conf` and
    /// `/etc/hosts`, read at the start).
    pub servers: Vec<Server>,
    /// How long one server may take for one question, the way over TCP included.
    pub timeout: Period,
    /// How often a question is asked before it counts as failed; every server gets it once at least.
    pub attempts: usize,
    /// Answers are good for this long at least, whatever their TTL says.
    pub min_ttl: Period,
    /// Answers are good for this long at most, whatever their TTL says: a scaled service is seen this soon.
    pub max_ttl: Period,
    /// Addresses that could not be confirmed for so long are reported as expired. They stay in use all the same.
    pub stale: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            timeout: Period::seconds(3),
            attempts: 2,
            min_ttl: Period::seconds(1),
            max_ttl: Period::seconds(5),
            stale: Period::seconds(3600),
        }
    }
}

/// The address of a DNS server: `10.0.0.2`, `10.0.0.2:5353`, `[fd00::2]:53`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Server(pub SocketAddr);

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
            .map(Self)
            .map_err(|_| {
                format!("`{text}` is not the address of a DNS server; write an IP address, such as `10.0.0.2` or `10.0.0.2:5353`")
            })
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FromText;
        impl serde::de::Visitor<'_> for FromText {
            type Value = Server;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the address of a DNS server, such as `10.0.0.2:53`")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Server, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(FromText)
    }
}

impl Config {
    /// Checks the values and prepares the resolver. Nothing is asked yet.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Resolver> {
        let before = problems.len();
        if self.attempts == 0 || self.attempts > 10 {
            problems.at(
                &path.key("attempts"),
                format!("a question cannot be asked `{}` times", self.attempts),
                "write a number from 1 to 10; 2 is the default",
            );
        }
        for (key, value) in [("timeout", self.timeout), ("min_ttl", self.min_ttl)] {
            if value.as_duration() < Duration::from_millis(10) {
                problems.at(
                    &path.key(key),
                    format!("`{key}` of {value} is too short"),
                    "write at least `10ms`; a second or more suits most networks",
                );
            }
        }
        if self.max_ttl < self.min_ttl {
            problems.at(
                &path.key("max_ttl"),
                format!(
                    "`max_ttl` ({}) is shorter than `min_ttl` ({})",
                    self.max_ttl, self.min_ttl
                ),
                "make `max_ttl` at least as long as `min_ttl`",
            );
        }
        (problems.len() == before).then(|| Resolver::new(self))
    }
}

/// How long answers are good, and when to worry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pacing {
    /// At least so long.
    pub min_ttl: Duration,
    /// At most so long.
    pub max_ttl: Duration,
    /// Unconfirmed addresses are expired after so long.
    pub stale: Duration,
    /// Absence must be said for so long to be believed.
    pub absent_for: Duration,
}

/// Asks for the addresses of names.
pub struct Resolver {
    servers: Vec<(SocketAddr, NameServerPool<TokioRuntimeProvider>)>,
    /// The one that answered last is asked first.
    preferred: AtomicUsize,
    /// The system's, where its servers are used.
    hosts: Hosts,
    /// Why there are no servers.
    missing: Option<String>,
    timeout: Duration,
    tries: usize,
    pacing: Pacing,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.servers.iter().map(|(address, _)| address);
        f.debug_set().entries(servers).finish()
    }
}

/// One of the two families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    fn record(self) -> RecordType {
        match self {
            Self::V4 => RecordType::A,
            Self::V6 => RecordType::AAAA,
        }
    }
}

/// What DNS says about one family of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The addresses; empty when an authority says that there are none.
    pub addresses: Vec<IpAddr>,
    /// For how long that is good, the shortest of all records on the way; `None` where the answer does not say.
    pub ttl: Option<Duration>,
}

/// One instance of a service as a SRV record (RFC 2782) has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// Its tier: a lower one is used first.
    pub priority: u16,
    /// Its share within the tier.
    pub weight: u16,
    /// Where it listens on its host.
    pub port: u16,
    /// Its host: absolute, in lower case.
    pub host: Name,
}

/// What DNS says about the instances of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundInstances {
    /// The instances; empty when an authority says that there are none.
    pub instances: Vec<Instance>,
    /// Addresses of their hosts that the server sent along.
    pub hosts: Vec<(Name, IpAddr)>,
    /// For how long that is good, the shortest of all records on the way; `None` where the answer does not say.
    pub ttl: Option<Duration>,
}

/// Nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// A server says that it cannot or will not tell.
    #[error("the DNS server {server} answered {code}")]
    Refused {
        /// Which.
        server: SocketAddr,
        /// What it said.
        code: ResponseCode,
    },
    /// No answer in time.
    #[error("the DNS server {server} did not answer within {timeout:?}")]
    Timeout {
        /// Which.
        server: SocketAddr,
        /// The time it had.
        timeout: Duration,
    },
    /// The server could not be asked.
    #[error("the DNS server {server} could not be asked: {cause}")]
    Unreachable {
        /// Which.
        server: SocketAddr,
        /// Why.
        cause: String,
    },
    /// The name leads from alias to alias.
    #[error("more than {MOST_ALIASES} aliases (CNAME) in a row")]
    TooManyAliases,
    /// There is nobody to ask.
    #[error("there are no DNS servers: {0}")]
    NoServers(String),
}

impl Resolver {
    fn new(config: &Config) -> Self {
        let mut missing = None;
        let mut hosts = Hosts::default();
        let mut servers: Vec<_> = config.servers.iter().map(|server| server.0).collect();
        if servers.is_empty() {
            hosts = Hosts::from_system().unwrap_or_default();
            match hickory_resolver::system_conf::read_system_conf() {
                Ok((system, _)) => servers.extend(
                    system
                        .name_servers()
                        .iter()
                        .map(|server| SocketAddr::new(server.ip, 53)),
                ),
                // No problem of the configuration: it may name no DNS at all, or be checked on another machine.
                Err(error) => missing = Some(format!("/etc/resolv.conf: {error}")),
            }
        }
        let timeout = config.timeout.as_duration();
        let tries = config.attempts.max(servers.len());
        Self {
            servers: servers
                .into_iter()
                .map(|address| (address, pool(address, timeout)))
                .collect(),
            preferred: AtomicUsize::new(0),
            hosts,
            missing,
            timeout,
            tries,
            pacing: Pacing {
                min_ttl: config.min_ttl.as_duration(),
                max_ttl: config.max_ttl.as_duration(),
                stale: config.stale.as_duration(),
                absent_for: ABSENT_FOR,
            },
        }
    }

    /// How long answers are good.
    pub fn pacing(&self) -> Pacing {
        self.pacing
    }

    /// The same with other times, for tests that cannot wait.
    #[cfg(test)]
    pub(super) fn with_pacing(mut self, pacing: Pacing) -> Self {
        self.pacing = pacing;
        self
    }

    /// Asks for the addresses of an absolute name. Bounded in time by timeout, attempts and aliases; dropping the future
    /// drops the question.
    pub async fn lookup(&self, name: &Name, family: Family) -> Result<Found, LookupError> {
        if name.is_localhost() {
            // RFC 6761 §6.3: not a question for DNS. IPv4 only, since most things on loopback listen there only.
            let addresses = match family {
                Family::V4 => vec![Ipv4Addr::LOCALHOST.into()],
                Family::V6 => Vec::new(),
            };
            return Ok(Found {
                addresses,
                ttl: None,
            });
        }
        let Records { found, ttl, .. } = self.records(name, family.record(), address).await?;
        Ok(Found {
            addresses: found,
            ttl,
        })
    }

    /// Asks for the instances (SRV) of an absolute name. As [`Resolver::lookup`].
    pub async fn instances(&self, name: &Name) -> Result<FoundInstances, LookupError> {
        let Records { found, ttl, beside } = self.records(name, RecordType::SRV, instance).await?;
        // RFC 2782: the root as the only host says that the service is decidedly not available.
        let instances = found.into_iter().filter(|found| !found.host.is_root());
        Ok(FoundInstances {
            instances: instances.collect(),
            hosts: beside,
            ttl,
        })
    }

    /// The records of one kind, behind as many aliases as there may be.
    async fn records<T>(
        &self,
        name: &Name,
        kind: RecordType,
        pick: impl Fn(&RData) -> Option<T>,
    ) -> Result<Records<T>, LookupError> {
        let mut name = name.clone();
        let mut ttl = None;
        for _ in 0..MOST_ALIASES {
            let query = Query::query(name.clone(), kind);
            if let Some(lookup) = self.hosts.lookup_static_host(&query) {
                return Ok(Records {
                    found: lookup
                        .answers()
                        .iter()
                        .filter_map(|r| pick(&r.data))
                        .collect(),
                    beside: Vec::new(),
                    ttl,
                });
            }
            match self.ask(query).await? {
                Reply::Negative { ttl: negative } => {
                    return Ok(Records {
                        found: Vec::new(),
                        beside: Vec::new(),
                        ttl: least(ttl, negative),
                    });
                }
                Reply::Positive(response) => match read(&response, &name, kind, &pick) {
                    Reading::Done(records) => {
                        return Ok(Records {
                            ttl: least(ttl, records.ttl),
                            ..records
                        });
                    }
                    Reading::Alias(target, alias_ttl) => {
                        ttl = least(ttl, alias_ttl);
                        name = target;
                    }
                },
            }
        }
        Err(LookupError::TooManyAliases)
    }

    /// One question, to one server after another until one answers.
    async fn ask(&self, query: Query) -> Result<Reply, LookupError> {
        let mut options = DnsRequestOptions::default();
        options.recursion_desired = true;
        options.use_edns = true;
        options.edns_payload_len = UDP_PAYLOAD;

        let first = self.preferred.load(Relaxed);
        let why = || self.missing.clone().unwrap_or_default();
        let mut last = LookupError::NoServers(why());
        if self.servers.is_empty() {
            return Err(last);
        }
        for offset in 0..self.tries {
            let index = (first + offset) % self.servers.len();
            let (server, pool) = &self.servers[index];
            let server = *server;
            let mut answers = pool.lookup(query.clone(), options);
            let timeout = self.timeout;
            let answer = match tokio::time::timeout(timeout, answers.next()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => Err(NetError::NoConnections),
                Err(_) => Err(NetError::Timeout),
            };
            let reply = match answer {
                Ok(response) => Reply::Positive(Box::new(response)),
                Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                    if matches!(
                        none.response_code,
                        ResponseCode::NoError | ResponseCode::NXDomain
                    ) =>
                {
                    let ttl = none.negative_ttl.map(seconds);
                    Reply::Negative { ttl }
                }
                Err(error) => {
                    last = match error {
                        NetError::Dns(DnsError::ResponseCode(code)) => {
                            LookupError::Refused { server, code }
                        }
                        NetError::Dns(DnsError::NoRecordsFound(none)) => LookupError::Refused {
                            server,
                            code: none.response_code,
                        },
                        NetError::Timeout => LookupError::Timeout { server, timeout },
                        other => LookupError::Unreachable {
                            server,
                            cause: other.to_string(),
                        },
                    };
                    continue;
                }
            };
            self.preferred.store(index, Relaxed);
            return Ok(reply);
        }
        Err(last)
    }
}

enum Reply {
    Positive(Box<DnsResponse>),
    Negative { ttl: Option<Duration> },
}

/// The records of one kind of a name.
struct Records<T> {
    found: Vec<T>,
    /// Addresses of other names that came along.
    beside: Vec<(Name, IpAddr)>,
    ttl: Option<Duration>,
}

enum Reading<T> {
    Done(Records<T>),
    /// The answer ends at an alias whose addresses it does not have.
    Alias(Name, Option<Duration>),
}

/// Finds the records of `name` in a response, along the aliases in it.
fn read<T>(
    response: &DnsResponse,
    name: &Name,
    kind: RecordType,
    pick: impl Fn(&RData) -> Option<T>,
) -> Reading<T> {
    let mut current = name;
    let mut ttl = None;
    for _ in 0..MOST_ALIASES {
        let alias = response
            .answers
            .iter()
            .find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == *current => Some((&target.0, record.ttl)),
                _ => None,
            });
        let Some((target, alias_ttl)) = alias else {
            break;
        };
        ttl = least(ttl, Some(seconds(alias_ttl)));
        current = target;
    }
    let records = response
        .answers
        .iter()
        .filter(|record| record.name == *current && record.record_type() == kind);
    let mut found = Vec::new();
    for record in records {
        ttl = least(ttl, Some(seconds(record.ttl)));
        found.extend(pick(&record.data));
    }
    let elsewhere = found.is_empty()
        && current != name
        && response.response_code == ResponseCode::NoError
        // With an SOA the server says that it followed the alias and that this is all there is (RFC 2308 §2.2).
        && response.negative_ttl().is_none();
    if elsewhere {
        return Reading::Alias(current.clone(), ttl);
    }
    if found.is_empty() {
        ttl = least(ttl, response.negative_ttl().map(seconds));
    }
    let beside = match kind {
        // They are what this answer says as much as the records are, so its shortest TTL is theirs too.
        RecordType::SRV => response
            .additionals
            .iter()
            .filter_map(|record| {
                Some((
                    record.name.to_lowercase(),
                    record.ttl,
                    address(&record.data)?,
                ))
            })
            .map(|(name, own, address)| {
                ttl = least(ttl, Some(seconds(own)));
                (name, address)
            })
            .collect(),
        _ => Vec::new(),
    };
    Reading::Done(Records { found, beside, ttl })
}

fn instance(data: &RData) -> Option<Instance> {
    let RData::SRV(record) = data else {
        return None;
    };
    let mut host = record.target.to_lowercase();
    host.set_fqdn(true);
    Some(Instance {
        priority: record.priority,
        weight: record.weight,
        port: record.port,
        host,
    })
}

/// The address in a record, unless it is one that nobody can listen on. `0.0.0.0` would even lead back to ourselves.
fn address(data: &RData) -> Option<IpAddr> {
    let ip: IpAddr = match data {
        RData::A(ip) => ip.0.into(),
        RData::AAAA(ip) => ip.0.into(),
        _ => return None,
    };
    (!ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::from(Ipv4Addr::BROADCAST))
        .then_some(ip)
}

fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(ttl.into())
}

fn least(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The connections to one server: UDP, and TCP for answers that are too long.
fn pool(address: SocketAddr, timeout: Duration) -> NameServerPool<TokioRuntimeProvider> {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    let server = NameServerConfig::new(address.ip(), true, connections.to_vec());
    let mut options = ResolverOpts::default();
    options.timeout = timeout;
    let tls = TlsConfig::new().expect("without TLS to DNS servers there is nothing to set up");
    NameServerPool::from_config(
        [server],
        Arc::new(PoolContext::new(options, tls)),
        TokioRuntimeProvider::default(),
    )
}
