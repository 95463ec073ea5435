//! From a verdict to what the kernel does, in one place.

use aya_ebpf::helpers::generated::bpf_send_signal;
use enforcer_common::{
    branchless::opaque,
    event::taken,
    tier,
    verdict::{Action, Verdict},
};

use crate::{kernel::constant, maps::TIER};

/// What an LSM hook returns to refuse: `-EPERM`.
pub const REFUSE: i32 = -1;
/// What an LSM hook returns to let the call go on.
pub const PERMIT: i32 = 0;

/// What a hook returns to hide something: `-ENOENT`. Whoever lists everybody's programs goes on to the next one.
const ABSENT: i32 = -2;

const SIGKILL: u32 = 9;

/// Carries out a verdict on the current task's call. Returns what was done, one of [`taken`].
///
/// The signal is pending before the call returns, so that no further instruction of the process runs.
#[inline(always)]
pub fn act(verdict: Verdict) -> u8 {
    if !verdict.refuses() {
        return taken::NOTHING;
    }
    // Without hooks it is a cgroup program that asks, and those may send no signal (before 6.18).
    let may_kill = constant(&TIER) != tier::FANOTIFY;
    if may_kill && matches!(verdict.action(), Action::Kill) {
        // SAFETY: a helper on a number, for the current task.
        let sent = unsafe { bpf_send_signal(SIGKILL) };
        if sent == 0 {
            return taken::KILLED;
        }
    }
    taken::REFUSED
}

/// The return value of a program that is a hook, or stands before a function with a result. An earlier
/// program's refusal stands: the kernel does not call the next ones (BPF trampolines, since 5.7).
#[inline(always)]
pub fn lsm(refuse: bool) -> i32 {
    // Opaque, or the compiler negates the flag, of which the verifier only knows that it is a number.
    if opaque(u64::from(refuse)) != 0 {
        REFUSE
    } else {
        PERMIT
    }
}

/// The same, where what is refused is not to be there at all.
#[inline(always)]
pub fn hidden(hide: bool) -> i32 {
    if opaque(u64::from(hide)) != 0 {
        ABSENT
    } else {
        PERMIT
    }
}

/// A cgroup program's return value: 1 goes on, 0 fails with EPERM or drops the packet.
#[inline(always)]
pub fn cgroup(refuse: bool) -> i32 {
    if refuse { 0 } else { 1 }
}
