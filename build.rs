//! Has the linker put side by side what a proxy runs (`link.ld`, which `tests/bench/order` makes): a third of an idle
//! sidecar's memory was code that it never uses, mapped with its neighbours.
//!
//! In optimised builds with the toolchain's own linker only: others do not all understand it, and nothing but memory depends
//! on it.

#![allow(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts by the environment"
)]

use std::env;

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
    }
}
