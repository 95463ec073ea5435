//! Debian's containerd with its Container Runtime Interface, on a socket and in directories of its own.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use crate::harness::wait_for;

/// The image of every container: this program as `/actor`.
pub const IMAGE: &str = "localhost/enforcer-actor:1";
const LEFT: &[u8] = b"[default]\naws_secret_access_key = the secret itself\n";
/// Nothing of it is shared with other runtimes of the machine.
const HOME: &str = "/srv/containerd";

/// A runtime, ended when dropped.
pub struct Containerd {
    child: Child,
    path: String,
    /// The program that starts containers.
    pub runc: PathBuf,
    /// Where its layers are: on a disk, because an overlay on a tmpfs takes memory.
    layers: PathBuf,
}

impl Containerd {
    /// Starts the one whose programs are below `programs`, and gives it the image.
    pub fn start(programs: &Path) -> Result<Self> {
        fs::create_dir_all(HOME)?;
        let layers = std::env::temp_dir().join(format!("enforcer-pods-{}", std::process::id()));
        let place = |name: &str| Path::new(HOME).join(name);
        let runc = programs.join("usr/sbin/runc");
        let config = format!(
            r#"
version = 2
root = {root:?}
state = {state:?}
[grpc]
  address = {socket:?}
[ttrpc]
  address = {ttrpc:?}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  # Where this runs, a score may not be lowered.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = {wrapper:?}
      SystemdCgroup = false
      # In a guest the root is the initramfs, which cannot be exchanged.
      NoPivotRoot = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = {nothing:?}
    bin_dir = {nothing:?}
"#,
            root = layers,
            state = place("state"),
            socket = Self::socket(),
            ttrpc = place("ttrpc"),
            wrapper = place("runc"),
            nothing = place("no-networks"),
        );
        fs::write(place("config.toml"), config)?;
        fs::write(place("runc"), wrapper(&runc))?;
        fs::set_permissions(place("runc"), fs::Permissions::from_mode(0o755))?;
        let path = format!(
            "{}:{}:/usr/sbin:/usr/bin:/sbin:/bin",
            programs.join("usr/bin").display(),
            programs.join("usr/sbin").display()
        );
        let child = Command::new(programs.join("usr/bin/containerd"))
            .arg("--config")
            .arg(place("config.toml"))
            .env("PATH", &path)
            .stdout(Stdio::null())
            .stderr(File::create(place("log"))?)
            .spawn()
            .context("cannot start containerd")?;
        let containerd = Self {
            child,
            path,
            runc,
            layers,
        };
        wait_for("containerd to answer", || containerd.ctr(&["version"]).ok())
            .with_context(Self::log)?;
        let image = place("image.tar");
        write_image(&image)?;
        containerd.ctr(&["images", "import", &image.display().to_string()])?;
        fs::remove_file(image)?;
        Ok(containerd)
    }

    /// Where it is asked.
    pub fn socket() -> PathBuf {
        Path::new(HOME).join("state/containerd.sock")
    }

    /// The end of what it logged.
    pub fn log() -> String {
        let log = fs::read_to_string(Path::new(HOME).join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(15);
        format!("its log ends with\n{}", lines[from..].join("\n"))
    }

    fn ctr(&self, words: &[&str]) -> Result<()> {
        let output = Command::new("ctr")
            .env("PATH", &self.path)
            .arg("--address")
            .arg(Self::socket())
            .args(["--namespace", "k8s.io"])
            .args(words)
            .output()
            .context("cannot run ctr")?;
        ensure!(
            output.status.success(),
            "`ctr {}` said {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Its shims are left to who made this cgroup; the mounts end with the namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
        super::stage::unmount_below(Path::new(HOME));
        if let Err(error) = fs::remove_dir_all(&self.layers) {
            eprintln!("enforcer-tests: {} is left: {error}", self.layers.display());
        }
    }
}

/// Runs `runc`, but without a share of the processors: the cgroup that this runs in has no controllers to set one with.
fn wrapper(runc: &Path) -> String {
    format!(
        r#"#!/bin/sh
for word; do
    [ "$last" = --bundle ] && sed -i 's/"cpu":{{"shares":[0-9]*}}/"cpu":{{}}/' "$word/config.json"
    last=$word
done
exec {} "$@"
"#,
        runc.display()
    )
}

/// An image in Docker's format: one layer, with this program, and credentials that somebody left in it.
pub fn write_image(to: &Path) -> Result<()> {
    let program = fs::read("/proc/self/exe")?;
    let mut layer = Builder::new(Vec::new());
    add(&mut layer, "actor", 0o755, &program)?;
    add(&mut layer, "root/.aws/credentials", 0o600, LEFT)?;
    let layer = layer.into_inner()?;
    let hex: String = Sha256::digest(&layer)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        // What stands for a pod waits for ever.
        "config": {"Entrypoint": ["/actor", "sleep", "1000000000"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hex}")]},
    });
    let manifest: Value = json!([
        {"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}
    ]);
    let mut archive = Builder::new(File::create(to)?);
    add(
        &mut archive,
        "config.json",
        0o644,
        config.to_string().as_bytes(),
    )?;
    add(
        &mut archive,
        "manifest.json",
        0o644,
        manifest.to_string().as_bytes(),
    )?;
    add(&mut archive, "layer.tar", 0o644, &layer)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

fn add<W: std::io::Write>(to: &mut Builder<W>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    to.append_data(&mut header, name, bytes)?;
    Ok(())
}
