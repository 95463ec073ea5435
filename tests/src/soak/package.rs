//! A package that dpkg installs and removes over and over, in a root of its own.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

const PLACE: &str = "/srv/soak-package";
const CONTROL: &str = "Package: soak\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: a program\n";
/// Where its program is; busybox goes by the name.
const PROGRAM: &str = "usr/lib/soak/true";

/// What is installed.
pub struct Package;

impl Package {
    /// Makes the package, and a root that has nothing installed.
    pub fn build() -> Result<Self> {
        fs::create_dir_all(format!("{PLACE}/tree/DEBIAN"))?;
        fs::create_dir_all(format!("{PLACE}/tree/usr/lib/soak"))?;
        fs::write(format!("{PLACE}/tree/DEBIAN/control"), CONTROL)?;
        fs::copy("/bin/true", format!("{PLACE}/tree/{PROGRAM}"))?;
        for directory in ["info", "updates"] {
            fs::create_dir_all(format!("{PLACE}/root/var/lib/dpkg/{directory}"))?;
        }
        fs::write(format!("{PLACE}/root/var/lib/dpkg/status"), "")?;
        run(
            "dpkg-deb",
            &format!("--root-owner-group --build {PLACE}/tree {PLACE}/soak.deb"),
        )?;
        Ok(Self)
    }

    /// Installs it, runs its program, and removes it.
    pub fn comes_and_goes(&self) -> Result<()> {
        // Nothing runs at its installation that would need the rest of a system.
        let options = format!("--root={PLACE}/root --force-bad-path --force-unsafe-io");
        run("dpkg", &format!("{options} --install {PLACE}/soak.deb"))?;
        run(&format!("{PLACE}/root/{PROGRAM}"), "")?;
        run("dpkg", &format!("{options} --purge soak"))?;
        ensure!(
            !fs::exists(format!("{PLACE}/root/{PROGRAM}"))?,
            "dpkg has left {PROGRAM}"
        );
        Ok(())
    }
}

/// Runs a program, whose words spaces part.
fn run(program: &str, words: &str) -> Result<()> {
    let output = Command::new(program)
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!("cannot run {program}; in guests `cargo xtask vm --tools` has dpkg and runc")
        })?;
    ensure!(
        output.status.success(),
        "`{program} {words}` ended with {} and said {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
