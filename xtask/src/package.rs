//! A Debian package with the static program.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{cmd, debian, paths, programs};

/// Where the documents of a Debian package are.
const DOCUMENTS: &str = "usr/share/doc/enforcer";

/// Files of the workspace, and where they go.
const FILES: &[(&str, &str)] = &[
    (
        "deploy/systemd/enforcer.service",
        "usr/lib/systemd/system/enforcer.service",
    ),
    ("deploy/debian/enforcer.yaml", "etc/enforcer/enforcer.yaml"),
    (
        "deploy/debian/copyright",
        "usr/share/doc/enforcer/copyright",
    ),
    (
        "examples/bundle.yaml",
        "usr/share/doc/enforcer/examples/bundle.yaml",
    ),
    ("README.md", "usr/share/doc/enforcer/README.md"),
];

/// What dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Completions, by shell.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/enforcer"),
    ("zsh", "usr/share/zsh/vendor-completions/_enforcer"),
    ("fish", "usr/share/fish/vendor_completions.d/enforcer.fish"),
];

/// `cargo xtask package`.
#[derive(clap::Args)]
pub struct Args {
    /// Use the programs as they are, without building them
    #[arg(long)]
    no_build: bool,
    /// Also install, upgrade, remove and purge it in a Debian root made for that (as root)
    #[arg(long)]
    check: bool,
}

/// Makes the package.
pub fn run(args: &Args) -> Result<()> {
    if !args.no_build {
        programs::run()?;
    }
    let version = env!("CARGO_PKG_VERSION");
    let package = build(version)?;
    println!("{}", package.display());
    if args.check {
        let next = build(&format!("{version}+next"))?;
        let checked = debian::check(&package, &next);
        fs::remove_file(&next)?;
        checked?;
    }
    Ok(())
}

/// Puts a package of this version together.
fn build(version: &str) -> Result<PathBuf> {
    let program = paths::built_program("enforcer")?;
    let directory = paths::target().join("package");
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    install(&program, &root.join("usr/bin/enforcer"), 0o755)?;
    for (from, to) in FILES {
        install(&paths::workspace().join(from), &root.join(to), 0o644)?;
    }
    fs::create_dir_all(root.join("etc/enforcer/enforcer.d"))?;
    for entry in fs::read_dir(paths::workspace().join("docs"))? {
        let from = entry?.path();
        let name = from.file_name().unwrap_or_default();
        install(&from, &root.join(DOCUMENTS).join("docs").join(name), 0o644)?;
    }
    let manual = root.join("usr/share/man/man1");
    fs::create_dir_all(&manual)?;
    cmd::capture(Command::new(&program).arg("man").arg(&manual))?;
    for page in fs::read_dir(&manual)? {
        cmd::capture(Command::new("gzip").arg("-9n").arg(page?.path()))?;
    }
    for (shell, to) in COMPLETIONS {
        let text = cmd::capture(Command::new(&program).args(["completions", shell]))?;
        write(&root.join(to), &text, 0o644)?;
    }
    control(&root, version)?;
    let package = directory.join(format!("enforcer_{version}_{ARCHITECTURE}.deb"));
    // Members keep their own time if that is older: what was made just now gets this one.
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "--build"])
        .args([&root, &package])
        .env("SOURCE_DATE_EPOCH", programs::committed_at());
    cmd::capture(&mut pack)?;
    Ok(package)
}

/// In Debian's words.
const ARCHITECTURE: &str = "amd64";

/// What dpkg reads, and what it runs.
fn control(root: &Path, version: &str) -> Result<()> {
    let sources = paths::workspace().join("deploy/debian");
    let to = root.join("DEBIAN");
    for script in SCRIPTS {
        install(&sources.join(script), &to.join(script), 0o755)?;
    }
    write(
        &to.join("conffiles"),
        "/etc/enforcer/enforcer.yaml\n",
        0o644,
    )?;
    let size = cmd::capture(Command::new("du").arg("-sk").arg(root))?;
    let size = size.split_whitespace().next().unwrap_or("0");
    let text = fs::read_to_string(sources.join("control"))?
        .replace("VERSION", version)
        .replace("ARCHITECTURE", ARCHITECTURE)
        .replace("KIBIBYTES", size);
    write(&to.join("control"), &text, 0o644)
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn write(to: &Path, text: &str, mode: u32) -> Result<()> {
    make_parent(to)?;
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn make_parent(of: &Path) -> Result<()> {
    let parent = of.parent().unwrap_or(of);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_finds_no_fault_with_the_unit() {
        if cmd::which("systemd-analyze").is_none() {
            println!("skipped: there is no systemd-analyze here");
            return;
        }
        let unit = fs::read_to_string(paths::workspace().join("deploy/systemd/enforcer.service"));
        let unit = unit.expect("a unit");
        assert!(unit.contains("ExecStart=/usr/bin/enforcer run\n"), "{unit}");
        let directory = std::env::temp_dir().join(format!("enforcer-unit-{}", std::process::id()));
        let copy = directory.join("enforcer.service");
        // What it starts has to be there, and is not on this machine.
        let here = unit.replace("/usr/bin/enforcer run", "/bin/true");
        write(&copy, &here, 0o644).expect("written");
        let verify = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(&copy)
            .output();
        fs::remove_dir_all(&directory).expect("removed");
        let said = verify.expect("runs");
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(
            said.status.success() && !text.contains("enforcer.service"),
            "{text}"
        );
    }
}
