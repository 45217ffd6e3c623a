//! The path of a request: one spelling for each, and patterns over it; and methods, which stand beside them in rules.
//!
//! A word of layer 0, because routes and `allow` rules must never disagree about what a path is: both match on the
//! `normal` form with the same `pattern`s, and the endpoint is sent that form and no other.

mod method;
mod normal;
mod pattern;

pub use method::method;
pub use normal::{Problem, normalize, normalize_target};
pub use pattern::{Invalid, Pattern, Segment};
