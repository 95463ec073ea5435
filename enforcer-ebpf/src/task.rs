//! Facts about the current task, read live.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_task},
};
use enforcer_common::{
    facts::Task,
    ids::{BootNs, CgroupId, ExecutableKey, Generation, Tgid, Tid, Uid},
    tables::Cgroup,
};

use crate::{
    kernel::{executable_key, read},
    maps::{CGROUPS, GENERATION},
    offset,
};

/// How deep below the root a cgroup's known ancestor is looked for. Kubernetes nests five deep.
const CGROUP_DEPTH: i32 = 8;

/// Process and thread that run now.
#[inline(always)]
pub fn ids() -> (Tgid, Tid) {
    let both = bpf_get_current_pid_tgid();
    (Tgid((both >> 32) as u32), Tid(both as u32))
}

/// The current task, where the kernel lets the program read it.
#[inline(never)]
pub fn current() -> Task {
    // SAFETY: no arguments; the address is only read through `read`.
    let task = unsafe { bpf_get_current_task() };
    let (instance, cgroup, known) = current_cgroup();
    let mut facts = Task {
        executable: executable(task),
        start: start(task),
        instance,
        cgroup,
        tgid: ids().0,
        uid: Uid(bpf_get_current_uid_gid() as u32),
        ..Task::default()
    };
    if let Some(cgroup) = known {
        facts.identity = cgroup.identity.at(generation());
        facts.classified = 1;
    }
    facts
}

/// Only what tells whether the current task holds anything: who it is and its instance.
#[inline(never)]
pub fn current_holder() -> Task {
    // SAFETY: as in `current`.
    let task = unsafe { bpf_get_current_task() };
    let (instance, cgroup, _) = current_cgroup();
    Task {
        start: start(task),
        instance,
        cgroup,
        tgid: ids().0,
        ..Task::default()
    }
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

/// The executable of the task at `task`; all zero for a kernel thread.
#[inline(always)]
fn executable(task: u64) -> ExecutableKey {
    executable_key(executable_inode(task))
}

/// Kernel address of the inode of a task's executable, or 0.
#[inline(always)]
pub fn executable_inode(task: u64) -> u64 {
    let file = executable_file(task);
    if file == 0 {
        return 0;
    }
    read(file + offset!(file_inode))
}

/// Kernel address of the open file that a task's executable is, or 0.
#[inline(always)]
pub fn executable_file(task: u64) -> u64 {
    let mm: u64 = read(task + offset!(task_mm));
    if mm == 0 {
        return 0;
    }
    read(mm + offset!(mm_exe))
}

/// Instance and id of the current task's cgroup, and what the tables know of it.
#[inline(always)]
fn current_cgroup() -> (CgroupId, CgroupId, Option<Cgroup>) {
    // SAFETY: no arguments.
    let id = CgroupId(unsafe { bpf_get_current_cgroup_id() });
    // SAFETY: the value is copied at once; entries are replaced whole.
    let known = unsafe { CGROUPS.get(id) }.copied().or_else(nearest_ancestor);
    match known {
        Some(cgroup) => (cgroup.instance, id, Some(cgroup)),
        None => (CgroupId(0), id, None),
    }
}

/// The deepest ancestor that the tables know: for a cgroup whose creation was not seen.
#[inline(always)]
fn nearest_ancestor() -> Option<Cgroup> {
    let mut found = None;
    let mut level = 0;
    while level < CGROUP_DEPTH {
        // SAFETY: a helper on a number; 0 where there is no such ancestor.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            break;
        }
        // SAFETY: the value is copied at once.
        if let Some(cgroup) = unsafe { CGROUPS.get(CgroupId(id)) } {
            found = Some(*cgroup);
        }
        level += 1;
    }
    found
}
