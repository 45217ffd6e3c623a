//! `weft demo`: a whole mesh on loopback, with real processes, real certificates and real DNS.
pub(crate) mod app;
mod config;
mod dns;
mod ground;
mod http;
mod issuer;
mod mesh;
mod process;
mod services;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_args: &Args) -> std::process::ExitCode { std::process::ExitCode::SUCCESS }
