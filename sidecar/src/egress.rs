//! `sidecar.egress`: where an app whose traffic is intercepted may go that is no service.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_dataplane::plan::capture::Egress;
use weft_dataplane::route::{Match, Table};
use weft_runtime::config::{Network, Path, Problems};

/// `passthrough`, or `allow_list: { hosts: […], networks: […] }`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Egress")]
pub enum Config {
    /// Everywhere: what is no service's passes untouched.
    #[default]
    Passthrough,
    /// Only there; everything else is refused.
    AllowList(AllowList),
}

/// What is let out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AllowList {
    /// By the name that a connection gives, in `Host` of HTTP/1 or as TLS's server name: `api.example.com`, or
    /// `*.example.com` for every name below. The app is believed.
    pub hosts: Vec<String>,
    /// By address, such as `10.0.0.0/8`.
    pub networks: Vec<String>,
}

impl Config {
    /// Checks it.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Arc<Egress>> {
        let Self::AllowList(list) = self else {
            return Some(Arc::new(Egress::Passthrough));
        };
        let path = path.key("allow_list");
        let before = problems.len();
        let networks = Network::list(
            &list.networks,
            &path.key("networks"),
            "write `10.0.0.0/8`, `fd00::/8` or one address; names belong in `hosts`",
            problems,
        );
        let matches: Vec<(Path, Match)> = list
            .hosts
            .iter()
            .enumerate()
            .map(|(index, host)| {
                let matching = Match {
                    host: Some(host.clone()),
                    ..Match::default()
                };
                (path.key("hosts").index(index), matching)
            })
            .collect();
        let mut found = Problems::new();
        let hosts = Table::build(
            matches.iter().map(|(at, host)| (at, host, ())).collect(),
            &mut found,
        );
        problems.append(found);
        (problems.len() == before).then_some(Arc::new(Egress::AllowList {
            hosts: hosts.filter(|_| !list.hosts.is_empty()).map(Box::new),
            networks,
        }))
    }
}
