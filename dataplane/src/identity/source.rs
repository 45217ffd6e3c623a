//! Where an identity comes from: the CA, or files that somebody else keeps.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tracing::{info, warn};

use super::client::Authority;
use super::files::Files;
use super::renew::{self, first_retry_after, stopped};
use super::{Identity, Material};

/// Where certificates come from.
#[derive(Debug)]
pub enum Source {
    /// The CA of the mesh.
    Authority(Authority),
    /// Three files.
    Files(Files),
}

impl Source {
    /// Waits until there is an identity; nothing when `shutdown` comes first.
    ///
    /// Each failure is logged and handed to `on_problem`, for those who ask why the process is not ready.
    pub async fn obtain(
        &self,
        shutdown: watch::Receiver<bool>,
        mut on_problem: impl FnMut(&str),
    ) -> Option<Arc<Identity>> {
        let trying = async {
            let mut failures = 0;
            loop {
                match self.first().await {
                    Ok(material) => return material,
                    Err(problem) => {
                        failures += 1;
                        warn!(%problem, failures, "no certificate yet");
                        on_problem(&problem);
                        tokio::time::sleep(first_retry_after(failures, fastrand::f64())).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stopped(shutdown) => None,
            material = trying => {
                info!(
                    id = %material.spiffe_id(),
                    serial = material.serial(),
                    not_after = %httpdate::fmt_http_date(material.not_after()),
                    "certificate obtained"
                );
                Some(Identity::new(material))
            }
        }
    }

    /// Keeps the identity fresh until `shutdown`.
    pub async fn keep(&self, identity: Arc<Identity>, shutdown: watch::Receiver<bool>) {
        let keeping = async {
            match self {
                Self::Authority(authority) => renew::keep(&identity, authority).await,
                Self::Files(files) => files.keep(&identity).await,
            }
        };
        tokio::select! {
            () = stopped(shutdown) => {}
            () = keeping => {}
        }
    }

    async fn first(&self) -> Result<Material, String> {
        match self {
            Self::Authority(authority) => authority.join().await.map_err(|error| error.to_string()),
            Self::Files(files) => files
                .load(SystemTime::now())
                .await
                .map_err(|problem| problem.to_string()),
        }
    }
}
