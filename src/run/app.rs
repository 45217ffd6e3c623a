//! The app of `weft run`: a child process that is started, sent signals, and waited for; and, where we are the first
//! process of a container, every orphan that comes to us.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::process::Command;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getrlimit, kill_process, setrlimit,
    wait,
};
use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};
use tokio::signal::unix;

/// The exit code when the sidecar has failed and not the app, as `timeout`, `env` and `docker run` have it.
pub(super) const OURS: u8 = 125;
/// There is such a program, but it cannot be run.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
const NOT_FOUND: u8 = 127;
/// Added to a signal's number.
const BY_SIGNAL: i32 = 128;

/// What the app is told to speak to as an HTTP proxy, and what it is to reach without one.
const PROXY: [&str; 2] = ["http_proxy", "HTTP_PROXY"];
const NO_PROXY: [&str; 2] = ["no_proxy", "NO_PROXY"];
const LOOPBACK: &str = "localhost,127.0.0.1,::1";

/// A program to be, with all that it is given.
#[derive(Debug)]
pub(super) struct Program {
    command: Command,
    /// The descriptors that it may open: as many as we might before we raised the limit for ourselves.
    descriptors: Option<u64>,
}

/// The running app.
#[derive(Debug, Clone, Copy)]
pub(super) struct App {
    pid: Pid,
}

impl Program {
    /// `words` are the program and its arguments; there is at least the program. Call it before the process raises its
    /// limit of descriptors.
    pub(super) fn new(words: &[OsString]) -> Self {
        let mut command = Command::new(words.first().map(OsString::as_os_str).unwrap_or_default());
        command.args(words.get(1..).unwrap_or_default());
        // Ours alone: a token is a secret, and the app's standard input is the app's.
        command.env_remove(crate::role::TOKEN);
        command.env_remove(crate::role::EXIT_WITH_PARENT);
        Self {
            command,
            descriptors: getrlimit(Resource::Nofile).current,
        }
    }

    /// Tells it to use the sidecar as its HTTP proxy, unless its `environment` already names one; says whether it did.
    pub(super) fn use_proxy(
        &mut self,
        outbound: SocketAddr,
        environment: impl Fn(&str) -> Option<String>,
    ) -> bool {
        let mut set = |names: [&str; 2], value: &str| {
            let free = names.iter().all(|name| environment(name).is_none());
            if free {
                for name in names {
                    self.command.env(name, value);
                }
            }
            free
        };
        let is_told = set(PROXY, &format!("http://{outbound}"));
        set(NO_PROXY, LOOPBACK);
        is_told
    }

    /// Its name, for people.
    pub(super) fn name(&self) -> String {
        self.command.get_program().to_string_lossy().into_owned()
    }

    /// Starts it, with our environment, standard streams, working directory and process group. On failure the exit code
    /// says, as a shell's does, whether there is such a program.
    pub(super) fn start(&mut self) -> Result<App, (u8, io::Error)> {
        let ours = getrlimit(Resource::Nofile);
        let with = |current| {
            let maximum = ours.maximum;
            setrlimit(Resource::Nofile, Rlimit { current, maximum })
        };
        // A child has its parent's limits, and programs that use `select` break with more than 1,024.
        let lowered = with(self.descriptors);
        let child = with_huge_pages(|| self.command.spawn());
        if lowered.is_ok()
            && let Err(error) = with(ours.current)
        {
            tracing::warn!(%error, "cannot raise the limit of open files again");
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => (NOT_FOUND, error),
            _ => (NOT_EXECUTABLE, error),
        };
        let child = child.map_err(failed)?;
        // Waited for below, together with everybody else's children.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(io::Error::other("a process without a number")))?;
        Ok(App { pid })
    }
}

/// A child also inherits that its parent does without huge pages, as this allocator does (docs/decisions/0064): a database is
/// slower so. For as long as that takes, the proxy may have them too.
fn with_huge_pages<T>(start: impl FnOnce() -> T) -> T {
    let without = transparent_huge_pages_are_disabled().unwrap_or_default();
    let change = |disable| {
        if without && let Err(error) = disable_transparent_huge_pages(disable) {
            tracing::warn!(%error, disable, "cannot say whether there are to be huge pages");
        }
    };
    change(false);
    let started = start();
    change(true);
    started
}

impl App {
    /// The process's number.
    pub(super) fn id(self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends it a signal. Only for who has not yet been told that it has ended: the number may be another's after that.
    pub(super) fn signal(self, signal: Signal) {
        if let Err(error) = kill_process(self.pid, signal) {
            // It has ended and waits for us to notice.
            tracing::debug!(%error, ?signal, "the app did not take a signal");
        }
    }
}

/// Our children: the app, and as the first process of a container everybody whose parent has ended.
#[derive(Debug)]
pub(super) struct Children {
    news: unix::Signal,
}

impl Children {
    /// Hears of their ends from here on.
    pub(super) fn listen() -> io::Result<Self> {
        unix::signal(unix::SignalKind::child()).map(|news| Self { news })
    }

    /// Buries whoever ends until the app does, and gives its exit code. May be dropped while it waits.
    pub(super) async fn until_ended(&mut self, app: App) -> u8 {
        loop {
            match bury(app) {
                Ok(Some(status)) => return exit_code(status),
                Ok(None) => {}
                Err(error) => {
                    // Only if somebody else has waited for it, and there is nobody else.
                    tracing::error!(%error, "cannot wait for the app");
                    return OURS;
                }
            }
            // One signal may stand for many children: hence the loop in `bury`. Those that end between the two are
            // told by a signal that is kept for us.
            self.news.recv().await;
        }
    }
}

/// Buries everybody who has ended; the app's status when it is among them.
fn bury(app: App) -> rustix::io::Result<Option<WaitStatus>> {
    while let Some((pid, status)) = wait(WaitOptions::NOHANG)? {
        if pid == app.pid {
            return Ok(Some(status));
        }
        tracing::debug!(pid = pid.as_raw_nonzero().get(), "an orphan has ended");
    }
    Ok(None)
}

/// What a shell says of it.
fn exit_code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => BY_SIGNAL + signal,
        (None, None) => i32::from(OURS),
    };
    u8::try_from(code).unwrap_or(OURS)
}

/// The signals that are the app's alone.
#[derive(Debug)]
pub(super) struct PassedOn {
    hangup: unix::Signal,
    quit: unix::Signal,
    user1: unix::Signal,
    user2: unix::Signal,
    window: unix::Signal,
}

impl PassedOn {
    /// Catches them from here on; before that most of them end the process.
    pub(super) fn listen() -> io::Result<Self> {
        use unix::{SignalKind, signal};
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// Passes them on for as long as it is polled.
    pub(super) async fn to(&mut self, app: App) -> std::convert::Infallible {
        loop {
            let signal = tokio::select! {
                _ = self.hangup.recv() => Signal::HUP,
                _ = self.quit.recv() => Signal::QUIT,
                _ = self.user1.recv() => Signal::USR1,
                _ = self.user2.recv() => Signal::USR2,
                _ = self.window.recv() => Signal::WINCH,
            };
            app.signal(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn proxies(environment: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut program = Program::new(&["app".into(), "-x".into()]);
        let outbound = "127.0.0.1:15001".parse().unwrap();
        program.use_proxy(outbound, |name| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        let text = |text: &std::ffi::OsStr| text.to_str().unwrap().to_owned();
        let set = program.command.get_envs();
        set.filter_map(|(name, value)| Some((text(name), text(value?))))
            .collect()
    }

    #[test]
    fn the_proxy_is_the_sidecar_unless_the_app_has_one() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let url = "http://127.0.0.1:15001";
        let ours = [pair("HTTP_PROXY", url), pair("http_proxy", url)];
        let direct = [pair("NO_PROXY", LOOPBACK), pair("no_proxy", LOOPBACK)];
        let mut both = [ours.clone(), direct.clone()].concat();
        both.sort();
        assert_eq!(proxies(&[]), both);
        assert_eq!(proxies(&[("http_proxy", "http://proxy:3128")]), direct);
        assert_eq!(proxies(&[("NO_PROXY", "*.internal")]), ours);
    }

    #[test]
    fn what_is_ours_is_not_given_away() {
        let program = Program::new(&["app".into()]);
        let removed: Vec<_> = program
            .command
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name.to_str().unwrap().to_owned())
            .collect();
        assert_eq!(removed, ["WEFT_EXIT_ON_STDIN_EOF", "WEFT_JOIN_TOKEN"]);
    }

    #[test]
    fn a_program_that_cannot_be_started_has_a_shells_code() {
        for (name, code) in [("weft-surely-not-there", 127), ("/etc/passwd", 126)] {
            let (found, error) = Program::new(&[name.into()]).start().unwrap_err();
            assert_eq!(found, code, "{name}: {error}");
        }
    }
}
