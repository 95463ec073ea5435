//! What containers have for root directories.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::credentials::View;
use crate::node::cgroups;

/// The root of the container whose cgroup is in this directory, as its first process has it: what others have, they may
/// have chosen. `None` if no process is there any more, or its root is still that of the runtime that started it.
pub fn root_of(cgroup: &Path) -> Option<View> {
    let processes = || -> Vec<u32> {
        let below = cgroups::scan(cgroup).unwrap_or_default();
        let lists = below.iter().filter_map(|it| {
            let path = cgroup.join(it.path.trim_start_matches('/'));
            fs::read_to_string(path.join("cgroup.procs")).ok()
        });
        let pids = lists.flat_map(|list| {
            let pids = list.lines().filter_map(|pid| pid.parse().ok());
            pids.collect::<Vec<u32>>()
        });
        pids.filter(|pid| *pid != 0).collect()
    };
    let first = processes()
        .into_iter()
        .filter_map(|pid| Some((Status::of(pid)?, pid)))
        .min()?;
    let root = |pid: u32| format!("/proc/{pid}/root");
    let of = |pid: u32| fs::metadata(root(pid)).ok().map(|it| (it.dev(), it.ino()));
    if of(first.1)? == of(first.0.parent)? {
        return None;
    }
    let name = cgroup.display().to_string();
    let view = View::at(Path::new(&root(first.1)), name, false).ok()?;
    // The number may be another process's by now.
    let still = processes().contains(&first.1) && Status::of(first.1)?.started == first.0.started;
    still.then_some(view)
}

/// As much of what the kernel says of a process as matters here.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Status {
    /// In clock ticks since the boot.
    started: u64,
    parent: u32,
}

impl Status {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field ends with the last parenthesis; the parent is the fourth, the start the 22nd.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        Some(Self {
            parent: fields.nth(1)?.parse().ok()?,
            started: fields.nth(17)?.parse().ok()?,
        })
    }
}
