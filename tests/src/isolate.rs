//! On a machine with other users: namespaces and a cgroup of our own, and nothing left behind.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{self, MntFlags, MsFlags},
    sched::{self, CloneFlags},
    sys::{
        signal::{SigSet, Signal},
        wait::{self, WaitPidFlag, WaitStatus},
    },
    unistd::{self, ForkResult, Pid},
};

use crate::peer;

/// Whether this machine was made for the tests.
pub fn in_guest() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| text.contains("enforcer-guest"))
}

/// What of the machine is hidden behind an empty place of ours.
const HIDDEN: [&str; 7] = [
    "/etc/enforcer",
    "/opt",
    "/run/containerd",
    "/run/enforcer",
    "/srv",
    "/var/lib/enforcer",
    "/var/log/enforcer",
];

/// Users that a guest has.
const USERS: &str = "alice:x:1000:1000:Alice:/:/bin/sh\nbob:x:1001:1001:Bob:/:/bin/sh\n";

/// Runs this in namespaces of its own, in a child, and cleans up, also when told to end.
pub fn run(inside: impl FnOnce() -> ExitCode) -> Result<ExitCode> {
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM]
        .into_iter()
        .collect();
    signals.thread_block()?;
    let cgroup = our_cgroup()?;
    let made = make_places()?;
    // SAFETY: this process has one thread yet.
    let ended = match unsafe { unistd::fork() } {
        Ok(ForkResult::Child) => {
            let entered = signals.thread_unblock().map_err(Into::into);
            let code = match entered.and_then(|()| enter(&cgroup)) {
                Ok(()) => inside(),
                Err(error) => {
                    eprintln!("enforcer-tests: cannot isolate: {error:#}");
                    ExitCode::FAILURE
                }
            };
            process::exit(i32::from(code != ExitCode::SUCCESS));
        }
        Ok(ForkResult::Parent { child }) => until_the_end(child, &signals),
        Err(error) => Err(error.into()),
    };
    remove(&cgroup)?;
    for place in made.iter().rev() {
        fs::remove_dir(place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    Ok(if ended? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Waits for the child, or to be told to end. The result is whether it ended well.
fn until_the_end(child: Pid, signals: &SigSet) -> Result<bool> {
    loop {
        if signals.wait()? != Signal::SIGCHLD {
            return Ok(false);
        }
        match wait::waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => {}
            status => return Ok(matches!(status, WaitStatus::Exited(_, 0))),
        }
    }
}

/// Makes a cgroup below the root of version 2.
fn our_cgroup() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let root = fields
        .find_map(|mut fields| {
            let point = fields.nth(1)?;
            (fields.next() == Some("cgroup2")).then_some(point)
        })
        .context("no cgroup v2 hierarchy is mounted")?;
    // A slice, so that what the tests make directly below is a unit to the daemon.
    let cgroup = Path::new(root).join(format!("enforcer-tests-{}.slice", process::id()));
    fs::create_dir(&cgroup).with_context(|| format!("cannot create {}", cgroup.display()))?;
    Ok(cgroup)
}

/// Makes the directories that are hidden, where they are missing. The result is what was made.
fn make_places() -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for place in HIDDEN {
        let missing: Vec<&Path> = Path::new(place)
            .ancestors()
            .take_while(|path| !path.exists())
            .collect();
        for path in missing.into_iter().rev() {
            fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
            made.push(path.to_owned());
        }
    }
    Ok(made)
}

fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").context("cannot enter the cgroup")?;
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWCGROUP;
    sched::unshare(namespaces).context("cannot make namespaces")?;
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount::mount(nothing, "/", nothing, private, nothing).context("cannot make mounts private")?;
    // The old one shows devices of the old network namespace, and has the host's cgroups below it.
    mount::umount2("/sys", MntFlags::MNT_DETACH).context("cannot unmount /sys")?;
    for (filesystem, place) in [
        ("sysfs", "/sys"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        put(filesystem, place)?;
    }
    for place in HIDDEN {
        put("tmpfs", place)?;
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let new = "/opt/passwd";
    fs::write(new, format!("{users}{USERS}"))?;
    mount::mount(Some(new), "/etc/passwd", nothing, MsFlags::MS_BIND, nothing)
        .context("cannot add users")?;
    peer::ip("link set lo up")
}

fn put(filesystem: &str, place: &str) -> Result<()> {
    let kind = Some(filesystem);
    mount::mount(kind, place, kind, MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {filesystem} at {place}"))
}

/// Removes a cgroup and those below it.
fn remove(cgroup: &Path) -> Result<()> {
    // What the child left behind is still ours.
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    for _ in 0..300 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                thread::sleep(Duration::from_millis(10));
            }
            result => {
                return result.with_context(|| format!("cannot remove {}", cgroup.display()));
            }
        }
    }
    bail!("{} still has processes", cgroup.display())
}
