//! What containers have for root directories.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::credentials::View;
use crate::node::cgroups;

/// The root of the container whose cgroup is in this directory, as its first process has it: what others have, they may
/// have chosen. `None` if no process is there any more, or the runtime has not given it a root of its own yet.
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
        .filter_map(|pid| Some((started(pid)?, pid)))
        .min()?;
    let root = format!("/proc/{}/root", first.1);
    let of = |path: &str| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
    if of(&root)? == of("/")? {
        return None;
    }
    let view = View::at(Path::new(&root), cgroup.display().to_string(), false).ok()?;
    // The number may be another process's by now.
    let still = processes().contains(&first.1) && started(first.1) == Some(first.0);
    still.then_some(view)
}

/// When a process began, in clock ticks since the boot.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    // The 22nd field; the second ends with the parenthesis.
    rest.split_whitespace().nth(19)?.parse().ok()
}
