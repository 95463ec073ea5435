//! What became of denials: each is told by itself, or counted as lost.

use std::{collections::BTreeSet, fs, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{daemon, wait_for};

/// The log from a moment on.
pub struct Accounts {
    /// The number of the last record before.
    after: u64,
    opened: Instant,
}

/// What the daemon is refused to see that the gates hold, each second: where there is no room to tell it, that is counted as lost
/// as well.
const CANARIES: u64 = 2;

impl Accounts {
    /// From now on.
    pub fn open() -> Result<Self> {
        let mut after = 0;
        each_record(0, |record| {
            after = after.max(record["sequence"].as_u64().unwrap_or(0));
            Ok(())
        })?;
        Ok(Self {
            after,
            opened: Instant::now(),
        })
    }

    /// Waits until each of so many denials is told or counted: of these processes, or of all. Nobody else was refused.
    pub fn have(&self, refused: u64, pids: Option<&BTreeSet<u32>>) -> Result<Account> {
        self.have_besides(0, refused, pids)
    }

    /// The same of all processes where rings are full: then the daemon's canaries may be among what is counted.
    pub fn have_in_a_flood(&self, refused: u64) -> Result<Account> {
        let canaries = CANARIES * (1 + self.opened.elapsed().as_secs());
        self.have_besides(canaries, refused, None)
    }

    fn have_besides(
        &self,
        canaries: u64,
        refused: u64,
        pids: Option<&BTreeSet<u32>>,
    ) -> Result<Account> {
        let all = |it: Account| it.told + it.lost() + it.with_daemons >= refused;
        let seen = wait_for("every denial to be told or counted", || {
            self.of(pids).ok().filter(|it| all(*it))
        })
        .with_context(|| format!("{refused} were refused, and {:?}", self.of(pids)))?;
        println!(
            "  {refused} refused: {} told, {} counted by the programs, {} not written, {} records lost with daemons",
            seen.told, seen.denials, seen.unwritten, seen.with_daemons
        );
        ensure!(
            seen.told + seen.lost() <= refused + canaries,
            "more than were refused are told or counted"
        );
        Ok(seen)
    }

    fn of(&self, pids: Option<&BTreeSet<u32>>) -> Result<Account> {
        let mut account = Account::default();
        each_record(self.after, |record| account.add(pids, record))?;
        Ok(account)
    }
}

/// Looks at the records after that of a number.
fn each_record(after: u64, mut look: impl FnMut(&Value) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(daemon::NODE_LOG)? {
        let path = entry?.path();
        if path.extension().is_none_or(|it| it != "jsonl") {
            continue;
        }
        for line in fs::read_to_string(&path)?.lines() {
            // The daemon may be writing the last one.
            let Ok(record) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if record["sequence"].as_u64() > Some(after) {
                look(&record)?;
            }
        }
    }
    Ok(())
}

/// What the log says of the denials of some processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// One by one.
    pub told: u64,
    /// Counted by the programs.
    pub denials: u64,
    /// Counted because the log could not be written.
    pub unwritten: u64,
    /// Counted because a daemon ended that had taken them, whatever they were.
    pub with_daemons: u64,
}

impl Account {
    /// Denials that are counted and not told.
    pub fn lost(&self) -> u64 {
        self.denials + self.unwritten
    }

    fn add(&mut self, pids: Option<&BTreeSet<u32>>, record: &Value) -> Result<()> {
        ensure!(
            record["kind"] != "log-trimmed",
            "the log had no room for all that was told, so that nobody knows what it was: run the daemon with more --log-bytes"
        );
        let pid = record["process"]["pid"].as_u64();
        let is_theirs = pids.is_none_or(|pids| pids.iter().any(|it| Some(u64::from(*it)) == pid));
        if is_theirs && record["verdict"] == "deny" {
            self.told += 1;
        }
        if record["kind"] == "lost" {
            let count = record["count"].as_u64().context("no count")?;
            match record["stage"].as_str() {
                Some("denials") => self.denials += count,
                Some("daemon") => self.with_daemons += count,
                Some("log") => {
                    self.unwritten += record["denials"].as_u64().context("no denials")?
                }
                _ => {}
            }
        }
        Ok(())
    }
}
