//! Iterators: facts about tasks other than the one that runs, and about open files. They need no trampoline,
//! so they are there on every tier.
//!
//! The kernel calls the program for each object, and once more with none at the end.

use aya_ebpf::{
    bindings::seq_file,
    helpers::generated::{bpf_probe_read_kernel_str, bpf_seq_write, bpf_task_pt_regs},
};
use enforcer_common::{
    facts::Task,
    ids::{CgroupId, CredentialId, Tgid, Tid, Uid},
    iterate::{Asker, FileRecord, HolderRecord, ThreadRecord, Wanted},
    tables::Versioned,
};

use crate::{
    kernel::{QSTR_NAME, executable_key, inode_key, load, read, untyped},
    maps::{DAEMON, FILES, WANTED},
    offset, origin,
    tables::settled,
    task,
};

/// `FMODE_READ`.
const READABLE: u32 = 1;
/// Addresses are below this many of the highest numbers, which stand for errors.
const MAX_ERRNO: u64 = 4095;
/// Size of a kernel stack on x86-64, and on arm64 with pages of 4 KiB.
const STACK_BYTES: u64 = 16 * 1024;

/// `struct bpf_iter__task`.
#[repr(C)]
pub struct TaskContext {
    /// `struct bpf_iter_meta`, whose first member is the file to write to.
    meta: *const u8,
    task: *const u8,
}

/// `struct bpf_iter__task_file`.
#[repr(C)]
pub struct TaskFileContext {
    /// As in [`TaskContext`].
    meta: *const u8,
    task: *const u8,
    descriptor: u32,
    file: *const u8,
}

/// Shows the thread that an asker wants. Where its registers are, the kernel tells from 5.15 on (`has_helper`).
/// Before, they are looked for at the end of a stack of the usual size; the daemon asks about itself first, to
/// see that they are there.
///
/// # Safety
///
/// `ctx` is what the kernel gave to the program.
#[inline(always)]
pub unsafe fn thread(ctx: *const TaskContext, has_helper: bool) {
    // SAFETY: the caller's promise.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() {
        return;
    }
    let regs = if has_helper {
        // SAFETY: the context's task, checked above.
        unsafe { bpf_task_pt_regs(task.cast_mut().cast()) as u64 }
    } else {
        let stack: u64 = read(task as u64 + offset!(task_stack));
        stack + STACK_BYTES - offset!(regs_last) - 8
    };
    let task = task as u64;
    let tid: u32 = read(task + offset!(task_pid));
    if !wanted(|it| it.thread.0 == tid) {
        return;
    }
    let parent: u64 = read(task + offset!(task_parent));
    let mut record = ThreadRecord {
        task: Task::NOBODY,
        tid: Tid(tid),
        parent: Tgid(read(parent + offset!(task_tgid))),
        comm: read(task + offset!(task_comm)),
        executable_name: [0; 64],
        // An `int` on arm64.
        call: u64::from(read::<u32>(regs + offset!(regs_call))),
        arguments: [
            read(regs + offset!(regs_second)),
            read(regs + offset!(regs_third)),
        ],
    };
    examine(&mut record.task, task);
    let file = task::executable_file(task);
    if file != 0 {
        let dentry: u64 = read(file + offset!(file_path) + offset!(path_dentry));
        let name: u64 = read(dentry + offset!(dentry_name) + QSTR_NAME);
        text(&mut record.executable_name, name);
    }
    write(meta, &record);
}

/// Notes where a process comes from, and writes a byte if that was new.
///
/// # Safety
///
/// `ctx` is what the kernel gave to the program.
#[inline(always)]
pub unsafe fn origin(ctx: *const TaskContext) {
    // SAFETY: the caller's promise.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task as u64) };
    if task != 0 && read::<u64>(task + offset!(task_leader)) == task && origin::mark(task) != 0 {
        write(meta, &1_u8);
    }
}

/// Shows the descriptor of the daemon that an asker wants.
///
/// # Safety
///
/// `ctx` is what the kernel gave to the program.
#[inline(always)]
pub unsafe fn own_file(ctx: *const TaskFileContext) {
    // SAFETY: the caller's promise.
    let (meta, task, descriptor, file) =
        unsafe { ((*ctx).meta, (*ctx).task, (*ctx).descriptor, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return;
    }
    let tgid = Tgid(read(task as u64 + offset!(task_tgid)));
    if DAEMON.get(0).copied() != Some(tgid) || !wanted(|it| it.descriptor == descriptor) {
        return;
    }
    let path = file as u64 + offset!(file_path);
    let mount: u64 = read(path + offset!(path_mnt));
    let namespace: u64 = read(mount - offset!(mount_mnt) + offset!(mount_ns));
    let dentry: u64 = read(path + offset!(path_dentry));
    let parent: u64 = read(dentry + offset!(dentry_parent));
    let name: u64 = read(dentry + offset!(dentry_name) + QSTR_NAME);
    let mut record = FileRecord {
        key: executable_key(read(file as u64 + offset!(file_inode))),
        parent: inode_key(read(parent + offset!(dentry_inode))),
        descriptor,
        // Null, or an error number in place of an address.
        internal: u32::from(namespace.wrapping_add(MAX_ERRNO) <= MAX_ERRNO),
        name: [0; 256],
    };
    text(&mut record.name, name);
    write(meta, &record);
}

/// Shows each process that has a protected file open for reading.
///
/// # Safety
///
/// `ctx` is what the kernel gave to the program.
#[inline(always)]
pub unsafe fn holder(ctx: *const TaskFileContext) {
    // SAFETY: the caller's promise.
    let (meta, task, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return;
    }
    let mode: u32 = read(file as u64 + offset!(file_mode));
    if mode & READABLE == 0 {
        return;
    }
    let key = inode_key(read(file as u64 + offset!(file_inode)));
    let mut entry = Versioned::constant(CredentialId(0));
    if !settled(&FILES, &key, &mut entry) {
        return;
    }
    let mut record = HolderRecord {
        task: Task::NOBODY,
        credential: entry.at(task::generation()),
        reserved: 0,
    };
    examine(&mut record.task, task as u64);
    if record.credential.0 == 0 || DAEMON.get(0).copied() == Some(record.task.tgid) {
        return;
    }
    write(meta, &record);
}

/// Whether something holds of what one of the askers wants.
#[inline(always)]
fn wanted(is: impl Fn(&Wanted) -> bool) -> bool {
    WANTED.get(Asker::Engine as u32).is_some_and(&is)
        || WANTED.get(Asker::Gate as u32).is_some_and(&is)
}

/// Fills in the facts of the task at a kernel address, as [`task::current`] does for the one that runs.
#[inline(always)]
fn examine(facts: &mut Task, task: u64) {
    let cred: u64 = read(task + offset!(task_cred));
    let cgroups: u64 = read(task + offset!(task_cgroups));
    let cgroup: u64 = read(cgroups + offset!(css_set_cgroup));
    let node: u64 = read(cgroup + offset!(cgroup_kn));
    facts.executable = task::executable(task);
    facts.start = task::start(task);
    facts.tgid = Tgid(read(task + offset!(task_tgid)));
    facts.uid = Uid(read(cred + offset!(cred_uid)));
    facts.cgroup = CgroupId(read(node + offset!(kn_id)));
    task::classify(facts);
    facts.identity = task::with_origin(facts.identity, untyped(task));
}

/// Copies a NUL-terminated text at a kernel address, as much as fits.
#[inline(always)]
fn text<const N: usize>(into: &mut [u8; N], address: u64) {
    // SAFETY: writes at most the array's size, checks the address, and never faults.
    unsafe {
        bpf_probe_read_kernel_str(into.as_mut_ptr().cast(), N as u32, address as *const _);
    }
}

/// Sends a record to who reads the iterator. One that does not fit is sent again by the kernel.
#[inline(always)]
fn write<T>(meta: *const u8, record: &T) {
    // SAFETY: `meta` is the context's, whose first member is the file; the record is plain data.
    unsafe {
        let file: *mut seq_file = load(meta, 0);
        bpf_seq_write(
            file,
            core::ptr::from_ref(record).cast_mut().cast(),
            size_of::<T>() as u32,
        );
    }
}
