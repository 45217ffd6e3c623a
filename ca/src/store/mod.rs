//! What the authority keeps on disk, and under which names.
//!
//! | name | what |
//! |---|---|
//! | `root.pem` | the root's certificate and key, in one file so that they cannot come apart |
//! | `intermediate.pem` | the same of the certificate that signs leaves; the next one replaces it whole |
//! | `tokens/` | a file for each open join token, with the hash of its secret |
//! | `tokens-used/` | those that were used, until they would have expired: so that a second use is told so |
//! | `journal/` | what was issued |
//! | `serve.lock` | held by the one process that serves |
//! | `create.lock` | held for a moment while something new is made |

mod file;

pub(crate) use file::check_private;
pub use file::{Directory, Lock};

pub(crate) const ROOT: &str = "root.pem";
pub(crate) const INTERMEDIATE: &str = "intermediate.pem";
pub(crate) const TOKENS: &str = "tokens";
pub(crate) const TOKENS_USED: &str = "tokens-used";
pub(crate) const JOURNAL: &str = "journal";
pub(crate) const SERVE_LOCK: &str = "serve.lock";
pub(crate) const CREATE_LOCK: &str = "create.lock";
