//! Docker and Podman, each with a service, a socket and directories of its own, asked by Docker's client.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::containerd::{IMAGE, write_image};
use crate::harness::wait_for;

/// Nothing of it is shared with other engines of the machine.
const HOME: &str = "/srv/engines";
/// Podman asks for a policy of images.
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

/// Which one.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Docker,
    Podman,
}

/// An engine, ended when dropped.
pub struct Engine {
    service: Child,
    home: PathBuf,
    client: PathBuf,
    /// Where it is asked, by a name that says how.
    pub socket: PathBuf,
    /// The program that starts containers.
    pub runtime: PathBuf,
    /// Where its layers are: on a disk, because an overlay on a tmpfs takes memory.
    layers: PathBuf,
}

impl Engine {
    /// Starts the one whose programs are below `programs`, and gives it the image.
    pub fn start(kind: Kind, programs: &Path) -> Result<Self> {
        let name = format!("{kind:?}").to_lowercase();
        let home = Path::new(HOME).join(&name);
        let policy = home.join(".config/containers");
        fs::create_dir_all(&policy)?;
        fs::write(policy.join("policy.json"), POLICY)?;
        let layers = env::temp_dir().join(format!("enforcer-{name}-{}", std::process::id()));
        let socket = home.join(format!("{name}.sock"));
        let url = format!("unix://{}", socket.display());
        let path = ["usr/bin", "usr/sbin"].map(|it| programs.join(it).display().to_string());
        // crun wants a limit raised that not every machine's root may.
        let runtime = programs.join("usr/sbin/runc");
        let mut service = match kind {
            Kind::Docker => Command::new(programs.join("usr/sbin/dockerd")),
            Kind::Podman => Command::new(programs.join("usr/bin/podman")),
        };
        match kind {
            Kind::Docker => service
                .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
                .arg("--data-root")
                .arg(&layers)
                .arg("--exec-root")
                .arg(home.join("exec"))
                .arg("--pidfile")
                .arg(home.join("pid"))
                .args(["--host", &url]),
            Kind::Podman => service
                .args(["--cgroup-manager=cgroupfs", "--events-backend=none"])
                .arg("--root")
                .arg(&layers)
                .arg("--runroot")
                .arg(home.join("run"))
                .arg("--tmpdir")
                .arg(home.join("tmp"))
                .arg("--conmon")
                .arg(programs.join("usr/bin/conmon"))
                .arg("--runtime")
                .arg(&runtime)
                .args(["system", "service", "--time=0", &url]),
        };
        let service = service
            .env("HOME", &home)
            .env(
                "PATH",
                format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", path.join(":")),
            )
            .env("LD_LIBRARY_PATH", programs.join("usr/lib/x86_64-linux-gnu"))
            .stdout(Stdio::null())
            .stderr(File::create(home.join("log"))?)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let engine = Self {
            service,
            client: programs.join("usr/bin/docker"),
            socket,
            runtime,
            layers,
            home,
        };
        wait_for("the engine to answer", || engine.ask(&["version"]).ok())
            .with_context(|| engine.log())?;
        let image = engine.home.join("image.tar");
        write_image(&image)?;
        engine.ask(&["load", "--input", &image.display().to_string()])?;
        fs::remove_file(image)?;
        Ok(engine)
    }

    /// The end of what it logged.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.home.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(15);
        format!("its log ends with\n{}", lines[from..].join("\n"))
    }

    fn client(&self, words: &[&str]) -> Result<Output> {
        Command::new(&self.client)
            .env("HOME", &self.home)
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()))
            .args(words)
            .output()
            .context("cannot run Docker's client")
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self.client(words)?;
        ensure!(
            output.status.success(),
            "`docker {}` said {}; {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a container with these options.
    pub fn run(&self, name: &str, options: &[&str], command: &[&str]) -> Result<()> {
        let first = [
            "run",
            "--detach",
            "--network=none",
            "--entrypoint=",
            // No more than this machine allows itself.
            "--ulimit=nofile=1024",
            "--ulimit=nproc=1024",
            "--name",
            name,
        ];
        let image = [&first, options, &[IMAGE], command].concat();
        self.ask(&image).map(drop)
    }

    /// Ends a container.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.ask(&["rm", "--force", name]).map(drop)
    }

    /// What a container said.
    pub fn said(&self, name: &str) -> Result<String> {
        self.ask(&["logs", name])
    }

    /// How a command ended that somebody runs in a container from outside.
    pub fn exec(&self, name: &str, command: &[&str]) -> Result<Output> {
        self.client(&[&["exec", name], command].concat())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(all) = self.ask(&["ps", "--all", "--quiet"]) {
            for id in all.lines() {
                let _ = self.remove(id);
            }
        }
        // In good order, for what it has mounted.
        let _ = signal::kill(Pid::from_raw(self.service.id() as i32), Signal::SIGTERM);
        let _ = self.service.wait();
        for directory in [&self.layers, &self.home] {
            super::stage::unmount_below(directory);
            if let Err(error) = fs::remove_dir_all(directory) {
                eprintln!("enforcer-tests: {} is left: {error}", directory.display());
            }
        }
    }
}
