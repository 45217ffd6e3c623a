//! What a reload carries over: clusters whose configuration did not change keep their endpoints, health, budgets and
//! connections, and so do rate limits their buckets. Others are made anew, and those that no plan names end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use weft_runtime::config::{Path, Problems};
use weft_runtime::task::Group;

use crate::authn::{self, Authenticator};
use crate::cluster::{Cluster, Spec};
use crate::discovery::{Resolver, follow};
use crate::limit::{self, Limiter};

/// What outlives a plan.
pub struct Carried {
    tasks: Group,
    resolver: Arc<Resolver>,
    state: State,
}

#[derive(Clone, Default)]
struct State {
    clusters: HashMap<Arc<str>, Kept<Cluster>>,
    authenticators: HashMap<String, Kept<Authenticator>>,
    limiters: HashMap<String, Arc<Limiter>>,
}

/// Something with a task of its own.
struct Kept<T> {
    value: Arc<T>,
    /// Dropped with the last entry, which ends the task.
    alive: Arc<watch::Sender<bool>>,
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            alive: Arc::clone(&self.alive),
        }
    }
}

impl Carried {
    /// Nothing yet. Tasks are started in this group.
    pub fn new(tasks: Group, resolver: Arc<Resolver>) -> Self {
        Self {
            tasks,
            resolver,
            state: State::default(),
        }
    }

    /// Makes a plan. If that fails, everything stays as it is for the plan that is in force.
    pub fn attempt<T>(&mut self, make: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let before = self.state.clone();
        let made = make(self);
        if made.is_none() {
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
                Some(kept) if kept.value.spec == spec => kept,
                old => self.start_cluster(spec, is_local, old.map(|kept| kept.value).as_deref()),
            };
            self.state.clusters.insert(name, kept);
        }
        self.state
            .clusters
            .iter()
            .map(|(name, kept)| (Arc::clone(name), Arc::clone(&kept.value)))
            .collect()
    }

    fn start_cluster(&self, spec: Spec, is_local: bool, old: Option<&Cluster>) -> Kept<Cluster> {
        let cluster = Cluster::succeeding(spec, is_local, old);
        if let Some(old) = old.filter(|old| old.spec.mesh == cluster.spec.mesh) {
            // Until the next answer of DNS, also by another name: an exchange in between would fail for nothing.
            let endpoints = old.members.load();
            let addresses = endpoints
                .endpoints()
                .iter()
                .map(|endpoint| endpoint.address)
                .collect();
            cluster.members.apply(addresses, Instant::now());
        }
        let (alive, shutdown) = watch::channel(false);
        let (found, resolver) = (Arc::clone(&cluster), Arc::clone(&self.resolver));
        self.tasks
            .spawn(format!("discovery of {}", cluster.name), async move {
                let publish = |addresses| {
                    found.members.apply(addresses, Instant::now());
                };
                follow(
                    &found.spec.source,
                    &resolver,
                    &found.discovery,
                    publish,
                    shutdown,
                )
                .await;
                Ok::<_, std::convert::Infallible>(())
            });
        Kept {
            value: cluster,
            alive: Arc::new(alive),
        }
    }

    /// Makes these the authenticators of the process; those that did not change keep their keys.
    pub fn authenticators(
        &mut self,
        place: &Path,
        configs: &BTreeMap<String, authn::Config>,
        problems: &mut Problems,
    ) -> HashMap<String, Arc<Authenticator>> {
        let mut before = std::mem::take(&mut self.state.authenticators);
        for (name, config) in configs {
            let kept = match before.remove(name) {
                Some(kept) if kept.value.config() == config => Some(kept),
                _ => {
                    Authenticator::build(&place.key(name), config, problems).map(|authenticator| {
                        let (alive, shutdown) = watch::channel(false);
                        let keys = Arc::clone(authenticator.keys());
                        self.tasks.spawn(format!("keys of {name}"), async move {
                            keys.keep(shutdown).await;
                            Ok::<_, std::convert::Infallible>(())
                        });
                        Kept {
                            value: Arc::new(authenticator),
                            alive: Arc::new(alive),
                        }
                    })
                }
            };
            if let Some(kept) = kept {
                self.state.authenticators.insert(name.clone(), kept);
            }
        }
        self.state
            .authenticators
            .iter()
            .map(|(name, kept)| (name.clone(), Arc::clone(&kept.value)))
            .collect()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::cluster::Speaks;
    use crate::discovery;
    use crate::testing::spec;

    fn carried() -> Carried {
        let config: discovery::Config =
            serde_json::from_str(r#"{"servers": ["127.0.0.1:1"]}"#).unwrap();
        let resolver = config.build(&Path::root(), &mut Problems::new()).unwrap();
        Carried::new(Group::new(), Arc::new(resolver))
    }

    fn with_timeout(seconds: u64) -> Vec<(Spec, bool)> {
        let address = "127.0.0.1:9000".parse().unwrap();
        let spec = Spec {
            timeout: Duration::from_secs(seconds),
            ..spec(Speaks::Http1, &[address])
        };
        vec![(spec, false)]
    }

    fn one(carried: &mut Carried, specs: Vec<(Spec, bool)>) -> Arc<Cluster> {
        let clusters = carried.clusters(specs);
        Arc::clone(&clusters["orders"])
    }

    #[tokio::test]
    async fn a_cluster_is_kept_as_long_as_nothing_about_it_changes() {
        let mut carried = carried();
        let first = one(&mut carried, with_timeout(1));
        assert!(Arc::ptr_eq(&first, &one(&mut carried, with_timeout(1))));
        let other = one(&mut carried, with_timeout(2));
        assert!(!Arc::ptr_eq(&first, &other));
        tokio::task::yield_now().await;
        assert_eq!(other.members.load().endpoints().len(), 1, "at once");
        assert!(carried.clusters(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn a_failed_plan_leaves_everything_to_the_plan_in_force() {
        let mut carried = carried();
        let first = one(&mut carried, with_timeout(1));
        let alive = carried.state.clusters["orders"].alive.subscribe();
        let failed: Option<()> = carried.attempt(|carried| {
            one(carried, with_timeout(2));
            None
        });
        assert!(failed.is_none());
        assert!(alive.has_changed().is_ok(), "its discovery goes on");
        assert!(Arc::ptr_eq(&first, &one(&mut carried, with_timeout(1))));
        carried.attempt(|carried| Some(one(carried, with_timeout(2))));
        assert!(alive.has_changed().is_err(), "its discovery has ended");
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
