//! What every long-running process of Weft needs that has nothing to do with proxying.

pub mod config;
