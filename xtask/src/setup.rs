//! Installs what is missing on this machine, and nothing else.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{
    apt, cmd, servers,
    toolchain::{self, Ebpf, LLVM_MAJOR},
};

const BPF_LINKER: &str = "0.10.4";

/// Debian packages for guests, kernels and fuzzing.
const GUEST_PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "kmod",
    "g++",
    "xz-utils",
    "zstd",
    "debian-archive-keyring",
];

/// Debian packages for a compiler that can build `core` for eBPF.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// Debian packages that bpf-linker is built from, and needs when it runs.
const LINKER_PACKAGES: &[&str] = &[
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "gcc",
];

/// Debian packages for tests of the page, as a person sees it.
const BROWSER_PACKAGES: &[&str] = &["chromium", "chromium-driver", "fonts-dejavu-core"];

/// Programs to expect where there are no Debian packages to ask for.
const PROGRAMS: &[&str] = &[
    "qemu-system-x86_64",
    "busybox",
    "depmod",
    "xz",
    "zstd",
    "setpriv",
];

/// Installs what is missing; with `tests` also what only those need.
pub fn run(tests: bool) -> Result<()> {
    let mut changed = false;
    changed |= packages(tests)?;
    changed |= bpf_linker()?;
    changed |= components()?;
    if tests {
        changed |= servers::fetch()?;
    }
    let toolchain = Ebpf::find()?;
    if changed {
        println!("setup: done; eBPF is built with the {toolchain:?} toolchain");
    } else {
        println!("setup: all is there; eBPF is built with the {toolchain:?} toolchain");
    }
    Ok(())
}

fn packages(tests: bool) -> Result<bool> {
    if cmd::which("dpkg-query").is_none() {
        return other_distribution(tests);
    }
    let compiler = if matches!(Ebpf::find(), Ok(Ebpf::Nightly)) {
        &[][..]
    } else {
        COMPILER_PACKAGES
    };
    let browser = if tests { BROWSER_PACKAGES } else { &[] };
    let wanted: Vec<&str> = [GUEST_PACKAGES, compiler, LINKER_PACKAGES, browser].concat();
    let missing = missing_packages(&wanted)?;
    if missing.is_empty() {
        return Ok(false);
    }
    println!("setup: installing {}", missing.join(" "));
    install(&missing)?;
    Ok(true)
}

/// Installs packages; where apt's lists are of an earlier day they may not have them all.
fn install(packages: &[&str]) -> Result<()> {
    let mut words = vec!["apt-get", "install", "--yes", "--no-install-recommends"];
    words.extend(packages);
    if apt::check_lists().is_ok() && as_root(&words).is_ok() {
        return Ok(());
    }
    as_root(&["apt-get", "update"])?;
    as_root(&words).context(
        "cannot install Debian packages (if it is rustc-web or llvm-22-dev that this release lacks, \
         `rustup toolchain install nightly --component rust-src` and bpf-linker from upstream serve as well)",
    )
}

fn missing_packages<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    // dpkg-query fails if it has never heard of one of them, and tells of the others all the same.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
        .args(wanted)
        .output()
        .context("cannot start dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(not_installed(&text, wanted))
}

fn not_installed<'a>(status: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    let installed: Vec<&str> = status
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    wanted
        .iter()
        .copied()
        .filter(|name| !installed.contains(name))
        .collect()
}

fn other_distribution(tests: bool) -> Result<bool> {
    let browser = tests.then_some("chromedriver");
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .copied()
        .chain(browser)
        .filter(|name| cmd::which(name).is_none())
        .collect();
    if !missing.is_empty() {
        bail!(
            "this is not Debian, so setup cannot install what is missing: {}. Install them by hand \
             (busybox must be a static one), and give kernels with `--kernel PATH`",
            missing.join(", ")
        );
    }
    Ok(false)
}

fn as_root(words: &[&str]) -> Result<()> {
    let is_root = cmd::capture(Command::new("id").arg("-u"))?.trim() == "0";
    let words = match (is_root, cmd::which("sudo")) {
        (true, _) => words.to_vec(),
        (false, Some(_)) => [&["sudo"], words].concat(),
        (false, None) => bail!(
            "not root, and there is no sudo. As root, run: {}",
            words.join(" ")
        ),
    };
    println!("setup: {}", words.join(" "));
    cmd::stream(
        Command::new(words[0])
            .args(&words[1..])
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn bpf_linker() -> Result<bool> {
    let expected = format!("bpf-linker {BPF_LINKER}");
    let version =
        toolchain::bpf_linker().map(|path| cmd::capture(Command::new(path).arg("--version")));
    match version {
        Some(Ok(version)) if version.trim() == expected => return Ok(false),
        Some(Ok(version)) => println!("setup: found {}, want {expected}", version.trim()),
        Some(Err(error)) => println!("setup: bpf-linker does not run: {error:#}"),
        None => {}
    }
    println!("setup: installing {expected} (takes a minute)");
    let mut cargo = toolchain::host_cargo();
    cargo.args([
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER,
        "--locked",
        "--force",
    ]);
    let prefix = format!("/usr/lib/llvm-{LLVM_MAJOR}");
    if std::path::Path::new(&prefix).is_dir() {
        // Two names, since bpf-linker and the crate below it read one each; without the first, it takes
        // the directory of whichever `llvm-config` is on PATH.
        cargo
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", &prefix)
            .env("LLVM_SYS_221_PREFIX", &prefix);
    }
    cmd::stream(cargo.env_remove("CARGO_TARGET_DIR")).context("cannot install bpf-linker")?;
    Ok(true)
}

fn components() -> Result<bool> {
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(subcommand, _)| {
            !cmd::succeeds(toolchain::host_cargo().args([subcommand, "--version"]))
        })
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(false);
    }
    println!("setup: rustup component add {}", missing.join(" "));
    cmd::stream(
        Command::new("rustup")
            .args(["component", "add"])
            .args(&missing),
    )
    .with_context(|| {
        format!(
            "cannot add {}: install them as your Rust was installed",
            missing.join(" and ")
        )
    })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_missing() {
        let status = "installed cpio\nnot-installed kmod\nconfig-files zstd\n";
        assert_eq!(
            not_installed(status, &["cpio", "kmod", "zstd", "gcc"]),
            ["kmod", "zstd", "gcc"]
        );
    }
}
