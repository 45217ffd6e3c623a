//! What is redirected and what is spared, as a list of steps that both kinds of rules are written from. Pure.

use std::collections::BTreeSet;

use weft_runtime::config::Network;

/// DNS over TCP: names must be found before anything else works, also when the proxy does not.
const DNS: u16 = 53;
/// Whoever administers a machine over the network must not lock himself out.
const SSH: u16 = 22;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// What the app sends, where that is redirected.
    pub(super) outbound: Option<Outbound>,
    /// What it is sent, where that is redirected.
    pub(super) inbound: Option<Inbound>,
}

/// Connections of this network namespace to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outbound {
    /// Where the sidecar takes them.
    pub(super) to: u16,
    /// Whose connections are left alone: the sidecar's own.
    pub(super) users: BTreeSet<u32>,
    pub(super) choice: Choice,
}

/// Connections of others to this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inbound {
    /// Where the sidecar takes those in plaintext.
    pub(super) to: u16,
    /// Where the sidecar listens itself: mutual TLS, the admin pages.
    pub(super) own_ports: BTreeSet<u16>,
    pub(super) choice: Choice,
}

/// Which connections of one way, by the port that they go to and the network of the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) exclude_ports: BTreeSet<u16>,
    pub(super) exclude_networks: BTreeSet<Network>,
    /// Only these, where there are any.
    pub(super) include_ports: BTreeSet<u16>,
    pub(super) include_networks: BTreeSet<Network>,
}

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Outbound,
    Inbound,
}

/// One step: the first whose condition holds decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) way: Way,
    pub(super) when: When,
    /// The port to redirect to; `None` spares the connection.
    pub(super) to: Option<u16>,
    /// The same in plain words, which go with the rule as its comment.
    pub(super) words: String,
}

/// All of what is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct When {
    pub(super) user: Option<u32>,
    pub(super) loopback: bool,
    /// The other side's: where a connection goes to, or where it comes from.
    pub(super) network: Option<Network>,
    pub(super) ports: BTreeSet<u16>,
}

impl Step {
    /// Whether it takes the first packet of a connection only, and so leaves alone those of the app that were open before
    /// there were rules: the system follows no connections until then, and takes their next packet for the first.
    ///
    /// Not so of what the app is sent: whoever sends another packet first would get around the sidecar.
    pub(super) fn takes_beginnings_only(&self) -> bool {
        self.way == Way::Outbound && self.to.is_some()
    }
}

impl Wish {
    /// The steps, those of each way in their order.
    pub(super) fn steps(&self) -> Vec<Step> {
        let outbound = self.outbound.iter().flat_map(outbound);
        outbound
            .chain(self.inbound.iter().flat_map(inbound))
            .collect()
    }
}

fn outbound(wish: &Outbound) -> Vec<Step> {
    let mut list = List::new(Way::Outbound);
    for &user in &wish.users {
        let when = When {
            user: Some(user),
            ..When::default()
        };
        list.spare(when, &format!("user {user} (the sidecar)"));
    }
    list.spare(loopback(), "what stays on this host (loopback)");
    list.spare(ports([DNS]), &format!("DNS over TCP ({})", named([DNS])));
    list.choose(&wish.choice, wish.to);
    list.steps
}

fn inbound(wish: &Inbound) -> Vec<Step> {
    let mut list = List::new(Way::Inbound);
    list.spare(loopback(), "what stays on this host (loopback)");
    let own = wish.own_ports.iter().copied().chain([wish.to]);
    let own: BTreeSet<u16> = own.collect();
    list.spare(
        ports(own.iter().copied()),
        &format!("{} (the sidecar)", named(own)),
    );
    if !wish.choice.include_ports.contains(&SSH) {
        list.spare(ports([SSH]), &format!("SSH ({})", named([SSH])));
    }
    list.choose(&wish.choice, wish.to);
    list.steps
}

struct List {
    way: Way,
    steps: Vec<Step>,
}

impl List {
    fn new(way: Way) -> Self {
        Self {
            way,
            steps: Vec::new(),
        }
    }

    fn spare(&mut self, when: When, words: &str) {
        self.steps.push(Step {
            way: self.way,
            when,
            to: None,
            words: format!("spared: {words}"),
        });
    }

    /// Spares what is excluded, and redirects the rest, or what is included of it.
    fn choose(&mut self, choice: &Choice, to: u16) {
        if !choice.exclude_ports.is_empty() {
            let which = choice.exclude_ports.iter().copied();
            self.spare(ports(which.clone()), &format!("to {}", named(which)));
        }
        for &network in &choice.exclude_networks {
            let when = When {
                network: Some(network),
                ..When::default()
            };
            let words = self.other_side(network);
            self.spare(when, &words);
        }
        self.take(&choice.include_networks, &choice.include_ports, to);
    }

    fn take(&mut self, networks: &BTreeSet<Network>, ports: &BTreeSet<u16>, to: u16) {
        let networks: Vec<Option<Network>> = match networks.is_empty() {
            true => vec![None],
            false => networks.iter().copied().map(Some).collect(),
        };
        for network in networks {
            let which = match (network, ports.is_empty()) {
                (None, true) => "every other TCP connection".to_owned(),
                (None, false) => format!("TCP to {}", named(ports.iter().copied())),
                (Some(network), true) => format!("TCP {}", self.other_side(network)),
                (Some(network), false) => format!(
                    "TCP {}, {}",
                    self.other_side(network),
                    named(ports.iter().copied())
                ),
            };
            self.steps.push(Step {
                way: self.way,
                when: When {
                    network,
                    ports: ports.clone(),
                    ..When::default()
                },
                to: Some(to),
                words: format!("redirected to port {to}: {which}"),
            });
        }
    }

    fn other_side(&self, network: Network) -> String {
        match self.way {
            Way::Outbound => format!("to {network}"),
            Way::Inbound => format!("from {network}"),
        }
    }
}

fn loopback() -> When {
    When {
        loopback: true,
        ..When::default()
    }
}

fn ports(ports: impl IntoIterator<Item = u16>) -> When {
    When {
        ports: ports.into_iter().collect(),
        ..When::default()
    }
}

/// The most ports that a comment lists: rules hold no long ones.
const NAMED: usize = 4;

fn named(ports: impl IntoIterator<Item = u16>) -> String {
    let all: Vec<String> = ports.into_iter().map(|port| port.to_string()).collect();
    let (shown, more) = all.split_at(all.len().min(NAMED));
    let word = if all.len() == 1 { "port" } else { "ports" };
    match more.len() {
        0 => format!("{word} {}", shown.join(" ")),
        more => format!("{word} {} and {more} more", shown.join(" ")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Without these, and of the rest the same for both ways.
    fn choice(ports: impl IntoIterator<Item = u16>, networks: [&str; 2]) -> Choice {
        let all = |networks: [&str; 2]| networks.map(|text| text.parse().unwrap()).into();
        Choice {
            exclude_ports: ports.into_iter().collect(),
            exclude_networks: all(networks),
            include_ports: [80, 8080].into(),
            include_networks: all(["10.0.0.0/8", "fd00::/8"]),
        }
    }

    /// Everything that can be asked for, at once.
    pub(in crate::intercept) fn all() -> Wish {
        Wish {
            outbound: Some(Outbound {
                to: 15_001,
                users: [1337].into(),
                choice: choice(9000..9020, ["192.168.0.0/16", "fe80::/10"]),
            }),
            inbound: Some(Inbound {
                to: 15_006,
                own_ports: [15_000, 15_008].into(),
                choice: choice([9100], ["172.16.0.0/12", "fd77::/16"]),
            }),
        }
    }

    fn words(wish: &Wish) -> Vec<String> {
        wish.steps().into_iter().map(|step| step.words).collect()
    }

    #[test]
    fn spared_comes_before_redirected() {
        assert_eq!(
            words(&all()),
            [
                "spared: user 1337 (the sidecar)",
                "spared: what stays on this host (loopback)",
                "spared: DNS over TCP (port 53)",
                "spared: to ports 9000 9001 9002 9003 and 16 more",
                "spared: to 192.168.0.0/16",
                "spared: to fe80::/10",
                "redirected to port 15001: TCP to 10.0.0.0/8, ports 80 8080",
                "redirected to port 15001: TCP to fd00::/8, ports 80 8080",
                "spared: what stays on this host (loopback)",
                "spared: ports 15000 15006 15008 (the sidecar)",
                "spared: SSH (port 22)",
                "spared: to port 9100",
                "spared: from 172.16.0.0/12",
                "spared: from fd77::/16",
                "redirected to port 15006: TCP from 10.0.0.0/8, ports 80 8080",
                "redirected to port 15006: TCP from fd00::/8, ports 80 8080",
            ]
        );
    }

    #[test]
    fn ssh_is_taken_when_it_is_asked_for() {
        let mut wish = all();
        wish.outbound = None;
        let choice = &mut wish.inbound.as_mut().unwrap().choice;
        choice.exclude_networks.clear();
        choice.include_ports = [22, 8080].into();
        choice.include_networks.clear();
        assert_eq!(
            words(&wish),
            [
                "spared: what stays on this host (loopback)",
                "spared: ports 15000 15006 15008 (the sidecar)",
                "spared: to port 9100",
                "redirected to port 15006: TCP to ports 22 8080",
            ]
        );
    }

    #[test]
    fn of_networks_and_ports_those_that_are_named_must_hold() {
        let taken = |networks: &[&str], ports: &[u16]| {
            let mut wish = all();
            let choice = &mut wish.inbound.as_mut().unwrap().choice;
            choice.include_networks = networks.iter().map(|text| text.parse().unwrap()).collect();
            choice.include_ports = ports.iter().copied().collect();
            let last = words(&wish).pop().unwrap();
            last.replace("redirected to port 15006: ", "")
        };
        assert_eq!(taken(&[], &[]), "every other TCP connection");
        assert_eq!(taken(&[], &[80, 8080]), "TCP to ports 80 8080");
        assert_eq!(taken(&["10.0.0.0/8"], &[]), "TCP from 10.0.0.0/8");
        assert_eq!(
            taken(&["10.0.0.0/8"], &[8080]),
            "TCP from 10.0.0.0/8, port 8080"
        );
    }

    #[test]
    fn words_fit_into_a_comment() {
        let mut wish = all();
        // The longest that there can be.
        let ports: BTreeSet<u16> = (10_000..=65_535).collect();
        let networks: [Network; 1] = ["1111:2222:3333:4444:5555:6666:7777:8888".parse().unwrap()];
        let choice = Choice {
            exclude_ports: ports.clone(),
            exclude_networks: networks.into(),
            include_ports: ports,
            include_networks: networks.into(),
        };
        wish.outbound.as_mut().unwrap().choice = choice.clone();
        wish.inbound.as_mut().unwrap().choice = choice;
        for words in words(&wish) {
            // The shortest limit is that of nftables.
            assert!(words.len() < 128, "{words}");
            assert!(!words.contains(['"', '\\', '\n']), "{words}");
        }
    }
}
