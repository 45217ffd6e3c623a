//! End-to-end tests.

mod alone;
mod authz;
mod errors;
mod forge;
mod gateway_tls;
mod hostile;
mod identity;
mod jwt;
mod limit;
mod mtls;
