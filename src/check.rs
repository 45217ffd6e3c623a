//! `weft check FILE`: every problem of a configuration at once, each with its place and the way out.

use std::path::PathBuf;
use std::process::ExitCode;

use weft_runtime::config::file;

use crate::config::{self, Reader};

/// The exit code for a configuration that cannot be used, of this command and of every role.
pub(crate) const BROKEN: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file
    file: PathBuf,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let name = args.file.display().to_string();
    let text = match file::read(&args.file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::from(BROKEN);
        }
    };
    let base = base_of(&args.file);
    match config::check(&name, &text, &base, None, Reader::Check) {
        Ok(checked) => {
            println!(
                "{name}: good ({} services, {} routes)",
                checked.file.services.len(),
                checked.file.ingress.routes.len()
            );
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprint!("{}", problems.render());
            ExitCode::from(BROKEN)
        }
    }
}

/// What paths in the file are relative to: the directory that it is in.
pub(crate) fn base_of(file: &std::path::Path) -> PathBuf {
    file.parent()
        .map(std::path::Path::to_owned)
        .unwrap_or_default()
}
