//! Probes of a service's endpoints: a round of its own for each, beside the data path.
//!
//! A probe takes the way that exchanges take: in the mesh by mutual TLS with the peer's identity checked, and through the
//! peer's sidecar to its app. All services of a process share a bounded number of places, so that probing thousands of
//! endpoints is slower and not heavier; waiting for a place does not count against an endpoint.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::members::Members;
use super::{Speaks, Spec, connect};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::health::probe::{self, Wire};
use crate::health::{Checks, Question};
use crate::identity::{Alpn, Ours};
use crate::reason::Reason;

/// Probes that a process has under way at most.
pub(crate) const AT_ONCE: usize = 64;

/// Probes the endpoints of one service.
#[derive(Debug)]
pub(crate) struct Prober {
    pub(crate) spec: Spec,
    pub(crate) checks: Checks,
    pub(crate) members: Arc<Members>,
    pub(crate) identity: Ours,
    pub(crate) places: Arc<Semaphore>,
}

/// What a probe came to.
enum Outcome {
    /// This is how the endpoint is.
    Known(Result<(), String>),
    /// It could not be asked, and that is our own fault.
    NotAsked(String),
}

impl Prober {
    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        let mut watched = HashSet::new();
        let mut rounds = FuturesUnordered::new();
        loop {
            let generation = self.members.generation();
            for endpoint in self.members.load().endpoints() {
                if watched.insert(endpoint.id) {
                    rounds.push(self.watch(Arc::clone(endpoint)));
                }
            }
            tokio::select! {
                () = self.members.newer_than(generation) => {}
                Some(gone) = rounds.next(), if !rounds.is_empty() => {
                    watched.remove(&gone);
                }
            }
        }
    }

    /// Probes one endpoint as long as it is a member, and gives its number.
    async fn watch(&self, endpoint: Arc<Endpoint>) -> u64 {
        sleep(self.checks.first(fastrand::u64(..))).await;
        while self.members.has(&endpoint) {
            // Boxed, because a handshake is large, and most of the time there is none.
            match Box::pin(self.probe(&endpoint)).await {
                Outcome::Known(outcome) => {
                    self.members
                        .probed(&endpoint, outcome, &self.checks, Instant::now());
                }
                Outcome::NotAsked(problem) => {
                    tracing::debug!(service = %self.spec.name, endpoint = %endpoint.address, %problem, "cannot probe");
                }
            }
            sleep(self.checks.next(fastrand::u64(..))).await;
        }
        endpoint.id
    }

    async fn probe(&self, endpoint: &Endpoint) -> Outcome {
        let Ok(_place) = self.places.acquire().await else {
            return Outcome::NotAsked("the process ends".to_owned());
        };
        let limit = self.checks.timeout;
        timeout(limit, self.ask(endpoint))
            .await
            .unwrap_or_else(|_| Outcome::Known(Err(format!("no answer within {limit:?}"))))
    }

    async fn ask(&self, endpoint: &Endpoint) -> Outcome {
        let identity = self.identity.get().map(Arc::as_ref);
        let stream = connect::reach(identity, None, &self.spec, endpoint.address, Alpn::H2).await;
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => return unreached(&error),
        };
        let secure = self.spec.mesh.is_some();
        let wire = match (self.spec.speaks(), &self.checks.question) {
            // Nothing between us and the app that could be asked more.
            (_, Question::Tcp) if !secure => return Outcome::Known(Ok(())),
            // What else there is to ask of an app whose words nobody reads was refused with the configuration.
            (Speaks::Tcp, _) if !secure => return Outcome::Known(Ok(())),
            (Speaks::Http1, _) => Wire::Http1,
            (Speaks::Http2 | Speaks::Tcp, _) => Wire::Http2 { secure },
        };
        let authority = &self.spec.name;
        Outcome::Known(probe::ask(&self.checks.question, authority, wire, stream).await)
    }
}

/// What it says of an endpoint that no connection to it came about.
fn unreached(error: &Error) -> Outcome {
    match error.reason {
        // Ours to mend, and nothing that speaks against anybody: no certificate, or no descriptor left.
        Reason::IdentityMissing | Reason::Overloaded => Outcome::NotAsked(error.to_string()),
        _ => Outcome::Known(Err(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::balance;
    use crate::endpoint::State;
    use crate::health::outlier::Rules;
    use crate::testing::{nowhere, spec};

    fn prober(addresses: &[SocketAddr], places: usize) -> Prober {
        let spec = spec(Speaks::Http1, addresses);
        let members = Members::new("orders", balance::Policy::default(), Rules::default());
        members.apply(addresses.to_vec(), Instant::now());
        Prober {
            spec,
            checks: Checks {
                interval: Duration::from_millis(20),
                ..Checks::default()
            },
            members: Arc::new(members),
            identity: Ours::default(),
            places: Arc::new(Semaphore::new(places)),
        }
    }

    async fn states(members: &Members, wanted: &[State]) {
        let look = async {
            loop {
                let states: Vec<_> = members
                    .load()
                    .endpoints()
                    .iter()
                    .map(|endpoint| endpoint.state())
                    .collect();
                if states == wanted {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), look).await.unwrap();
    }

    #[tokio::test]
    async fn what_takes_connections_is_well_and_members_that_join_are_asked_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (well, sick) = (listener.local_addr().unwrap(), nowhere().await);
        let prober = prober(&[well], 4);
        let members = Arc::clone(&prober.members);
        let story = async {
            while members.summary().probes_passed < 3 {
                sleep(Duration::from_millis(5)).await;
            }
            let mut both = [well, sick];
            both.sort_unstable();
            members.apply(both.to_vec(), Instant::now());
            let wanted = both.map(|address| match address == well {
                true => State::Healthy,
                false => State::Unhealthy,
            });
            states(&members, &wanted).await;
            let view = members.view();
            let failed = view.iter().find(|view| view.endpoint.address == sick);
            let failure = failed.unwrap().failure.clone().unwrap();
            assert!(failure.contains("connecting to"), "{failure}");

            // One that has left is not asked any more, and asked again when it is back.
            members.apply(vec![sick], Instant::now());
            drop(listener);
            let listener = TcpListener::bind(sick).await.unwrap();
            states(&members, &[State::Healthy]).await;
            drop(listener);
        };
        tokio::select! {
            () = prober.run() => unreachable!("it runs until it is dropped"),
            () = story => {}
        }
    }

    #[test]
    fn what_we_lack_ourselves_speaks_against_no_endpoint() {
        for (reason, is_known) in [
            (Reason::Overloaded, false),
            (Reason::IdentityMissing, false),
            (Reason::ConnectFailed, true),
            (Reason::PeerIdentity, true),
        ] {
            let outcome = unreached(&Error::new(reason, ""));
            assert_eq!(
                matches!(outcome, Outcome::Known(Err(_))),
                is_known,
                "{reason:?}"
            );
        }
    }

    #[tokio::test]
    async fn no_more_are_asked_at_once_than_there_are_places() {
        let (came, mut coming) = tokio::sync::mpsc::channel(20);
        let mut addresses = Vec::new();
        let mut apps = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let came = came.clone();
            // Takes connections, and says nothing on them.
            apps.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    came.send(stream).await.unwrap();
                }
            });
        }
        let mut prober = prober(&addresses, 3);
        prober.checks.timeout = Duration::from_secs(1000);
        prober.checks.question = Question::Http {
            target: "/healthz".parse().unwrap(),
            status: Vec::new(),
            body: None,
        };
        let members = Arc::clone(&prober.members);
        let asked = async {
            let mut held = std::collections::VecDeque::new();
            for _ in 0..40 {
                held.push_back(coming.recv().await.unwrap());
                assert!(held.len() <= 3, "more than there are places");
                if held.len() == 3 {
                    assert!(coming.try_recv().is_err());
                    // Its probe fails, and its place goes to the next.
                    held.pop_front();
                }
            }
        };
        let story = timeout(Duration::from_secs(60), asked);
        tokio::select! {
            () = prober.run() => unreachable!("it runs until it is dropped"),
            done = story => done.unwrap(),
        }
        // Nobody was passed over for those that were first.
        assert!(members.view().iter().all(|view| view.failure.is_some()));
    }
}
