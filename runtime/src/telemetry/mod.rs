//! What the process tells about itself: a structured log and Prometheus metrics.

pub mod log;
pub mod metrics;
mod process;
