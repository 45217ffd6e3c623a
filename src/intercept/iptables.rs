//! Rules for iptables, where there is no nft: two chains of our own in the `nat` table of each family, changed whole or
//! not at all.

use std::fmt::Write as _;

use super::command::{Failed, Tool};
use super::steps::{Step, Way, When, Wish};

/// How long the lock of the tables is waited for, in seconds.
const LOCK: &str = "5";
/// The most ports that one rule can list.
const PORTS: usize = 15;

/// IPv4 or IPv6, each with tables and commands of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn tables(self) -> Tool {
        match self {
            Self::V4 => Tool::new("iptables"),
            Self::V6 => Tool::new("ip6tables"),
        }
    }

    const fn restore(self) -> Tool {
        match self {
            Self::V4 => Tool::new("iptables-restore"),
            Self::V6 => Tool::new("ip6tables-restore"),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Whether the command is there.
pub(super) fn is_there() -> bool {
    Family::V4.tables().run(&["--version"], None).is_ok()
}

fn chain(way: Way) -> &'static str {
    match way {
        Way::Outbound => "WEFT_OUTBOUND",
        Way::Inbound => "WEFT_INBOUND",
    }
}

const WAYS: [(Way, &str); 2] = [(Way::Outbound, "OUTPUT"), (Way::Inbound, "PREROUTING")];

/// What makes a family's chains as they are wished. `now` is its `nat` table as `iptables -S` prints it.
pub(super) fn script(wish: &Wish, family: Family, now: &str) -> String {
    let steps = wish.steps();
    let mut script = String::from("*nat\n");
    let is_wished = |way| steps.iter().any(|step| step.way == way);
    // A chain that is named is made, or emptied.
    for (way, _) in WAYS {
        if is_wished(way) || has_chain(now, way) {
            let _ = writeln!(script, ":{} - [0:0]", chain(way));
        }
    }
    script.push_str(&without_jumps(now));
    for (way, hook) in WAYS {
        if is_wished(way) {
            for step in steps.iter().filter(|step| step.way == way) {
                for rule in rules(step, family) {
                    let _ = writeln!(script, "-A {} {rule}", chain(way));
                }
            }
            let _ = writeln!(script, "-A {hook} -p tcp -j {}", chain(way));
        } else if has_chain(now, way) {
            let _ = writeln!(script, "-X {}", chain(way));
        }
    }
    script.push_str("COMMIT\n");
    script
}

/// What removes a family's chains; `None` when there are none.
pub(super) fn removal(now: &str) -> Option<String> {
    let there: Vec<Way> = WAYS
        .into_iter()
        .map(|(way, _)| way)
        .filter(|&way| has_chain(now, way))
        .collect();
    if there.is_empty() {
        return None;
    }
    let mut script = String::from("*nat\n");
    for &way in &there {
        let _ = writeln!(script, ":{} - [0:0]", chain(way));
    }
    script.push_str(&without_jumps(now));
    for &way in &there {
        let _ = writeln!(script, "-X {}", chain(way));
    }
    script.push_str("COMMIT\n");
    Some(script)
}

fn has_chain(now: &str, way: Way) -> bool {
    let declared = format!("-N {}", chain(way));
    now.lines().any(|line| line == declared)
}

/// Whether a rule leads to one of our chains, and from elsewhere.
fn is_jump(line: &str) -> bool {
    WAYS.iter().any(|&(way, hook)| {
        line.starts_with(&format!("-A {hook} ")) && line.ends_with(&format!("-j {}", chain(way)))
    })
}

fn without_jumps(now: &str) -> String {
    let jumps = now.lines().filter(|line| is_jump(line));
    jumps
        .map(|line| line.replacen("-A", "-D", 1) + "\n")
        .collect()
}

/// A step is more than one rule where it lists many ports, and none where it is about the other family.
fn rules(step: &Step, family: Family) -> Vec<String> {
    let When {
        user,
        loopback,
        network,
        ports,
    } = &step.when;
    if network.is_some_and(|network| network.is_ipv4() != (family == Family::V4)) {
        return Vec::new();
    }
    let mut before = String::from("-p tcp");
    if step.takes_beginnings_only() {
        before.push_str(" -m tcp --syn");
    }
    if let Some(network) = network {
        let side = match step.way {
            Way::Outbound => "-d",
            Way::Inbound => "-s",
        };
        let _ = write!(before, " {side} {network}");
    }
    if *loopback {
        let side = match step.way {
            Way::Outbound => "-o",
            Way::Inbound => "-i",
        };
        let _ = write!(before, " {side} lo");
    }
    if let Some(user) = user {
        let _ = write!(before, " -m owner --uid-owner {user}");
    }
    let after = format!(
        "-m comment --comment \"{}\" -j {}",
        step.words,
        match step.to {
            Some(port) => format!("REDIRECT --to-ports {port}"),
            None => "RETURN".to_owned(),
        }
    );
    if ports.is_empty() {
        return vec![format!("{before} {after}")];
    }
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    ports
        .chunks(PORTS)
        .map(|ports| {
            let ports = ports.join(",");
            format!("{before} -m multiport --dports {ports} {after}")
        })
        .collect()
}

/// A family's `nat` table as it is now.
fn now(family: Family) -> Result<String, Failed> {
    family.tables().run(&["-w", LOCK, "-t", "nat", "-S"], None)
}

fn restore(family: Family, script: &str) -> Result<(), Failed> {
    let arguments = ["-w", LOCK, "--noflush"];
    family.restore().run(&arguments, Some(script)).map(|_| ())
}

/// Makes the chains of a family as they are wished.
pub(super) fn install(wish: &Wish, family: Family) -> Result<(), Failed> {
    restore(family, &script(wish, family, &now(family)?))
}

/// Removes the chains of a family; that there are none is no failure.
pub(super) fn remove(family: Family) -> Result<(), Failed> {
    match removal(&now(family)?) {
        Some(script) => restore(family, &script),
        None => Ok(()),
    }
}

/// The chains of a family as they are installed, with what leads there; `None` when there are none.
pub(super) fn installed(family: Family) -> Result<Option<String>, Failed> {
    let now = now(family)?;
    if !WAYS.iter().any(|&(way, _)| has_chain(&now, way)) {
        return Ok(None);
    }
    let ours = now.lines().filter(|line| {
        is_jump(line)
            || WAYS.iter().any(|&(way, _)| {
                let name = chain(way);
                *line == format!("-N {name}") || line.starts_with(&format!("-A {name} "))
            })
    });
    Ok(Some(ours.map(|line| format!("{line}\n")).collect()))
}

/// The comments of the chains, by way.
pub(super) fn words(table: &str) -> Vec<(Way, String)> {
    let mut found: Vec<(Way, String)> = Vec::new();
    for line in table.lines() {
        for (way, _) in WAYS {
            let words = line
                .strip_prefix(&format!("-A {} ", chain(way)))
                .and_then(|rule| rule.split_once("--comment \"")?.1.split_once('"'));
            if let Some((words, _)) = words {
                let one = (way, words.to_owned());
                // A step of many ports is many rules.
                if !found.contains(&one) {
                    found.push(one);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::steps::tests::all;
    use super::*;

    /// A table with rules of somebody else's.
    const BARE: &str = "-P PREROUTING ACCEPT\n-P OUTPUT ACCEPT\n-N DOCKER_OUTPUT\n\
         -A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT\n";

    #[test]
    fn a_family_has_its_own_networks_and_many_ports_are_many_rules() {
        assert_eq!(
            script(&all(), Family::V4, BARE),
            r#"*nat
:WEFT_OUTBOUND - [0:0]
:WEFT_INBOUND - [0:0]
-A WEFT_OUTBOUND -p tcp -m owner --uid-owner 1337 -m comment --comment "spared: user 1337 (the sidecar)" -j RETURN
-A WEFT_OUTBOUND -p tcp -o lo -m comment --comment "spared: what stays on this host (loopback)" -j RETURN
-A WEFT_OUTBOUND -p tcp -m multiport --dports 53 -m comment --comment "spared: DNS over TCP (port 53)" -j RETURN
-A WEFT_OUTBOUND -p tcp -m multiport --dports 9000,9001,9002,9003,9004,9005,9006,9007,9008,9009,9010,9011,9012,9013,9014 -m comment --comment "spared: to ports 9000 9001 9002 9003 and 16 more" -j RETURN
-A WEFT_OUTBOUND -p tcp -m multiport --dports 9015,9016,9017,9018,9019 -m comment --comment "spared: to ports 9000 9001 9002 9003 and 16 more" -j RETURN
-A WEFT_OUTBOUND -p tcp -d 192.168.0.0/16 -m comment --comment "spared: to 192.168.0.0/16" -j RETURN
-A WEFT_OUTBOUND -p tcp -m tcp --syn -d 10.0.0.0/8 -m multiport --dports 80,8080 -m comment --comment "redirected to port 15001: TCP to 10.0.0.0/8, ports 80 8080" -j REDIRECT --to-ports 15001
-A OUTPUT -p tcp -j WEFT_OUTBOUND
-A WEFT_INBOUND -p tcp -i lo -m comment --comment "spared: what stays on this host (loopback)" -j RETURN
-A WEFT_INBOUND -p tcp -m multiport --dports 15000,15006,15008 -m comment --comment "spared: ports 15000 15006 15008 (the sidecar)" -j RETURN
-A WEFT_INBOUND -p tcp -m multiport --dports 22 -m comment --comment "spared: SSH (port 22)" -j RETURN
-A WEFT_INBOUND -p tcp -m multiport --dports 9100 -m comment --comment "spared: to port 9100" -j RETURN
-A WEFT_INBOUND -p tcp -s 172.16.0.0/12 -m comment --comment "spared: from 172.16.0.0/12" -j RETURN
-A WEFT_INBOUND -p tcp -s 10.0.0.0/8 -m multiport --dports 80,8080 -m comment --comment "redirected to port 15006: TCP from 10.0.0.0/8, ports 80 8080" -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j WEFT_INBOUND
COMMIT
"#
        );
        let v6 = script(&all(), Family::V6, BARE);
        assert!(v6.contains(" -d fd00::/8 ") && v6.contains(" -d fe80::/10 "));
        assert!(v6.contains(" -s fd00::/8 ") && v6.contains(" -s fd77::/16 "));
        assert!(!v6.contains(" 10.0.0.0/8 ") && !v6.contains(" 172.16.0.0/12 "));
    }

    /// A table as it is after an installation.
    fn full() -> String {
        let jumps = "-A OUTPUT -p tcp -j WEFT_OUTBOUND\n-A PREROUTING -p tcp -j WEFT_INBOUND\n";
        format!("{BARE}-N WEFT_OUTBOUND\n-N WEFT_INBOUND\n{jumps}-A WEFT_INBOUND -j RETURN\n")
    }

    #[test]
    fn a_second_time_nothing_is_there_twice() {
        let script = script(&all(), Family::V4, &full());
        let count = |line: &str| script.lines().filter(|have| *have == line).count();
        assert_eq!(count("-D OUTPUT -p tcp -j WEFT_OUTBOUND"), 1);
        assert_eq!(count("-A OUTPUT -p tcp -j WEFT_OUTBOUND"), 1);
        assert_eq!(count(":WEFT_OUTBOUND - [0:0]"), 1);
        assert!(!script.contains("DOCKER"));
    }

    #[test]
    fn a_way_that_is_no_longer_wished_goes() {
        let mut wish = all();
        wish.inbound = None;
        let script = script(&wish, Family::V4, &full());
        assert!(script.contains("\n-D PREROUTING -p tcp -j WEFT_INBOUND\n"));
        assert!(script.contains("\n-X WEFT_INBOUND\n"));
        assert!(!script.contains("-A WEFT_INBOUND"));
    }

    #[test]
    fn removal_takes_what_is_ours_and_nothing_else() {
        assert_eq!(removal(BARE), None);
        assert_eq!(
            removal(&full()).unwrap(),
            "*nat\n:WEFT_OUTBOUND - [0:0]\n:WEFT_INBOUND - [0:0]\n-D OUTPUT -p tcp -j WEFT_OUTBOUND\n\
             -D PREROUTING -p tcp -j WEFT_INBOUND\n-X WEFT_OUTBOUND\n-X WEFT_INBOUND\nCOMMIT\n"
        );
    }

    #[test]
    fn the_words_are_found_again() {
        let mut wish = all();
        let (outbound, inbound) = (wish.outbound.as_mut(), wish.inbound.as_mut());
        for choice in [&mut outbound.unwrap().choice, &mut inbound.unwrap().choice] {
            choice.exclude_networks.clear();
            choice.include_networks.clear();
        }
        let expected: Vec<(Way, String)> = wish
            .steps()
            .into_iter()
            .map(|step| (step.way, step.words))
            .collect();
        assert_eq!(words(&script(&wish, Family::V4, "")), expected);
    }
}
