//! Where the admin pages are, and why not somewhere else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::{Path, Problems};

/// The `admin` mapping of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Admin")]
pub struct Config {
    /// Where to listen.
    pub address: SocketAddr,
    /// Whether anybody who reaches the address may read the pages and drain the process.
    pub allow_remote: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_000),
            allow_remote: false,
        }
    }
}

/// A place for the admin pages that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    address: SocketAddr,
    allow_remote: bool,
}

impl Config {
    /// The settings, unless they would show the pages to strangers.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Settings> {
        if !self.address.ip().to_canonical().is_loopback() && !self.allow_remote {
            problems.at(
                &path.key("address"),
                format!(
                    "`{}` can be reached from other hosts, and the admin pages ask nobody who they are: whoever reaches them reads the configuration and drains the process",
                    self.address
                ),
                "use a loopback address such as `127.0.0.1:15000`, or write `allow_remote: true` beside it if a firewall is in front",
            );
            return None;
        }
        Some(Settings {
            address: self.address,
            allow_remote: self.allow_remote,
        })
    }
}

impl Settings {
    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether other hosts may ask.
    pub fn allow_remote(&self) -> bool {
        self.allow_remote
    }

    /// The same on another address of this host, as `--host` has it: a loopback address only, unless others may ask.
    pub fn on(self, host: IpAddr) -> Result<Self, Problems> {
        let config = Config {
            address: SocketAddr::new(host, self.address.port()),
            allow_remote: self.allow_remote,
        };
        let mut problems = Problems::new();
        config
            .build(&Path::root().key("admin"), &mut problems)
            .ok_or(problems)
    }
}
