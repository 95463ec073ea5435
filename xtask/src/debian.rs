//! A Debian root from Debian's packages, in which ours is installed, upgraded, removed and purged.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{apt::Apt, cmd, paths};

const SUITE: &str = "trixie";

/// What dpkg and the package's scripts need, with libraries.
const PACKAGES: &[&str] = &[
    "base-files",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "init-system-helpers",
    "libacl1",
    "libattr1",
    "libbz2-1.0",
    "libc-bin",
    "libc6",
    "libcrypt1",
    "libgcc-s1",
    "libgmp10",
    "liblzma5",
    "libmd0",
    "libpcre2-8-0",
    "libselinux1",
    "libssl3t64",
    "libsystemd0",
    "libzstd1",
    "perl-base",
    "sed",
    "tar",
    "zlib1g",
];

/// Files that dpkg itself writes.
const OF_DPKG: [&str; 2] = ["var/lib/dpkg/", "var/log/dpkg.log"];

/// Installs the first package, upgrades to the second, removes and purges it; again without a removal before the
/// purge. Afterwards the root has the files that it had before.
pub fn check(package: &Path, next: &Path) -> Result<()> {
    let root = Root::unpack()?;
    let before = root.files()?;
    root.dpkg("--install", package)?;
    root.run("enforcer --version")?;
    root.run("test -f /usr/share/man/man1/enforcer-run.1.gz")?;
    root.run("enforcer config view --show-origin -o json")?;
    ensure!(
        root.enabled(),
        "the unit is not enabled after the installation"
    );
    root.run_unit()?;
    // As the daemon and an administrator leave things behind.
    root.run("mkdir -p /var/lib/enforcer/governance /var/log/enforcer")?;
    root.run("touch /var/lib/enforcer/governance/held /var/log/enforcer/events.jsonl")?;
    root.run("echo 'tier: auto' >> /etc/enforcer/enforcer.yaml")?;

    root.dpkg("--install", next)?;
    let configured = root.run("enforcer config view --show-origin -o json")?;
    ensure!(
        configured.contains("/etc/enforcer/enforcer.yaml:"),
        "the upgrade changed the configuration: {configured}"
    );
    ensure!(
        root.path("var/lib/enforcer/governance/held").exists(),
        "the upgrade took the state away"
    );

    root.dpkg("--remove", Path::new("enforcer"))?;
    ensure!(
        root.path("etc/enforcer/enforcer.yaml").exists() && !root.path("usr/bin/enforcer").exists(),
        "a removal leaves the configuration, and nothing but that and the state"
    );
    root.dpkg("--purge", Path::new("enforcer"))?;
    root.is_as(&before)?;

    root.dpkg("--install", package)?;
    root.dpkg("--purge", Path::new("enforcer"))?;
    root.is_as(&before)?;
    println!(
        "installed, upgraded, removed and purged: {} files before and after",
        before.len()
    );
    Ok(())
}

/// The root, gone when dropped.
struct Root(PathBuf);

impl Root {
    /// Unpacks the packages, once for all checkouts, and takes a copy.
    fn unpack() -> Result<Self> {
        let cached = paths::cache()?.join(format!("debian-{SUITE}"));
        if !cached.exists() {
            let scratch = paths::cache()?.join(format!(".debian-{}", std::process::id()));
            let unpacked = unpack_into(&scratch)
                // In one step: another run may be at it, too.
                .and_then(|()| fs::rename(&scratch, &cached).map_err(Into::into));
            let _ = fs::remove_dir_all(&scratch);
            unpacked.context("cannot make a Debian root")?;
        }
        let root = paths::target().join("package/debian");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        cmd::capture(Command::new("cp").arg("-a").args([&cached, &root]))?;
        Ok(Self(root))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// Runs a script in it.
    fn run(&self, script: &str) -> Result<String> {
        let mut chroot = Command::new("chroot");
        chroot.arg(&self.0).args(["/bin/sh", "-c", script]);
        chroot
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        cmd::capture(&mut chroot).context("in the Debian root")
    }

    fn dpkg(&self, what: &str, package: &Path) -> Result<()> {
        let mut name = package.display().to_string();
        if package.is_file() {
            fs::copy(package, self.path("tmp/package.deb"))?;
            name = "/tmp/package.deb".to_owned();
        }
        let done = self.run(&format!("dpkg {what} {name}"));
        if package.is_file() {
            fs::remove_file(self.path("tmp/package.deb"))?;
        }
        done.map(drop)
    }

    fn enabled(&self) -> bool {
        let wants = "etc/systemd/system/basic.target.wants/enforcer.service";
        self.path(wants).is_symlink()
    }

    /// What the unit starts is there and takes its configuration: with a mistake in it, it says which and ends.
    fn run_unit(&self) -> Result<()> {
        let unit = fs::read_to_string(self.path("usr/lib/systemd/system/enforcer.service"))?;
        let command = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="))
            .context("the unit has no ExecStart")?;
        let drop_in = self.path("etc/enforcer/enforcer.d/mistake.yaml");
        fs::write(&drop_in, "teir: lsm\n")?;
        let said = self.run(&format!("{command} 2>&1; test $? = 3"));
        fs::remove_file(&drop_in)?;
        let said = said?;
        ensure!(
            said.contains("enforcer.d/mistake.yaml:1:1: teir: unknown setting"),
            "`{command}` said {said:?}"
        );
        Ok(())
    }

    /// Every path in it, but for those of dpkg.
    fn files(&self) -> Result<BTreeSet<String>> {
        let all = cmd::capture(Command::new("find").arg(&self.0).args(["-printf", "%P\\n"]))?;
        let ours = |path: &&str| !OF_DPKG.iter().any(|it| path.starts_with(it));
        Ok(all.lines().filter(ours).map(str::to_owned).collect())
    }

    fn is_as(&self, before: &BTreeSet<String>) -> Result<()> {
        let now = self.files()?;
        let differ: Vec<&String> = now.symmetric_difference(before).collect();
        if !differ.is_empty() {
            bail!("after the purge these were not as before: {differ:?}");
        }
        Ok(())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // It is below target, where everything may be removed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn unpack_into(scratch: &Path) -> Result<()> {
    fs::create_dir_all(scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let apt = Apt::open(paths::cache()?.join("apt"))?;
    if !apt.is_fresh() {
        apt.update()?;
    }
    for package in PACKAGES {
        apt.unpack(&format!("{package}/{SUITE}"), scratch)?;
    }
    fs::remove_dir_all(scratch.join("usr/share/doc"))?;
    for directory in ["info", "updates", "triggers"] {
        fs::create_dir_all(scratch.join("var/lib/dpkg").join(directory))?;
    }
    for file in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
        fs::write(scratch.join(file), "")?;
    }
    let null = scratch.join("dev/null");
    cmd::capture(
        Command::new("mknod")
            .args(["-m", "666"])
            .arg(&null)
            .args(["c", "1", "3"]),
    )?;
    // What base-passwd and dash would set up.
    fs::write(
        scratch.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\n",
    )?;
    fs::write(scratch.join("etc/group"), "root:x:0:\n")?;
    if !scratch.join("usr/bin/sh").exists() {
        std::os::unix::fs::symlink("dash", scratch.join("usr/bin/sh"))?;
    }
    Ok(())
}
