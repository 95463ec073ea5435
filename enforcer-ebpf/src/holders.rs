//! Recording who holds what.

use aya_ebpf::{bindings::BPF_EXIST, maps::HashMap};
use enforcer_common::{
    branchless::opaque,
    capacity::HELD_PER_HOLDER,
    facts::Task,
    ids::{BootNs, CgroupId, CredentialId},
    tables::{Cgroup, Credential, Holder, HolderKey},
};

use crate::{
    maps::{CGROUPS, HOLDERS, UNACCOUNTED},
    presence,
    tables::settled,
};

/// What became of a holding; a number, because an enum costs the verifier a path for each value.
pub mod added {
    /// There was no room for it.
    pub const NOT: u32 = 0;
    /// It was there.
    pub const BEFORE: u32 = 1;
    /// It was not there.
    pub const NOW: u32 = 2;
}

/// Records that `task` holds `credential`, before the read goes on. Returns one of [`added`]; if that is
/// [`added::NOT`], the read must be denied.
#[inline(always)]
pub fn record(task: &Task, credential: CredentialId, flags: Credential) -> u32 {
    let process = add(Holder::process(task.tgid, task.start), credential);
    if task.instance.0 == 0 || flags.has(Credential::PROCESS_ONLY) {
        return process;
    }
    // Within an instance the process record only serves a later move to another cgroup.
    let instance = add(Holder::instance(task.instance), credential);
    if instance == added::BEFORE {
        return process;
    }
    instance
}

/// Adds one credential to one holder. Returns one of [`added`].
#[inline(always)]
pub fn add(holder: Holder, credential: CredentialId) -> u32 {
    add_holding(holder.id, holder.start.0, credential.0.into()) as u32
}

/// [`add`] with a holder's two words. A global function, so that it is verified once, as the other two below.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_holding(id: u64, start: u64, credential: u64) -> u64 {
    let credential = CredentialId(credential as u32);
    add_to(&HOLDERS, holder(id, start), credential).into()
}

#[inline(always)]
const fn holder(id: u64, start: u64) -> Holder {
    let start = BootNs(start);
    Holder { id, start }
}

/// Adds one credential to one entry of a table of holders. Two programs that add at the same moment take different
/// slots. Returns one of [`added`].
#[inline(always)]
pub fn add_to(
    table: &HashMap<HolderKey, CredentialId>,
    holder: Holder,
    credential: CredentialId,
) -> u32 {
    let mut slot = 0;
    while slot <= HELD_PER_HOLDER {
        let key = HolderKey { holder, slot };
        // The last slot only marks that there were more.
        if (slot == HELD_PER_HOLDER || table.get_ptr(&key).is_none())
            && presence::hold(table, &key, credential)
        {
            return added::NOW;
        }
        match table.get_ptr(&key) {
            // SAFETY: a pointer into the map, good until the program ends.
            Some(held) if slot == HELD_PER_HOLDER || unsafe { *held } == credential => {
                return added::BEFORE;
            }
            Some(_) => {}
            None => return added::NOT,
        }
        slot = opaque(slot + 1);
    }
    added::NOT
}

/// Copies every credential of one holder to another. `false` if one could not be recorded.
#[inline(always)]
pub fn inherit(from: Holder, to: Holder) -> bool {
    copy_holdings(from.id, from.start.0, to.id, to.start.0) != 0
}

/// [`inherit`] with the holders' words. 0 if one could not be recorded.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn copy_holdings(from: u64, from_start: u64, to: u64, to_start: u64) -> u64 {
    let (from, to) = (holder(from, from_start), holder(to, to_start));
    let mut complete = true;
    if HOLDERS.get_ptr(&overflow(from)).is_some() {
        complete = hold_overflow(to.id, to.start.0) != 0;
    }
    let mut slot = 0;
    while slot < HELD_PER_HOLDER {
        let key = HolderKey { holder: from, slot };
        let Some(held) = HOLDERS.get_ptr(&key) else {
            break;
        };
        // SAFETY: a pointer into the map's preallocated memory.
        complete &= add(to, unsafe { *held }) != added::NOT;
        slot = opaque(slot + 1);
    }
    complete.into()
}

/// What says that a holder has more than its slots.
#[inline(always)]
const fn overflow(holder: Holder) -> HolderKey {
    let slot = HELD_PER_HOLDER;
    HolderKey { holder, slot }
}

/// A holder has more than its slots. 0 if that could not be recorded. In a frame of its own.
#[inline(never)]
fn hold_overflow(id: u64, start: u64) -> u32 {
    let key = overflow(holder(id, start));
    let holds = presence::hold(&HOLDERS, &key, CredentialId(0)) || HOLDERS.get_ptr(&key).is_some();
    holds.into()
}

/// Forgets a holder that has ended.
#[inline(always)]
pub fn forget(holder: Holder) {
    forget_holdings(holder.id, holder.start.0);
}

/// [`forget`] with the holder's words. Returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forget_holdings(id: u64, start: u64) -> u64 {
    let holder = holder(id, start);
    let mut slot = 0;
    while slot < HELD_PER_HOLDER {
        let key = HolderKey { holder, slot };
        if !presence::release(&HOLDERS, &key) {
            break;
        }
        slot = opaque(slot + 1);
    }
    // The mark of overflow can be there with free slots before it.
    let slot = HELD_PER_HOLDER;
    presence::release(&HOLDERS, &HolderKey { holder, slot });
    0
}

/// Whether a holder holds anything.
#[inline(always)]
pub fn holds(holder: Holder) -> bool {
    presence::may_be_held(holder.word())
        && HOLDERS.get_ptr(&HolderKey { holder, slot: 0 }).is_some()
}

/// Remembers that something held could not be recorded for an instance, or if it is none, for a process in none.
#[inline(always)]
pub fn unaccounted(instance: CgroupId) {
    presence::hold_by_anybody();
    let is_instance = instance.0 != 0;
    let mut cgroup = Cgroup::default();
    if is_instance && settled(&CGROUPS, &instance, &mut cgroup) {
        cgroup.unaccounted = 1;
        let _ = CGROUPS.insert(&instance, &cgroup, BPF_EXIST as u64);
    }
    if let Some(flag) = UNACCOUNTED.get_ptr_mut(u32::from(is_instance)) {
        // SAFETY: a pointer into an array map; every writer writes the same value.
        unsafe { *flag = 1 };
    }
    presence::held_more();
}
