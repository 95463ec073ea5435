//! What the cases stand on: a daemon, actors, the world outside, and one function that checks a list of
//! steps against what the kernel answered, what arrived, and what was recorded.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub mod account;
pub mod actors;
pub mod cgroup;
pub mod check;
pub mod daemon;
pub mod events;
pub mod governance;
pub mod outside;

pub use account::Accounts;
pub use actors::{Actor, Outcome, Running, Step};
pub use cgroup::Cgroup;
pub use check::Expect::{self, Allowed, Dropped, Killed, Refused};
pub use daemon::{Bundle, Daemon};
pub use events::Event;
pub use outside::Outside;

/// How long an effect may take to be seen, in a machine that is emulated.
pub const SOON: Duration = Duration::from_secs(90);
/// How long is waited for something that should not happen.
pub const A_MOMENT: Duration = Duration::from_millis(80);

/// How long many of something took, each in milliseconds, in words.
pub fn spread(mut spans_ms: Vec<f64>) -> String {
    spans_ms.sort_by(f64::total_cmp);
    let at = |part: f64| spans_ms[((spans_ms.len() - 1) as f64 * part) as usize];
    let [half, most, all] = [0.5, 0.99, 1.0].map(at);
    format!("p50 {half:.1} ms, p99 {most:.1} ms, longest {all:.1} ms")
}

/// Users that the guest has.
pub const ALICE: u32 = 1000;
/// A second one.
pub const BOB: u32 = 1001;

/// Files of the cases, on a tmpfs.
pub const FILES: &str = "/srv/t";
/// Programs of the cases.
pub const PROGRAMS: &str = "/opt/t";

/// A case that cannot be run here, with why.
#[derive(Debug)]
pub struct Skipped(pub String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// Asks until there is an answer, or it is too late.
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> Result<T> {
    wait_so_long(SOON, what, ask)
}

/// Likewise, for as long as that may take.
pub fn wait_so_long<T>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Writes a file and the directories above it, readable by all: only the daemon's refusals are of interest.
pub fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Puts a copy of this program at `path`.
pub fn copy_program(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy("/proc/self/exe", path)
        .with_context(|| format!("cannot copy to {}", path.display()))?;
    Ok(())
}
