//! Starting actors and hearing what they say.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::peer;

/// No step of an actor takes this long.
const LIMIT: Duration = Duration::from_secs(120);

/// Who acts: a program, in a cgroup, as a user.
#[derive(Clone, Debug)]
pub struct Actor {
    program: String,
    before: Vec<String>,
}

impl Actor {
    /// This program, as root, in the root cgroup.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            before: Vec::new(),
        }
    }

    /// The same, as this user.
    pub fn user(mut self, id: u32) -> Self {
        self.before.extend(["user".to_owned(), id.to_string()]);
        self
    }

    /// The same, in this cgroup below the root.
    pub fn within(mut self, cgroup: &str) -> Self {
        // First, since users may not do it.
        self.before
            .splice(0..0, ["join".to_owned(), cgroup.to_owned()]);
        self
    }

    /// How many steps come before the ones asked for.
    pub fn steps_before(&self) -> usize {
        self.before.len() / 2
    }

    /// Starts on these steps; each may be several words.
    pub fn start<S: AsRef<str>>(&self, steps: impl IntoIterator<Item = S>) -> Result<Running> {
        let mut words = self.before.clone();
        for step in steps {
            words.extend(step.as_ref().split(' ').map(str::to_owned));
        }
        let mut child = Command::new(&self.program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Running {
            child,
            stdin,
            lines,
            steps: Vec::new(),
            limit: LIMIT,
        })
    }

    /// Does these steps.
    pub fn run<S: AsRef<str>>(&self, steps: impl IntoIterator<Item = S>) -> Result<Outcome> {
        self.start(steps)?.finish()
    }
}

/// How one step went.
#[derive(Clone, Debug)]
pub struct Step {
    /// The words.
    pub text: String,
    /// The process that did it.
    pub pid: u32,
    /// 0, or why not.
    pub errno: i32,
    /// How many bytes were read.
    pub read: u64,
    /// Protocol, address and number of bytes sent.
    pub sent: Option<(String, SocketAddr, u64)>,
    /// Whatever else there is to say.
    pub more: Value,
}

impl Step {
    fn parse(line: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("an actor said: {line}"))?;
        let sent = match value.get("sent") {
            Some(sent) => {
                let to: SocketAddr = text(sent, "to").parse()?;
                Some((
                    text(sent, "protocol"),
                    peer::plain(to),
                    sent["bytes"].as_u64().unwrap_or_default(),
                ))
            }
            None => None,
        };
        Ok(Self {
            text: text(&value, "step"),
            pid: u32::try_from(value["pid"].as_u64().unwrap_or_default())?,
            errno: i32::try_from(value["errno"].as_i64().unwrap_or(-1))?,
            read: value["read"].as_u64().unwrap_or_default(),
            sent,
            more: value["more"].clone(),
        })
    }

    /// A number among what else was said.
    pub fn count(&self, name: &str) -> u64 {
        self.more[name].as_u64().unwrap_or_default()
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

/// An actor at work. Killed when dropped.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    steps: Vec<Step>,
    limit: Duration,
}

impl Running {
    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line, or none at the end.
    fn line(&mut self) -> Result<Option<String>> {
        match self.lines.recv_timeout(self.limit) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "an actor has said nothing for {} s, after {:?}",
                    self.limit.as_secs(),
                    self.steps
                )
            }
        }
    }

    /// Waits until it has said that it did this step.
    pub fn until(&mut self, step: &str) -> Result<()> {
        while let Some(line) = self.line()? {
            let said = Step::parse(&line)?;
            if said.text == step {
                return Ok(());
            }
            self.steps.push(said);
        }
        bail!(
            "an actor ended before `{step}`, having said {:?}",
            self.steps
        )
    }

    /// Lets it go on from a `pause`.
    pub fn go_on(&mut self) -> Result<()> {
        let stdin = self.stdin.as_mut().context("it has no standard input")?;
        stdin.write_all(b"\n").context("it has gone")
    }

    /// Whether SIGKILL has ended it.
    pub fn was_killed(&mut self) -> bool {
        let ended = self.child.try_wait().ok().flatten();
        ended.is_some_and(|status| status.signal() == Some(libc::SIGKILL))
    }

    /// What it has said so far, without what was only waited for.
    pub fn said(&self) -> &[Step] {
        &self.steps
    }

    /// Allows each step more time than usual.
    pub fn patiently(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Ends its input, and waits for its end.
    pub fn finish(mut self) -> Result<Outcome> {
        drop(self.stdin.take());
        let mut other = Vec::new();
        while let Some(line) = self.line()? {
            match Step::parse(&line) {
                Ok(step) => self.steps.push(step),
                // Shells and their programs say things, too.
                Err(_) => other.push(line),
            }
        }
        Ok(Outcome {
            status: self.child.wait()?,
            pid: self.child.id(),
            steps: std::mem::take(&mut self.steps),
            other,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It may have ended in the meantime.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What an actor did.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// The process that was started.
    pub pid: u32,
    /// All its steps, without what it was only waiting for.
    pub steps: Vec<Step>,
    /// Lines that are no steps.
    pub other: Vec<String>,
}

impl Outcome {
    /// Whether SIGKILL ended it, or the child whose status it took over.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(libc::SIGKILL)
            || self.status.code() == Some(128 + libc::SIGKILL)
    }

    /// The last step.
    pub fn last(&self) -> Result<&Step> {
        self.steps.last().context("the actor said nothing")
    }
}
