//! Rules for nftables: one table, `inet weft`, changed whole or not at all.

use std::fmt::Write as _;

use super::command::{Failed, Tool};
use super::steps::{Step, Way, When, Wish};

const NFT: Tool = Tool::new("nft");

/// Whether the command is there.
pub(super) fn is_there() -> bool {
    NFT.run(&["--version"], None).is_ok()
}

/// What makes the table as it is wished, whatever it was before. It runs as one transaction.
pub(super) fn script(wish: &Wish) -> String {
    let steps = wish.steps();
    let mut script = String::from(REMOVE);
    script.push_str("table inet weft {\n");
    for (way, hook) in [(Way::Outbound, "output"), (Way::Inbound, "prerouting")] {
        let mut steps = steps.iter().filter(|step| step.way == way).peekable();
        if steps.peek().is_none() {
            continue;
        }
        let name = chain(way);
        // -100 is where destinations are rewritten; older commands know no name for it here.
        let _ = write!(
            script,
            "    chain {name} {{\n        type nat hook {hook} priority -100; policy accept;\n"
        );
        for step in steps {
            let _ = writeln!(script, "        {}", rule(step));
        }
        script.push_str("    }\n");
    }
    script.push_str("}\n");
    script
}

/// Made first, so that it is there to be deleted.
const REMOVE: &str = "table inet weft\ndelete table inet weft\n";

fn chain(way: Way) -> &'static str {
    match way {
        Way::Outbound => "outbound",
        Way::Inbound => "inbound",
    }
}

fn rule(step: &Step) -> String {
    let When {
        user,
        loopback,
        network,
        ports,
    } = &step.when;
    let mut parts = Vec::new();
    if let Some(user) = user {
        parts.push(format!("meta skuid {user}"));
    }
    if *loopback {
        let side = match step.way {
            Way::Outbound => "oifname",
            Way::Inbound => "iifname",
        };
        parts.push(format!("{side} \"lo\""));
    }
    if let Some(network) = network {
        let family = if network.is_ipv4() { "ip" } else { "ip6" };
        let side = match step.way {
            Way::Outbound => "daddr",
            Way::Inbound => "saddr",
        };
        parts.push(format!("{family} {side} {network}"));
    }
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        parts.push(format!("tcp dport {{ {} }}", ports.join(", ")));
    } else if step.to.is_some() && !step.takes_beginnings_only() {
        parts.push("meta l4proto tcp".to_owned());
    }
    if step.takes_beginnings_only() {
        parts.push("tcp flags & (fin | syn | rst | ack) == syn".to_owned());
    }
    parts.push(match step.to {
        Some(port) => format!("redirect to :{port}"),
        None => "return".to_owned(),
    });
    parts.push(format!("comment \"{}\"", step.words));
    parts.join(" ")
}

/// Makes the table as it is wished.
pub(super) fn install(wish: &Wish) -> Result<(), Failed> {
    NFT.run(&["-f", "-"], Some(&script(wish))).map(|_| ())
}

/// Removes the table; that there is none is no failure.
pub(super) fn remove() -> Result<(), Failed> {
    NFT.run(&["-f", "-"], Some(REMOVE)).map(|_| ())
}

/// The table as it is installed; `None` when there is none.
pub(super) fn installed() -> Result<Option<String>, Failed> {
    // Asked for by its name, a table that is not there would be an error like any other.
    let tables = NFT.run(&["list", "tables", "inet"], None)?;
    if !tables.lines().any(|line| line.trim() == "table inet weft") {
        return Ok(None);
    }
    NFT.run(&["list", "table", "inet", "weft"], None).map(Some)
}

/// The comments of a table, by way.
pub(super) fn words(table: &str) -> Vec<(Way, String)> {
    let mut way = None;
    let mut found = Vec::new();
    for line in table.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("chain ") {
            way = [Way::Outbound, Way::Inbound]
                .into_iter()
                .find(|&way| name.split(' ').next() == Some(chain(way)));
        }
        let comment = line
            .rsplit_once("comment \"")
            .and_then(|(_, rest)| rest.strip_suffix('"'));
        if let (Some(way), Some(words)) = (way, comment) {
            found.push((way, words.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::steps::tests::all;
    use super::*;

    #[test]
    fn the_script_says_it_all() {
        let mut wish = all();
        wish.outbound.as_mut().unwrap().choice.exclude_ports = [9000, 9001].into();
        assert_eq!(
            script(&wish),
            r#"table inet weft
delete table inet weft
table inet weft {
    chain outbound {
        type nat hook output priority -100; policy accept;
        meta skuid 1337 return comment "spared: user 1337 (the sidecar)"
        oifname "lo" return comment "spared: what stays on this host (loopback)"
        tcp dport { 53 } return comment "spared: DNS over TCP (port 53)"
        tcp dport { 9000, 9001 } return comment "spared: to ports 9000 9001"
        ip daddr 192.168.0.0/16 return comment "spared: to 192.168.0.0/16"
        ip6 daddr fe80::/10 return comment "spared: to fe80::/10"
        ip daddr 10.0.0.0/8 tcp dport { 80, 8080 } tcp flags & (fin | syn | rst | ack) == syn redirect to :15001 comment "redirected to port 15001: TCP to 10.0.0.0/8, ports 80 8080"
        ip6 daddr fd00::/8 tcp dport { 80, 8080 } tcp flags & (fin | syn | rst | ack) == syn redirect to :15001 comment "redirected to port 15001: TCP to fd00::/8, ports 80 8080"
    }
    chain inbound {
        type nat hook prerouting priority -100; policy accept;
        iifname "lo" return comment "spared: what stays on this host (loopback)"
        tcp dport { 15000, 15006, 15008 } return comment "spared: ports 15000 15006 15008 (the sidecar)"
        tcp dport { 22 } return comment "spared: SSH (port 22)"
        tcp dport { 9100 } return comment "spared: to port 9100"
        ip saddr 172.16.0.0/12 return comment "spared: from 172.16.0.0/12"
        ip6 saddr fd77::/16 return comment "spared: from fd77::/16"
        ip saddr 10.0.0.0/8 tcp dport { 80, 8080 } redirect to :15006 comment "redirected to port 15006: TCP from 10.0.0.0/8, ports 80 8080"
        ip6 saddr fd00::/8 tcp dport { 80, 8080 } redirect to :15006 comment "redirected to port 15006: TCP from fd00::/8, ports 80 8080"
    }
}
"#
        );
    }

    #[test]
    fn where_no_ports_are_named_it_is_tcp_still() {
        let mut wish = all();
        wish.inbound.as_mut().unwrap().choice.include_ports.clear();
        let rules = script(&wish);
        for rule in [
            r#"  ip saddr 10.0.0.0/8 meta l4proto tcp redirect to :15006 comment "redirected to port 15006: TCP from 10.0.0.0/8""#,
            r#"  ip6 saddr fd00::/8 meta l4proto tcp redirect to :15006 comment "redirected to port 15006: TCP from fd00::/8""#,
        ] {
            assert!(rules.contains(rule), "no {rule} in\n{rules}");
        }
        wish.inbound
            .as_mut()
            .unwrap()
            .choice
            .include_networks
            .clear();
        let rules = script(&wish);
        let rule = r#"  meta l4proto tcp redirect to :15006 comment "redirected to port 15006: every other TCP connection""#;
        assert!(rules.contains(rule), "no {rule} in\n{rules}");
    }

    #[test]
    fn a_way_that_is_not_wished_has_no_chain() {
        let mut wish = all();
        wish.inbound = None;
        assert!(!script(&wish).contains("prerouting"));
        wish.outbound = None;
        assert!(!script(&wish).contains("chain"));
    }

    #[test]
    fn the_words_are_found_again() {
        let wish = all();
        let expected: Vec<(Way, String)> = wish
            .steps()
            .into_iter()
            .map(|step| (step.way, step.words))
            .collect();
        assert_eq!(words(&script(&wish)), expected);
    }
}
