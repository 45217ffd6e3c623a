//! Configuration: one YAML file, read whole, every problem reported with its place and a way out.

mod problem;
pub mod units;

pub use problem::{Path, Position, Problem, Problems};
