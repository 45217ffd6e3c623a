//! What a reload carries over: of each service the endpoints with their health, what is in flight, the retry budget and
//! the connections, also where its configuration changes; of rate limits that do not change the buckets; of token issuers
//! the keys, whatever is demanded of tokens. What no plan names ends.
//!
//! Making a plan changes nothing of what is in force, since it may fail: new tasks start, and members learn of new rules,
//! when it has been made.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Semaphore, watch};
use weft_runtime::config::{Path, Problems};
use weft_runtime::task::Group;

use crate::authn::{self, Authenticator, KeySet, KeySource};
use crate::cluster::probing::{self, Prober};
use crate::cluster::{Cluster, Spec};
use crate::discovery::{Resolver, follow};
use crate::identity::Ours;
use crate::limit::{self, Limiter};

/// What outlives a plan.
pub struct Carried {
    tasks: Group,
    resolver: Arc<Resolver>,
    identity: Ours,
    /// Of the probes of all services.
    places: Arc<Semaphore>,
    state: State,
}

#[derive(Clone, Default)]
struct State {
    clusters: HashMap<Arc<str>, KeptCluster>,
    authenticators: HashMap<String, Arc<Authenticator>>,
    /// By where the keys are: what is demanded of tokens may change without losing them.
    key_sets: HashMap<KeySource, KeptKeys>,
    limiters: HashMap<String, Arc<Limiter>>,
}

/// A cluster and the tasks that look after its members; those that are not there yet start when the plan is made.
#[derive(Clone)]
struct KeptCluster {
    value: Arc<Cluster>,
    discovery: Option<Alive>,
    probing: Option<Alive>,
}

/// Keys and the task that keeps them fresh, which starts when the plan is made.
#[derive(Clone)]
struct KeptKeys {
    value: Arc<KeySet>,
    /// Of the authenticator that they were wanted for first.
    name: String,
    alive: Option<Alive>,
}

/// Ends a task when the last of its clones is dropped.
type Alive = Arc<watch::Sender<bool>>;

impl Carried {
    /// Nothing yet. Tasks are started in this group. The identity is the one to probe members of the mesh with.
    pub fn new(tasks: Group, resolver: Arc<Resolver>, identity: Ours) -> Self {
        Self {
            tasks,
            resolver,
            identity,
            places: Arc::new(Semaphore::new(probing::AT_ONCE)),
            state: State::default(),
        }
    }

    /// Makes a plan. If that fails, everything stays as it is for the plan that is in force.
    pub fn attempt<T>(&mut self, make: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let before = self.state.clone();
        let made = make(self);
        if made.is_some() {
            self.begin();
        } else {
            self.state = before;
        }
        made
    }

    /// Makes these the clusters of the process, and returns them by name. The flag says that one is the app beside us.
    pub fn clusters(&mut self, specs: Vec<(Spec, bool)>) -> HashMap<Arc<str>, Arc<Cluster>> {
        let mut before = std::mem::take(&mut self.state.clusters);
        for (spec, is_local) in specs {
            let name = Arc::clone(&spec.name);
            let kept = match before.remove(&name) {
                Some(kept) if kept.value.is_local == is_local => kept.succeed(spec),
                _ => KeptCluster {
                    value: Cluster::new(spec, is_local),
                    discovery: None,
                    probing: None,
                },
            };
            self.state.clusters.insert(name, kept);
        }
        self.state
            .clusters
            .iter()
            .map(|(name, kept)| (Arc::clone(name), Arc::clone(&kept.value)))
            .collect()
    }

    /// The plan is made: what it says of the members holds from now on, and tasks that it needs start.
    fn begin(&mut self) {
        let now = Instant::now();
        for kept in self.state.clusters.values_mut() {
            let (cluster, tasks) = (&kept.value, &self.tasks);
            let spec = &cluster.spec;
            cluster
                .members
                .configure(spec.balance.clone(), spec.outlier.clone(), now);
            cluster.set_limits();
            if kept.discovery.is_none() {
                kept.discovery = Some(discover(tasks, cluster, &self.resolver));
            }
            let Some(checks) = &spec.health else {
                cluster.members.forget_probes();
                continue;
            };
            if kept.probing.is_none() {
                let prober = Prober {
                    spec: spec.clone(),
                    checks: checks.clone(),
                    members: Arc::clone(&cluster.members),
                    identity: self.identity.clone(),
                    places: Arc::clone(&self.places),
                };
                kept.probing = Some(start(
                    tasks,
                    format!("probes of {}", cluster.name),
                    prober.run(),
                ));
            }
        }
        for kept in self.state.key_sets.values_mut() {
            if kept.alive.is_none() {
                kept.alive = Some(keep(&self.tasks, &kept.name, &kept.value));
            }
        }
    }

    /// Makes these the authenticators of the process. Keys are kept as long as anybody wants them from the same place.
    pub fn authenticators(
        &mut self,
        place: &Path,
        configs: &BTreeMap<String, authn::Config>,
        problems: &mut Problems,
    ) -> HashMap<String, Arc<Authenticator>> {
        let mut before = std::mem::take(&mut self.state.authenticators);
        let mut known = std::mem::take(&mut self.state.key_sets);
        for (name, config) in configs {
            let (place, source) = (place.key(name), &config.jwt.jwks);
            if let Some(kept) = known.remove(source) {
                self.state.key_sets.insert(source.clone(), kept);
            }
            let keys = match self.state.key_sets.get(source) {
                Some(kept) => Arc::clone(&kept.value),
                None => {
                    let at = place.key("jwt").key("jwks");
                    let Some(keys) = KeySet::build(&at, source, problems).map(Arc::new) else {
                        continue;
                    };
                    let kept = KeptKeys {
                        value: Arc::clone(&keys),
                        name: name.clone(),
                        alive: None,
                    };
                    self.state.key_sets.insert(source.clone(), kept);
                    keys
                }
            };
            let authenticator = match before.remove(name) {
                Some(same) if same.config() == config => Some(same),
                _ => Authenticator::with_keys(&place, config, keys, problems).map(Arc::new),
            };
            if let Some(authenticator) = authenticator {
                self.state
                    .authenticators
                    .insert(name.clone(), authenticator);
            }
        }
        self.state.authenticators.clone()
    }

    /// The keys that authenticators go by, with their names.
    pub fn key_sets(&self) -> Vec<(Arc<str>, Arc<KeySet>)> {
        let named = self.state.authenticators.iter();
        let mut sets: Vec<_> = named
            .map(|(name, authenticator)| {
                (Arc::from(name.as_str()), Arc::clone(authenticator.keys()))
            })
            .collect();
        sets.sort_by(|a: &(Arc<str>, _), b| a.0.cmp(&b.0));
        sets
    }

    /// The rate limits.
    pub fn all_limiters(&self) -> Vec<Arc<Limiter>> {
        let mut limiters: Vec<_> = self.state.limiters.values().map(Arc::clone).collect();
        limiters.sort_by(|a, b| a.name().cmp(b.name()));
        limiters
    }

    /// Makes these the rate limits of the process; those that did not change keep their buckets.
    pub fn limiters(
        &mut self,
        place: &Path,
        configs: &BTreeMap<String, limit::Config>,
        problems: &mut Problems,
    ) -> HashMap<String, Arc<Limiter>> {
        let mut before = std::mem::take(&mut self.state.limiters);
        for (name, config) in configs {
            let kept = match before.remove(name) {
                Some(limiter) if limiter.config() == config => Some(limiter),
                _ => Limiter::build(name, &place.key(name), config, Instant::now(), problems)
                    .map(Arc::new),
            };
            if let Some(limiter) = kept {
                self.state.limiters.insert(name.clone(), limiter);
            }
        }
        self.state.limiters.clone()
    }
}

impl KeptCluster {
    /// The same under this configuration. A task goes on unless something changed that it goes by.
    fn succeed(self, spec: Spec) -> Self {
        let before = &self.value;
        if before.spec == spec {
            return self;
        }
        let value = before.succeed(spec, Instant::now());
        let same_members = Arc::ptr_eq(&before.members, &value.members);
        let same_source = before.spec.source == value.spec.source;
        let same_checks = before.spec.health == value.spec.health
            && before.spec.connect_timeout == value.spec.connect_timeout;
        Self {
            discovery: self.discovery.filter(|_| same_members && same_source),
            probing: self.probing.filter(|_| same_members && same_checks),
            value,
        }
    }
}

fn discover(tasks: &Group, cluster: &Cluster, resolver: &Arc<Resolver>) -> Alive {
    let (alive, shutdown) = watch::channel(false);
    let (source, resolver) = (cluster.spec.source.clone(), Arc::clone(resolver));
    let (members, status) = (Arc::clone(&cluster.members), Arc::clone(&cluster.discovery));
    tasks.spawn(format!("discovery of {}", cluster.name), async move {
        let publish = |places| {
            members.apply(places, Instant::now());
        };
        follow(&source, &resolver, &status, publish, shutdown).await;
        Ok::<_, std::convert::Infallible>(())
    });
    Arc::new(alive)
}

/// Keeps these keys fresh until the handle is dropped.
fn keep(tasks: &Group, name: &str, keys: &Arc<KeySet>) -> Alive {
    let (alive, shutdown) = watch::channel(false);
    let keys = Arc::clone(keys);
    tasks.spawn(format!("keys of {name}"), async move {
        keys.keep(shutdown).await;
        Ok::<_, std::convert::Infallible>(())
    });
    Arc::new(alive)
}

/// Starts a task that runs until the handle is dropped.
fn start(tasks: &Group, name: String, endless: impl Future<Output = ()> + Send + 'static) -> Alive {
    let (alive, mut shutdown) = watch::channel(false);
    tasks.spawn(name, async move {
        tokio::select! {
            () = endless => {}
            // An error means that the sender is gone.
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
        Ok::<_, std::convert::Infallible>(())
    });
    Arc::new(alive)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::cluster::Speaks;
    use crate::discovery::{self, Source};
    use crate::endpoint::place::Place;
    use crate::endpoint::{self, Endpoint, Outcome};
    use crate::health::{Checks, outlier};
    use crate::testing::spec;

    fn carried() -> Carried {
        let config: discovery::Config =
            serde_json::from_str(r#"{"servers": ["127.0.0.1:1"]}"#).unwrap();
        let resolver = config.build(&Path::root(), &mut Problems::new()).unwrap();
        Carried::new(Group::new(), Arc::new(resolver), Ours::default())
    }

    fn addresses(last: u8) -> Vec<SocketAddr> {
        (1..=last).map(|n| ([10, 0, 0, n], 9000).into()).collect()
    }

    /// Four endpoints, and what a story wants otherwise than usual.
    fn with(change: impl FnOnce(&mut Spec)) -> Vec<(Spec, bool)> {
        let mut spec = spec(Speaks::Http1, &addresses(4));
        change(&mut spec);
        vec![(spec, false)]
    }

    fn with_timeout(seconds: u64) -> Vec<(Spec, bool)> {
        with(|spec| spec.timeout = Duration::from_secs(seconds))
    }

    fn try_one(carried: &mut Carried, specs: Vec<(Spec, bool)>, good: bool) -> Arc<Cluster> {
        let mut made = None;
        carried.attempt(|carried| {
            made = Some(Arc::clone(&carried.clusters(specs)["orders"]));
            good.then_some(())
        });
        made.unwrap()
    }

    /// The cluster of a plan that was made, with its endpoints.
    async fn one(carried: &mut Carried, specs: Vec<(Spec, bool)>) -> Arc<Cluster> {
        let cluster = try_one(carried, specs, true);
        cluster.discovery.known().await;
        cluster
    }

    /// The first endpoint fails until it is ejected.
    fn eject_first(cluster: &Cluster) -> Arc<Endpoint> {
        let endpoint = Arc::clone(&cluster.members.load().endpoints()[0]);
        for _ in 0..5 {
            let outcome = Outcome::RemoteFailure;
            cluster
                .members
                .record(&mut endpoint.begin(), outcome, Instant::now(), 0);
        }
        assert!(endpoint.is_ejected());
        endpoint
    }

    #[tokio::test]
    async fn a_cluster_is_kept_as_long_as_nothing_about_it_changes() {
        let mut carried = carried();
        let first = one(&mut carried, with_timeout(1)).await;
        let again = one(&mut carried, with_timeout(1)).await;
        assert!(Arc::ptr_eq(&first, &again));
        let other = one(&mut carried, with_timeout(2)).await;
        assert!(!Arc::ptr_eq(&first, &other));
        assert!(carried.clusters(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn a_service_that_changes_keeps_all_that_is_known_of_its_endpoints() {
        let mut carried = carried();
        let first = one(&mut carried, with_timeout(1)).await;
        let sick = eject_first(&first);
        let _under_way = (first.admit().unwrap(), sick.begin());
        while first.budget.take(&first.spec.retry.limits, Instant::now()) {}
        let discovery = carried.state.clusters["orders"].discovery.clone().unwrap();

        let second = one(&mut carried, with_timeout(2)).await;
        let same = Arc::clone(&second.members.load().endpoints()[0]);
        assert!(Arc::ptr_eq(&same, &sick), "and with it its connections");
        assert!(same.is_ejected());
        assert_eq!(
            (second.id, second.in_flight(), same.in_flight()),
            (first.id, 1, 1)
        );
        assert!(
            !second
                .budget
                .take(&second.spec.retry.limits, Instant::now())
        );
        let after = carried.state.clusters["orders"].discovery.clone().unwrap();
        assert!(Arc::ptr_eq(&discovery, &after), "it goes on");
    }

    #[tokio::test]
    async fn a_service_that_moves_keeps_the_endpoints_that_it_still_has() {
        let mut carried = carried();
        let first = one(&mut carried, with(|_| ())).await;
        let sick = eject_first(&first);
        let moved = with(|spec| spec.source = Source::Fixed(places(3)));
        let second = try_one(&mut carried, moved, true);
        // Before discovery says more, it is where it was.
        assert_eq!(second.members.load().endpoints().len(), 4);
        second.discovery.known().await;
        let now = second.members.load();
        assert_eq!(now.endpoints().len(), 3);
        assert!(Arc::ptr_eq(&now.endpoints()[0], &sick));
        assert!(sick.is_ejected());
    }

    fn places(last: u8) -> Vec<Place> {
        addresses(last).into_iter().map(Place::new).collect()
    }

    #[tokio::test]
    async fn another_identity_or_protocol_makes_other_endpoints() {
        let mut carried = carried();
        let first = one(&mut carried, with(|_| ())).await;
        let sick = eject_first(&first);
        let second = try_one(&mut carried, with(|spec| spec.app = Speaks::Http2), true);
        let other = Arc::clone(&second.members.load().endpoints()[0]);
        // Its connections would speak the wrong protocol.
        assert_ne!(other.id, sick.id);
        assert_eq!(other.address, sick.address, "at once");
        let mesh = "spiffe://shop.internal/service/orders".parse().unwrap();
        let third = try_one(&mut carried, with(|spec| spec.mesh = Some(mesh)), true);
        assert!(third.members.load().endpoints().is_empty());
        assert!(Arc::ptr_eq(&third.budget, &first.budget));
    }

    #[tokio::test]
    async fn new_rules_hold_for_old_endpoints() {
        let mut carried = carried();
        let first = one(&mut carried, with(|_| ())).await;
        let sick = eject_first(&first);
        let config: outlier::Config = serde_json::from_str(r#"{"enabled": false}"#).unwrap();
        let rules = config.build(&Path::root(), &mut Problems::new()).unwrap();
        let off = with(|spec| spec.outlier = rules);
        // A plan that fails says nothing.
        try_one(&mut carried, off.clone(), false);
        assert!(sick.is_ejected());
        try_one(&mut carried, off, true);
        assert!(!sick.is_ejected());
    }

    #[tokio::test]
    async fn what_probes_said_counts_as_long_as_somebody_probes() {
        let mut carried = carried();
        let probed = |interval: u64| {
            with(|spec| {
                spec.health = Some(Checks {
                    interval: Duration::from_secs(interval),
                    ..Checks::default()
                });
            })
        };
        let first = one(&mut carried, probed(1000)).await;
        let sick = Arc::clone(&first.members.load().endpoints()[0]);
        for _ in 0..3 {
            let failed = Err("answered 500".to_owned());
            first
                .members
                .probed(&sick, failed, &Checks::default(), Instant::now());
        }
        let probing = carried.state.clusters["orders"].probing.clone().unwrap();
        one(&mut carried, probed(2000)).await;
        let after = carried.state.clusters["orders"].probing.clone().unwrap();
        assert!(!Arc::ptr_eq(&probing, &after), "at the new pace");
        assert_eq!(sick.state(), endpoint::State::Unhealthy);
        one(&mut carried, with(|_| ())).await;
        assert!(carried.state.clusters["orders"].probing.is_none());
        assert_eq!(sick.state(), endpoint::State::Healthy);
    }

    #[tokio::test]
    async fn a_failed_plan_leaves_everything_to_the_plan_in_force() {
        let mut carried = carried();
        let first = one(&mut carried, with(|_| ())).await;
        let alive = carried.state.clusters["orders"]
            .discovery
            .as_ref()
            .unwrap()
            .subscribe();
        let moved = || with(|spec| spec.source = Source::Fixed(places(1)));
        try_one(&mut carried, moved(), false);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(first.members.load().endpoints().len(), 4);
        assert!(alive.has_changed().is_ok(), "its discovery goes on");
        let again = one(&mut carried, with(|_| ())).await;
        assert!(Arc::ptr_eq(&first, &again));
        one(&mut carried, moved()).await;
        assert_eq!(first.members.load().endpoints().len(), 1);
        assert!(alive.has_changed().is_err(), "its discovery has ended");
    }

    #[tokio::test]
    async fn keys_are_kept_by_where_they_are_and_demands_are_not() {
        let mut carried = carried();
        let mut ask = |audience: &str, port: u16, good: bool| {
            let config = format!(
                r#"{{"users": {{"jwt": {{"issuer": "https://id.example", "audience": ["{audience}"],
                    "jwks": {{"url": "http://127.0.0.1:{port}/keys"}}}}}}}}"#
            );
            let configs: BTreeMap<String, authn::Config> = serde_json::from_str(&config).unwrap();
            let mut problems = Problems::new();
            let mut made = None;
            carried.attempt(|carried| {
                let found = carried.authenticators(&Path::root(), &configs, &mut problems);
                made = found.get("users").cloned();
                good.then_some(())
            });
            made.unwrap()
        };
        let first = ask("shop", 1, true);
        assert!(Arc::ptr_eq(&first, &ask("shop", 1, true)));
        let other = ask("bank", 1, true);
        assert!(!Arc::ptr_eq(&first, &other));
        assert!(Arc::ptr_eq(first.keys(), other.keys()));
        // A plan that fails takes nothing from the one in force.
        ask("bank", 2, false);
        assert!(Arc::ptr_eq(first.keys(), ask("shop", 1, true).keys()));
        assert!(!Arc::ptr_eq(first.keys(), ask("shop", 2, true).keys()));
        assert_eq!(carried.state.key_sets.len(), 1, "nobody wants the old ones");
    }

    #[tokio::test]
    async fn an_issuer_is_asked_when_the_plan_has_been_made_and_not_before() {
        let issuer = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = issuer.local_addr().unwrap();
        let config = format!(
            r#"{{"users": {{"jwt": {{"issuer": "https://id.example", "audience": ["shop"],
                "jwks": {{"url": "http://{address}/keys"}}}}}}}}"#
        );
        let configs: BTreeMap<String, authn::Config> = serde_json::from_str(&config).unwrap();
        let mut carried = carried();
        let ask = |carried: &mut Carried, good: bool| {
            let mut problems = Problems::new();
            carried.attempt(|carried| {
                let found = carried.authenticators(&Path::root(), &configs, &mut problems);
                assert!(found.contains_key("users"), "{problems:?}");
                good.then_some(())
            });
        };
        ask(&mut carried, false);
        assert!(carried.tasks.is_empty(), "nobody asks");
        ask(&mut carried, true);
        let asked = tokio::time::timeout(Duration::from_secs(20), issuer.accept());
        asked.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_limit_keeps_its_buckets() {
        let mut carried = carried();
        let config = |rate: &str| {
            let config = format!(r#"{{"per_user": {{"key": "route", "rate": "{rate}"}}}}"#);
            serde_json::from_str::<BTreeMap<String, limit::Config>>(&config).unwrap()
        };
        let mut ask = |rate| {
            let mut problems = Problems::new();
            let limiters = carried.limiters(&Path::root(), &config(rate), &mut problems);
            assert!(problems.is_empty());
            Arc::clone(&limiters["per_user"])
        };
        let first = ask("1/s");
        assert!(Arc::ptr_eq(&first, &ask("1/s")));
        assert!(!Arc::ptr_eq(&first, &ask("2/s")));
    }
}
