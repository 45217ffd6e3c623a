//! Optimised builds have the profile of what proxies do and are one file, and nothing else is (`deploy/release/rustc`).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn release() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/release")
}

/// What the compiler would be called with where cargo asks for this.
fn called_with(asked: &[&str], counts: Option<&str>) -> String {
    let mut wrapper = Command::new(release().join("rustc"));
    wrapper
        .env_remove("WEFT_COUNT")
        .envs(counts.map(|into| ("WEFT_COUNT", into)));
    let output = wrapper.arg("echo").args(asked).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const OPTIMISED: [&str; 6] = [
    "src/lib.rs",
    "-C",
    "panic=abort",
    "-C",
    "codegen-units=1",
    "-Cdebuginfo=1",
];

#[test]
fn an_optimised_build_is_given_the_profile_and_no_other_is() {
    let profile = format!(
        "-Cprofile-use={}",
        release().join("weft.profdata").display()
    );
    let said = called_with(&OPTIMISED, None);
    assert!(said.starts_with(&OPTIMISED.join(" ")), "{said}");
    assert!(said.contains(&profile), "{said}");
    // Debug builds, and whatever of an optimised one runs in the building of it; the build that makes the profile.
    for other in [
        &["src/lib.rs", "-C", "debuginfo=1"][..],
        &["build.rs", "-C", "codegen-units=1"],
        &["src/lib.rs", "-C", "panic=abort", "-C", "codegen-units=16"],
        &[
            "src/lib.rs",
            "-C",
            "panic=abort",
            "-C",
            "codegen-units=1",
            "-Cprofile-use=of/their/own",
        ],
    ] {
        assert_eq!(called_with(other, None).trim_end(), other.join(" "));
        assert_eq!(called_with(other, Some("into")).trim_end(), other.join(" "));
    }
    let counting = called_with(&OPTIMISED, Some("into"));
    assert!(
        counting.contains("-Cprofile-generate=into") && !counting.contains("profile-use"),
        "{counting}"
    );
}

/// Where the C library is there in that form: `cc` names the file with its directory then.
#[test]
fn an_optimised_binary_is_static_and_nothing_else_is() {
    const STATIC: &str = "-Ctarget-feature=+crt-static";
    let library = Command::new("cc").arg("-print-file-name=libc.a").output();
    let library = String::from_utf8(library.unwrap().stdout).unwrap();
    let binary = [&["--crate-type", "bin"][..], &OPTIMISED].concat();
    let is_there = Path::new(library.trim_end()).exists();
    assert_eq!(called_with(&binary, None).contains(STATIC), is_there);
    for other in [
        &["--crate-type", "lib"][..],
        &["--crate-type", "proc-macro"],
        // For another system, as its builder wants it, or by a linker that may have another library.
        &[
            "--crate-type",
            "bin",
            "--target",
            "aarch64-unknown-linux-gnu",
        ],
        &["--crate-type", "bin", "-C", "target-feature=-crt-static"],
        &["--crate-type", "bin", "-C", "linker=clang"],
    ] {
        let said = called_with(&[other, &OPTIMISED].concat(), None);
        assert!(!said.contains(STATIC), "{said}");
    }
    let debug = ["--crate-type", "bin", "-C", "debuginfo=1"];
    assert!(!called_with(&debug, None).contains(STATIC));
}

/// Functions are found by names that this word of cargo's is in: with another target, flag or dependency it would be another.
#[test]
fn names_are_the_same_however_a_version_is_built() {
    let said = |metadata: &str| {
        let asked = [&OPTIMISED[..], &["-C", metadata, "-C", "extra-filename=-1"]].concat();
        called_with(&asked, None)
    };
    assert_eq!(said("metadata=0123456789abcdef"), said("metadata=other"));
    // Of this package, which is what cargo runs the test in.
    let metadata = format!(
        "metadata={}-{} -C extra-filename=-1",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION")
    );
    assert!(said("metadata=other").contains(&metadata));
    // A debug build keeps what cargo says.
    assert!(called_with(&["-C", "metadata=other"], None).contains("metadata=other"));
}

/// One that it cannot read would fail an optimised build, which no other test makes.
#[test]
fn the_compiler_reads_the_profile() {
    let out = tempfile::tempdir().unwrap();
    let source = out.path().join("some.rs");
    std::fs::write(&source, "pub fn twice(number: u32) -> u32 { number * 2 }").unwrap();
    let output = Command::new(release().join("rustc"))
        .env_remove("WEFT_COUNT")
        .arg("rustc")
        .args([
            "--crate-type=lib",
            "--edition=2024",
            "-C",
            "panic=abort",
            "-C",
            "codegen-units=1",
            "-O",
        ])
        .args(["--out-dir".as_ref(), out.path(), source.as_ref()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
