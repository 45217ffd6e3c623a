//! The command `weft`.

mod demo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "weft", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a whole mesh on loopback and shows what it does
    Demo(demo::Args),
    #[command(hide = true)]
    DemoApp(demo::app::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::DemoApp(args) => demo::app::run(&args),
    }
}
