//! Sending records to user space.

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm,
        generated::{bpf_get_current_task, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str},
    },
    maps::RingBuf,
};
use enforcer_common::{
    address::Destination,
    event::{Gate, Kind, Notice, NoticeKind, Ring, Use},
    facts::Task,
    ids::{BootNs, CgroupId, InodeKey, Tgid, Tid},
    verdict::Verdict,
};

use crate::{
    kernel::{QSTR_NAME, read},
    maps::{DENIALS, LOST, NOTICES, USES},
    offset, task,
};

/// Now, on the clock that decides.
#[inline(always)]
pub fn now() -> BootNs {
    // SAFETY: no arguments; in every program type used here since 5.8.
    BootNs(unsafe { bpf_ktime_get_boot_ns() })
}

/// What was used. One pointer, so that it fits into a register.
#[derive(Clone, Copy)]
pub enum Object<'a> {
    /// A file was read.
    File(&'a InodeKey),
    /// Something was sent to a destination.
    Destination(&'a Destination),
    /// A credential was read at a destination.
    Endpoint(&'a Destination),
}

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
    let (kind, object, is_file) = match object {
        Object::File(file) => (Kind::Read, core::ptr::from_ref(file).cast::<u8>(), true),
        Object::Destination(to) => (Kind::Reach, core::ptr::from_ref(to).cast(), false),
        Object::Endpoint(at) => (Kind::Read, core::ptr::from_ref(at).cast(), false),
    };
    let how = kind as u64
        | (gate as u64) << 8
        | u64::from(taken) << 16
        | u64::from(is_current) << 24
        | u64::from(is_file) << 32;
    send(time, task, object, verdict, how);
}

/// [`use_of`] with few enough arguments for a call. Returns 0: a result that is no stack pointer.
#[inline(never)]
fn send(time: BootNs, task: &Task, object: *const u8, verdict: Verdict, how: u64) -> u32 {
    let (ring, which) = if verdict.refuses() {
        (&DENIALS, Ring::Denials)
    } else {
        (&USES, Ring::Uses)
    };
    let Some(mut entry) = reserve::<Use>(ring, which) else {
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved memory is one `Use`; every field is written.
    unsafe {
        (*record).time = time;
        (*record).task = *task;
        (*record).destination = Destination::default();
        (*record).file = InodeKey::default();
        if how >> 32 != 0 {
            (*record).file = *object.cast();
        } else {
            (*record).destination = *object.cast();
        }
        (*record).generation = task::generation();
        (*record).credential = verdict.credential();
        (*record).entitlement = verdict.entitlement();
        (*record).kind = how as u8;
        (*record).gate = (how >> 8) as u8;
        (*record).reason = verdict.reason();
        (*record).mode = verdict.mode() as u8;
        (*record).action = verdict.action() as u8;
        (*record).taken = (how >> 16) as u8;
        (*record).trusted = u8::from(verdict.trusted());
        (*record).reserved = [0; 5];
        (*record).tid = Tid(0);
        (*record).parent = Tgid(0);
        (*record).comm = [0; 16];
        (*record).executable_name = [0; 64];
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
            (*record).comm = bpf_get_current_comm().unwrap_or_default();
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

/// Sends a notice. `name` is a kernel address of a NUL-terminated string, or 0.
#[inline(never)]
pub fn notice(kind: NoticeKind, cgroup: CgroupId, directory: InodeKey, file: InodeKey, name: u64) {
    let Some(mut entry) = reserve::<Notice>(&NOTICES, Ring::Notices) else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved memory is one `Notice`; every field is written.
    unsafe {
        (*record).time = now();
        (*record).cgroup = cgroup;
        (*record).directory = directory;
        (*record).file = file;
        (*record).kind = kind as u32;
        (*record).reserved = 0;
        (*record).name = [0; 256];
        if name != 0 {
            bpf_probe_read_kernel_str((&raw mut (*record).name).cast(), 256, name as *const _);
        }
    }
    entry.submit(0);
}

/// Reserves one record, or counts the loss.
#[inline(always)]
fn reserve<T: 'static>(
    ring: &'static RingBuf,
    which: Ring,
) -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<T>> {
    let entry = ring.reserve::<T>(0);
    if entry.is_none()
        && let Some(lost) = LOST.get_ptr_mut(which as u32)
    {
        // SAFETY: this CPU's own counter.
        unsafe { *lost += 1 };
    }
    entry
}
