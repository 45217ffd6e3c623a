//! Has the linker put side by side what a proxy runs (`link.ld`, which `tests/bench/layout` makes): a third of an idle
//! sidecar's memory was code that it never uses, mapped with its neighbours. And pack what the loader reads.
//!
//! In optimised builds with the toolchain's own linker only: others do not all understand it, and nothing but memory depends
//! on it.

#![allow(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts by the environment"
)]

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link.ld");
    let is = |name, value| env::var(name).is_ok_and(|is| is == value);
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let others = env::var_os("RUSTC_LINKER").is_some() || flags.contains("link");
    if is("PROFILE", "release")
        && is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && !others
    {
        let directory = env!("CARGO_MANIFEST_DIR");
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{directory}/link.ld");
        if env::var("HOST") == env::var("TARGET") && reads_packed_relocations() {
            println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
}

/// Whether the C library here is one that knows relocations in their packed form (glibc 2.36, 2022). Each process reads all
/// of them when it starts: 20 KiB so, and 460 KiB in the old form.
fn reads_packed_relocations() -> bool {
    let asked = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let said = asked
        .ok()
        .and_then(|asked| String::from_utf8(asked.stdout).ok());
    let version = said
        .as_deref()
        .and_then(|said| said.trim().strip_prefix("glibc 2."));
    version.is_some_and(|minor| minor.parse().is_ok_and(|minor: u32| minor >= 36))
}
