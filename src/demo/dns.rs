//! The demo's DNS server: answers for the service names, and its answers change as replicas come and go.
//!
//! A real server on a real socket, so that discovery is the one that runs in production: same resolver, same TTLs,
//! same negative answers. It answers for its own names only and knows nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

/// How long an answer may be kept. Short, so that a new replica is found well within the promised five seconds.
const TTL_SECONDS: u32 = 2;
/// How long a TCP connection of a resolver may be idle.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers that wait to be sent on one TCP connection.
const TCP_QUEUE: usize = 16;

/// The names and their addresses: what the demo edits and the server answers from.
#[derive(Debug, Clone, Default)]
pub(super) struct Zone {
    names: Arc<RwLock<BTreeMap<String, Vec<IpAddr>>>>,
}

impl Zone {
    /// One more address for a name.
    pub(super) fn add(&self, name: &str, address: IpAddr) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let addresses = names.entry(name.to_owned()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }

    /// One address less; the name itself stays, even without any.
    pub(super) fn remove(&self, name: &str, address: IpAddr) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(addresses) = names.get_mut(name) {
            addresses.retain(|known| *known != address);
        }
    }

    fn find(&self, name: &Name) -> Option<Vec<IpAddr>> {
        let name = name.to_ascii().to_ascii_lowercase();
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(name.trim_end_matches('.')).cloned()
    }
}

/// Serves the zone on sockets that are already bound. The server ends when the value is dropped.
pub(super) fn serve(
    zone: Zone,
    (udp, tcp): (UdpSocket, TcpListener),
) -> std::io::Result<Server<Answers>> {
    let mut server = Server::new(Answers { zone });
    server.register_socket(tokio::net::UdpSocket::from_std(udp)?);
    server.register_listener(tokio::net::TcpListener::from_std(tcp)?, TCP_IDLE, TCP_QUEUE);
    Ok(server)
}

/// Turns a question into an answer from the zone.
pub(super) struct Answers {
    zone: Zone,
}

#[async_trait::async_trait]
impl RequestHandler for Answers {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut respond: R,
    ) -> ResponseInfo {
        let reply = match request.request_info() {
            Ok(info) => answer(
                &self.zone,
                &info.query.name().into(),
                info.query.query_type(),
            ),
            Err(_) => Reply::refused(ResponseCode::FormErr),
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        metadata.response_code = reply.code;
        let message = MessageResponseBuilder::from_message_request(request).build(
            metadata,
            &reply.records,
            [],
            &reply.authority,
            [],
        );
        match respond.send_response(message).await {
            Ok(info) => info,
            // The resolver is gone; there is nobody left to tell.
            Err(_) => failed(request),
        }
    }
}

fn failed(request: &Request) -> ResponseInfo {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = ResponseCode::ServFail;
    hickory_proto::op::Header {
        metadata,
        counts: hickory_proto::op::HeaderCounts::default(),
    }
    .into()
}

struct Reply {
    code: ResponseCode,
    records: Vec<Record>,
    /// The SOA that says how long "there is none" may be believed.
    authority: Vec<Record>,
}

impl Reply {
    fn refused(code: ResponseCode) -> Self {
        Self {
            code,
            records: Vec::new(),
            authority: Vec::new(),
        }
    }
}

fn answer(zone: &Zone, name: &Name, wanted: RecordType) -> Reply {
    let Some(addresses) = zone.find(name) else {
        return Reply {
            code: ResponseCode::NXDomain,
            records: Vec::new(),
            authority: vec![soa(name)],
        };
    };
    let records: Vec<Record> = addresses
        .into_iter()
        .filter_map(|address| match (wanted, address) {
            (RecordType::A, IpAddr::V4(v4)) => Some(RData::A(A(v4))),
            (RecordType::AAAA, IpAddr::V6(v6)) => Some(RData::AAAA(AAAA(v6))),
            _ => None,
        })
        .map(|data| Record::from_rdata(name.clone(), TTL_SECONDS, data))
        .collect();
    let authority = if records.is_empty() {
        vec![soa(name)]
    } else {
        Vec::new()
    };
    Reply {
        code: ResponseCode::NoError,
        records,
        authority,
    }
}

fn soa(name: &Name) -> Record {
    let ttl = i32::try_from(TTL_SECONDS).unwrap_or(1);
    let data = SOA::new(name.clone(), name.clone(), 1, ttl, ttl, ttl, TTL_SECONDS);
    Record::from_rdata(name.clone(), TTL_SECONDS, RData::SOA(data))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hickory_resolver::Resolver;
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use std::net::SocketAddr;

    fn sockets() -> (SocketAddr, (UdpSocket, TcpListener)) {
        // A port that both protocols have free: ask for one, take the other, try again if somebody was faster.
        for _ in 0..20 {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = udp.local_addr().unwrap();
            let Ok(tcp) = TcpListener::bind(address) else {
                continue;
            };
            udp.set_nonblocking(true).unwrap();
            tcp.set_nonblocking(true).unwrap();
            return (address, (udp, tcp));
        }
        panic!("no port is free for both protocols");
    }

    async fn lookup(server: SocketAddr, name: &str, tcp: bool) -> Result<Vec<IpAddr>, String> {
        let mut connection = if tcp {
            ConnectionConfig::tcp()
        } else {
            ConnectionConfig::udp()
        };
        connection.port = server.port();
        let mut config = ResolverConfig::default();
        config.add_name_server(NameServerConfig::new(server.ip(), true, vec![connection]));
        let resolver =
            Resolver::builder_with_config(config, TokioRuntimeProvider::default()).build();
        let found = resolver.unwrap().lookup_ip(name).await;
        found
            .map(|answer| {
                let mut found: Vec<_> = answer.iter().collect();
                found.sort();
                found
            })
            .map_err(|error| error.to_string())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn answers_change_as_replicas_come_and_go() {
        let (address, sockets) = sockets();
        let zone = Zone::default();
        let _server = serve(zone.clone(), sockets).unwrap();

        zone.add("orders", ip("127.9.0.21"));
        zone.add("orders", ip("127.9.0.22"));
        zone.add("orders", ip("127.9.0.22"));
        let both = vec![ip("127.9.0.21"), ip("127.9.0.22")];
        assert_eq!(lookup(address, "orders.", false).await.unwrap(), both);
        assert_eq!(lookup(address, "ORDERS.", true).await.unwrap(), both);

        zone.remove("orders", ip("127.9.0.21"));
        let left = lookup(address, "orders.", false).await.unwrap();
        assert_eq!(left, vec![ip("127.9.0.22")]);
    }

    #[test]
    fn a_name_without_addresses_differs_from_a_name_that_is_not_there() {
        let zone = Zone::default();
        zone.add("orders", ip("127.9.0.21"));
        zone.remove("orders", ip("127.9.0.21"));
        let orders = Name::from_ascii("orders.").unwrap();
        let strange = Name::from_ascii("strange.").unwrap();

        let empty = answer(&zone, &orders, RecordType::A);
        assert_eq!(empty.code, ResponseCode::NoError);
        assert!(empty.records.is_empty());
        assert_eq!(empty.authority.len(), 1);
        let absent = answer(&zone, &strange, RecordType::A);
        assert_eq!(absent.code, ResponseCode::NXDomain);
    }

    #[test]
    fn only_records_of_the_type_asked_for_are_given() {
        let zone = Zone::default();
        zone.add("orders", ip("127.9.0.21"));
        zone.add("orders", ip("::1"));
        let orders = Name::from_ascii("orders.").unwrap();
        for (wanted, count) in [
            (RecordType::A, 1),
            (RecordType::AAAA, 1),
            (RecordType::TXT, 0),
        ] {
            assert_eq!(answer(&zone, &orders, wanted).records.len(), count);
        }
    }
}
