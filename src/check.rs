//! `weft check FILE`: every problem of a configuration at once, each with its place and the way out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use weft_runtime::config::file;

use crate::config::{self, Reader};

/// The exit code for a configuration that cannot be used, of this command and of every role.
pub(crate) const BROKEN: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file
    #[arg(required_unless_present = "schema")]
    file: Option<PathBuf>,
    /// Prints a JSON Schema of the file instead, for editors
    #[arg(long, conflicts_with = "file")]
    schema: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let Some(file) = &args.file else {
        println!("{:#}", schemars::schema_for!(config::File).as_value());
        return ExitCode::SUCCESS;
    };
    match check(file) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprint!("{problems}");
            ExitCode::from(BROKEN)
        }
    }
}

fn check(file: &Path) -> Result<String, String> {
    let text = read(file)?;
    let name = file.display().to_string();
    let checked = config::check(&name, &text, &base_of(file), None, Reader::Check)
        .map_err(|problems| problems.render())?;
    let count = |number: usize, word: &str| match number {
        1 => format!("1 {word}"),
        _ => format!("{number} {word}s"),
    };
    Ok(format!(
        "{name}: good ({}, {})",
        count(checked.file.services.len(), "service"),
        count(checked.file.ingress.routes.len(), "route")
    ))
}

/// The text of the configuration file, or why there is none, in the words in which it is said.
pub(crate) fn read(file: &Path) -> Result<String, String> {
    file::read(file).map_err(|error| {
        format!(
            "{}: cannot be read: {error}\n    give the path of a YAML file of at most {} MiB that you may read\n",
            file.display(),
            file::SIZE_LIMIT >> 20
        )
    })
}

/// What paths in the file are relative to: the directory that it is in.
pub(crate) fn base_of(file: &Path) -> PathBuf {
    file.parent().map(Path::to_owned).unwrap_or_default()
}
