//! Who and where an actor is.

use std::{fs, io, io::Read as _, path::Path, thread, time::Duration};

use nix::{
    errno::Errno,
    mount::{self, MsFlags},
    sched::{self, CloneFlags},
    unistd::{self, Gid, Uid},
};

use super::Done;

/// The errno behind an I/O error.
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Into this cgroup, given by its directory below the cgroup root.
pub fn join(cgroup: &str) -> nix::Result<Done> {
    let procs = Path::new("/sys/fs/cgroup")
        .join(cgroup)
        .join("cgroup.procs");
    fs::write(procs, "0").map_err(|error| errno(&error))?;
    Ok(Done::default())
}

/// From now on as this user, for good.
pub fn user(id: u64) -> nix::Result<Done> {
    let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
    unistd::setgroups(&[])?;
    unistd::setgid(Gid::from_raw(id))?;
    unistd::setuid(Uid::from_raw(id))?;
    Ok(Done::default())
}

/// Into a mount namespace of its own.
pub fn private_mounts() -> nix::Result<Done> {
    sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    mount::mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )?;
    Ok(Done::default())
}

/// Mounts a file or directory at a second place.
pub fn bind(from: &str, to: &str) -> nix::Result<Done> {
    let nothing = None::<&str>;
    mount::mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing)?;
    Ok(Done::default())
}

/// Waits so many milliseconds.
pub fn sleep(ms: u64) -> nix::Result<Done> {
    thread::sleep(Duration::from_millis(ms));
    Ok(Done::default())
}

/// Says so, and waits for a line on standard input.
pub fn pause() -> nix::Result<Done> {
    super::report("paused", Ok(Done::default()));
    let mut byte = [0];
    while byte != *b"\n" {
        if io::stdin().read(&mut byte).map_err(|error| errno(&error))? == 0 {
            break;
        }
    }
    Ok(Done::default())
}
