//! The daemon under test.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;

use super::{events::Events, wait_for, write};
use crate::bundle;

/// Where the daemon finds its bundle.
pub const BUNDLE: &str = "/etc/enforcer/bundle.yaml";
/// Where its logs go.
pub const LOGS: &str = "/var/log/enforcer";
/// What the daemon says.
pub const LOG: &str = "/var/log/enforcer/tests.log";
/// Its record of events.
pub const EVENT_LOG: &str = "/var/log/enforcer/tests-events.jsonl";
/// Its log, unless it is told another directory.
pub const NODE_LOG: &str = "/var/lib/enforcer/log";
/// The tier that it is told to use; without, it chooses.
static TIER: OnceLock<String> = OnceLock::new();
/// Ending takes no longer than this.
const STOP: Duration = Duration::from_secs(20);

/// A bundle's text without its head.
pub type Bundle = bundle::Parts;

/// Starts daemons on this tier from now on.
pub fn use_tier(tier: String) {
    // It is told once.
    let _ = TIER.set(tier);
}

/// A running daemon, stopped when dropped.
pub struct Daemon {
    child: Child,
    /// What it has told.
    pub events: Events,
    in_force: String,
}

impl Daemon {
    /// Starts it on this bundle with these options, and waits until it enforces.
    pub fn start(bundle: &Bundle, options: &[&str]) -> Result<Self> {
        let (_, head) = bundle::head();
        let text = bundle.text();
        let mut daemon = Self::start_on(&format!("{head}{text}"), options)?;
        daemon.in_force = text;
        Ok(daemon)
    }

    /// The same on this text, whatever it is.
    pub fn start_on(text: &str, options: &[&str]) -> Result<Self> {
        Self::launch(text, options)?.enforces()
    }

    /// Starts it with these options, which say where its bundle comes from, and waits until it enforces.
    pub fn governed(options: &[&str]) -> Result<Self> {
        Self::spawn(options)?.enforces()
    }

    fn enforces(self) -> Result<Self> {
        let mut daemon = self;
        let output = daemon.enforcing()?;
        if !output.status.success() || !daemon.is_alive() {
            bail!(
                "the daemon does not enforce: status ended with {} and said {}{}; its log ends with\n{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                log_tail()
            );
        }
        Ok(daemon)
    }

    /// Starts it on this bundle with these options, and does not wait.
    pub fn launch_with(bundle: &Bundle, options: &[&str]) -> Result<Self> {
        let (_, head) = bundle::head();
        Self::launch(&format!("{head}{}", bundle.text()), options)
    }

    fn launch(text: &str, options: &[&str]) -> Result<Self> {
        write(BUNDLE, text)?;
        Self::spawn(&[&["--bundle", BUNDLE], options].concat())
    }

    /// Starts it with these options, and does not wait.
    pub fn spawn(options: &[&str]) -> Result<Self> {
        fs::create_dir_all("/run/enforcer")?;
        fs::create_dir_all(LOGS)?;
        let log = File::options().create(true).append(true).open(LOG)?;
        // Most cases are not about how often somebody is killed.
        let often = ["--actions-per-minute", "100000"];
        let often = (!options.contains(&often[0])).then_some(often);
        let tier = TIER.get().map(|tier| ["--tier", tier]);
        let mut child = Command::new("enforcer")
            .args(["run", "--event-log", EVENT_LOG])
            .args(tier.iter().flatten())
            .args(often.iter().flatten())
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        let events = Events::follow(child.stdout.take().context("no standard output")?);
        Ok(Self {
            child,
            events,
            in_force: String::new(),
        })
    }

    /// What `status --wait` says; cut short if the daemon ends.
    fn enforcing(&mut self) -> Result<Output> {
        let mut waiting = Command::new("enforcer")
            .args(["status", "--wait", "180s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run enforcer")?;
        while waiting.try_wait()?.is_none() {
            if !self.is_alive() {
                waiting.kill()?;
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(waiting.wait_with_output()?)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().cast_signed());
        signal::kill(pid, signal).context("the daemon has gone")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How much memory it has now, KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
            .context("the kernel does not say how much memory the daemon has")
    }

    /// Whether it is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether this is the bundle last written.
    pub fn has(&self, bundle: &Bundle) -> bool {
        self.in_force == bundle.text()
    }

    /// Replaces its bundle, and waits until the new one is in force.
    pub fn swap(&mut self, bundle: &Bundle) -> Result<()> {
        let (version, head) = bundle::head();
        let text = bundle.text();
        replace(&format!("{head}{text}"))?;
        wait_for(&format!("bundle {version} to be in force"), || {
            (version_in_force().ok()? == version).then_some(())
        })
        .with_context(log_tail)?;
        self.in_force = text;
        Ok(())
    }

    /// Replaces its bundle, and waits until somebody was judged by the new one. For when there are many
    /// judgements, and asking for the status would take longer.
    pub fn swap_under_way(&mut self, bundle: &Bundle) -> Result<()> {
        let (version, head) = bundle::head();
        let text = bundle.text();
        replace(&format!("{head}{text}"))?;
        signal::kill(self.nix_pid(), Signal::SIGHUP)?;
        self.in_force = text;
        wait_for(&format!("an event under bundle {version}"), || {
            let event = self.events.find(|event| event.bundle() >= version);
            event.map(drop)
        })
        .with_context(|| format!("status: {:?}; {}", status().ok(), log_tail()))
    }

    /// Writes this as the bundle, whatever it is, and tells the daemon to read it.
    pub fn give(&mut self, text: &str) -> Result<()> {
        replace(text)?;
        self.in_force.clear();
        signal::kill(self.nix_pid(), Signal::SIGHUP)?;
        Ok(())
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Stops it, and fails unless it ends well. Nothing is enforced afterwards.
    pub fn stop(mut self) -> Result<()> {
        self.end()?;
        clean_up()
    }

    /// Stops it, and this one takes its place.
    pub fn hand_over_to(&mut self, next: impl FnOnce() -> Result<Self>) -> Result<()> {
        self.end()?;
        *self = next()?;
        Ok(())
    }

    /// Stops it, and leaves its programs to the next.
    pub fn hand_over(mut self) -> Result<()> {
        self.end()
    }

    /// Kills it.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop).context("the daemon has gone")
    }

    fn end(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "the daemon had ended by itself, with {status}; its log ends with\n{}",
                log_tail()
            );
        }
        signal::kill(self.nix_pid(), Signal::SIGTERM)?;
        let end = Instant::now() + STOP;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(
                    status.success() && status.signal().is_none(),
                    "the daemon ended with {status} after SIGTERM; its log ends with\n{}",
                    log_tail()
                );
                return Ok(());
            }
            if Instant::now() > end {
                self.child.kill()?;
                self.child.wait()?;
                bail!("the daemon goes on {} s after SIGTERM", STOP.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_alive()
            && let Err(error) = self.end().and_then(|()| clean_up())
        {
            eprintln!("enforcer-tests: {error:#}");
        }
    }
}

/// Takes away what daemons have left.
pub fn clean_up() -> Result<()> {
    let output = enforcer(&["cleanup"])?;
    ensure!(
        output.status.success(),
        "`enforcer cleanup` ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// In one step, as everybody should.
fn replace(text: &str) -> Result<()> {
    let new = format!("{BUNDLE}.new");
    write(&new, text)?;
    fs::rename(&new, BUNDLE).context("cannot replace the bundle")
}

/// Runs the program with these words.
pub fn enforcer(words: &[&str]) -> Result<Output> {
    Command::new("enforcer")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run enforcer {}", words.join(" ")))
}

/// Runs it and reads what it says, as JSON.
pub fn enforcer_json(words: &[&str]) -> Result<Value> {
    let output = enforcer(words)?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "`enforcer {}` ended with {} and said {:?} and {:?}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// The node's log is whole, by what `log verify` says of it.
pub fn log_is_whole() -> Result<()> {
    let report = enforcer(&["log", "verify", NODE_LOG])?;
    ensure!(
        report.status.success(),
        "`log verify` ended with {} and said {}",
        report.status,
        String::from_utf8_lossy(&report.stdout)
    );
    Ok(())
}

/// What `status` says.
pub fn status() -> Result<Value> {
    enforcer_json(&["status", "-o", "json"])
}

/// How many entries each table has.
pub fn tables() -> Result<BTreeMap<String, u64>> {
    let all = enforcer_json(&["status", "--tables", "-o", "json"])?;
    Ok(serde_json::from_value(all)?)
}

/// The version of the bundle in force.
pub fn version_in_force() -> Result<u64> {
    status()?["bundle"]["version"]
        .as_u64()
        .context("status names no bundle version")
}

/// The end of what the daemon said.
pub fn log_tail() -> String {
    let log = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
