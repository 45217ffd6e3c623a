//! From an accepted socket to a chosen endpoint: everything that both the sidecar and the ingress do with traffic.
//!
//! The path of an exchange, as a list of the modules it crosses: [`accept`] takes the connection, [`http`] reads
//! exchanges from it and runs each one through [`route`], [`authn`], [`authz`] and [`limit`], then forwards it through a
//! [`cluster`], whose [`balance`] policy picks the endpoint.
//!
//! Modules are in layers; a module uses only layers above it, and the features of layer 1 never import one another.

// Layer 0: words.
pub mod dial;
pub mod endpoint;
pub mod error;
pub mod foreign;
pub mod gate;
pub mod head;
pub mod path;
pub mod principal;
pub mod reason;
pub mod timer;

// Layer 1: features.
pub mod authn;
pub mod authz;
pub mod balance;
pub mod discovery;
pub mod health;
pub mod identity;
pub mod limit;
pub mod observe;
pub mod route;
pub mod trusted;

// Layer 2 and below: the data path.
pub mod accept;
pub mod body;
pub mod cluster;
pub mod core;
pub mod http;
pub mod http1;
pub mod http2;
pub mod node;
pub mod plan;
pub mod tcp;

#[cfg(test)]
mod defaults;
#[cfg(test)]
mod testing;
