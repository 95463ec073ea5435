//! Where processes come from: recorded as they are made, start programs and are moved, and looked up in a decision.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_get_current_task};
use enforcer_common::{
    branchless::{all_ones, is_zero},
    event::NoticeKind,
    ids::{BootNs, CgroupId, IdentityId, InodeKey, Tgid},
    iterate::Marking,
    origin::{self, INTERACTIVE, Origins, UNKNOWN},
    tables::{Cgroup, Holder, Origin, OriginKey, Relevant, RelevantKey},
};

use crate::{
    emit,
    kernel::{read, untyped},
    lifecycle,
    maps::{
        ANCESTORS, CGROUPS, MARKING, ORIGIN_IDENTITIES, ORIGINS, ORIGINS_LOST, ORIGINS_PRESENT,
        RELEVANT, RUNNING,
    },
    offset, presence,
    tables::{KernelTables, settled},
    task,
};

impl Origins for KernelTables {
    #[inline(always)]
    fn relevant(&self, key: &RelevantKey) -> Option<Relevant> {
        // SAFETY: copied at once; written before and removed after its generation.
        unsafe { RELEVANT.get(key) }.copied()
    }

    #[inline(always)]
    fn combined(&self, key: &OriginKey) -> Option<IdentityId> {
        // SAFETY: as above.
        unsafe { ORIGIN_IDENTITIES.get(key) }.copied()
    }
}

/// What the task at a kernel address is to the bundle, in a cgroup that means `identity`; nobody in particular if the
/// address is 0. A global function, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn identity(identity: u64, task: u64) -> u64 {
    let known = IdentityId(identity as u32);
    let of = || if task == 0 { UNKNOWN } else { now(task) };
    u64::from(origin::identity(&KernelTables, task::generation(), known, of).0)
}

/// Where the process of the task at a kernel address comes from, as far as that counts at this moment: who is traced
/// descends from nobody, for what it does is up to the tracer.
#[inline(always)]
fn now(task: u64) -> u64 {
    let signal: u64 = read(task + offset!(task_signal));
    let terminal: u64 = read(signal + offset!(signal_tty));
    let interactive = (is_zero(terminal) ^ 1) << 63;
    let known = recorded(task) | interactive;
    if known == 0 {
        return 0;
    }
    let counts = all_ones(is_zero(u64::from(task::traced(task)))) | INTERACTIVE | UNKNOWN;
    known & counts
}

/// What is recorded of the process of the task at a kernel address.
#[inline(never)]
fn recorded(task: u64) -> u64 {
    let tgid = Tgid(read(task + offset!(task_tgid)));
    if may_come(Holder::process_word(tgid))
        && let Some(origin) = ORIGINS.get_ptr(&lifecycle::process(task))
    {
        // SAFETY: a pointer into the map, good until the program ends. Should it have been removed meanwhile, the
        // process has ended.
        return unsafe { (*origin).bits() };
    }
    // The tracepoint where it got its number was passed over.
    if may_come(Holder::ANYBODY)
        && let Some(origin) = ORIGINS.get_ptr(&Holder::unborn(read(task + offset!(task_leader))))
    {
        // SAFETY: as above.
        return unsafe { (*origin).bits() };
    }
    if ORIGINS_LOST.get(0).copied() == Some(1) {
        UNKNOWN
    } else {
        0
    }
}

/// Adds to what is recorded of a process. Returns 1 if that was not there.
#[inline(always)]
fn add(process: Holder, bits: u64) -> u64 {
    if bits == 0 {
        return 0;
    }
    add_origin(process.id, process.start.0, bits)
}

/// [`add`] with the process's words. A global function, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_origin(id: u64, start: u64, bits: u64) -> u64 {
    let start = BootNs(start);
    let process = Holder { id, start };
    let new = Origin::from_bits(bits);
    presence::add(&ORIGINS_PRESENT, process.word());
    if ORIGINS.insert(&process, &new, BPF_NOEXIST as u64).is_ok() {
        return 1;
    }
    presence::take(&ORIGINS_PRESENT, process.word());
    let Some(known) = ORIGINS.get_ptr_mut(&process) else {
        if let Some(lost) = ORIGINS_LOST.get_ptr_mut(0) {
            // SAFETY: a pointer into an array map; every writer writes the same value.
            unsafe { *lost = 1 };
        }
        let (cgroup, inode) = (CgroupId(0), InodeKey::default());
        emit::notice(NoticeKind::TableFull, cgroup, inode, inode, 0);
        return 0;
    };
    // SAFETY: a pointer into the map. Word by word, each of which has one kind of writer: the process itself its
    // ancestors, and whoever moves it only ever the same value.
    unsafe {
        let missing = bits & !(*known).bits();
        if missing == 0 {
            return 0;
        }
        if missing & INTERACTIVE != 0 {
            (*known).interactive = 1;
        }
        if missing & !INTERACTIVE != 0 {
            (*known).ancestors |= new.ancestors;
        }
    }
    1
}

#[inline(always)]
fn forget(process: Holder) {
    // Once: of a process without a number it is a constant, and the verifier allows no arithmetic with the address.
    let word = process.word();
    if may_come(word) && ORIGINS.remove(&process).is_ok() {
        presence::take(&ORIGINS_PRESENT, word);
    }
}

/// Whether anything may be recorded of a process, by its word. `false` is certain.
#[inline(always)]
pub fn may_come(word: u64) -> bool {
    presence::may_have(&ORIGINS_PRESENT, word)
}

/// The current process makes another, at a kernel address, that has no number yet.
#[inline(always)]
pub fn conceived(child: u64) {
    // SAFETY: no arguments; the address is only read through `read`.
    let parent = unsafe { bpf_get_current_task() };
    let origin = now(parent) & !UNKNOWN;
    if origin != 0 {
        add(Holder::unborn(untyped(child)), origin);
    }
}

/// A new process exists and has not run yet. It may have been made in another cgroup than its parent's.
#[inline(always)]
pub fn forked(parent: u64, child: u64) {
    let mut origin = now(parent) & !UNKNOWN;
    let place: u64 = read(child + offset!(task_cgroups));
    if place != read(parent + offset!(task_cgroups)) {
        let cgroup: u64 = read(place + offset!(css_set_cgroup));
        let from = self::place(parent);
        origin |= put(lifecycle::id(cgroup), from, from);
    }
    add(lifecycle::process(child), origin);
    forget(Holder::unborn(child));
}

/// The current process has started a program: a tree begins here if that is an ancestor the bundle selects by.
#[inline(never)]
pub fn started() -> u32 {
    // SAFETY: as in `conceived`.
    let current = unsafe { bpf_get_current_task() };
    let mut bits = now(current) & INTERACTIVE;
    let executable = task::executable(current);
    if let Some(slots) = ANCESTORS.get_ptr(&executable) {
        // SAFETY: a pointer into the map; its entries are replaced by others of the same key only.
        bits |= unsafe { *slots };
    }
    add(lifecycle::process(current), bits);
    runs(task::current_instance());
    0
}

/// A program has been started in an instance.
#[inline(always)]
fn runs(instance: CgroupId) {
    if instance.0 != 0 && RUNNING.get_ptr(&instance).is_none() {
        let _ = RUNNING.insert(&instance, &1, 0);
    }
}

/// A process has ended.
#[inline(always)]
pub fn ended(process: Holder) {
    forget(process);
}

/// The task at a kernel address is no more.
#[inline(always)]
pub fn freed(task: u64) {
    forget(Holder::unborn(task));
}

/// The instance at a cgroup has gone.
#[inline(always)]
pub fn emptied(instance: CgroupId) {
    let _ = RUNNING.remove(&instance);
}

/// The process of the task at a kernel address is moved to the cgroup at `destination` by the current task. Where
/// `before` is not set they have been moved already: what moved itself is where it wanted to be, and of others nobody
/// knows where they come from.
#[inline(always)]
pub fn moved(destination: u64, task: u64, before: bool) {
    // SAFETY: as in `conceived`.
    let by = place(unsafe { bpf_get_current_task() });
    let from = if before { place(task) } else { by };
    let came = put(lifecycle::id(destination), by, from);
    add(lifecycle::process(task), came);
}

/// Set in the result of [`place`] for the host's service manager; no cgroup id is that large.
const MANAGER: u64 = 1 << 63;

/// The instance that the task at a kernel address is in, and [`MANAGER`]. In a frame of its own.
#[inline(never)]
fn place(task: u64) -> u64 {
    let place: u64 = read(task + offset!(task_cgroups));
    let mut cgroup = Cgroup::default();
    settled(
        &CGROUPS,
        &lifecycle::id(read(place + offset!(css_set_cgroup))),
        &mut cgroup,
    );
    cgroup.instance.0 | u64::from(cgroup.has(Cgroup::MANAGER)) << 63
}

/// What it says of a process that somebody in `by` puts it from `from` into a cgroup, both being [`place`]s. A session
/// is for people. In any other instance, the first processes are put by whoever starts it, and that is not seen before
/// they have started a program; the host's service manager may put more there.
#[inline(never)]
fn put(to: CgroupId, by: u64, from: u64) -> u64 {
    let mut cgroup = Cgroup::default();
    if !settled(&CGROUPS, &to, &mut cgroup) {
        return 0;
    }
    if cgroup.has(Cgroup::SESSION) {
        return INTERACTIVE;
    }
    let instance = cgroup.instance;
    let from_outside = instance.0 != 0
        && by & MANAGER == 0
        && by != instance.0
        && from & !MANAGER != instance.0
        && RUNNING.get_ptr(&instance).is_some();
    if from_outside { INTERACTIVE } else { 0 }
}

/// Notes what an iterator sees of a process, at the address of its first thread: what it runs, whose child it is, where
/// it is. Returns 1 if that was new.
#[inline(always)]
pub fn mark(leader: u64) -> u64 {
    let Some(marking) = MARKING.get(0).copied() else {
        return 0;
    };
    let memory: u64 = read(leader + offset!(task_mm));
    // A thread of the kernel.
    if memory == 0 {
        return 0;
    }
    let process = lifecycle::process(leader);
    let forgot = keep_only(process, &marking);
    let parent: u64 = read(leader + offset!(task_parent));
    let executable = task::executable(leader);
    let mut bits = now(parent);
    if let Some(slots) = ANCESTORS.get_ptr(&executable) {
        // SAFETY: as in `started`.
        bits |= unsafe { *slots };
    }
    bits &= marking.fresh;
    if marking.interactive != 0 {
        bits |= (now(parent) | now(leader) | came(leader, parent)) & INTERACTIVE;
        runs(CgroupId(place(leader) & !MANAGER));
    }
    forgot | add(process, bits)
}

/// Forgets ancestors that do not stay. Returns 1 if there were any.
#[inline(always)]
fn keep_only(process: Holder, marking: &Marking) -> u64 {
    let Some(origin) = ORIGINS.get_ptr_mut(&process) else {
        return 0;
    };
    // SAFETY: a pointer into the map, good until the program ends.
    let origin = unsafe { &mut *origin };
    if origin.ancestors & !marking.keep == 0 {
        return 0;
    }
    origin.ancestors &= marking.keep;
    1
}

/// How a process came into its instance that is there already: in a session, or as a child of somebody outside who is
/// not the first of its own namespace of processes.
#[inline(never)]
fn came(leader: u64, parent: u64) -> u64 {
    let place: u64 = read(leader + offset!(task_cgroups));
    let mut cgroup = Cgroup::default();
    settled(
        &CGROUPS,
        &lifecycle::id(read(place + offset!(css_set_cgroup))),
        &mut cgroup,
    );
    if cgroup.has(Cgroup::SESSION) {
        return INTERACTIVE;
    }
    let pid: u64 = read(leader + offset!(task_thread_pid));
    let level: u32 = read(pid + offset!(pid_level));
    let number: u32 = read(pid + offset!(pid_numbers) + 16 * u64::from(level & 31));
    let from_outside = cgroup.instance.0 != 0
        && level != 0
        && number != 1
        && self::place(parent) & !MANAGER != cgroup.instance.0;
    if from_outside { INTERACTIVE } else { 0 }
}
