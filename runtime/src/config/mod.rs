//! Configuration: one YAML file, read whole, every problem reported with its place and a way out.
//!
//! A [`Document`] is parsed once and keeps the line and column of every key and value. [`Document::decode`] fills plain
//! serde types from it and finds everything that is wrong with the shape in one go; the `build` functions of the features
//! add what is wrong with the meaning, by [`Path`]; [`Problems::locate`] puts all of it in the order of the file.
//! [`watch`] then follows the file, and a [`Watched`] hands the latest good value to whoever needs it.

mod address;
mod decode;
mod document;
pub mod env;
mod fault;
pub mod file;
mod network;
mod node;
mod problem;
mod scalar;
pub mod secret;
mod show;
mod status;
mod suggest;
mod together;
mod tree;
pub mod units;
pub mod watch;
mod watched;

#[cfg(test)]
mod tests;

pub use address::overlap;
pub use document::Document;
pub use network::{Network, NoNetwork};
pub use problem::{Path, Position, Problem, Problems};
pub use show::redact_query;
pub use status::Status;
pub use suggest::nearest;
pub use together::{Fingerprint, Look, Together};
pub use watched::{Changes, Publisher, Watched, watched};
