//! End-to-end tests: the real binary as real processes on loopback, real certificates, a DNS server that the test
//! controls. One file per promise, named for it; how a story is told is in [`harness`].

mod balance;
mod check;
mod discovery;
mod failing;
mod harness;
mod renewal;
mod retry;
