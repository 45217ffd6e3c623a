//! `weft ca`: the certificate authority and what its operator does with it.

mod keep;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use crate::check::BROKEN;
use crate::config::{self, Reader};
use crate::role::{self, Flags, Taken};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Issues certificates to the services of the mesh
    Serve(Flags),
    /// Join tokens, with which services get their first certificate
    Token {
        #[command(subcommand)]
        command: Token,
    },
    /// The trust bundle
    Bundle {
        #[command(subcommand)]
        command: Bundle,
    },
}

#[derive(Debug, clap::Subcommand)]
enum Token {
    /// Makes a token that one instance of a service can join with, once
    Create {
        /// The service
        #[arg(long)]
        service: String,
        #[command(flatten)]
        place: Place,
    },
    /// Keeps a token that is good in a file, for instances that start, restart and are added by themselves
    Keep(keep::Args),
}

#[derive(Debug, clap::Subcommand)]
enum Bundle {
    /// Prints the roots in PEM
    Show {
        #[command(flatten)]
        place: Place,
    },
}

/// Where the CA's state is.
#[derive(Debug, Clone, clap::Args)]
struct Place {
    /// The configuration file, whose `ca.state` is used
    #[arg(long, short, default_value = "weft.yaml")]
    config: PathBuf,
    /// The state directory, when there is no configuration file
    #[arg(long, conflicts_with = "config")]
    state: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let said = match args.command {
        Command::Serve(flags) => return serve(&flags),
        Command::Token {
            command: Token::Keep(args),
        } => return keep::run(args),
        Command::Token {
            command: Token::Create { service, place },
        } => place.open().and_then(|opened| {
            let was_founded = weft_ca::is_founded(&opened.state);
            let token = weft_ca::create_token(
                &opened.state,
                &opened.config,
                opened.trust_domain.as_deref(),
                &service,
                SystemTime::now(),
            )
            .map_err(|error| failed(&error.to_string()))?;
            if !was_founded {
                eprintln!(
                    "there was no authority in {}: it has been made, with a root of its own; `weft ca serve` must use this directory",
                    opened.state.display()
                );
            }
            if opened.services.as_ref().is_some_and(|services| !services.contains(&service)) {
                eprintln!("there is no `{service}` under `services:`, so nobody in the mesh will know whom this token lets in");
            }
            Ok(token)
        }),
        Command::Bundle {
            command: Bundle::Show { place },
        } => place.open().and_then(|opened| {
            weft_ca::bundle_pem(&opened.state).map_err(|error| failed(&error.to_string()))
        }),
    };
    match said {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn failed(words: &str) -> ExitCode {
    eprintln!("{}", words.trim_end());
    ExitCode::FAILURE
}

struct Opened {
    state: PathBuf,
    config: weft_ca::Config,
    trust_domain: Option<String>,
    /// The names of the services, where there is a file that lists them.
    services: Option<BTreeSet<String>>,
}

impl Place {
    fn open(self) -> Result<Opened, ExitCode> {
        if let Some(state) = self.state {
            return Ok(Opened {
                state,
                config: weft_ca::Config::default(),
                trust_domain: None,
                services: None,
            });
        }
        let broken = |words: &str| {
            eprint!("{words}");
            ExitCode::from(BROKEN)
        };
        let name = self.config.display().to_string();
        let text = crate::check::read(&self.config).map_err(|words| broken(&words))?;
        let base = crate::check::base_of(&self.config);
        let checked = config::check(&name, &text, &base, None, Reader::Ca)
            .map_err(|problems| broken(&problems.render()))?;
        let (Some(config), Some(rules)) = (checked.file.ca, checked.ca) else {
            return Err(broken(&format!("{name}: there is no `ca:`\n")));
        };
        Ok(Opened {
            state: base.join(rules.state),
            config,
            trust_domain: Some(checked.file.trust_domain),
            services: Some(checked.file.services.into_keys().collect()),
        })
    }
}

fn serve(flags: &Flags) -> ExitCode {
    let start = match role::start(flags, Reader::Ca) {
        Ok(start) => start,
        Err(code) => return code,
    };
    role::run(start, |start, running| {
        let checked = &start.checked;
        let (Some(config), Some(rules)) = (checked.file.ca.clone(), &checked.ca) else {
            return Err("there is no `ca:`".into());
        };
        let mut listen = rules.listen;
        if let Some(host) = start.host {
            listen.set_ip(host);
        }
        let state = crate::check::base_of(&start.path).join(&rules.state);
        let settings = weft_ca::Settings {
            trust_domain: checked.file.trust_domain.clone(),
            config: weft_ca::Config { state, ..config },
            listen,
        };
        // What a CA is made of is read once; a change of it waits for a restart, and that is said.
        role::follow(running, &start, |_| Taken::InForce);
        let ready = running.process.readiness.guard("listener: not bound yet");
        let drain = running.process.drain.clone();
        let held = drain.guard();
        Ok(async move {
            let on_ready = move |address: std::net::SocketAddr| {
                tracing::info!(%address, "issuing certificates");
                ready.ready();
            };
            let served = weft_ca::run(settings, on_ready, drain.draining(), drain.ended()).await;
            drop(held);
            served.map_err(|error| error.to_string())
        })
    })
}
