//! Sending records to user space.

use aya_ebpf::{
    helpers::generated::{
        bpf_get_current_comm, bpf_get_current_task, bpf_ktime_get_boot_ns,
        bpf_probe_read_kernel_str,
    },
    maps::RingBuf,
};
use enforcer_common::{
    address::Destination,
    capacity,
    event::{ANCESTORS, Gate, Kind, Notice, NoticeKind, Ring, Use},
    facts::Task,
    ids::{BootNs, CgroupId, InodeKey, Tgid},
    tables::Share,
    verdict::Verdict,
};

use crate::{
    kernel::{QSTR_NAME, read},
    maps::{DENIALS, LOST, NOTICES, SHARES, USES},
    offset, task, usage,
};

/// Now, on the clock that decides.
#[inline(always)]
pub fn now() -> BootNs {
    // SAFETY: no arguments; in every program type used here since 5.8.
    BootNs(unsafe { bpf_ktime_get_boot_ns() })
}

/// What was used: where it stands, and the part of a record's `how` that follows from it. Two words, because a
/// `match` on an enum would make the verifier walk every arm.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    at: *const u64,
    how: u64,
    lifetime: core::marker::PhantomData<&'a u64>,
}

impl<'a> Object<'a> {
    /// Of `how`: the object is a file.
    pub const IS_FILE: u64 = 1 << 25;

    #[inline(always)]
    fn new<T>(at: &'a T, kind: Kind, flags: u64) -> Self {
        Self {
            at: core::ptr::from_ref(at).cast(),
            how: kind as u64 | flags,
            lifetime: core::marker::PhantomData,
        }
    }

    /// A file that was read.
    #[inline(always)]
    pub fn file(key: &'a InodeKey) -> Self {
        Self::new(key, Kind::Read, Self::IS_FILE)
    }

    /// A destination that something is sent to.
    #[inline(always)]
    pub fn destination(to: &'a Destination) -> Self {
        Self::new(to, Kind::Reach, 0)
    }

    /// A destination where a credential was read.
    #[inline(always)]
    pub fn endpoint(at: &'a Destination) -> Self {
        Self::new(at, Kind::Read, 0)
    }

    /// The memory of a process that holds a credential.
    #[inline(always)]
    pub fn memory(of: Tgid) -> Self {
        Self::new(&NO_DESTINATION, Kind::Read, u64::from(of.0) << 32)
    }

    /// Something that is done to a process of the enforcer's.
    #[inline(always)]
    pub fn tamper(what: &'a Destination, target: Tgid) -> Self {
        Self::new(what, Kind::Tamper, u64::from(target.0) << 32)
    }

    /// A file that a secret went into.
    #[inline(always)]
    pub fn copy(key: &'a InodeKey) -> Self {
        Self::new(key, Kind::Forward, Self::IS_FILE)
    }

    /// Something else that a secret went through.
    #[inline(always)]
    pub fn handed_on(what: &'a Destination) -> Self {
        Self::new(what, Kind::Forward, 0)
    }

    /// What has no name of its own.
    #[inline(always)]
    pub fn nothing(kind: Kind) -> Self {
        Self::new(&NO_DESTINATION, kind, 0)
    }
}

/// What a record has for a destination if there is none.
#[unsafe(no_mangle)]
static NO_DESTINATION: Destination = Destination::NONE;

/// Sends one use, to the ring of denials if the call was refused. `taken` is one of
/// [`enforcer_common::event::taken`], `is_current` says whether the current task is the one that the facts
/// are about.
#[inline(always)]
pub fn use_of(
    time: BootNs,
    task: &Task,
    object: Object<'_>,
    verdict: Verdict,
    gate: Gate,
    taken: u8,
    is_current: bool,
) {
    let how =
        object.how | (gate as u64) << 8 | u64::from(taken) << 16 | u64::from(is_current) << 24;
    send(time, task, object.at, verdict, how);
}

/// [`use_of`] with few enough arguments for a call. Returns 0: a result that is no stack pointer.
#[inline(never)]
fn send(time: BootNs, task: &Task, object: *const u64, verdict: Verdict, how: u64) -> u32 {
    let (ring, which) = if verdict.refuses() {
        (&DENIALS, Ring::Denials)
    } else {
        (&USES, Ring::Uses)
    };
    if matches!(which, Ring::Denials) && is_flood(time, task) != 0 {
        count_lost(which);
        return 0;
    }
    if verdict.reason() == 0
        && is_counted(how)
        // SAFETY: `object` and `how` are those of one `Object`.
        && unsafe { usage::count(time, task, object, verdict, how) } != 0
    {
        return 0;
    }
    let Some(mut entry) = reserve::<Use>(ring, which) else {
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved memory is one `Use`, of whole words; every one is written.
    unsafe {
        clear(record);
        (*record).time = time;
        (*record).task = *task;
        // Word by word: for a copy of the whole the compiler calls a function that compares the two addresses,
        // which the verifier does not allow.
        let (first, second) = (object.read_volatile(), object.add(1).read_volatile());
        if how & Object::IS_FILE != 0 {
            let file = (&raw mut (*record).file).cast::<u64>();
            file.write_volatile(first);
            file.add(1).write_volatile(second);
        } else {
            let destination = (&raw mut (*record).destination).cast::<u64>();
            destination.write_volatile(first);
            destination.add(1).write_volatile(second);
            destination
                .add(2)
                .write_volatile(object.add(2).read_volatile());
        }
        (*record).generation = task::generation();
        (*record).credential = verdict.credential();
        (*record).entitlement = verdict.entitlement();
        (*record).kind = how as u8;
        (*record).gate = (how >> 8) as u8;
        (*record).reason = verdict.reason();
        (*record).mode = verdict.mode() as u8;
        (*record).action = verdict.action_code();
        (*record).taken = (how >> 16) as u8;
        (*record).trusted = u8::from(verdict.trusted());
        (*record).target = Tgid((how >> 32) as u32);
    }
    if how >> 24 & 1 != 0 {
        // SAFETY: no arguments; the address is only read through `read`.
        let current = unsafe { bpf_get_current_task() };
        let parent: u64 = read(current + offset!(task_parent));
        let file = task::executable_file(current);
        // SAFETY: as above; the name is read into the record itself.
        unsafe {
            (*record).tid = task::ids().1;
            (*record).parent = Tgid(read(parent + offset!(task_tgid)));
            let mut ancestor = parent;
            let mut generation = 0;
            while generation < ANCESTORS {
                ancestor = read(ancestor + offset!(task_parent));
                (*record).ancestors[generation] = Tgid(read(ancestor + offset!(task_tgid)));
                generation += 1;
            }
            bpf_get_current_comm((&raw mut (*record).comm).cast(), 16);
            if file != 0 {
                let dentry: u64 = read(file + offset!(file_path) + offset!(path_dentry));
                let name: u64 = read(dentry + offset!(dentry_name) + QSTR_NAME);
                bpf_probe_read_kernel_str(
                    (&raw mut (*record).executable_name).cast(),
                    64,
                    name as *const _,
                );
            }
        }
    }
    entry.submit(0);
    0
}

/// Whether uses of this kind are counted: reads and reaches, but not of another process's memory.
#[inline(always)]
fn is_counted(how: u64) -> bool {
    how as u8 <= Kind::Reach as u8 && how >> 32 == 0
}

/// Sends a notice. `name` is a kernel address of a NUL-terminated string, or 0.
#[inline(never)]
pub fn notice(kind: NoticeKind, cgroup: CgroupId, directory: InodeKey, file: InodeKey, name: u64) {
    let Some(mut entry) = reserve::<Notice>(&NOTICES, Ring::Notices) else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved memory is one `Notice`, of whole words; every one is written.
    unsafe {
        clear(record);
        (*record).time = now();
        (*record).cgroup = cgroup;
        (*record).directory = directory;
        (*record).file = file;
        (*record).kind = kind as u32;
        if name != 0 {
            bpf_probe_read_kernel_str((&raw mut (*record).name).cast(), 256, name as *const _);
        }
    }
    entry.submit(0);
}

/// Writes zeroes, word by word.
///
/// # Safety
///
/// The memory is a `T`'s, which has whole words and may be all zeroes.
#[inline(always)]
unsafe fn clear<T>(record: *mut T) {
    let words = record.cast::<u64>();
    let mut word = 0;
    while word < size_of::<T>() / 8 {
        // SAFETY: within the value, by the caller's promise.
        unsafe { words.add(word).write_volatile(0) };
        word += 1;
    }
}

/// Reserves one record, or counts the loss.
#[inline(always)]
fn reserve<T: 'static>(
    ring: &'static RingBuf,
    which: Ring,
) -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<T>> {
    let entry = ring.reserve::<T>(0);
    if entry.is_none() {
        count_lost(which);
    }
    entry
}

#[inline(always)]
fn count_lost(which: Ring) {
    if let Some(lost) = LOST.get_ptr_mut(which as u32) {
        // SAFETY: this CPU's own counter.
        unsafe { *lost += 1 };
    }
}

/// Whether the process has had its share of denials told this second: the denial of another must not drown in them.
/// In a frame of its own; a number, which is no stack pointer.
#[inline(never)]
fn is_flood(now: BootNs, task: &Task) -> u32 {
    let second = now.0 >> 30;
    if let Some(share) = SHARES.get_ptr_mut(task.tgid) {
        // SAFETY: a pointer into the map; that two processors count at once only makes the share a little larger.
        let share = unsafe { &mut *share };
        if share.second == second {
            share.told += 1;
            return u32::from(share.told > capacity::DENIALS_PER_SECOND);
        }
    }
    let share = Share { second, told: 1 };
    let _ = SHARES.insert(&task.tgid, &share, 0);
    0
}
