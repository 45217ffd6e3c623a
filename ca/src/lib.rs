//! The certificate authority: decides who gets which certificate, signs it, remembers it.
//!
//! A request passes these rooms, top to bottom:
//!
//! 1. [`app`](crate::run) listens, `connection` gives each client a seat with a time limit, `tls` proves who is at
//!    either end;
//! 2. `service` takes the gRPC message apart and decides nothing;
//! 3. `desk` is one request from beginning to end: `csr` (is this key theirs), [`admit`] (who may ask for which name),
//!    [`profile`] (what the certificate says), [`issue`] (signs), [`journal`] (remembers, before anybody gets it);
//! 4. [`authority`] keeps the root and the intermediate, [`store`] keeps them on disk.
//!
//! The client decides nothing but its key: every other word of a certificate comes from here. Nothing in this crate
//! asks the clock but `app`, which hands `now` down.

pub mod admit;
mod app;
pub mod authority;
mod bundle;
mod config;
mod connection;
mod csr;
mod desk;
mod error;
pub mod issue;
pub mod journal;
mod name;
pub mod profile;
mod service;
pub mod store;
mod telemetry;
mod tls;
pub mod token;

#[cfg(test)]
mod tests;

pub use app::{Settings, bundle_pem, create_token, is_founded, run, token_left};
pub use config::{Config, Lifetimes, Rules};
pub use error::Error;
pub use name::{AUTHORITY, ServiceName, TrustDomain};
