//! Network namespaces for one test: hosts with addresses of their own and cables between them. They go with the test, and
//! those of a test that was killed go with the next one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_uid};

use crate::harness::told::{is_root, left_out};

/// The user that apps run as. Whoever makes the test runs the sidecars.
pub(crate) const APP: u32 = 1000;

/// Whether namespaces can be made here. Where CI runs they must be.
pub(crate) fn is_possible() -> bool {
    let tool = Command::new("ip").arg("-V").output().is_ok();
    if !tool {
        left_out("network namespaces need the command `ip`");
    }
    tool && is_root("network namespaces")
}

/// Runs a command of the system's to its end; its output. Panics when it fails.
pub(crate) fn system(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A host: a network namespace, with its loopback up.
#[derive(Debug)]
pub(crate) struct Host {
    name: String,
}

/// Where `ip` keeps them.
const RUN: &str = "/run/netns";

impl Host {
    /// A new one.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("weft-{}-{number}", std::process::id());
        system(&format!("ip netns add {name}"));
        let host = Self { name };
        host.system("ip link set lo up");
        host
    }

    /// Runs this on a thread that is on the host, as this user. What it makes (sockets, processes) stays there.
    pub(crate) fn as_user<T: Send>(&self, user: u32, work: impl FnOnce() -> T + Send) -> T {
        let place = self.place();
        let on_host = move || {
            let file = File::open(&place).unwrap();
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(LinkNameSpaceType::Network),
            )
            .unwrap();
            if user != 0 {
                set_thread_uid(rustix::process::Uid::from_raw(user)).unwrap();
            }
            work()
        };
        let joined = std::thread::scope(|scope| scope.spawn(on_host).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The same as root, which the sidecars are.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.as_user(0, work)
    }

    /// Runs a command there; its output.
    pub(crate) fn system(&self, command: &str) -> String {
        system(&format!("ip netns exec {} {command}", self.name))
    }

    /// The rules that are in force there.
    pub(crate) fn rules(&self) -> String {
        self.system("nft list ruleset")
    }

    /// From here on no packet goes through these cables, either way, and nobody is told.
    pub(crate) fn cut(&self, nets: &[u8]) {
        let names: Vec<String> = nets.iter().map(|net| format!("\"net{net}\"")).collect();
        let names = names.join(", ");
        let rules = format!(
            "table inet cut {{\n\
             chain in {{ type filter hook input priority 0; iifname {{ {names} }} drop; }}\n\
             chain out {{ type filter hook output priority 0; oifname {{ {names} }} drop; }}\n}}\n"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), rules).unwrap();
        self.system(&format!("nft -f {}", file.path().display()));
    }

    /// They are whole again.
    pub(crate) fn mend(&self) {
        self.system("nft delete table inet cut");
    }

    fn place(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    /// A cable to another host. Both ends get an address of each family: `10.77.NET.x` and `fd77:NET::x`, 1 here and 2
    /// there.
    pub(crate) fn cable(&self, other: &Self, net: u8) {
        let (here, there) = (format!("net{net}"), format!("net{net}"));
        system(&format!(
            "ip link add {here} netns {} type veth peer name {there} netns {}",
            self.name, other.name
        ));
        for (host, number) in [(self, 1), (other, 2)] {
            host.system(&format!("ip addr add 10.77.{net}.{number}/24 dev net{net}"));
            // Without the wait for somebody else who may have it.
            host.system(&format!(
                "ip addr add fd77:{net}::{number}/64 dev net{net} nodad"
            ));
            host.system(&format!("ip link set net{net} up"));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn remove(name: &str) {
    // Fails only when somebody else has removed it.
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Removes what tests left that were killed.
fn sweep() {
    for entry in std::fs::read_dir(RUN).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix("weft-")
            .and_then(|rest| rest.split_once('-'));
        if let Some((process, _)) = owner
            && process.bytes().all(|byte| byte.is_ascii_digit())
            && !Path::new("/proc").join(process).exists()
        {
            remove(&name);
        }
    }
}
