//! Counting keys before they are in a table, and after they have left it: see [`enforcer_common::presence`].

use aya_ebpf::{
    bindings::{BPF_EXIST, BPF_NOEXIST},
    maps::{Array, HashMap},
};
use enforcer_common::{
    ids::{CgroupId, CredentialId, InodeKey, Tgid},
    presence,
    tables::{Holder, HolderKey, Versioned},
};

use crate::maps::{FILES, FILES_PRESENT, HELD_PRESENT, HOLDINGS, PRESENCE_SHIFT};

/// Which counter a word is counted in, as [`presence::slot`] has it.
#[inline(always)]
fn slot(word: u64) -> u32 {
    let slot: u64;
    // SAFETY: reads a constant. In one register more for a moment: what the compiler would keep for the next time, it has
    // no room for on the stack of some programs.
    unsafe {
        core::arch::asm!(
            "{shift} = {constant} ll",
            "{shift} = *(u32 *)({shift} + 0)",
            "{word} >>= {shift}",
            shift = out(reg) _,
            constant = sym PRESENCE_SHIFT,
            word = inout(reg) presence::spread(word) => slot,
            options(nostack),
        );
    }
    slot as u32
}

/// Whether the table behind may have a key of this word.
#[inline(always)]
pub fn may_have(counters: &Array<u64>, word: u64) -> bool {
    may_have_at(counters, slot(word))
}

#[inline(always)]
fn may_have_at(counters: &Array<u64>, index: u32) -> bool {
    match counters.get_ptr(index) {
        // SAFETY: a pointer into an array map; volatile, so that it is read now.
        Some(count) => unsafe { core::ptr::read_volatile(count) != 0 },
        None => true,
    }
}

/// Counts one key more.
#[inline(always)]
pub fn add(counters: &Array<u64>, word: u64) {
    change(counters, word, 1);
}

/// Counts one key less, which is no longer in the table.
#[inline(always)]
pub fn take(counters: &Array<u64>, word: u64) {
    change(counters, word, -1);
}

#[inline(always)]
fn change(counters: &Array<u64>, word: u64, by: i64) {
    change_at(counters, slot(word), by);
}

#[inline(always)]
fn change_at(counters: &Array<u64>, index: u32, by: i64) {
    if let Some(count) = counters.get_ptr_mut(index) {
        // SAFETY: a pointer into an array map. Without the old value, which programs cannot have before 5.12; the
        // compiler has no atomics for this target.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({0} + 0) += {1}",
                in(reg) count,
                in(reg) by,
                options(nostack),
            );
        }
    }
}

/// Whether a file may be protected. `false` is certain.
#[inline(always)]
pub fn may_be_protected(file: &InodeKey) -> bool {
    may_have(&FILES_PRESENT, file.word())
}

/// Protects a file, in every generation. `false` if there is no room. In a frame of its own.
#[inline(never)]
pub fn protect(file: &InodeKey, credential: CredentialId) -> bool {
    let value = Versioned::constant(credential);
    add(&FILES_PRESENT, file.word());
    if FILES.insert(file, value, BPF_NOEXIST as u64).is_ok() {
        return true;
    }
    take(&FILES_PRESENT, file.word());
    FILES.insert(file, value, BPF_EXIST as u64).is_ok()
}

/// Protects a file no longer.
#[inline(always)]
pub fn unprotect(file: &InodeKey) {
    if may_be_protected(file) && FILES.remove(file).is_ok() {
        take(&FILES_PRESENT, file.word());
    }
}

/// Whether a holder or object may have anything. `false` is certain.
#[inline(always)]
pub fn may_be_held(word: u64) -> bool {
    may_have(&HELD_PRESENT, word)
}

/// Whether a task may hold anything, itself or through the instance of its cgroup. `false` is certain: it is asked of
/// everybody, at each call and packet, and must cost next to nothing.
#[inline(always)]
pub fn may_hold(process: Tgid, cgroup: CgroupId) -> bool {
    may_be_held(Holder::process_word(process))
        || may_be_held(Holder::cgroup_word(cgroup))
        || may_have_at(&HELD_PRESENT, const { presence::slot(Holder::ANYBODY, 1) })
}

/// Puts a credential into a free slot of a table of holders. `false` if it is taken, or there is no room.
#[inline(always)]
pub fn hold(
    table: &HashMap<HolderKey, CredentialId>,
    key: &HolderKey,
    credential: CredentialId,
) -> bool {
    let word = key.holder.word();
    add(&HELD_PRESENT, word);
    let is_new = table.insert(key, credential, BPF_NOEXIST as u64).is_ok();
    if is_new {
        held_more();
    } else {
        take(&HELD_PRESENT, word);
    }
    is_new
}

/// Somebody holds more than before: what was permitted because of what is held is to be decided anew.
#[inline(always)]
pub fn held_more() {
    change_at(&HOLDINGS, 0, 1);
}

/// How many holdings were recorded, ever.
#[inline(always)]
pub fn holdings() -> u64 {
    match HOLDINGS.get_ptr(0) {
        // SAFETY: a pointer into an array map; volatile, so that it is read now.
        Some(count) => unsafe { core::ptr::read_volatile(count) },
        None => 0,
    }
}

/// Takes a slot out of a table of holders. `false` if it was free.
#[inline(always)]
pub fn release(table: &HashMap<HolderKey, CredentialId>, key: &HolderKey) -> bool {
    let word = key.holder.word();
    let was_there = table.remove(key).is_ok();
    if was_there {
        take(&HELD_PRESENT, word);
    }
    was_there
}

/// From now on everybody may hold something.
#[inline(always)]
pub fn hold_by_anybody() {
    add(&HELD_PRESENT, Holder::ANYBODY);
}

/// A cgroup that is only part of an instance comes to be.
#[inline(always)]
pub fn hold_cgroup(cgroup: CgroupId) {
    add(&HELD_PRESENT, Holder::cgroup_word(cgroup));
}

/// Such a cgroup has gone.
#[inline(always)]
pub fn release_cgroup(cgroup: CgroupId) {
    take(&HELD_PRESENT, Holder::cgroup_word(cgroup));
}
