//! The promises of the identity, kept against real handshakes and a CA in the same process.

#![allow(clippy::unwrap_used)]

mod authority;
mod fake_ca;
mod files;
mod handshake;
mod holder;
mod renew;
mod svid;
