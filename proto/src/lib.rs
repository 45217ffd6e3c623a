//! What the programs of Weft say to each other. Generated from the `.proto` files beside this crate; no logic.

/// Certificates: ask for one, follow the trust bundle.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    rust_2018_idioms
)]
pub mod ca {
    tonic::include_proto!("weft.ca.v1");
}

/// Telemetry: what sidecars report to the collector.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    rust_2018_idioms
)]
pub mod report {
    tonic::include_proto!("weft.report.v1");
}
