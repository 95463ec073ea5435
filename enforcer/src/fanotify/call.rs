//! The system call that asks, where the kernel shows it: a permission event does not say whether a file is
//! opened for reading.
//!
//! The registers of a thread that waits in the kernel do not change. Only calls that open one file, and say how
//! in a register, are understood; in doubt it is a read. A file system on top of another may read within such a
//! call what the caller only writes (overlayfs copies up), and does so through a mount that no process sees; the
//! gate looks at that first.

use enforcer_common::iterate::ThreadRecord;

/// Whether the thread is in a call that opens a file for nothing but writing.
pub fn opens_for_writing(thread: &ThreadRecord) -> bool {
    let [second, third] = thread.arguments;
    let call = thread.call.cast_signed();
    let flags = match call {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => second,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat => libc::O_WRONLY as u64,
        libc::SYS_openat | libc::SYS_open_by_handle_at => third,
        _ => return false,
    };
    let _ = second;
    flags as i32 & libc::O_ACCMODE == libc::O_WRONLY
}

#[cfg(test)]
mod tests {
    use enforcer_common::facts::Task;
    use enforcer_common::ids::{Tgid, Tid};

    use super::*;

    fn record(call: i64, arguments: [u64; 2]) -> ThreadRecord {
        ThreadRecord {
            task: Task::NOBODY,
            tid: Tid(1),
            parent: Tgid(1),
            comm: [0; 16],
            executable_name: [0; 64],
            call: call.cast_unsigned(),
            arguments,
        }
    }

    #[test]
    fn only_what_surely_writes_only() {
        let writes = libc::O_WRONLY as u64 | libc::O_CREAT as u64;
        let both = libc::O_RDWR as u64;
        assert!(opens_for_writing(&record(libc::SYS_openat, [0, writes])));
        assert!(opens_for_writing(&record(
            libc::SYS_open_by_handle_at,
            [0, writes]
        )));
        assert!(!opens_for_writing(&record(libc::SYS_openat, [writes, 0])));
        assert!(!opens_for_writing(&record(libc::SYS_openat, [0, both])));
        assert!(!opens_for_writing(&record(
            libc::SYS_openat2,
            [writes, writes]
        )));
        assert!(!opens_for_writing(&record(
            libc::SYS_execve,
            [writes, writes]
        )));
        assert!(!opens_for_writing(&record(-1, [writes, writes])));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn older_calls() {
        let writes = libc::O_WRONLY as u64;
        assert!(opens_for_writing(&record(libc::SYS_open, [writes, 0])));
        assert!(!opens_for_writing(&record(libc::SYS_open, [0, writes])));
        assert!(opens_for_writing(&record(libc::SYS_creat, [0, 0])));
    }
}
