//! Which listeners are open, and where: made those of the plan, one by one, without ever being without one that could be had.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use weft_runtime::config::overlap;

use crate::core::Cores;
use crate::plan::{Plan, Site};

/// The open listeners, by the names of their sites.
#[derive(Default)]
pub(super) struct Listeners {
    bound: HashMap<Arc<str>, SocketAddr>,
}

impl Listeners {
    /// Opens and closes listeners until they are those of the plan. Returns those that cannot be opened, each with the
    /// reason: they keep no other shut, and one that only cannot move stays where it is. To be called again then.
    pub(super) async fn follow(&mut self, cores: &Cores, plan: &Plan) -> Vec<String> {
        let gone = |(name, _): (&Arc<str>, _)| plan.site(name).is_none().then(|| Arc::clone(name));
        let gone: Vec<_> = self.bound.iter().filter_map(gone).collect();
        for name in gone {
            self.close(cores, &name).await;
        }
        let mut problems = Vec::new();
        for site in plan.sites() {
            if self.bound.get(&site.name) == Some(&site.address) {
                continue;
            }
            if let Err(error) = self.open(cores, plan, site).await {
                problems.push(format!(
                    "listener `{}` on {}: {error}",
                    site.name, site.address
                ));
            }
        }
        problems
    }

    async fn open(&mut self, cores: &Cores, plan: &Plan, site: &Site) -> io::Result<()> {
        // What of ours is in the way is about to leave anyway, and has to go first: two may change places.
        let leaves = |name: &str, at: SocketAddr| plan.site(name).is_none_or(|to| to.address != at);
        let in_the_way: Vec<_> = self
            .bound
            .iter()
            .filter(|&(name, at)| overlap(*at, site.address) && leaves(name, *at))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in in_the_way {
            self.close(cores, &name).await;
        }
        cores.listen(site).await?;
        tracing::info!(listener = %site.name, address = %site.address, "listening");
        self.bound.insert(Arc::clone(&site.name), site.address);
        Ok(())
    }

    async fn close(&mut self, cores: &Cores, name: &Arc<str>) {
        self.bound.remove(name);
        cores.close(name).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use arc_swap::ArcSwap;
    use std::time::Duration;

    use super::*;
    use crate::cluster::{Cluster, Speaks};
    use crate::core::{Open, Shared};
    use crate::identity::Ours;
    use crate::observe::{AccessLog, AccessLogConfig, Registry};
    use crate::testing::{nowhere, site, spec};

    fn plan(name: &str, address: SocketAddr) -> Plan {
        let cluster = Cluster::new(spec(Speaks::Http1, &[]), false);
        crate::testing::plan(site(name, address), &cluster)
    }

    fn plans(sites: &[(&str, SocketAddr)]) -> Plan {
        let sites = sites
            .iter()
            .map(|&(name, address)| Arc::clone(&plan(name, address).sites()[0]));
        Plan::new(1, sites.collect())
    }

    fn shared(plan: Plan) -> Shared {
        let registry = Registry::new();
        Shared {
            plan: Arc::new(ArcSwap::from_pointee(plan)),
            identity: Ours::default(),
            access_log: Arc::new(
                AccessLog::start(&AccessLogConfig::Off, registry.access_log_dropped()).unwrap(),
            ),
            registry,
            open: Arc::new(Open::default()),
            max_connections: 100,
            dials: Arc::default(),
            settled: Arc::default(),
            pressure: Arc::default(),
        }
    }

    async fn answered(address: SocketAddr) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let ask = b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";
        stream.write_all(ask).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_listener_may_change_its_name_and_its_address() {
        let (first, second) = (nowhere().await, nowhere().await);
        let shared = shared(plan("a", first));
        let cores = Cores::start(2, &shared).unwrap();
        let mut listeners = Listeners::default();
        let problems = listeners.follow(&cores, &shared.plan.load()).await;
        assert!(problems.is_empty(), "{problems:?}");
        // Again and again, for the old socket may close a moment too late.
        for round in 0..20 {
            for (name, address) in [("b", first), ("b", second), ("a", first)] {
                shared.plan.store(Arc::new(plan(name, address)));
                let problems = listeners.follow(&cores, &shared.plan.load()).await;
                assert!(
                    problems.is_empty(),
                    "round {round}, {name} on {address}: {problems:?}"
                );
            }
        }
        let answer = answered(first).await;
        assert!(answer.contains("weft-reason: no_endpoints"), "{answer}");
        assert_eq!(
            cores
                .drain(tokio::time::sleep(Duration::from_secs(30)))
                .await,
            0
        );
    }

    #[tokio::test]
    async fn a_listener_that_cannot_be_opened_keeps_no_other_shut() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (taken_at, free) = (taken.local_addr().unwrap(), nowhere().await);
        let shared = shared(plans(&[("taken", taken_at), ("free", free)]));
        let cores = Cores::start(1, &shared).unwrap();
        let mut listeners = Listeners::default();
        let problems = listeners.follow(&cores, &shared.plan.load()).await;
        assert!(
            problems.len() == 1 && problems[0].contains("`taken`"),
            "{problems:?}"
        );
        assert!(answered(free).await.contains("no_endpoints"));
        drop(taken);
        // The next look finds it free.
        let problems = listeners.follow(&cores, &shared.plan.load()).await;
        assert!(problems.is_empty(), "{problems:?}");
        assert!(answered(taken_at).await.contains("no_endpoints"));
    }

    #[tokio::test]
    async fn a_listener_that_cannot_move_stays_where_it_is_until_it_can() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (old, new) = (nowhere().await, taken.local_addr().unwrap());
        let shared = shared(plan("a", old));
        let cores = Cores::start(2, &shared).unwrap();
        let mut listeners = Listeners::default();
        assert!(
            listeners
                .follow(&cores, &shared.plan.load())
                .await
                .is_empty()
        );
        shared.plan.store(Arc::new(plan("a", new)));
        let problems = listeners.follow(&cores, &shared.plan.load()).await;
        assert!(
            problems.len() == 1 && problems[0].contains("`a`"),
            "{problems:?}"
        );
        assert!(answered(old).await.contains("no_endpoints"));
        drop(taken);
        assert!(
            listeners
                .follow(&cores, &shared.plan.load())
                .await
                .is_empty()
        );
        assert!(answered(new).await.contains("no_endpoints"));
        assert!(tokio::net::TcpStream::connect(old).await.is_err());
    }

    #[tokio::test]
    async fn listeners_may_change_places() {
        let (first, second) = (nowhere().await, nowhere().await);
        let shared = shared(plans(&[("a", first), ("b", second)]));
        let cores = Cores::start(2, &shared).unwrap();
        let mut listeners = Listeners::default();
        for round in 0..10 {
            let (a, b) = [(first, second), (second, first)][round % 2];
            shared.plan.store(Arc::new(plans(&[("a", a), ("b", b)])));
            let problems = listeners.follow(&cores, &shared.plan.load()).await;
            assert!(problems.is_empty(), "round {round}: {problems:?}");
            for address in [first, second] {
                assert!(answered(address).await.contains("no_endpoints"));
            }
        }
    }
}
