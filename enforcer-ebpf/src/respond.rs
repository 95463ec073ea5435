//! From a verdict to what the kernel does, in one place.

use aya_ebpf::helpers::generated::bpf_send_signal;
use enforcer_common::{
    branchless::opaque, event::taken, facts::Task, tables::Share, tier, verdict::Verdict,
};

use crate::{
    emit,
    kernel::constant,
    maps::{KILL_LIMIT, KILLS, TIER},
};

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
pub fn act(verdict: Verdict, task: &Task) -> u8 {
    if !verdict.refuses() {
        return taken::NOTHING;
    }
    // Without hooks it is a cgroup program that asks, and those may send no signal (before 6.18).
    let may_kill = constant(&TIER) != tier::FANOTIFY;
    if may_kill && verdict.kills() {
        if has_kill_left(task.workload_number()) == 0 {
            return taken::LIMITED;
        }
        // SAFETY: a helper on a number, for the current task.
        let sent = unsafe { bpf_send_signal(SIGKILL) };
        if sent == 0 {
            return taken::KILLED;
        }
    }
    taken::REFUSED
}

/// The node's own entry in the table of kills; no workload's has the highest bit.
const NODE: u64 = u64::MAX;

const MINUTE_NS: u64 = 60_000_000_000;

/// Counts one more kill of this workload. 0 if that would be more in this minute than it, or the node, may have: one bad
/// bundle must not kill a node. A global function, which is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn has_kill_left(workload: u64) -> u64 {
    let limit = match KILL_LIMIT.get(0) {
        Some(limit) => u64::from(*limit),
        None => 0,
    };
    let minute = emit::now().0 / MINUTE_NS;
    if spend(workload & !(1 << 63), minute) > limit {
        return 0;
    }
    u64::from(spend(NODE, minute) <= limit)
}

/// Counts, and returns how many there have been this minute.
#[inline(never)]
fn spend(whose: u64, minute: u64) -> u64 {
    if let Some(share) = KILLS.get_ptr_mut(whose) {
        // SAFETY: a pointer into the map; that two processors count at once only makes the limit a little larger.
        let share = unsafe { &mut *share };
        if share.second == minute {
            share.told += 1;
            return share.told;
        }
    }
    let share = Share {
        second: minute,
        told: 1,
    };
    let _ = KILLS.insert(&whose, &share, 0);
    1
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
