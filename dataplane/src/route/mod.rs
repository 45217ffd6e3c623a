//! Which route an exchange takes: by host, path, method and headers, with the precedence of the Gateway API.
//!
//! Of all routes that match, the one wins that has, in this order:
//!
//! 1. the host spelled out; then the longest `*.` host; then no host;
//! 2. the more specific path, compared segment by segment: a literal before a `{parameter}` before a `/*` (so an exact
//!    path comes before every prefix, and a longer prefix before a shorter one);
//! 3. a list of methods;
//! 4. more headers;
//! 5. the earlier place in the file.
//!
//! [`Match`] is what stands in the file, [`Table`] what answers; finding a route costs a few hash probes, however many
//! routes there are. Routes that could never be found are problems of the configuration, not surprises.

mod check;
mod host;
mod matching;
mod table;
#[cfg(test)]
mod tests;

/// How paths are read: see [`crate::path`].
pub use crate::path;
pub use matching::Match;
pub use table::Table;
