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
    clusters: HashMap<Arc<str>, Kept<Cluster>>,
    authenticators: HashMap<String, Kept<Authenticator>>,
    limiters: HashMap<String, Arc<Limiter>>,
}

/// Something with a task of its own.
struct Kept<T> {
    value: Arc<T>,
    /// Dropped with the entry, which ends the task.
    _alive: watch::Sender<bool>,
}

impl Carried {
    /// Nothing yet. Tasks are started in this group.
    pub fn new(tasks: Group, resolver: Arc<Resolver>) -> Self {
        Self {
            tasks,
            resolver,
            clusters: HashMap::new(),
            authenticators: HashMap::new(),
            limiters: HashMap::new(),
        }
    }

    /// Makes these the clusters of the process, and returns them by name. The flag says that one is the app beside us.
    pub fn clusters(&mut self, specs: Vec<(Spec, bool)>) -> HashMap<Arc<str>, Arc<Cluster>> {
        let mut before = std::mem::take(&mut self.clusters);
        for (spec, is_local) in specs {
            let name = Arc::clone(&spec.name);
            let kept = match before.remove(&name) {
                Some(kept) if kept.value.spec == spec => kept,
                old => self.start_cluster(spec, is_local, old.map(|kept| kept.value).as_deref()),
            };
            self.clusters.insert(name, kept);
        }
        self.clusters
            .iter()
            .map(|(name, kept)| (Arc::clone(name), Arc::clone(&kept.value)))
            .collect()
    }

    fn start_cluster(&self, spec: Spec, is_local: bool, old: Option<&Cluster>) -> Kept<Cluster> {
        let cluster = Cluster::new(spec, is_local);
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
            _alive: alive,
        }
    }

    /// Makes these the authenticators of the process; those that did not change keep their keys.
    pub fn authenticators(
        &mut self,
        place: &Path,
        configs: &BTreeMap<String, authn::Config>,
        problems: &mut Problems,
    ) -> HashMap<String, Arc<Authenticator>> {
        let mut before = std::mem::take(&mut self.authenticators);
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
                            _alive: alive,
                        }
                    })
                }
            };
            if let Some(kept) = kept {
                self.authenticators.insert(name.clone(), kept);
            }
        }
        self.authenticators
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
        let mut before = std::mem::take(&mut self.limiters);
        for (name, config) in configs {
            let kept = match before.remove(name) {
                Some(limiter) if limiter.config() == config => Some(limiter),
                _ => Limiter::build(name, &place.key(name), config, Instant::now(), problems)
                    .map(Arc::new),
            };
            if let Some(limiter) = kept {
                self.limiters.insert(name.clone(), limiter);
            }
        }
        self.limiters.clone()
    }
}
