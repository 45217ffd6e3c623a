//! `weft ca token keep`: a file with a token that is good, again and again.
//!
//! A token is good for one start. Where an orchestrator starts instances, restarts them and adds more, nobody is there to
//! make a token for each: so this looks at the file, and puts a new token in the place of one that was used or gets
//! old. An instance that found a used one reads again a moment later. Whoever reads the file joins as that service, so it
//! belongs where that service's sidecars can read it and nobody else.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use weft_runtime::config::units::Period;
use weft_runtime::signal::Stops;

use super::{Opened, Place, failed};

/// How often the file is looked at: so long an instance may wait whose token another one has used.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, clap::Args)]
#[group(id = "keep")]
pub(super) struct Args {
    /// The service
    #[arg(long)]
    service: String,
    /// The file; its directory has to be there
    #[arg(long)]
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: Args) -> ExitCode {
    let opened = match args.place.open() {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let keeper = Keeper {
        service: args.service,
        file: args.file,
        lifetime: opened.config.token_lifetime,
        opened,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(keeper.keep()),
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => failed(&words),
    }
}

struct Keeper {
    service: String,
    file: PathBuf,
    lifetime: Period,
    opened: Opened,
}

impl Keeper {
    /// Until somebody says stop. What is wrong at the start ends it; later it is said and tried again.
    async fn keep(&self) -> Result<(), String> {
        let mut stops = Stops::listen().map_err(|error| format!("catching signals: {error}"))?;
        self.look(SystemTime::now())?;
        println!(
            "keeping a token for {} in {}",
            self.service,
            self.file.display()
        );
        let mut said = None;
        loop {
            tokio::select! {
                _ = stops.next() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            let trouble = self.look(SystemTime::now()).err();
            if trouble != said
                && let Some(words) = &trouble
            {
                eprintln!("{words}");
            }
            said = trouble;
        }
    }

    /// Makes a new token if the one in the file is not good for long. Returns what keeps it from that.
    fn look(&self, now: SystemTime) -> Result<(), String> {
        let text = match fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(format!("{}: {error}", self.file.display())),
        };
        let Opened {
            state,
            config,
            trust_domain,
            ..
        } = &self.opened;
        let said = |error: weft_ca::Error| error.to_string();
        let left = weft_ca::token_left(state, &self.service, &text, now).map_err(said)?;
        // At half its life, so that one who has just read it can still use it.
        if left.is_some_and(|left| left > self.lifetime.as_duration() / 2) {
            return Ok(());
        }
        let domain = trust_domain.as_deref();
        let token = weft_ca::create_token(state, config, domain, &self.service, now);
        write_whole(&self.file, &token.map_err(said)?).map_err(|error| {
            format!(
                "{}: {error}; the directory has to be there, and to be ours to write in",
                self.file.display()
            )
        })
    }
}

/// Beside it and renamed, so that nobody reads half of it, also after a crash; for nobody else's eyes.
fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    // What was left there may be open to others, or lead elsewhere.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    writeln!(new, "{}", text.trim_end())?;
    new.sync_all()?;
    drop(new);
    fs::rename(&beside, file)?;
    let directory = file.parent().filter(|path| !path.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn keeper(directory: &Path) -> Keeper {
        let config = weft_ca::Config::default();
        Keeper {
            service: "orders".to_owned(),
            file: directory.join("join"),
            lifetime: config.token_lifetime,
            opened: Opened {
                state: directory.join("state"),
                config,
                trust_domain: Some("shop.internal".to_owned()),
                services: None,
            },
        }
    }

    #[test]
    fn a_token_stays_until_half_of_its_life_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = keeper(directory.path());
        let start = SystemTime::now();
        let read = || fs::read_to_string(&keeper.file).unwrap();
        keeper.look(start).unwrap();
        let first = read();
        keeper.look(start + Duration::from_secs(200)).unwrap();
        assert_eq!(read(), first);
        keeper.look(start + Duration::from_secs(400)).unwrap();
        let second = read();
        assert_ne!(second, first);
        // Not one that is somebody else's, or nobody's.
        fs::write(&keeper.file, "weft1.x").unwrap();
        keeper.look(start + Duration::from_secs(400)).unwrap();
        assert_ne!(read(), "weft1.x");
    }

    #[test]
    fn the_file_is_for_nobody_elses_eyes_whatever_was_left_beside_it() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let directory = tempfile::tempdir().unwrap();
        let keeper = keeper(directory.path());
        let beside = directory.path().join("join.new");
        let mode = || fs::metadata(&keeper.file).unwrap().permissions().mode() & 0o777;
        fs::write(&beside, "open to all").unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o666)).unwrap();
        keeper.look(SystemTime::now()).unwrap();
        assert_eq!(mode(), 0o600);
        assert!(!beside.exists());
        fs::remove_file(&keeper.file).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        symlink(&elsewhere, &beside).unwrap();
        keeper.look(SystemTime::now()).unwrap();
        assert_eq!(mode(), 0o600);
        assert!(!elsewhere.exists(), "the token went where the link leads");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = keeper(directory.path());
        keeper.file = directory.path().join("nowhere/join");
        let words = keeper.look(SystemTime::now()).unwrap_err();
        assert!(words.contains("nowhere/join"), "{words}");
    }
}
