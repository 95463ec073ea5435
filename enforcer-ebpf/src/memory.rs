//! The read gate for the memory of a holder.

use enforcer_common::{
    branchless::opaque,
    capacity::HELD_PER_HOLDER,
    decide,
    event::Gate,
    facts::Task,
    ids::{CgroupId, CredentialId, Tgid},
    tables::{Credential, CredentialKey, Holder, HolderKey, Tables},
};

use crate::{emit::Object, gate, kernel::read, lifecycle, offset, tables::KernelTables, task};

/// `PTRACE_MODE_ATTACH`: to read and write everything.
const ATTACH: u32 = 2;
/// `PTRACE_MODE_NOAUDIT`: the kernel only asks what to leave out, as of `/proc/PID/stat`.
const NO_AUDIT: u32 = 4;

/// The current task wants into the memory of the task at a kernel address; `mode` is a `PTRACE_MODE_*`. Within a
/// workload instance everybody holds the same; anybody else reads what the target holds. `true` refuses.
#[inline(always)]
pub fn accessed(target: u64, mode: u32) -> bool {
    if mode & NO_AUDIT != 0 {
        return false;
    }
    let tgid = Tgid(read(target + offset!(task_tgid)));
    if tgid == task::ids().0 {
        return false;
    }
    let mut holder = Holder::default();
    holder_of(target, tgid, &mut holder) && reads(holder, tgid, mode & ATTACH != 0)
}

/// What the process of the task at a kernel address belongs to, if that holds anything and the current task does not
/// belong to it too. In a frame of its own.
#[inline(never)]
fn holder_of(target: u64, tgid: Tgid, holder: &mut Holder) -> bool {
    let mut of = Task::NOBODY;
    of.tgid = tgid;
    of.start = task::start(target);
    of.cgroup = cgroup(target);
    task::classify(&mut of);
    *holder = Holder::process(of.tgid, of.start);
    if of.instance.0 != 0 {
        if of.instance == task::current_instance() {
            return false;
        }
        *holder = Holder::instance(of.instance);
    }
    decide::holds(&KernelTables, &of)
}

/// Reads what `holder` holds, one after the other; without `all` only what stands in its environment.
#[inline(never)]
fn reads(holder: Holder, of: Tgid, all: bool) -> bool {
    let mut refused = 0;
    let mut slot = 0;
    while slot < HELD_PER_HOLDER {
        let key = HolderKey { holder, slot };
        slot = opaque(slot + 1);
        let Some(credential) = KernelTables.held(&key) else {
            break;
        };
        refused |= read_memory(u64::from(credential.0), u64::from(of.0), u64::from(all));
    }
    refused != 0
}

/// One credential in the memory of process `of`. A global function, so that it is verified once. 1 refuses.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_memory(credential: u64, of: u64, all: u64) -> u64 {
    let credential = CredentialId(credential as u32);
    if all == 0 {
        let key = CredentialKey::new(task::generation(), credential);
        let info = KernelTables.credential(&key).unwrap_or_default();
        if !info.has(Credential::ENVIRONMENT) {
            return 0;
        }
    }
    let of = Object::memory(Tgid(of as u32));
    u64::from(gate::read(credential, of, Gate::PtraceAccessCheck))
}

/// The cgroup of the task at a kernel address.
#[inline(always)]
fn cgroup(target: u64) -> CgroupId {
    let place: u64 = read(target + offset!(task_cgroups));
    lifecycle::id(read(place + offset!(css_set_cgroup)))
}
