//! A governance server, and daemons that follow it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    FILES,
    daemon::{Bundle, Daemon, LOGS, status},
    wait_for,
};
use crate::bundle;

/// Where it listens.
const ADDRESS: &str = "127.0.0.1:7443";
/// The same as nodes have it.
pub const URL: &str = "https://127.0.0.1:7443";
/// The node's name.
const NODE: &str = "guest";

/// A server with its directory, killed when dropped.
pub struct Governance {
    directory: PathBuf,
    freshness: String,
    child: Option<Child>,
}

impl Governance {
    /// Serves this bundle from a new directory.
    pub fn start(bundle: &Bundle, freshness: &str) -> Result<Self> {
        let directory = PathBuf::from(FILES).join("governance");
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(directory.join("documents"))?;
        let mut governance = Self {
            directory,
            freshness: freshness.to_owned(),
            child: None,
        };
        governance.issue(bundle)?;
        governance.serve()?;
        governance.admit(NODE, "token")?;
        Ok(governance)
    }

    /// Puts a token for a node into a file.
    pub fn admit(&self, node: &str, file: &str) -> Result<()> {
        let token = self.ask(&["token", node, "--for", "1h"])?;
        Ok(fs::write(self.path(file), token)?)
    }

    /// Of the server's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What the node keeps.
    pub fn node(&self) -> PathBuf {
        self.path("node")
    }

    /// Serves what is in the directory.
    pub fn serve(&mut self) -> Result<()> {
        fs::create_dir_all(LOGS)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(Path::new(LOGS).join("governance.log"))?;
        let child = Command::new("enforcer")
            .args(["governance", "serve"])
            .arg(self.path("documents"))
            .arg("--state")
            .arg(self.path("server"))
            .args(["--listen", ADDRESS, "--freshness", &self.freshness])
            .arg("--admin-socket")
            .arg(self.path("admin.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the governance server")?;
        self.child = Some(child);
        wait_for("the governance server", || self.ask(&["nodes"]).ok()).map(drop)
    }

    /// Replaces the documents.
    pub fn issue(&self, bundle: &Bundle) -> Result<()> {
        let (_, head) = bundle::head();
        let new = self.path("new");
        fs::write(&new, format!("{head}{}", bundle.text()))?;
        Ok(fs::rename(new, self.path("documents/bundle.yaml"))?)
    }

    /// Kills the server.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// What `enforcer governance` says to this.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let output = Command::new("enforcer")
            .arg("governance")
            .args(words)
            .arg("--admin-socket")
            .arg(self.path("admin.sock"))
            .output()
            .context("cannot run enforcer")?;
        ensure!(
            output.status.success(),
            "enforcer governance {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What the server knows of the node.
    pub fn node_as_known(&self) -> Result<Value> {
        let said: Value = serde_json::from_str(&self.ask(&["nodes", "-o", "json"])?)?;
        let mut nodes = said["nodes"].as_array().into_iter().flatten();
        let node = nodes.find(|it| it["name"] == NODE);
        node.cloned()
            .with_context(|| format!("the server knows no {NODE}: {said}"))
    }

    /// What is asked for and committed: when it was.
    pub fn commit(&self, words: &[&str]) -> Result<Timestamp> {
        let said = self.ask(words)?;
        let at = said.strip_prefix("committed at ");
        let at = at.and_then(|rest| rest.split_once(": ")?.0.parse().ok());
        at.with_context(|| format!("the server said {said:?}"))
    }

    /// The node's evidence, once there is any.
    pub fn evidence(&self) -> Result<PathBuf> {
        self.evidence_of(NODE)
    }

    /// The same of another node.
    pub fn evidence_of(&self, node: &str) -> Result<PathBuf> {
        let directory = self.path("server/evidence").join(node);
        wait_for("evidence", || {
            let entry = fs::read_dir(&directory).ok()?.next()?;
            Some(entry.ok()?.path())
        })
    }

    /// A daemon that follows it, once it enforces.
    pub fn daemon(&self) -> Result<Daemon> {
        Daemon::governed(&self.options().each_ref().map(String::as_str))
    }

    /// The same with more options, at once.
    pub fn launch(&self, more: &[&str]) -> Result<Daemon> {
        let options = self.options();
        Daemon::spawn(&[&options.each_ref().map(String::as_str), more].concat())
    }

    fn options(&self) -> [String; 6] {
        let option = |name: &str, path: &str| format!("--{name}={}", self.path(path).display());
        [
            format!("--governance={URL}"),
            option("governance-ca", "server/ca.pem"),
            option("trust", "server/trust.json"),
            option("join-token", "token"),
            option("state", "node"),
            format!("--node={NODE}"),
        ]
    }
}

impl Drop for Governance {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("enforcer-tests: the governance server goes on: {error}");
        }
    }
}

/// Waits until the node has this revocation in force.
pub fn revoked(sequence: u64) -> Result<()> {
    wait_for(&format!("revocation {sequence}"), || {
        let now = status().ok()?;
        (now["governance"]["revocationSequence"].as_u64()? == sequence).then_some(())
    })
}

/// Waits until the node has a connection, or has none.
pub fn connected(expected: bool) -> Result<()> {
    wait_for(&format!("connected: {expected}"), || {
        let now = status().ok()?;
        (now["governance"]["connected"] == expected).then_some(())
    })
}
