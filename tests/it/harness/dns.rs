//! A DNS server that the test controls: the names, how long answers may be kept, and its moods.

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

/// How the server treats every question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It answers from the names it has.
    Answer,
    /// It fails.
    ServFail,
    /// It denies that the name exists.
    NxDomain,
    /// It says that the name exists and has no addresses.
    Empty,
    /// It says nothing at all.
    Silent,
    /// It answers from the names it has, this much later.
    Slow(Duration),
}

/// A SRV record: priority, weight, port and host.
pub(crate) type Instance = (u16, u16, u16, &'static str);

#[derive(Debug)]
struct State {
    names: BTreeMap<String, Vec<IpAddr>>,
    instances: BTreeMap<String, Vec<Instance>>,
    ttl: u32,
    mood: Mood,
    /// Questions since the mood last changed.
    asked: usize,
}

/// The server. It ends when the value is dropped.
pub(crate) struct Dns {
    state: Arc<Mutex<State>>,
    _server: Server<Answers>,
}

impl Dns {
    pub(crate) fn start(udp: UdpSocket, tcp: TcpListener) -> Self {
        let state = Arc::new(Mutex::new(State {
            names: BTreeMap::new(),
            instances: BTreeMap::new(),
            ttl: 1,
            mood: Mood::Answer,
            asked: 0,
        }));
        let mut server = Server::new(Answers(Arc::clone(&state)));
        server.register_socket(tokio::net::UdpSocket::from_std(udp).unwrap());
        server.register_listener(
            tokio::net::TcpListener::from_std(tcp).unwrap(),
            Duration::from_secs(10),
            16,
        );
        Self {
            state,
            _server: server,
        }
    }

    /// One more address for a name.
    pub(crate) fn add(&self, name: &str, address: IpAddr) {
        let mut state = self.state.lock().unwrap();
        let addresses = state.names.entry(name.to_owned()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }

    /// One address less; the name stays.
    pub(crate) fn remove(&self, name: &str, address: IpAddr) {
        if let Some(addresses) = self.state.lock().unwrap().names.get_mut(name) {
            addresses.retain(|known| *known != address);
        }
    }

    /// Makes these the SRV records of a name.
    pub(crate) fn instances(&self, name: &str, instances: &[Instance]) {
        let mut state = self.state.lock().unwrap();
        state.instances.insert(name.to_owned(), instances.to_vec());
    }

    /// How long answers may be kept, in seconds.
    pub(crate) fn ttl(&self, seconds: u32) {
        self.state.lock().unwrap().ttl = seconds;
    }

    pub(crate) fn mood(&self, mood: Mood) {
        let mut state = self.state.lock().unwrap();
        state.mood = mood;
        state.asked = 0;
    }

    /// How many questions there were since the mood last changed.
    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }
}

struct Answers(Arc<Mutex<State>>);

#[async_trait::async_trait]
impl RequestHandler for Answers {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut respond: R,
    ) -> ResponseInfo {
        let reply = request.request_info().ok().and_then(|info| {
            self.0
                .lock()
                .unwrap()
                .reply(&info.query.name().into(), info.query.query_type())
        });
        let Some((code, records, authority)) = reply else {
            return nothing(request);
        };
        let mood = self.0.lock().unwrap().mood;
        if let Mood::Slow(delay) = mood {
            tokio::time::sleep(delay).await;
        }
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        metadata.response_code = code;
        let message = MessageResponseBuilder::from_message_request(request).build(
            metadata,
            &records,
            [],
            &authority,
            [],
        );
        match respond.send_response(message).await {
            Ok(info) => info,
            // The resolver is gone; there is nobody left to tell.
            Err(_) => nothing(request),
        }
    }
}

fn nothing(request: &Request) -> ResponseInfo {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = ResponseCode::ServFail;
    hickory_proto::op::Header {
        metadata,
        counts: hickory_proto::op::HeaderCounts::default(),
    }
    .into()
}

impl State {
    /// The answer and the authority, or silence.
    fn reply(
        &mut self,
        name: &Name,
        wanted: RecordType,
    ) -> Option<(ResponseCode, Vec<Record>, Vec<Record>)> {
        self.asked += 1;
        let soa = || {
            let data = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, self.ttl);
            vec![Record::from_rdata(name.clone(), self.ttl, RData::SOA(data))]
        };
        let key = name.to_ascii().to_ascii_lowercase();
        let known = self.names.get(key.trim_end_matches('.'));
        if let (Mood::Answer | Mood::Slow(_), RecordType::SRV, Some(instances)) = (
            self.mood,
            wanted,
            self.instances.get(key.trim_end_matches('.')),
        ) {
            let record = |(priority, weight, port, host): &Instance| {
                let host = Name::from_ascii(host).unwrap();
                let data = RData::SRV(SRV::new(*priority, *weight, *port, host));
                Record::from_rdata(name.clone(), self.ttl, data)
            };
            let records = instances.iter().map(record).collect();
            return Some((ResponseCode::NoError, records, vec![]));
        }
        match (self.mood, known) {
            (Mood::Silent, _) => None,
            (Mood::ServFail, _) => Some((ResponseCode::ServFail, vec![], vec![])),
            (Mood::Answer | Mood::Slow(_), Some(addresses)) => {
                let records: Vec<Record> = addresses
                    .iter()
                    .filter_map(|address| match (wanted, *address) {
                        (RecordType::A, IpAddr::V4(v4)) => Some(RData::A(A(v4))),
                        (RecordType::AAAA, IpAddr::V6(v6)) => Some(RData::AAAA(AAAA(v6))),
                        _ => None,
                    })
                    .map(|data| Record::from_rdata(name.clone(), self.ttl, data))
                    .collect();
                let authority = if records.is_empty() { soa() } else { vec![] };
                Some((ResponseCode::NoError, records, authority))
            }
            (Mood::Empty, _) => Some((ResponseCode::NoError, vec![], soa())),
            (Mood::NxDomain, _) | (Mood::Answer | Mood::Slow(_), None) => {
                Some((ResponseCode::NXDomain, vec![], soa()))
            }
        }
    }
}
