//! Who calls.

use std::sync::Arc;
use std::time::SystemTime;

/// Part of the word: features that are told who calls need not import the one that proves it.
pub use crate::identity::SpiffeId;

/// Who calls, as far as it was proven.
#[derive(Debug, Clone, Default)]
pub enum Principal {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A workload of the mesh, proven by its certificate.
    Workload(Arc<SpiffeId>),
    /// The bearer of a token that we verified.
    Bearer(Arc<Claims>),
}

/// What a verified token says.
#[derive(Debug, Clone)]
pub struct Claims {
    /// `iss`.
    pub issuer: String,
    /// `sub`, empty when the token has none.
    pub subject: String,
    /// `exp`.
    pub expires: SystemTime,
    /// All claims, the registered ones included.
    pub all: serde_json::Map<String, serde_json::Value>,
}
