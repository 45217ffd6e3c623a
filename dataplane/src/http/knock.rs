//! Whether an app takes connections: what a sidecar answers to probes by TCP, in the app's place.
//!
//! A peer cannot find out by connecting itself, since it only ever reaches the sidecar. So the sidecar connects, and closes
//! the connection again without a byte.

use super::answer::{self, Answer};
use crate::cluster::connect;
use crate::core::Core;
use crate::error::Error;
use crate::identity::Alpn;
use crate::plan::Rule;
use crate::reason::Reason;

/// Connects to the rule's target, the app beside us.
pub(crate) async fn knock(core: &Core, rule: &Rule) -> Result<Answer, Error> {
    let cluster = &rule.target;
    let app = cluster.members.load().endpoints().first().cloned();
    let app = app.ok_or_else(|| Error::new(Reason::NoEndpoints, cluster.why_empty()))?;
    let connection = connect::open(core, cluster, app.address, Alpn::Http1).await?;
    drop(connection);
    Ok(answer::open())
}
