//! placeholder
pub mod collector;
