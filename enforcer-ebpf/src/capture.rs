//! Showing the daemon the key of a file as the kernel sees it.
//!
//! `stat` gives another device number on overlayfs and btrfs, and a key made from it would match nothing.
//! So a daemon thread puts an empty entry under its id, opens the file, and takes the entry out again.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use enforcer_common::{capacity::KEYS_PER_CAPTURE, ids::Tid};

use crate::{
    kernel::{executable_key, read},
    maps::{CAPTURES, DAEMON_TASK},
    offset,
};

/// Adds the file with `inode` to what thread `tid` wants to see, if it wants to.
#[inline(always)]
pub fn show(tid: Tid, inode: u64) {
    let Some(capture) = CAPTURES.get_ptr_mut(tid) else {
        return;
    };
    if let Some(task) = DAEMON_TASK.get_ptr_mut(0) {
        // SAFETY: no arguments, and a pointer into an array map; every writer writes the same value.
        unsafe { *task = read(bpf_get_current_task() + offset!(task_leader)) };
    }
    // SAFETY: a pointer into preallocated memory; only this thread writes its own entry.
    let capture = unsafe { &mut *capture };
    let index = capture.count as usize;
    if index < KEYS_PER_CAPTURE {
        capture.keys[index] = executable_key(inode);
    }
    capture.count += 1;
}
