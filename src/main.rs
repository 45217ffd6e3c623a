//! The command `weft`: its subcommands, and nothing else. Follow a request from `dataplane/src/lib.rs`.

mod ca;
mod check;
mod config;
mod demo;
mod health;
mod ingress;
mod intercept;
mod pages;
mod role;
mod run;
mod sidecar;
mod waiting;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;

/// Why this one: docs/decisions/0064.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Debug, Parser)]
#[command(name = "weft", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a whole mesh on loopback and shows what it does
    Demo(demo::Args),
    /// Tells every problem of a configuration at once
    Check(check::Args),
    /// The gateway at the edge
    Ingress(ingress::Args),
    /// The proxy beside one instance of a service
    Sidecar(sidecar::Args),
    /// A sidecar that starts the app when it is ready, passes on signals, drains, and ends with the app's exit code
    Run(run::Args),
    /// Installs, removes and shows the rules that bring a host's connections to its sidecar
    Intercept(intercept::Args),
    /// The certificate authority
    Ca(ca::Args),
    /// Asks the process beside it whether it is ready, for the health checks of images without a shell
    Health(health::Args),
    #[command(hide = true)]
    DemoApp(demo::app::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Ingress(args) => ingress::run(args),
        Command::Sidecar(args) => sidecar::run(args),
        Command::Run(args) => run::run(args),
        Command::Intercept(args) => intercept::run(&args),
        Command::Ca(args) => ca::run(args),
        Command::Health(args) => health::run(&args),
        Command::DemoApp(args) => demo::app::run(&args),
    }
}
