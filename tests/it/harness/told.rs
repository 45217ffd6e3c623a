//! What whoever starts the tests says by variables of the environment. It is read here and nowhere else.

use std::io::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

/// The binary under test: the one that cargo made with the tests, unless `WEFT_BINARY` names another, such as an optimised
/// one whose times are to be measured.
pub(crate) static WEFT: LazyLock<String> =
    LazyLock::new(|| told("WEFT_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_weft").to_owned()));

/// A variable's value.
#[allow(
    clippy::disallowed_methods,
    reason = "a test is told by whoever starts it"
)]
pub(crate) fn told(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

/// Whether what is promised is held to the letter: `WEFT_STRICT` says so where an optimised binary has the machine for
/// itself. Elsewhere unhurried code runs beside other tests.
pub(crate) fn is_strict() -> bool {
    told("WEFT_STRICT").is_some()
}

/// How long something may take.
pub(crate) fn at_most(promised: Duration, leniently: Duration) -> Duration {
    if is_strict() { promised } else { leniently }
}

/// Says that the test is left out, and why: in its output, and in the file that `WEFT_LEFT_OUT` names, so that whoever
/// started all tests can count. Where `CI` is set there is nothing to be left out, and this fails.
#[track_caller]
pub(crate) fn left_out(why: &str) {
    assert!(told("CI").is_none(), "CI has everything, but: {why}");
    eprintln!("left out: {why}");
    let Some(file) = told("WEFT_LEFT_OUT") else {
        return;
    };
    let thread = std::thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
    let mut options = std::fs::File::options();
    let mut file = options.create(true).append(true).open(file).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// Whether root runs the tests, as what this names needs. `false`: the test is left out.
#[track_caller]
pub(crate) fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        left_out(&format!("{what} cannot be made without root"));
    }
    root
}
