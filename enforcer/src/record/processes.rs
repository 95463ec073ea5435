//! What /proc says of the processes in events.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use enforcer_common::event::Use;
use enforcer_common::ids::{BootNs, ExecutableKey, Tgid};

use super::model::Ancestor;
use super::redact;

/// So long an answer is good for further events of the same process: whoever floods the daemon with events should not
/// make it read the same files for each.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// So many ancestors are told.
const GENERATIONS: usize = 16;

/// What is known besides the kernel's facts.
#[derive(Clone, Debug)]
pub struct Description {
    /// See [`super::model::Process::key`].
    pub key: String,
    /// Path of the executable.
    pub exe: String,
    /// The command line, without secrets.
    pub args: Vec<String>,
    /// The parents, nearest first, as far as they still exist.
    pub ancestors: Vec<Ancestor>,
}

/// So many programs are remembered; with one more all are forgotten.
const REMEMBERED: usize = 4096;
/// Where the program of a process that has ended is looked for, besides where others were found.
const DIRECTORIES: [&str; 6] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/bin",
    "/sbin",
];

/// The processes of the last second.
#[derive(Debug)]
pub struct Processes {
    /// The beginning of the kernel's boot id.
    boot: String,
    since: Option<Instant>,
    known: HashMap<(Tgid, BootNs, ExecutableKey), Description>,
    programs: HashMap<ExecutableKey, PathBuf>,
}

impl Processes {
    /// Of this boot.
    pub fn new(boot: &str) -> Self {
        Self {
            boot: boot.chars().take(8).collect(),
            since: None,
            known: HashMap::new(),
            programs: HashMap::new(),
        }
    }

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
        let (boot, programs) = (&self.boot, &mut self.programs);
        self.known
            .entry((task.tgid, task.start, task.executable))
            .or_insert_with(|| look(boot, record, executables, programs))
            .clone()
    }
}

/// The kernel starts no two processes with one id in the same tick.
fn key(boot: &str, pid: u32, start_ticks: u64) -> String {
    format!("{boot}-{pid}-{start_ticks}")
}

/// As /proc counts.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

fn look(
    boot: &str,
    record: &Use,
    executables: &BTreeMap<ExecutableKey, PathBuf>,
    programs: &mut HashMap<ExecutableKey, PathBuf>,
) -> Description {
    let pid = record.task.tgid.0;
    let key_of_program = record.task.executable;
    let selected = executables.get(&key_of_program).cloned();
    let name = super::text(&record.executable_name);
    let running = || {
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        // It may have become another program since.
        let same = path
            .file_name()
            .is_some_and(|it| it.to_string_lossy() == name);
        (same || name.is_empty()).then_some(path)
    };
    let exe = selected
        .or_else(running)
        .or_else(|| programs.get(&key_of_program).cloned())
        .or_else(|| search(&key_of_program, &name, executables, programs));
    if let Some(path) = &exe {
        if programs.len() >= REMEMBERED {
            programs.clear();
        }
        programs.insert(key_of_program, path.clone());
    }
    let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let ticks = record.task.start.0 / NANOSECONDS_PER_TICK;
    let args = args
        .split(|byte| *byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into_owned());
    Description {
        key: key(boot, pid, ticks),
        exe: match exe {
            Some(path) => path.display().to_string(),
            None => name,
        },
        args: redact::command_line(args.collect()),
        ancestors: ancestors(boot, record),
    }
}

/// Where the program of a process lies that is gone already.
fn search(
    key: &ExecutableKey,
    name: &str,
    executables: &BTreeMap<ExecutableKey, PathBuf>,
    programs: &HashMap<ExecutableKey, PathBuf>,
) -> Option<PathBuf> {
    if name.is_empty() {
        return None;
    }
    let known = executables.values().chain(programs.values());
    let directories: BTreeSet<&Path> = known.filter_map(|it| it.parent()).collect();
    let usual = DIRECTORIES.iter().map(Path::new);
    let mut candidates = usual.chain(directories).map(|it| it.join(name));
    candidates.find(|path| std::fs::metadata(path).is_ok_and(|it| is_program(&it, key)))
}

/// Whether a file is that program: device numbers are not compared, for on some file systems `stat` has others.
fn is_program(file: &Metadata, key: &ExecutableKey) -> bool {
    let changed = file.ctime() as u64 * 1_000_000_000 + file.ctime_nsec() as u64;
    (file.ino(), changed) == (key.inode.ino, key.changed_ns)
}

/// As far as they exist; those that the kernel saw and that do not any more are told by their number.
fn ancestors(boot: &str, record: &Use) -> Vec<Ancestor> {
    let mut found = Vec::new();
    let seen = std::iter::once(record.parent).chain(record.ancestors);
    let mut seen = seen.map(|it| it.0 as i32).take_while(|pid| *pid > 0);
    let mut next = seen.next();
    while let Some(pid) = next.filter(|pid| *pid > 0)
        && found.len() < GENERATIONS
    {
        let seen_next = seen.next();
        let process = procfs::process::Process::new(pid);
        let Ok(stat) = process
            .as_ref()
            .map_err(drop)
            .and_then(|it| it.stat().map_err(drop))
        else {
            found.push(Ancestor {
                key: String::new(),
                pid,
                comm: String::new(),
                exe: None,
            });
            next = seen_next;
            continue;
        };
        let exe = process.ok().and_then(|it| it.exe().ok());
        found.push(Ancestor {
            key: key(boot, pid as u32, stat.starttime),
            pid,
            comm: stat.comm,
            exe: exe.map(|it| it.display().to_string()),
        });
        next = seen_next.or(Some(stat.ppid));
    }
    found
}

#[cfg(test)]
mod tests {
    use enforcer_common::ids::InodeKey;

    use super::*;

    #[test]
    fn a_program_is_found_after_its_process() {
        let here = std::env::current_exe().expect("this program");
        let name = here.file_name().expect("a name").to_string_lossy();
        let file = std::fs::metadata(&here).expect("it");
        let inode = InodeKey {
            ino: file.ino(),
            ..InodeKey::default()
        };
        let changed_ns = file.ctime() as u64 * 1_000_000_000 + file.ctime_nsec() as u64;
        let key = ExecutableKey { inode, changed_ns };
        // Another one of the same directory was seen before.
        let other = [(ExecutableKey::default(), here.with_file_name("other"))];
        let find = |key, name| search(&key, name, &BTreeMap::new(), &other.clone().into());
        assert_eq!(find(key, &name), Some(here.clone()));
        assert_eq!(find(key, "other"), None);
        let changed = ExecutableKey {
            changed_ns: changed_ns + 1,
            ..key
        };
        assert_eq!(find(changed, &name), None);
    }
}
