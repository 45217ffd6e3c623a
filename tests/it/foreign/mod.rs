//! Clients and servers of others' making through the mesh: what they take for HTTP, gRPC, WebSocket and their own protocols is
//! what we carry. `tests/run` installs them.

#![allow(clippy::unwrap_used)]

mod curl;
mod databases;
mod nginx;
mod python;
