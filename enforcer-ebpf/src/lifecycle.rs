//! Holdings and identities over the life of processes and cgroups.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use enforcer_common::{
    branchless::opaque,
    event::NoticeKind,
    ids::{BootNs, CgroupId, IdentityId, InodeKey, Tgid},
    instance::{FIRST, LAST, NameKind, classify, user_of},
    tables::{CGROUP_NAME_BYTES, Cgroup, CgroupName, Holder, Versioned},
    tier,
};

use crate::{
    emit, holders,
    kernel::{self, constant, read},
    maps::{CGROUP_NAMES, CGROUPS, TIER},
    offset, origin, presence,
    tables::settled,
    tamper, task,
};

/// `CLONE_THREAD`.
const THREAD: u64 = 0x0001_0000;

/// The current process makes another, at a kernel address, that has no number yet. What it will hold is kept under the
/// address until it has: the tracepoint where it gets it can be passed over on a preemptible kernel, an LSM hook not.
#[inline(always)]
pub fn conceived(child: u64, clone_flags: u64) {
    if clone_flags & THREAD != 0 {
        return;
    }
    origin::conceived(child);
    if !task::may_hold() {
        return;
    }
    let parent = task::current_holder();
    let from = Holder::process(parent.tgid, parent.start);
    // What an instance holds, it holds already.
    if parent.instance.0 == 0
        && holders::holds(from)
        && !holders::inherit(from, Holder::unborn(kernel::untyped(child)))
    {
        holders::unaccounted(parent.instance);
    }
}

/// A process, `leader` being the address of its first thread, has its number: what was kept under the address is its
/// own. A global function, so that it is verified once. Returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn born(leader: u64, tgid: u64, start: u64) -> u64 {
    let unborn = Holder::unborn(leader);
    if holders::holds(unborn) {
        let process = Holder::process(Tgid(tgid as u32), BootNs(start));
        if !holders::inherit(unborn, process) {
            holders::unaccounted(CgroupId(0));
        }
        holders::forget(unborn);
    }
    0
}

/// The task at a kernel address is no more. Nothing that could be passed over before is left of it.
#[inline(always)]
pub fn freed(task: u64) {
    let unborn = Holder::unborn(task);
    if holders::holds(unborn) {
        holders::forget(Holder::unborn(kernel::untyped(task)));
    }
    origin::freed(task);
    // With its first thread a process ends; one that gave its place to another by exec is no first one any more.
    let leader: u64 = read(task + offset!(task_leader));
    tamper::freed(task);
    if leader == task {
        forgotten(task, Tgid(read(task + offset!(task_tgid))));
    }
}

/// A new task exists and has not run yet. Addresses in the kernel.
#[inline(always)]
pub fn forked(parent: u64, child: u64) {
    let unborn = Holder::unborn(child);
    if holders::holds(unborn) {
        holders::forget(Holder::unborn(kernel::untyped(child)));
    }
    let tgid = Tgid(read(parent + offset!(task_tgid)));
    if tgid == Tgid(read(child + offset!(task_tgid))) {
        return;
    }
    origin::forked(parent, child);
    if !presence::may_be_held(Holder::process_word(tgid)) {
        return;
    }
    let from = process(parent);
    if !holders::holds(from) {
        return;
    }
    if !holders::inherit(from, process(child)) {
        // The child shares the parent's cgroup, and that of the task that runs. What an instance holds, it holds
        // already.
        let instance = task::current_holder().instance;
        if instance.0 == 0 {
            holders::unaccounted(instance);
        }
        emit::notice(
            NoticeKind::TableFull,
            CgroupId(0),
            InodeKey::default(),
            InodeKey::default(),
            0,
        );
    }
}

/// A thread exits; with the last one of its process, the process's holdings end.
#[inline(always)]
pub fn exited(thread: u64) {
    let signal: u64 = read(thread + offset!(task_signal));
    // Decremented before the tracepoint, on every kernel since 2.6.
    let live: i32 = read(signal + offset!(signal_live));
    if live > 0 {
        return;
    }
    let tgid = Tgid(read(thread + offset!(task_tgid)));
    tamper::ended(tgid);
    forgotten(thread, tgid);
}

/// The process of the thread at a kernel address has ended.
#[inline(always)]
fn forgotten(thread: u64, tgid: Tgid) {
    let word = Holder::process_word(tgid);
    let (comes, holds) = (origin::may_come(word), presence::may_be_held(word));
    if !comes && !holds {
        return;
    }
    let process = process(thread);
    origin::ended(process);
    if holders::holds(process) {
        holders::forget(process);
    }
}

/// A task is about to be moved to the cgroup at `destination`.
#[inline(always)]
pub fn attaching(destination: u64, thread: u64) {
    if is_v2(destination) {
        origin::moved(destination, thread, true);
    }
}

/// A task moved to the cgroup at `destination`: what it holds, it brings along.
#[inline(always)]
pub fn attached(destination: u64, thread: u64) {
    if !is_v2(destination) {
        return;
    }
    if constant(&TIER) == tier::FANOTIFY {
        // Elsewhere a program saw it before.
        origin::moved(destination, thread, false);
    }
    let holder = process(thread);
    if !holders::holds(holder) {
        return;
    }
    let mut cgroup = Cgroup::default();
    if !settled(&CGROUPS, &id(destination), &mut cgroup) {
        return;
    }
    if cgroup.instance.0 != 0 && !holders::inherit(holder, Holder::instance(cgroup.instance)) {
        holders::unaccounted(cgroup.instance);
        emit::notice(
            NoticeKind::TableFull,
            cgroup.instance,
            InodeKey::default(),
            InodeKey::default(),
            0,
        );
    }
}

/// A cgroup was created: it means what its parent means, unless the bundle names it. `false` if the table is
/// full: then the cgroup is in no instance and matches nothing.
#[inline(always)]
pub fn created(cgroup: u64, path: u64) -> bool {
    if !is_v2(cgroup) {
        return true;
    }
    let own = id(cgroup);
    let parent = parent(cgroup);
    let mut record = Cgroup::default();
    if parent != 0 {
        settled(&CGROUPS, &id(parent), &mut record);
    }
    let mut named = Versioned::constant(IdentityId(0));
    let mut is_named = lookup(path, &mut named);
    let node: u64 = read(cgroup + offset!(cgroup_kn));
    let name: u64 = read(node + offset!(kn_name));
    let below_slices = record.has(Cgroup::SLICES_ONLY);
    let below_manager = record.user;
    let (kind, user) = kind(name);
    record.descend(own, kind, user);
    if !is_named && below_slices {
        is_named = lookup(name, &mut named);
    }
    if !is_named && below_manager != 0 {
        is_named = lookup_of(name, below_manager, &mut named);
    }
    if is_named {
        record.identity = named;
    }
    // The outermost one counts: what a container has within is its own affair.
    if kind == NameKind::Container && record.instance == own {
        record.identity.before = record.identity.before.unclassified();
        record.identity.after = record.identity.after.unclassified();
    }
    let is_part = record.is_part(own);
    if is_part {
        presence::hold_cgroup(own);
    }
    let recorded = CGROUPS.insert(&own, &record, 0).is_ok();
    if is_part && !recorded {
        presence::release_cgroup(own);
    }
    emit::notice(
        NoticeKind::CgroupCreated,
        own,
        InodeKey::default(),
        InodeKey::default(),
        path,
    );
    recorded
}

/// A cgroup was removed: it had no tasks left, so what its instance held ends.
#[inline(always)]
pub fn removed(cgroup: u64, path: u64) {
    if !is_v2(cgroup) {
        return;
    }
    let own = id(cgroup);
    let mut record = Cgroup::default();
    let was_part = settled(&CGROUPS, &own, &mut record) && record.is_part(own);
    if CGROUPS.remove(&own).is_ok() && was_part {
        presence::release_cgroup(own);
    }
    holders::forget(Holder::instance(own));
    origin::emptied(own);
    emit::notice(
        NoticeKind::CgroupRemoved,
        own,
        InodeKey::default(),
        InodeKey::default(),
        path,
    );
}

/// The process of the thread at a kernel address.
#[inline(always)]
pub fn process(thread: u64) -> Holder {
    Holder::process(Tgid(read(thread + offset!(task_tgid))), task::start(thread))
}

/// What the bundle says about a cgroup of this path or unit name; `false` if nothing.
#[inline(always)]
fn lookup(text: u64, identity: &mut Versioned<IdentityId>) -> bool {
    let mut key = CgroupName([0; CGROUP_NAME_BYTES]);
    // SAFETY: reads at most the array's size, and ends it with NUL.
    let read = unsafe {
        bpf_probe_read_kernel_str(
            (&raw mut key.0).cast(),
            CGROUP_NAME_BYTES as u32,
            text as *const _,
        )
    };
    // A text that was cut off must not match a shorter one.
    if read <= 1 || read as usize >= CGROUP_NAME_BYTES {
        return false;
    }
    settled(&CGROUP_NAMES, &key, identity)
}

/// What the bundle says about a unit of this name of a user's own; `false` if nothing.
#[inline(never)]
fn lookup_of(name: u64, user: u32, identity: &mut Versioned<IdentityId>) -> bool {
    let mut key = CgroupName([0; CGROUP_NAME_BYTES]);
    // SAFETY: the key begins with a whole word; reads at most what is behind it, and ends it with NUL.
    let read = unsafe {
        let text = (&raw mut key.0).cast::<u64>();
        *text = CgroupName::user_prefix(user);
        bpf_probe_read_kernel_str(
            text.add(1).cast(),
            CgroupName::USER_UNIT_BYTES as u32,
            name as *const _,
        )
    };
    if read <= 1 || read as usize >= CgroupName::USER_UNIT_BYTES {
        return false;
    }
    settled(&CGROUP_NAMES, &key, identity)
}

/// What a cgroup's own name says, and if it is that of a user's service manager, whose.
#[inline(never)]
fn kind(name: u64) -> (NameKind, u32) {
    let mut first = [0_u8; FIRST + 1];
    // SAFETY: reads at most the array's size, and ends it with NUL.
    let read = unsafe {
        bpf_probe_read_kernel_str(
            (&raw mut first).cast(),
            first.len() as u32,
            name as *const _,
        )
    };
    let mut len = (read - 1) as u64;
    if read <= 1 {
        return (NameKind::Other, 0);
    }
    let Some(first) = first.first_chunk() else {
        return (NameKind::Other, 0);
    };
    if len >= FIRST as u64 {
        len = full_length(name);
    }
    let last: [u8; LAST] = kernel::read(name.wrapping_add(len).wrapping_sub(LAST as u64));
    let kind = classify(len as usize, first, &last);
    let user = match kind {
        NameKind::UserManager => user_of(len as usize, first),
        _ => 0,
    };
    (kind, user)
}

/// Length of a name that is longer than what [`classify`] wants of its beginning; names have 255 bytes at
/// most.
#[inline(never)]
fn full_length(name: u64) -> u64 {
    let mut piece = [0_u8; FIRST + 1];
    let mut len = 0;
    while len < 256 {
        // SAFETY: reads at most the array's size.
        let read = unsafe {
            bpf_probe_read_kernel_str(
                (&raw mut piece).cast(),
                piece.len() as u32,
                name.wrapping_add(len) as *const _,
            )
        };
        if read <= FIRST as i64 {
            return (len + (read - 1) as u64) & 0xff;
        }
        len = opaque(len + FIRST as u64);
    }
    len
}

/// Whether a cgroup is of the v2 hierarchy: ids of other hierarchies overlap with its.
#[inline(always)]
fn is_v2(cgroup: u64) -> bool {
    let root: u64 = read(cgroup + offset!(cgroup_root));
    let hierarchy: i32 = read(root + offset!(root_hierarchy));
    hierarchy == 0
}

/// The id of the cgroup at a kernel address.
#[inline(always)]
pub fn id(cgroup: u64) -> CgroupId {
    let node: u64 = read(cgroup + offset!(cgroup_kn));
    CgroupId(read(node + offset!(kn_id)))
}

/// Kernel address of a cgroup's parent, or 0 for the root.
#[inline(always)]
pub fn parent(cgroup: u64) -> u64 {
    let own_state = offset!(cgroup_self);
    let state: u64 = read(cgroup + own_state + offset!(css_parent));
    if state == 0 { 0 } else { state - own_state }
}
