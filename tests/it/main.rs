//! End-to-end tests: the real binary as real processes on loopback, real certificates, a DNS server that the test
//! controls. One file per promise, named for it; how a story is told is in [`harness`].

mod balance;
mod check;
mod collector;
mod demo;
mod discovery;
mod drain;
mod failing;
mod grpc;
mod harness;
mod protocols;
mod reload;
mod renewal;
mod retry;
mod timeouts;
