//! The peer, as the cases see it.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::wait_for;
use crate::peer;

const NEAR: &str = "near0";

/// Bytes by protocol and address.
pub type Counts = BTreeMap<String, u64>;
/// Frames with the payload, or asking for an address, by where they say they go.
pub type Frames = BTreeMap<String, u64>;

/// A running peer behind a pair of devices. Goes when dropped, and the devices with it.
pub struct Outside {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Outside {
    /// Starts it and waits until it can be reached.
    pub fn start() -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg0_tests()
            .arg("peer")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the peer")?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut outside = Self {
            child,
            stdin,
            stdout,
        };
        outside.hear("ready")?;
        // The far end gets the kernel's next free name; one that we name ourselves could be that.
        peer::ip(&format!("link add {NEAR} type veth"))?;
        let far = fs::read_dir("/sys/class/net")?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.starts_with("veth"))
            .context("the far end of the pair is missing")?;
        peer::ip(&format!("link set {far} netns {}", outside.child.id()))?;
        fs::write(format!("/proc/sys/net/ipv6/conf/{NEAR}/accept_dad"), "0")
            .context("cannot switch off address detection")?;
        fs::write("/proc/sys/net/ipv4/tcp_fastopen", peer::FAST_OPEN)
            .context("cannot switch on TCP fast open")?;
        peer::ip(&format!("addr add 10.20.0.1/24 dev {NEAR}"))?;
        peer::ip(&format!("link set {NEAR} up"))?;
        peer::ip(&format!("addr add fd20::1/64 dev {NEAR}"))?;
        for address in peer::METADATA {
            let address = address.parse::<SocketAddr>()?.ip();
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            peer::ip(&format!("{family} route add {address} dev {NEAR}"))?;
        }
        writeln!(outside.stdin, "{far}")?;
        outside.hear("up")?;
        let state = format!("/sys/class/net/{NEAR}/operstate");
        wait_for("the link to come up", || {
            (fs::read_to_string(&state).ok()?.trim() == "up").then_some(())
        })?;
        Ok(outside)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the peer has gone");
        Ok(line)
    }

    fn hear(&mut self, expected: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(
            line.trim() == expected,
            "the peer said {line:?}, expected {expected:?}"
        );
        Ok(())
    }

    /// What has arrived so far.
    pub fn counts(&mut self) -> Result<Counts> {
        let line = self.ask("counts")?;
        serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))
    }

    /// Frames with the payload that have arrived so far, whatever protocol they are of.
    pub fn frames(&mut self) -> Result<Frames> {
        let line = self.ask("frames")?;
        serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))
    }

    /// IPv4 addresses that were asked for.
    pub fn asked(&mut self) -> Result<Frames> {
        let line = self.ask("asked")?;
        serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))
    }

    /// Lets the peer connect from an address of its own to one of ours, and says how many bytes it was sent
    /// within two seconds; none if it could not connect.
    pub fn pull(&mut self, from: &str, to: &str) -> Result<Option<u64>> {
        let line = self.ask(&format!("pull {from} {to}"))?;
        serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        writeln!(self.stdin, "{question}").context("the peer has gone")?;
        self.line()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It may have gone by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Goes with the namespace, but not at once; a next one would be in its way.
        let _ = peer::ip(&format!("link del {NEAR}"));
    }
}

/// Under its own name, this program is no actor.
trait Arg0 {
    fn arg0_tests(&mut self) -> &mut Self;
}

impl Arg0 for Command {
    fn arg0_tests(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::arg0(self, "enforcer-tests")
    }
}
