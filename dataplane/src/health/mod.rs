//! Which endpoints are fit to be used.
//!
//! [`outlier`] judges by the traffic itself. What is known is kept on the [`crate::endpoint::Endpoint`], keyed by address,
//! so that a DNS change or a reload never resets it.

pub mod outlier;
