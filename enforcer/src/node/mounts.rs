//! File systems that come and go where credentials are.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

const MOUNTS: &str = "/proc/self/mountinfo";

/// One mount: its number, which the kernel gives to another one later, and the place.
pub type Mount = (i32, PathBuf);

/// The mounts on `places`.
pub fn on<'a>(places: impl Iterator<Item = &'a Path>) -> BTreeSet<Mount> {
    let places: HashSet<&Path> = places.collect();
    let mounts = procfs::process::Process::myself().and_then(|it| it.mountinfo());
    mounts
        .into_iter()
        .flatten()
        .filter(|mount| places.contains(mount.mount_point.as_path()))
        .map(|mount| (mount.mnt_id, mount.mount_point))
        .collect()
}

/// Tells of every change of the mounts, from a thread of its own.
pub fn follow(changes: mpsc::UnboundedSender<()>) -> io::Result<()> {
    let mounts = File::open(MOUNTS)?;
    std::thread::Builder::new()
        .name("mounts".to_owned())
        .spawn(move || {
            loop {
                let mut waiting = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
                match poll(&mut waiting, PollTimeout::NONE) {
                    Ok(_) if changes.send(()).is_ok() => {}
                    Err(Errno::EINTR) => {}
                    Ok(_) | Err(_) => return,
                }
            }
        })?;
    Ok(())
}
