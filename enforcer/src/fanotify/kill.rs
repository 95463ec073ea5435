//! Killing a process from user space, and no other that got its number.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use enforcer_common::facts::Task;
use enforcer_common::iterate::ThreadRecord;
use nix::errno::Errno;

/// Kills the process of `task`. It is named by a descriptor, and `look` tells behind that who one of its threads is
/// now.
pub fn kill(task: &Task, look: impl FnOnce() -> Option<ThreadRecord>) -> nix::Result<()> {
    // SAFETY: a system call on numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, task.tgid.0, 0) };
    let descriptor = Errno::result(result)? as i32;
    // SAFETY: the kernel just opened it for us alone.
    let process = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let still = look().is_some_and(|it| it.task.tgid == task.tgid && it.task.start == task.start);
    if !still {
        return Err(Errno::ESRCH);
    }
    // SAFETY: a system call on a descriptor that is open, and numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            0,
            0,
        )
    };
    Errno::result(result).map(drop)
}
