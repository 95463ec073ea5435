//! What /proc says of the processes in events.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use enforcer_common::event::Use;
use enforcer_common::ids::{BootNs, ExecutableKey, Tgid};
use serde::Serialize;

/// So long an answer is good for further events of the same process: whoever floods the daemon with events should not
/// make it read the same files for each.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// So many ancestors are told.
const GENERATIONS: usize = 16;

/// What is known besides the kernel's facts.
#[derive(Clone, Debug)]
pub struct Description {
    /// Path of the executable.
    pub exe: String,
    /// The command line.
    pub args: Vec<String>,
    /// The parents, nearest first, as far as they still exist.
    pub ancestors: Vec<Ancestor>,
}

/// A parent, or a parent's parent.
#[derive(Clone, Debug, Serialize)]
pub struct Ancestor {
    pid: i32,
    comm: String,
}

/// The processes of the last second.
#[derive(Debug, Default)]
pub struct Processes {
    since: Option<Instant>,
    known: HashMap<(Tgid, BootNs, ExecutableKey), Description>,
}

impl Processes {
    /// The process that a record is about. It may be gone, or its id another's: what the kernel saw is the fallback,
    /// and what the bundle selects by is known by its key.
    pub fn describe(
        &mut self,
        record: &Use,
        executables: &BTreeMap<ExecutableKey, PathBuf>,
    ) -> Description {
        if self.since.is_none_or(|since| since.elapsed() > GOOD_FOR) {
            self.since = Some(Instant::now());
            self.known.clear();
        }
        let task = &record.task;
        self.known
            .entry((task.tgid, task.start, task.executable))
            .or_insert_with(|| look(record, executables))
            .clone()
    }
}

fn look(record: &Use, executables: &BTreeMap<ExecutableKey, PathBuf>) -> Description {
    let pid = record.task.tgid.0;
    let selected = executables.get(&record.task.executable).cloned();
    let name = super::text(&record.executable_name);
    let exe = selected.or_else(|| {
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        // It may have become another program since.
        let same = path
            .file_name()
            .is_some_and(|it| it.to_string_lossy() == name);
        (same || name.is_empty()).then_some(path)
    });
    let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Description {
        exe: match exe {
            Some(path) => path.display().to_string(),
            None => name,
        },
        args: args
            .split(|byte| *byte == 0)
            .filter(|argument| !argument.is_empty())
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect(),
        ancestors: ancestors(record.parent.0 as i32),
    }
}

fn ancestors(first: i32) -> Vec<Ancestor> {
    let mut found = Vec::new();
    let mut pid = first;
    while pid > 0 && found.len() < GENERATIONS {
        let Ok(stat) = procfs::process::Process::new(pid).and_then(|it| it.stat()) else {
            break;
        };
        found.push(Ancestor {
            pid,
            comm: stat.comm,
        });
        pid = stat.ppid;
    }
    found
}
