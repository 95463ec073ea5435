//! What is asked of the running daemon, and how it answers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use enforcer::client;
use enforcer::serve::contract::explain_request::Who;
use enforcer::serve::contract::{ExplainRequest, Someone};
use serde_json::Value;

use super::{Output, Socket, WANTING, duration, failed, show};

#[derive(clap::Args)]
pub struct StatusArgs {
    /// Wait this long for a bundle in force and refused canaries: 500ms, 20s, 1m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
    /// Exit code 0 also needs a bundle that is not stale: a readiness probe
    #[arg(long)]
    ready: bool,
    /// Exit code 0 if the daemon answers at all, 1 if not: its loop turns. A liveness probe
    #[arg(long, conflicts_with_all = ["ready", "wait"])]
    live: bool,
    /// Only say how many entries each table of the kernel has
    #[arg(long, conflicts_with_all = ["wait", "ready", "live"])]
    tables: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

#[derive(clap::Args)]
pub struct ExplainArgs {
    /// A running process
    #[arg(long, conflicts_with_all = ["executable", "user", "cgroup", "container", "ancestor", "interactive"], required_unless_present_any = ["executable", "cgroup", "container", "ancestor"])]
    pid: Option<u32>,
    /// Path of an executable
    #[arg(long)]
    executable: Option<PathBuf>,
    /// User name or id
    #[arg(long)]
    user: Option<String>,
    /// cgroup path from the cgroup root, like /system.slice/backup.service
    #[arg(long)]
    cgroup: Option<String>,
    /// A running container: NAMESPACE/POD/CONTAINER, NAMESPACE/POD where that has one, or the name of one of no pod
    #[arg(long, value_name = "NAME", conflicts_with = "cgroup")]
    container: Option<String>,
    /// Path of a program that it descends from; may be given several times
    #[arg(long)]
    ancestor: Vec<PathBuf>,
    /// It has a terminal, or came from outside into what it runs in
    #[arg(long)]
    interactive: bool,
    /// The credential's id in the bundle
    #[arg(long)]
    credential: String,
    /// Where it would be taken: ADDRESS:PORT or [ADDRESS]:PORT
    #[arg(long)]
    destination: Option<SocketAddr>,
    /// Protocol of the destination: tcp or udp
    #[arg(long, default_value = "tcp")]
    protocol: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

#[derive(clap::Args)]
pub struct ModeArgs {
    mode: WantedMode,
    /// Why
    #[arg(long, value_name = "TEXT")]
    because: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Copy, ValueEnum)]
enum WantedMode {
    /// Nothing is denied, and what would have been is told
    Monitor,
    /// As the bundle says
    Enforce,
}

impl StatusArgs {
    pub fn run(self) -> ExitCode {
        let socket = &self.socket.socket;
        if self.tables {
            return tables(socket, self.output);
        }
        let is_good = match (self.ready, self.live) {
            (_, true) => |_: &Value| true,
            (true, _) => |status: &Value| enforces(status) && status["stale"] == false,
            _ => enforces,
        };
        status(socket, self.wait, is_good, self.output)
    }
}

impl ExplainArgs {
    pub fn run(self) -> ExitCode {
        let uid = match self.user.map(|user| uid(&user)).transpose() {
            Ok(uid) => uid,
            Err(error) => return failed(&error),
        };
        let text = |path: PathBuf| path.display().to_string();
        let request = ExplainRequest {
            who: Some(match self.pid {
                Some(pid) => Who::Pid(pid),
                None => Who::Someone(Someone {
                    executable: self.executable.map(text).unwrap_or_default(),
                    uid,
                    cgroup: self.cgroup.unwrap_or_default(),
                    container: self.container.unwrap_or_default(),
                    ancestors: self.ancestor.into_iter().map(text).collect(),
                    interactive: self.interactive,
                }),
            }),
            credential: self.credential,
            destination: self
                .destination
                .map(|it| it.to_string())
                .unwrap_or_default(),
            protocol: self.protocol,
        };
        explain(&self.socket.socket, request, self.output)
    }
}

impl ModeArgs {
    pub fn run(self) -> ExitCode {
        set_mode(&self.socket.socket, self.mode, self.because)
    }
}

fn status(
    socket: &Path,
    wait: Option<Duration>,
    is_good: fn(&Value) -> bool,
    output: Output,
) -> ExitCode {
    let deadline = Instant::now() + wait.unwrap_or_default();
    loop {
        let answer = client::status(socket);
        let good = answer.as_ref().is_ok_and(is_good);
        if !good && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return failed(&error),
        };
        show(&answer, output);
        return if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(WANTING)
        };
    }
}

/// Whether a status says that a bundle is in force and the canaries were refused.
fn enforces(status: &Value) -> bool {
    let state = status["state"].as_str().unwrap_or_default();
    state.starts_with("enforcing/") || state == "monitoring"
}

fn tables(socket: &Path, output: Output) -> ExitCode {
    match client::tables(socket) {
        Ok(answer) => {
            show(&answer, output);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn explain(socket: &Path, request: ExplainRequest, output: Output) -> ExitCode {
    let answer = match client::explain(socket, request) {
        Ok(answer) => answer,
        Err(error) => return failed(&error),
    };
    show(&answer, output);
    if answer["verdict"] == "allow" {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WANTING)
    }
}

fn set_mode(socket: &Path, mode: WantedMode, reason: String) -> ExitCode {
    let wanted = match mode {
        WantedMode::Monitor => "monitor",
        WantedMode::Enforce => "enforce",
    };
    match client::set_mode(socket, wanted, reason) {
        Ok(mode) => {
            println!(
                "the bundle says {}, and in force is {}",
                mode.requested, mode.effective
            );
            // What has not come about is no success.
            let monitors = mode.effective == "monitor";
            match monitors == (wanted == "monitor") || mode.requested == "monitor" {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Err(error) => failed(&error),
    }
}

fn uid(user: &str) -> Result<u32, String> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let users = enforcer::node::users::users();
    match users.get(user) {
        Some(uid) => Ok(uid.0),
        None => Err(format!(
            "no user `{user}` in /etc/passwd; give the id instead"
        )),
    }
}
