//! Our HTTP/1.1: strict, and built for a proxy.
//!
//! [`parse`], [`frame`] and [`encode`] turn bytes into heads and bodies and back, without I/O: they are where requests
//! are smuggled or not. On top of them, `buffer` holds the bytes of a connection, [`server`] runs the downstream side and
//! [`client`] the upstream side; `spare` has the maps of fields that are used again and again. What they hand out and take
//! are the words of this crate and the `http` crate's types.

mod buffer;
pub mod client;
mod connection;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod differ;
pub mod encode;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod parse;
pub mod server;
pub(crate) mod spare;

pub use connection::Incoming;
pub(crate) use connection::{Connection, Handle, Peer};
pub use parse::{Framing, Limits, Malformed};
