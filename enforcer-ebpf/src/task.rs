//! Facts about the current task, read live.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::{bpf_get_current_cgroup_id, bpf_get_current_task},
};
use enforcer_common::{
    branchless::{all_ones, is_zero},
    decide,
    facts::Task,
    ids::{BootNs, CgroupId, ExecutableKey, Generation, IdentityId, Tgid, Tid, Uid},
    tables::{Cgroup, Holder},
    tier,
};

use crate::{
    kernel::{constant, executable_key, read},
    lifecycle,
    maps::{CGROUPS, GENERATION, TIER},
    offset, origin, presence,
    tables::{KernelTables, settled},
};

/// Process and thread that run now.
#[inline(always)]
pub fn ids() -> (Tgid, Tid) {
    let both = bpf_get_current_pid_tgid();
    (Tgid((both >> 32) as u32), Tid(both as u32))
}

/// Fills in the current task, where the kernel lets the program read it; `facts` come as zeroes. Into the
/// caller's memory, because a returned value would be there twice. Returns the generation, so that no stack
/// pointer is left where a result would be, which the verifier refuses.
#[inline(never)]
pub fn current(facts: &mut Task) -> u32 {
    // SAFETY: no arguments; the address is only read through `read`.
    let task = unsafe { bpf_get_current_task() };
    facts.executable = executable(task);
    fill_holder(facts, task);
    facts.uid = Uid(bpf_get_current_uid_gid() as u32);
    facts.identity = with_origin(facts.identity, task);
    generation().0
}

/// Whether the current task may hold anything. `false` is certain.
#[inline(always)]
pub fn may_hold() -> bool {
    // SAFETY: no arguments.
    let cgroup = CgroupId(unsafe { bpf_get_current_cgroup_id() });
    presence::may_hold(ids().0, cgroup)
}

/// Whether the current task holds anything.
#[inline(always)]
pub fn holds() -> bool {
    may_hold() && does_hold()
}

/// In a frame of its own.
#[inline(never)]
fn does_hold() -> bool {
    decide::holds(&KernelTables, &current_holder())
}

/// Only what tells whether the current task holds anything: who it is and its instance.
#[inline(always)]
pub fn current_holder() -> Task {
    // SAFETY: as in `current`.
    let task = unsafe { bpf_get_current_task() };
    let mut facts = Task::default();
    fill_holder(&mut facts, task);
    facts
}

/// The current task's instance; 0 if it is in none. In a frame of its own.
#[inline(never)]
pub fn current_instance() -> CgroupId {
    let mut facts = Task::NOBODY;
    // SAFETY: no arguments.
    facts.cgroup = CgroupId(unsafe { bpf_get_current_cgroup_id() });
    classify(&mut facts);
    facts.instance
}

#[inline(always)]
fn fill_holder(facts: &mut Task, task: u64) {
    facts.start = start(task);
    // SAFETY: no arguments.
    facts.cgroup = CgroupId(unsafe { bpf_get_current_cgroup_id() });
    facts.tgid = ids().0;
    classify(facts);
    if facts.instance.0 == 0
        && constant(&TIER) != tier::FANOTIFY
        && presence::may_be_held(Holder::ANYBODY)
    {
        let leader: u64 = read(task + offset!(task_leader));
        lifecycle::born(leader, u64::from(facts.tgid.0), facts.start.0);
    }
}

/// Adds what the tables know of the task's cgroup. A cgroup has an entry from its creation on, made from
/// its parent's; one without is in no instance and not classified. Neither is a container until the daemon has said what
/// it is.
#[inline(always)]
pub fn classify(task: &mut Task) {
    let mut cgroup = Cgroup::default();
    if settled(&CGROUPS, &task.cgroup, &mut cgroup) {
        task.instance = cgroup.instance;
        (task.identity, task.classified) = cgroup.identity.at(generation()).classified();
    }
}

/// What the task at a kernel address is to the bundle, given where it comes from as well; if the address is 0, somebody
/// of whom that is not known.
#[inline(always)]
pub fn with_origin(identity: IdentityId, task: u64) -> IdentityId {
    IdentityId(origin::identity(u64::from(identity.0), task) as u32)
}

/// The generation in force; 0 before the first bundle.
#[inline(always)]
pub fn generation() -> Generation {
    match GENERATION.get(0) {
        // SAFETY: a pointer into an array map; volatile so that it is read once.
        Some(generation) => unsafe { core::ptr::read_volatile(generation) },
        None => Generation(0),
    }
}

/// When the process of the task at `task` started.
#[inline(always)]
pub fn start(task: u64) -> BootNs {
    let leader: u64 = read(task + offset!(task_leader));
    BootNs(read(leader + offset!(task_start)))
}

/// The executable as which the task at `task` counts; all zero for a kernel thread, and for who is traced: what it does
/// is up to the tracer, and what it reads is the tracer's. (Of its other threads nobody knows without a search.)
#[inline(always)]
pub fn executable(task: u64) -> ExecutableKey {
    let untraced = all_ones(is_zero(u64::from(traced(task))));
    executable_key(executable_inode(task) & untraced)
}

/// Not 0 if the task at `task`, or its first thread, is traced.
#[inline(always)]
pub fn traced(task: u64) -> u32 {
    let leader: u64 = read(task + offset!(task_leader));
    read::<u32>(task + offset!(task_ptrace)) | read::<u32>(leader + offset!(task_ptrace))
}

/// Kernel address of the inode of a task's executable, or 0.
#[inline(always)]
pub fn executable_inode(task: u64) -> u64 {
    read(executable_file(task) + offset!(file_inode))
}

/// Kernel address of the open file that a task's executable is, or 0.
#[inline(always)]
pub fn executable_file(task: u64) -> u64 {
    let mm: u64 = read(task + offset!(task_mm));
    read(mm + offset!(mm_exe))
}
