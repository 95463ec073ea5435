//! A workload instance as a whole: its cgroup, frozen or killed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use enforcer_common::ids::CgroupId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";
/// Processes that fork while they are killed are looked for again so often. They are frozen, so once is enough unless
/// some were moved in.
const ROUNDS: usize = 64;

/// A cgroup that is open: whatever comes to have its path, this is the one.
pub struct Instance(OwnedFd);

/// `FILEID_KERNFS` (5.5): a handle that is the cgroup's id.
const KERNFS_HANDLE: i32 = 0xfe;

/// `struct file_handle` with the eight bytes of such a handle.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: [u8; 8],
}

impl Instance {
    /// Opens the cgroup of this id.
    ///
    /// # Errors
    /// ESTALE if there is none any more.
    pub fn open(id: CgroupId) -> io::Result<Self> {
        let root = File::open(ROOT)?;
        let mut handle = Handle {
            bytes: 8,
            kind: KERNFS_HANDLE,
            id: id.0.to_ne_bytes(),
        };
        // SAFETY: the kernel reads a file handle of the size that it says.
        let descriptor = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                root.as_raw_fd(),
                &raw mut handle,
                libc::O_DIRECTORY | libc::O_CLOEXEC,
            )
        };
        let descriptor = nix::errno::Errno::result(descriptor)? as i32;
        // SAFETY: the kernel just opened it for us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Its path from the cgroup root; for people.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let path = fs::read_link(self.path()).ok()?;
        let below = path.strip_prefix(ROOT).ok()?;
        Some(format!("/{}", below.display()))
    }

    /// Stops all of it. `echo 0 > cgroup.freeze` lets it go on.
    ///
    /// # Errors
    /// If the cgroup has gone.
    pub fn freeze(&self) -> io::Result<()> {
        write(&self.path().join("cgroup.freeze"), "1")
    }

    /// Kills all of it.
    ///
    /// # Errors
    /// If some of it is still there.
    pub fn kill(&self) -> io::Result<()> {
        let at_once = self.path().join("cgroup.kill");
        if write(&at_once, "1").is_ok() {
            return Ok(());
        }
        // Before 5.14, or where it is a user's and we have no CAP_DAC_OVERRIDE: one by one, and held still meanwhile if
        // that can be. Who is frozen cannot fork, and dies all the same.
        let is_still = self.freeze().is_ok();
        let killed = self.kill_each();
        if is_still {
            let _ = write(&self.path().join("cgroup.freeze"), "0");
        }
        killed
    }

    fn kill_each(&self) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let mut processes = Vec::new();
            collect(&self.path(), &mut processes)?;
            let mut alive = false;
            for pid in processes {
                alive |= kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() && !is_dying(pid);
            }
            if !alive {
                return Ok(());
            }
        }
        Err(io::Error::other("processes are left after SIGKILL"))
    }
}

/// Whether a process has a SIGKILL pending or has ended, and only waits for its parent.
fn is_dying(pid: i32) -> bool {
    let Ok(process) = procfs::process::Process::new(pid) else {
        return true;
    };
    let Ok(status) = process.status() else {
        return true;
    };
    let bit = 1_u64 << (Signal::SIGKILL as u32 - 1);
    status.state.starts_with(['Z', 'X']) || (status.sigpnd | status.shdpnd) & bit != 0
}

/// The processes in a cgroup and below.
fn collect(cgroup: &Path, into: &mut Vec<i32>) -> io::Result<()> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    into.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            match collect(&entry.path(), into) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// The cgroups that must go on: the root, and those that this process and init are in.
#[must_use]
pub fn untouchable() -> BTreeSet<CgroupId> {
    let mut ids = BTreeSet::new();
    for process in ["self", "1"] {
        let own = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        let path = own.lines().find_map(|line| line.strip_prefix("0::"));
        let path = Path::new(ROOT).join(path.unwrap_or("/").trim_start_matches('/'));
        let above = path.ancestors().take_while(|it| it.starts_with(ROOT));
        ids.extend(above.filter_map(|it| Some(CgroupId(fs::metadata(it).ok()?.ino()))));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_and_our_own_are_untouchable() {
        let root = fs::metadata(ROOT).expect("cgroups are mounted").ino();
        assert!(untouchable().contains(&CgroupId(root)));
    }
}
