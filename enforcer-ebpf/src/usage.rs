//! Counting what is allowed, so that a busy entitled workload costs a look-up and not an event each time.

use aya_ebpf::bindings::BPF_NOEXIST;
use enforcer_common::{
    facts::Task,
    ids::BootNs,
    tables::{Usage, UsageKey},
    verdict::Verdict,
};

use crate::{
    emit::Object,
    maps::{UNCOUNTED, USAGE},
};

/// Nothing counted yet.
#[unsafe(no_mangle)]
static NO_USAGE: Usage = Usage {
    count: 0,
    first: BootNs(0),
    last: BootNs(0),
};

/// Counts an allowed use of the object at `object`; `how` as in [`crate::emit`]. Returns 1 if such a use has been counted
/// before, and need not be told by itself; 0 if it is the first, or finds no room.
///
/// # Safety
///
/// `object` points to two words for a file ([`Object::IS_FILE`]), to three for all else.
#[inline(never)]
pub unsafe fn count(
    time: BootNs,
    task: &Task,
    object: *const u64,
    verdict: Verdict,
    how: u64,
) -> u32 {
    let mut kind = how & 0xff;
    // SAFETY: both kinds have two words.
    let mut words = unsafe { [object.read_volatile(), object.add(1).read_volatile(), 0] };
    if how & Object::IS_FILE != 0 {
        kind |= UsageKey::IS_FILE;
    } else {
        // SAFETY: all but files have a third.
        words[2] = unsafe { object.add(2).read_volatile() };
    }
    let key = UsageKey::new(task, verdict, kind, words);
    if add(&key, time) {
        return 1;
    }
    // From read-only memory: there is no room for it on the stack.
    let is_first = USAGE.insert(&key, &NO_USAGE, BPF_NOEXIST as u64).is_ok();
    if add(&key, time) {
        return u32::from(!is_first);
    }
    if let Some(uncounted) = UNCOUNTED.get_ptr_mut(0) {
        // SAFETY: this CPU's own counter.
        unsafe { *uncounted += 1 };
    }
    0
}

/// Adds one to what is counted; `false` if that is nothing yet.
#[inline(always)]
fn add(key: &UsageKey, time: BootNs) -> bool {
    let Some(usage) = USAGE.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: a pointer into the map. The daemon takes out what has not been used for long; what is counted in that
    // instant may be another's by then, as one use more.
    unsafe {
        // Without the old value, which programs cannot have before 5.12; the compiler has no atomics for this target.
        core::arch::asm!(
            "lock *(u64 *)({0} + 0) += {1}",
            in(reg) &raw mut (*usage).count,
            in(reg) 1_u64,
            options(nostack),
        );
        (&raw mut (*usage).last).write_volatile(time);
        if (*usage).first.0 == 0 {
            (*usage).first = time;
        }
    }
    true
}
