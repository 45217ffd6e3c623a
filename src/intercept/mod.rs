//! `weft intercept`: the rules that bring a network namespace's TCP connections to the sidecar in it, without the app
//! knowing. `steps` says what is redirected, `nft` and `iptables` write it down.

mod command;
mod iptables;
mod nft;
mod steps;

use std::collections::BTreeSet;
use std::process::ExitCode;

use weft_runtime::config::Network;

use command::Failed;
use iptables::Family;
use steps::{Choice, Inbound, Outbound, Way, Wish};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Installs the rules, or changes them to these
    Install(Box<Install>),
    /// Removes the rules; leaves nothing
    Remove(Which),
    /// Shows which rules are installed, as rules and in plain words
    Show(Which),
}

/// Which kind of rules.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Which {
    /// What keeps the rules: nftables, or iptables where there is no `nft`
    #[arg(long, value_enum)]
    backend: Option<Backend>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    Nft,
    Iptables,
}

#[derive(Debug, clap::Args)]
struct Install {
    /// The user that the sidecar runs as, by name or number: its connections are not redirected. Can be repeated
    #[arg(
        long = "user",
        value_name = "UID|NAME",
        required_unless_present = "no_outbound"
    )]
    users: Vec<String>,
    /// Leaves what the app sends alone
    #[arg(long, conflicts_with = "no_inbound")]
    no_outbound: bool,
    /// Leaves what the app is sent alone
    #[arg(long)]
    no_inbound: bool,
    /// Where the sidecar takes what the app sends (`sidecar.outbound`)
    #[arg(long, value_name = "PORT", default_value_t = 15_001, value_parser = port())]
    outbound_port: u16,
    /// Where the sidecar takes plaintext that the app is sent (`sidecar.intercept.inbound_port`)
    #[arg(long, value_name = "PORT", default_value_t = 15_006, value_parser = port())]
    inbound_port: u16,
    /// Where the sidecar takes mutual TLS (`sidecar.inbound`): arrives directly
    #[arg(long, value_name = "PORT", default_value_t = 15_008, value_parser = port())]
    mesh_port: u16,
    /// Where the sidecar's admin pages are (`admin`): arrives directly
    #[arg(long, value_name = "PORT", default_value_t = 15_000, value_parser = port())]
    admin_port: u16,
    /// Leaves connections to these ports of others alone
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = port())]
    exclude_port: Vec<u16>,
    /// Leaves connections to these networks alone, such as 10.0.0.0/8
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    exclude_network: Vec<Network>,
    /// Redirects connections to these ports of others only
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = port())]
    include_port: Vec<u16>,
    /// Redirects connections to these networks only
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    include_network: Vec<Network>,
    /// Leaves connections of others to these ports alone, such as one for health checks
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = port())]
    exclude_inbound_port: Vec<u16>,
    /// Leaves connections from these networks alone, such as those of a load balancer's health checks
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    exclude_inbound_network: Vec<Network>,
    /// Redirects connections of others to these ports only. All but SSH's by default
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = port())]
    include_inbound_port: Vec<u16>,
    /// Redirects connections from these networks only
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    include_inbound_network: Vec<Network>,
    /// Prints the rules and installs nothing; needs no privilege
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    which: Which,
}

fn port() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..)
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let outcome = match &args.command {
        Command::Install(install) => install.run(),
        Command::Remove(which) => remove(*which),
        Command::Show(which) => show(*which),
    };
    match outcome {
        Ok(words) => {
            print!("{words}");
            ExitCode::SUCCESS
        }
        Err(words) => {
            eprintln!("weft intercept: {words}");
            ExitCode::FAILURE
        }
    }
}

impl Install {
    fn run(&self) -> Result<String, String> {
        let wish = self.wish()?;
        if self.print {
            return Ok(self.printed(&wish));
        }
        let backend = self.which.found()?;
        let tool = match backend {
            Backend::Nft => {
                nft::install(&wish).map_err(|failed| failed.to_string())?;
                "nftables"
            }
            Backend::Iptables => {
                install_families(&wish)?;
                "iptables"
            }
        };
        // What the other kind may hold from before would be in force too. These are there already, so nothing passes in between.
        remove_of_others(backend)?;
        let steps = wish.steps().into_iter();
        let words = in_words(&steps.map(|step| (step.way, step.words)).collect::<Vec<_>>());
        Ok(format!("Installed with {tool}.\n{words}"))
    }

    fn printed(&self, wish: &Wish) -> String {
        match self.which.backend {
            Some(Backend::Iptables) => Family::ALL
                .into_iter()
                .map(|family| {
                    format!(
                        "# {}\n{}",
                        family.name(),
                        iptables::script(wish, family, "")
                    )
                })
                .collect(),
            _ => nft::script(wish),
        }
    }

    fn wish(&self) -> Result<Wish, String> {
        let own = [self.inbound_port, self.mesh_port, self.admin_port];
        let used = [
            (!self.no_outbound).then_some(self.outbound_port),
            (!self.no_inbound).then_some(self.inbound_port),
            Some(self.mesh_port),
            Some(self.admin_port),
        ];
        let mut seen = BTreeSet::new();
        if let Some(port) = used.into_iter().flatten().find(|port| !seen.insert(*port)) {
            return Err(format!(
                "port {port} would be two ports of the sidecar's\n    \
                 give each of `--outbound-port`, `--inbound-port`, `--mesh-port` and `--admin-port` a port of its own"
            ));
        }
        if let Some(port) = own
            .into_iter()
            .chain([self.outbound_port])
            .find(|port| self.include_inbound_port.contains(port))
        {
            return Err(format!(
                "`--include-inbound-port {port}` is a port of the sidecar's own, which is never redirected\n    \
                 name the ports on which the app listens"
            ));
        }
        let outbound = match self.no_outbound {
            true => None,
            false => Some(Outbound {
                to: self.outbound_port,
                users: self
                    .users
                    .iter()
                    .map(|user| number(user))
                    .collect::<Result<_, _>>()?,
                choice: Choice {
                    exclude_ports: set(&self.exclude_port),
                    exclude_networks: set(&self.exclude_network),
                    include_ports: set(&self.include_port),
                    include_networks: set(&self.include_network),
                },
            }),
        };
        let inbound = (!self.no_inbound).then(|| Inbound {
            to: self.inbound_port,
            own_ports: [self.mesh_port, self.admin_port].into(),
            choice: Choice {
                exclude_ports: set(&self.exclude_inbound_port),
                exclude_networks: set(&self.exclude_inbound_network),
                include_ports: set(&self.include_inbound_port),
                include_networks: set(&self.include_inbound_network),
            },
        });
        Ok(Wish { outbound, inbound })
    }
}

fn set<T: Copy + Ord>(list: &[T]) -> BTreeSet<T> {
    list.iter().copied().collect()
}

/// The number of a user, who may be given by name.
fn number(user: &str) -> Result<u32, String> {
    if let Ok(number) = user.parse() {
        return Ok(number);
    }
    let users = std::fs::read_to_string("/etc/passwd").map_err(|error| {
        format!("`/etc/passwd` cannot be read: {error}\n    give the user's number")
    })?;
    number_in(&users, user).ok_or_else(|| {
        format!("there is no user `{user}` in `/etc/passwd`\n    give the user's number, or make the user first")
    })
}

fn number_in(users: &str, name: &str) -> Option<u32> {
    users
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| {
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        })
}

impl Which {
    /// What was asked for, or what there is.
    fn found(self) -> Result<Backend, String> {
        match self.backend {
            Some(backend) => Ok(backend),
            None if nft::is_there() => Ok(Backend::Nft),
            None if iptables::is_there() => Ok(Backend::Iptables),
            None => Err("there is neither `nft` nor `iptables` on PATH\n    \
                 install nftables (on Debian: `apt-get install nftables`)"
                .to_owned()),
        }
    }

    /// What was asked for, or everything that there is: who removes or looks does not know what somebody else used.
    fn all(self) -> Result<Vec<Backend>, String> {
        let first = self.found()?;
        let also = self.backend.is_none() && first == Backend::Nft && iptables::is_there();
        Ok(std::iter::once(first)
            .chain(also.then_some(Backend::Iptables))
            .collect())
    }
}

/// Both families, or none.
fn install_families(wish: &Wish) -> Result<(), String> {
    let said = |family: Family, failed: Failed| format!("{}: {failed}", family.name());
    iptables::install(wish, Family::V4).map_err(|failed| said(Family::V4, failed))?;
    let Err(failed) = iptables::install(wish, Family::V6) else {
        return Ok(());
    };
    if !has_ipv6() {
        return Ok(());
    }
    // Half of the connections would pass the sidecar by.
    let undone = match iptables::remove(Family::V4) {
        Ok(()) => "nothing is installed".to_owned(),
        Err(failed) => format!("and the rules for IPv4 could not be removed: {failed}"),
    };
    Err(format!("{}\n    {undone}", said(Family::V6, failed)))
}

/// Whether this network namespace has an IPv6 address besides loopback's.
fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|table| {
        table.lines().any(|line| {
            line.split_whitespace()
                .last()
                .is_some_and(|name| name != "lo")
        })
    })
}

fn remove(which: Which) -> Result<String, String> {
    for backend in which.all()? {
        remove_of(backend, which)?;
    }
    Ok("Removed.\n".to_owned())
}

fn remove_of(backend: Backend, which: Which) -> Result<(), String> {
    match backend {
        Backend::Nft => nft::remove().map_err(|failed| failed.to_string())?,
        Backend::Iptables => {
            for family in Family::ALL {
                tolerant(family, which, iptables::remove(family))?;
            }
        }
    }
    Ok(())
}

/// What the other kind of rules holds of ours goes. Where it cannot be looked at, it is taken to hold nothing: it may be there
/// as a command only.
fn remove_of_others(backend: Backend) -> Result<(), String> {
    let removed = match backend {
        Backend::Nft => {
            Family::ALL
                .into_iter()
                .try_for_each(|family| match iptables::installed(family) {
                    Ok(Some(_)) => iptables::remove(family),
                    _ => Ok(()),
                })
        }
        Backend::Iptables => match nft::installed() {
            Ok(Some(_)) => nft::remove(),
            _ => Ok(()),
        },
    };
    removed.map_err(|failed| {
        format!("the rules are installed, and those that stood there before in another kind could not be removed: {failed}")
    })
}

fn show(which: Which) -> Result<String, String> {
    let mut page = String::new();
    for backend in which.all()? {
        match backend {
            Backend::Nft => {
                let table = nft::installed().map_err(|failed| failed.to_string())?;
                if let Some(table) = table {
                    page.push_str(&format!("{table}\n{}", in_words(&nft::words(&table))));
                }
            }
            Backend::Iptables => {
                for family in Family::ALL {
                    let table = tolerant(family, which, iptables::installed(family))?.flatten();
                    if let Some(table) = table {
                        let words = in_words(&iptables::words(&table));
                        page.push_str(&format!("# {}\n{table}\n{words}", family.name()));
                    }
                }
            }
        }
    }
    if page.is_empty() {
        page.push_str("Nothing is installed in this network namespace.\n");
    }
    Ok(page)
}

/// A family that there is not, or a second kind of rules that does not work here, holds nothing of ours.
fn tolerant<T>(
    family: Family,
    which: Which,
    result: Result<T, Failed>,
) -> Result<Option<T>, String> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Failed::NotPermitted(tool)) => Err(Failed::NotPermitted(tool).to_string()),
        Err(_) if family == Family::V6 && !has_ipv6() => Ok(None),
        Err(_) if which.backend.is_none() && nft::is_there() => Ok(None),
        Err(failed) => Err(failed.to_string()),
    }
}

fn in_words(words: &[(Way, String)]) -> String {
    let mut page = String::new();
    for (way, heading) in [
        (Way::Outbound, "Connections from here to others"),
        (Way::Inbound, "Connections from others to here"),
    ] {
        let mut lines = words.iter().filter(|(of, _)| *of == way).peekable();
        match lines.peek() {
            None => page.push_str(&format!("{heading}: left alone.\n")),
            Some(_) => page.push_str(&format!("{heading}, the first that fits:\n")),
        }
        for (_, line) in lines {
            page.push_str(&format!("  {line}\n"));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn install(flags: &str) -> Result<Wish, String> {
        let words = ["weft", "install"]
            .into_iter()
            .chain(flags.split_whitespace());
        match Cli::try_parse_from(words)
            .map_err(|error| error.to_string())?
            .args
            .command
        {
            Command::Install(install) => install.wish(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_wish() {
        let wish = install(
            "--user 1337 --exclude-port 5432,6379 --exclude-port 3306 --exclude-network 10.0.0.9/8 \
             --exclude-inbound-network 192.168.0.9,fd00::1/8 --include-inbound-network 192.168.0.0/16,::/0",
        )
        .unwrap();
        let outbound = wish.outbound.unwrap();
        assert_eq!(outbound.to, 15_001);
        assert_eq!(outbound.users, [1337].into());
        assert_eq!(outbound.choice.exclude_ports, [3306, 5432, 6379].into());
        assert_eq!(
            outbound.choice.exclude_networks,
            ["10.0.0.0/8".parse().unwrap()].into()
        );
        let inbound = wish.inbound.unwrap();
        assert_eq!(inbound.to, 15_006);
        assert_eq!(inbound.own_ports, [15_000, 15_008].into());
        assert_eq!(
            inbound.choice.exclude_networks,
            ["192.168.0.9/32", "fd00::/8"]
                .map(|text| text.parse().unwrap())
                .into()
        );
        assert_eq!(
            inbound.choice.include_networks,
            ["192.168.0.0/16", "::/0"]
                .map(|text| text.parse().unwrap())
                .into()
        );
    }

    #[test]
    fn one_way_can_be_left_alone_and_not_both() {
        assert!(install("--user 0 --no-inbound").unwrap().inbound.is_none());
        assert!(install("--no-outbound").unwrap().outbound.is_none());
        assert!(install("--user 0 --no-outbound --no-inbound").is_err());
    }

    #[test]
    fn what_would_not_work_is_refused() {
        let refused = |flags: &str, word: &str| {
            let error = install(flags).unwrap_err();
            assert!(error.contains(word), "{flags}: {error}");
        };
        refused("", "--user");
        refused("--user no-such-user-here", "no-such-user-here");
        refused("--user 0 --exclude-port 0", "0 is not in 1..");
        refused("--user 0 --exclude-port x", "'x'");
        refused("--user 0 --exclude-network 10.0.0.0/40", "10.0.0.0/40");
        refused("--user 0 --include-inbound-port 15008", "own");
        refused("--user 0 --outbound-port 15006", "port 15006 would be");
        refused("--user 0 --inbound-port 15008", "port 15008 would be");
        assert!(install("--user 0 --no-outbound --inbound-port 15001").is_ok());
        refused("--user 0 --exclude-inbound-network ::/129", "::/129");
        refused("--user 0 --include-inbound-network x,10.0.0.0/8", "`x`");
    }

    #[test]
    fn a_user_is_found_by_name() {
        let users = "root:x:0:0:root:/root:/bin/bash\nweft:x:1337:1337::/:/sbin/nologin\nbad\n";
        assert_eq!(number_in(users, "weft"), Some(1337));
        assert_eq!(number_in(users, "root"), Some(0));
        assert_eq!(number_in(users, "wef"), None);
        assert_eq!(number_in(users, "bad"), None);
    }
}
