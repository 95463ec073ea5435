//! Builds the eBPF objects, and then the programs that embed them.

use anyhow::{Context as _, Result};

use crate::{cmd, paths, toolchain};

/// What the machine runs.
pub const HOST: &str = "x86_64-unknown-linux-gnu";

/// Builds everything that a guest runs.
pub fn run() -> Result<()> {
    ebpf()?;
    user_space()
}

/// The linker's flags are in `.cargo/config.toml`.
fn ebpf() -> Result<()> {
    toolchain::bpf_linker().context("`bpf-linker` is not installed: try `cargo xtask setup`")?;
    let toolchain = toolchain::Ebpf::find()?;
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--package", "enforcer-ebpf", "--release"])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(paths::target().join("ebpf"))
        // Who builds the rest quickly, with `CARGO_PROFILE_RELEASE_LTO=off`, shall not get programs that the verifier walks
        // otherwise.
        .env_remove("CARGO_PROFILE_RELEASE_LTO")
        .env_remove("CARGO_PROFILE_RELEASE_INCREMENTAL");
    cmd::stream(&mut cargo).with_context(|| {
        format!("cannot build the eBPF programs (with the {toolchain:?} toolchain)")
    })
}

/// What makes them half as large. A panic ends the daemon, whose programs stay in force, and its service manager starts the
/// next one. Not in the workspace's profile: the programs in the kernel are built by that as well.
const SMALL: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
];

/// Static, so that they run in a guest, a container or a distroless image without anything else.
fn user_space() -> Result<()> {
    let mut cargo = toolchain::host_cargo();
    cargo
        .args([
            "build",
            "--release",
            "--package",
            "enforcer",
            "--package",
            "enforcer-tests",
        ])
        .args(["--target", HOST, "--target-dir"])
        .arg(paths::target().join("static"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .envs(SMALL);
    cmd::stream(&mut cargo).context("cannot build the user-space programs")
}

/// Seconds since 1970 at which what is built was committed, for archives that come out the same each time; 0 outside
/// a git checkout.
pub fn committed_at() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["log", "-1", "--format=%ct"])
        .current_dir(paths::workspace());
    let time = cmd::capture(&mut git).unwrap_or_default();
    let time = time.trim();
    if time.is_empty() { "0" } else { time }.to_owned()
}
