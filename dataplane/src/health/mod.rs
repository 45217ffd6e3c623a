//! Which endpoints are fit to be used.
//!
//! [`outlier`] judges by the traffic itself; [`check`] says how endpoints are asked, [`probe`] asks one, and [`streak`]
//! decides what the answers mean. What is known is kept beside the [`crate::endpoint::Endpoint`], keyed by address, so that
//! neither a DNS change nor a reload resets it.
//!
//! To add a kind of probe: a variant of [`check::Question`], and how it is asked in [`probe`].

pub mod check;
pub mod outlier;
pub mod probe;
pub mod streak;

pub use check::{Checks, Config, Question};
pub use streak::Streak;
