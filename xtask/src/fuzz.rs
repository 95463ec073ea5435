//! Fuzzing with the stable compiler: the flags are those of cargo-fuzz, which wants another one.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{paths, programs::HOST, toolchain};

/// How the code is instrumented, for libFuzzer to see where an input leads.
const INSTRUMENTED: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Clink-dead-code";
/// How long each target is run in the tests.
const SECONDS: u32 = 10;

/// Builds the targets, and runs each a while.
pub fn commands() -> Result<Vec<Command>> {
    let directory = paths::workspace().join("fuzz");
    let built = paths::target().join("fuzz");
    let mut cargo = toolchain::host_cargo();
    cargo
        .args(["build", "--locked", "--target", HOST, "--manifest-path"])
        .arg(directory.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&built)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", INSTRUMENTED);
    let mut commands = vec![cargo];
    let entries =
        fs::read_dir(directory.join("targets")).context("cannot list the fuzz targets")?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().context("a fuzz target has no name")?;
        let mut fuzz = Command::new(built.join(HOST).join("debug").join(name));
        // In so short a time inputs would not grow by and by.
        fuzz.arg(format!("-max_total_time={SECONDS}"))
            .arg("-len_control=0")
            .arg(format!("-artifact_prefix={}/", built.display()));
        commands.push(fuzz);
    }
    Ok(commands)
}
