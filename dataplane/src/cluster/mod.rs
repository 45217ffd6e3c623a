//! A named set of endpoints.

pub mod members;
pub mod retry;
