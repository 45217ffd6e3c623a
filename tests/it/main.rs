//! End-to-end tests: the real binary as real processes on loopback, real certificates, a DNS server that the test
//! controls. One file per promise, named for it; how a story is told is in [`harness`], and what stands alone against
//! hostile bytes in [`alone`].

mod access_log;
mod alone;
mod amplification;
mod authz;
mod balance;
mod check;
mod churn;
mod collector;
mod cores;
mod demo;
mod discovery;
mod drain;
mod errors;
mod failing;
mod faults;
mod foreign;
mod forge;
mod gateway_tls;
mod grpc;
mod harness;
mod health;
mod hostile;
mod identity;
mod jwt;
mod leaving;
mod limit;
mod limits;
mod mtls;
#[path = "../netns/mod.rs"]
mod netns;
mod protocols;
mod proxied;
mod reload;
mod renewal;
mod retry;
mod rolling;
mod routing;
mod run;
mod strangers;
mod tcp;
mod timeouts;
mod websocket;
