//! Who we are and who the peer is: SPIFFE identities, our certificate and bundle.

/// A SPIFFE ID, checked when made: `spiffe://<trust domain>/<path>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId(String);

impl SpiffeId {
    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
