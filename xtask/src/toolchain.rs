//! The compilers: the one that runs us, and one that can build `core` for eBPF from source.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{cmd, paths};

/// bpf-linker is linked with this LLVM; it reads what this one and older ones wrote.
pub const LLVM_MAJOR: u32 = 22;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// What the outer `cargo run` and rustup leave in the environment for their own toolchain. With them,
/// another toolchain's cargo would run the wrong compiler, or load the wrong compiler's libraries.
const LEAKS: &[&str] = &[
    "CARGO",
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_TARGET_DIR",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A toolchain for eBPF.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ebpf {
    /// rustup's nightly with the `rust-src` component.
    Nightly,
    /// Debian's `rustc-web`, `cargo-web` and `rust-web-src`.
    Debian,
}

impl Ebpf {
    /// The one to use: nightly if it can, else Debian's.
    pub fn find() -> Result<Self> {
        if Self::nightly_serves() {
            return Ok(Self::Nightly);
        }
        if Self::debian_serves() {
            return Ok(Self::Debian);
        }
        bail!(
            "no Rust toolchain here can build `core` for eBPF: try `cargo xtask setup`, or \
             `rustup toolchain install nightly --component rust-src`"
        )
    }

    fn debian_serves() -> bool {
        Path::new(DEBIAN_CARGO).is_file() && serves(|| Command::new(DEBIAN_RUSTC))
    }

    fn nightly_serves() -> bool {
        if cmd::which("rustup").is_none() {
            return false;
        }
        serves(|| {
            let mut rustc = Command::new("rustup");
            rustc.args(["run", "nightly", "rustc"]);
            rustc
        })
    }

    /// This toolchain's cargo, in an environment without traces of the outer one.
    pub fn cargo(self) -> Command {
        let mut cargo = match self {
            Self::Nightly => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", "cargo"]);
                rustup
            }
            Self::Debian => Command::new(DEBIAN_CARGO),
        };
        clean(&mut cargo);
        match self {
            Self::Nightly => {}
            Self::Debian => {
                // `-Z build-std` is there in every cargo, and asks for this in a stable one.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            }
        }
        cargo.env("PATH", path_with_cargo_bin());
        cargo.current_dir(paths::workspace());
        cargo
    }
}

/// Whether this compiler has the source of `core` and writes bitcode that bpf-linker can read.
/// `rustc` makes its command line up to the question.
fn serves(rustc: impl Fn() -> Command) -> bool {
    let ask = |question: &[&str]| {
        let mut rustc = rustc();
        clean(&mut rustc);
        cmd::capture(rustc.args(question)).ok()
    };
    let source = "lib/rustlib/src/rust/library/core/Cargo.toml";
    let has_source = ask(&["--print", "sysroot"])
        .is_some_and(|sysroot| Path::new(sysroot.trim()).join(source).is_file());
    has_source
        && ask(&["--version", "--verbose"])
            .and_then(|version| llvm_major(&version))
            .is_some_and(|major| major <= LLVM_MAJOR)
}

fn llvm_major(verbose: &str) -> Option<u32> {
    let version = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn clean(command: &mut Command) {
    for name in LEAKS {
        command.env_remove(name);
    }
}

/// Where `cargo install` puts programs.
pub fn cargo_bin() -> Option<PathBuf> {
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME")?).join(".cargo"),
    };
    Some(home.join("bin"))
}

/// `PATH`, with the place where bpf-linker is, which distributions' cargo does not imply.
fn path_with_cargo_bin() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(cargo_bin());
    env::join_paths(dirs).unwrap_or(path)
}

/// bpf-linker, if it is installed.
pub fn bpf_linker() -> Option<PathBuf> {
    cmd::which("bpf-linker").or_else(|| {
        cargo_bin()
            .map(|dir| dir.join("bpf-linker"))
            .filter(|path| path.is_file())
    })
}

/// The cargo that runs us, for everything that runs on this machine.
pub fn host_cargo() -> Command {
    let mut cargo = Command::new(
        env::var_os("CARGO")
            .as_deref()
            .unwrap_or(OsStr::new("cargo")),
    );
    cargo.current_dir(paths::workspace());
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_read_from_what_rustc_says() {
        assert_eq!(llvm_major("rustc 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
