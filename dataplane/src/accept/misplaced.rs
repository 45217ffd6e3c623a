//! TLS where plaintext is spoken: who comes like that means another port, or believes that we are somebody else.
//!
//! Its client learns from our answer, which is plaintext, and we from its first byte.

use std::net::SocketAddr;

use crate::core::Core;
use crate::foreign::{Foreign, Sighting};
use crate::plan::Site;

/// Notes who spoke TLS to this port. Browsers do that to any port of the edge; in the mesh somebody should look.
pub(super) fn tls(core: &Core, site: &Site, from: SocketAddr, port: u16) {
    let (kind, problem) = (
        Foreign::UnexpectedTls,
        "it spoke TLS where plaintext is spoken",
    );
    let (listener, cause) = (&site.name, kind.as_str());
    let sighting = Sighting::came(kind, &site.service, from.ip(), Some(port), None);
    match core.foreign(&sighting) {
        true if !site.is_edge => {
            tracing::warn!(%listener, peer = %from, port, cause, problem, "refused a peer");
        }
        _ => tracing::debug!(%listener, peer = %from, port, cause, problem, "refused a client"),
    }
}
