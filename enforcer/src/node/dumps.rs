//! Core dumps: a holder's memory should not end up on a disk or in a crash reporter.

use std::io;

use enforcer_common::ids::Tgid;

/// Turns core dumps off for a process and those it starts. A limit of one byte is too little for any file, and makes
/// the kernel leave out a `core_pattern` that is a program, too (core(5)).
pub fn forbid(process: Tgid) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: 1,
        rlim_max: 1,
    };
    // SAFETY: one structure is read, none written.
    let result = unsafe {
        libc::prlimit64(
            process.0 as libc::pid_t,
            libc::RLIMIT_CORE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
