//! `weft intercept` itself: what it installs, shows, removes, and says when it cannot.

use std::path::PathBuf;
use std::process::Command;

use super::ground::{self, Host};
use super::{weft, weft_says};
use crate::harness::told::WEFT;

const INSTALL: &str = "intercept install --user 1337 --exclude-port 5432 --exclude-network 192.168.0.0/16,fe80::/10 \
     --exclude-inbound-network 10.0.0.0/8,fd00::/8";

#[test]
fn rules_are_installed_once_shown_in_words_and_removed_whole() {
    if !ground::is_possible() {
        return;
    }
    let host = Host::new();
    assert_eq!(
        weft_says(&host, "intercept show"),
        "Nothing is installed in this network namespace.\n"
    );
    let said = weft_says(&host, INSTALL);
    let rules = host.rules();
    assert!(rules.contains("table inet weft"), "{rules}");
    assert_eq!(weft_says(&host, INSTALL), said);
    assert_eq!(host.rules(), rules, "twice is once");
    let shown = weft_says(&host, "intercept show");
    for words in [
        "meta skuid 1337 return",
        "  spared: user 1337 (the sidecar)\n",
        "  spared: DNS over TCP (port 53)\n",
        "  spared: to port 5432\n",
        "  spared: to fe80::/10\n",
        "ip saddr 10.0.0.0/8 return",
        "ip6 saddr fd00::/8 return",
        "  spared: from 10.0.0.0/8\n",
        "  spared: from fd00::/8\n",
        "  redirected to port 15001: every other TCP connection\n",
        "  redirected to port 15006: every other TCP connection\n",
    ] {
        assert!(shown.contains(words), "no {words:?} in\n{shown}");
    }
    // Another wish takes the place of the first.
    weft_says(&host, "intercept install --user 1337 --no-inbound");
    assert!(!host.rules().contains("prerouting"));
    for _ in 0..2 {
        weft_says(&host, "intercept remove");
        assert_eq!(host.rules(), "");
    }
}

#[test]
fn printed_rules_are_not_installed_and_are_those_that_would_be() {
    if !ground::is_possible() {
        return;
    }
    let host = Host::new();
    let printed = weft_says(&host, &format!("{INSTALL} --print"));
    assert_eq!(host.rules(), "");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), printed).unwrap();
    host.system(&format!("nft -f {}", file.path().display()));
    let by_hand = host.rules();
    weft_says(&host, INSTALL);
    assert_eq!(host.rules(), by_hand);
}

/// A PATH on which there are these commands and no others.
fn path_with(commands: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for command in commands {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .iter()
            .map(|folder| PathBuf::from(folder).join(command))
            .find(|path| path.exists())
            .unwrap_or_else(|| panic!("`{command}` is not installed"));
        std::os::unix::fs::symlink(found, directory.path().join(command)).unwrap();
    }
    directory
}

/// `weft intercept WORDS` with this PATH: whether it worked, and all that it said.
fn with_path(host: &Host, path: &tempfile::TempDir, words: &str) -> (bool, String) {
    let output = host.run(|| {
        Command::new(WEFT.as_str())
            .arg("intercept")
            .args(words.split_whitespace())
            .env("PATH", path.path())
            .output()
            .unwrap()
    });
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn what_another_kind_of_rules_held_goes_when_new_ones_are_installed() {
    if !ground::is_possible() {
        return;
    }
    for (first, second) in [("iptables", "nft"), ("nft", "iptables")] {
        let host = Host::new();
        for (port, backend) in [(7, first), (9, second)] {
            let install = "intercept install --user 1337";
            weft_says(
                &host,
                &format!("{install} --exclude-port {port} --backend {backend}"),
            );
        }
        let shown = weft_says(&host, "intercept show");
        assert!(shown.contains("  spared: to port 9\n"), "{shown}");
        assert!(!shown.contains("  spared: to port 7\n"), "{shown}");
        let headings = shown.matches("Connections from here to others").count();
        let families = shown.matches("# IPv").count();
        assert_eq!(headings, families.max(1), "{shown}");
        assert_eq!(families > 0, second == "iptables", "{shown}");
    }
}

#[test]
fn where_there_is_no_nft_iptables_does_it() {
    if !ground::is_possible() {
        return;
    }
    let host = Host::new();
    let path = path_with(&[
        "iptables",
        "iptables-restore",
        "ip6tables",
        "ip6tables-restore",
    ]);
    let table = || {
        let tables = ["iptables", "ip6tables"];
        tables.map(|tool| host.system(&format!("{tool} -t nat -S")))
    };
    let before = table();
    let install = INSTALL.strip_prefix("intercept ").unwrap();
    for _ in 0..2 {
        let (good, said) = with_path(&host, &path, install);
        assert!(
            good && said.starts_with("Installed with iptables.\n"),
            "{said}"
        );
        for rules in table() {
            let jumps = rules.matches("-j WEFT_").count();
            assert_eq!(jumps, 2, "twice is once: {rules}");
        }
    }
    let (_, shown) = with_path(&host, &path, "show");
    assert!(
        shown.contains("# IPv4\n") && shown.contains("# IPv6\n"),
        "{shown}"
    );
    for words in [
        "  spared: user 1337 (the sidecar)\n",
        "-s 10.0.0.0/8 ",
        "-s fd00::/8 ",
        "  spared: from 10.0.0.0/8\n",
        "  spared: from fd00::/8\n",
    ] {
        assert!(shown.contains(words), "no {words:?} in\n{shown}");
    }
    let (good, said) = with_path(&host, &path, "remove");
    assert!(good, "{said}");
    assert_eq!(table(), before, "removed without nft");
    // Whoever removes need not know how it was installed.
    assert!(with_path(&host, &path, install).0);
    assert_ne!(table(), before);
    weft_says(&host, "intercept remove");
    assert_eq!(table(), before);
}

#[test]
fn what_is_missing_is_said() {
    if !ground::is_possible() {
        return;
    }
    let host = Host::new();
    let (good, said) = with_path(&host, &path_with(&[]), "install --user 0");
    assert!(
        !good && said.contains("neither `nft` nor `iptables`"),
        "{said}"
    );
    for words in ["install --user 0", "show", "remove"] {
        let output = host.run(|| {
            Command::new("setpriv")
                .args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"])
                .args([WEFT.as_str(), "intercept"])
                .args(words.split(' '))
                .output()
                .unwrap()
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{words}: {said}");
        assert!(said.contains("CAP_NET_ADMIN"), "{words}: {said}");
    }
    let output = weft(&host, "intercept install --user no-such-user");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no user `no-such-user`"), "{said}");
    assert_eq!(host.rules(), "");
}
