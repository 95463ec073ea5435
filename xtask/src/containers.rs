//! Debian's container runtimes, unpacked and not installed. containerd imports an image and runs it, and nothing is left.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt::Apt, cmd, image, paths};

const SUITE: &str = "bookworm";
/// With what of their libraries is not on every machine.
const PACKAGES: [&str; 10] = [
    "containerd",
    "runc",
    "docker.io",
    "podman",
    "conmon",
    "libgpgme11",
    "libassuan0",
    "libsubid4",
    "libdevmapper1.02.1",
    "libsemanage2",
];
/// However slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Imports the image and runs its program.
pub fn check(archive: &Path) -> Result<()> {
    let containerd = Containerd::start()?;
    containerd.ctr(&["images", "import", &archive.display().to_string()])?;
    let name = image::reference();
    let run = |id: &str, words: &[&str]| {
        let start = ["run", "--rm", "--snapshotter=native", &name, id];
        containerd.ctr(&[&start, words].concat())
    };
    let version = run("enforcer-version", &["/enforcer", "--version"])?;
    let expected = concat!("enforcer ", env!("CARGO_PKG_VERSION"), "\n");
    ensure!(
        version == expected,
        "it said {version:?}, expected {expected:?}"
    );
    let settings = run("enforcer-settings", &["/enforcer", "config", "view"])?;
    ensure!(
        settings.contains("/etc/enforcer/bundle.yaml"),
        "it said {settings:?}"
    );
    print!("containerd ran {name}: {version}");
    Ok(())
}

/// One of our own, stopped when dropped.
struct Containerd {
    child: Child,
    directory: PathBuf,
    path: String,
}

impl Containerd {
    fn start() -> Result<Self> {
        let programs = unpacked()?;
        let directory =
            std::env::temp_dir().join(format!("enforcer-containerd-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let place = |name: &str| directory.join(name).display().to_string();
        // No plugins that would set up networks, nor file systems that this one may not have.
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            place("root"),
            place("state"),
            place("socket"),
            place("ttrpc")
        );
        fs::write(directory.join("config.toml"), config)?;
        let log = File::create(directory.join("log"))?;
        let path = format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            programs.join("usr/bin").display()
        );
        let path = format!("{path}:{}", programs.join("usr/sbin").display());
        let child = Command::new(programs.join("usr/bin/containerd"))
            .args(["--config", &place("config.toml")])
            .env("PATH", &path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let containerd = Self {
            child,
            directory,
            path,
        };
        let end = Instant::now() + PATIENCE;
        while let Err(error) = containerd.ctr(&["version"]) {
            ensure!(
                Instant::now() < end,
                "containerd does not answer: {error:#}; its log ends with\n{}",
                cmd::tail_of_file(&containerd.directory.join("log"), 10)
            );
            thread::sleep(Duration::from_millis(200));
        }
        Ok(containerd)
    }

    fn ctr(&self, words: &[&str]) -> Result<String> {
        let mut ctr = Command::new("ctr");
        ctr.env("PATH", &self.path)
            .arg("--address")
            .arg(self.directory.join("socket"))
            .args(words);
        if words.first() == Some(&"images") {
            ctr.args(["--snapshotter=native"]);
        }
        cmd::capture(&mut ctr)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // SIGKILL would leave mounts of its own behind.
        let ended = cmd::capture(Command::new("kill").arg(self.child.id().to_string()));
        if ended.is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("xtask: {} is left: {error}", self.directory.display());
        }
    }
}

/// Where the programs are, unpacked once for all checkouts.
pub fn unpacked() -> Result<PathBuf> {
    let to = paths::cache()?.join(format!("runtimes-{SUITE}"));
    if to.exists() {
        return Ok(to);
    }
    let apt = Apt::open(paths::cache()?.join("apt"))?;
    if !apt.is_fresh() {
        apt.update()?;
    }
    let scratch = paths::cache()?.join(format!(".runtimes-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let unpacked = PACKAGES
        .iter()
        .try_for_each(|package| apt.unpack(&format!("{package}/{SUITE}"), &scratch))
        // In one step: another run may be at it, too.
        .and_then(|()| fs::rename(&scratch, &to).map_err(Into::into));
    let _ = fs::remove_dir_all(&scratch);
    unpacked.context("cannot fetch container runtimes")?;
    Ok(to)
}
