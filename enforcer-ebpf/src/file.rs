//! The read gate for files: opens, and every other way to a file's bytes.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use enforcer_common::{
    decide,
    event::{Gate, Kind},
    facts::Task,
    ids::{CredentialId, InodeKey},
    tables::Versioned,
    verdict::Reason,
};

use crate::{
    capture, copy_up,
    emit::Object,
    gate,
    kernel::{load, read},
    maps::{DAEMON, FILES},
    offset, presence,
    tables::{KernelTables, settled},
    task,
};

/// `FMODE_READ`.
const READABLE: u32 = 1;
/// `FMODE_WRITE`.
const WRITABLE: u32 = 2;
/// `PF_SIGNALED`: a signal has ended the task; what it still opens for writing is its core dump.
const SIGNALED: u32 = 0x400;

/// What the hooks ask about an open file.
struct File {
    inode: *const u8,
    key: InodeKey,
}

impl File {
    /// # Safety
    ///
    /// `file` is a `struct file` typed by the kernel's BTF, not null.
    #[inline(always)]
    unsafe fn new(file: *const u8) -> Self {
        // SAFETY: what hangs on an open file is never null.
        unsafe {
            let inode: *const u8 = load(file, offset!(file_inode));
            let sb: *const u8 = load(inode, offset!(inode_sb));
            let key = InodeKey {
                ino: load(inode, offset!(inode_ino)),
                dev: load(sb, offset!(sb_dev)),
                generation: load(inode, offset!(inode_generation)),
            };
            Self { inode, key }
        }
    }
}

/// The credential that the file with this key is; 0 if none.
#[inline(always)]
pub fn credential(key: &InodeKey) -> CredentialId {
    let mut entry = Versioned::constant(CredentialId(0));
    if !presence::may_be_protected(key) || !settled(&FILES, key, &mut entry) {
        return CredentialId(0);
    }
    entry.at(task::generation())
}

/// A file is opened. `true` refuses, here and below.
///
/// # Safety
///
/// `file` is a `struct file` typed by the kernel's BTF, not null.
#[inline(always)]
pub unsafe fn opened(file: *const u8) -> bool {
    // SAFETY: the caller's promise.
    let (it, mode) = unsafe { (File::new(file), load::<u32>(file, offset!(file_mode))) };
    let (tgid, tid) = task::ids();
    if DAEMON.get(0).copied() == Some(tgid) {
        capture::show(tid, it.inode as u64);
        return false;
    }
    let credential = credential(&it.key);
    if credential.0 == 0 {
        return mode & WRITABLE != 0 && is_dying() && dump();
    }
    if mode & READABLE == 0 {
        return false;
    }
    let refused = gate::read(credential, Object::file(&it.key), Gate::FileOpen);
    if !refused {
        copy_up::opened(credential);
    }
    refused
}

/// Bytes of an open file reach the current task by other means than an open: it reads, maps or receives it.
///
/// # Safety
///
/// As [`opened`].
#[inline(always)]
pub unsafe fn used(file: *const u8, gate: Gate) -> bool {
    // SAFETY: the caller's promise.
    let it = unsafe { File::new(file) };
    let credential = credential(&it.key);
    if credential.0 == 0 || DAEMON.get(0).copied() == Some(task::ids().0) {
        return false;
    }
    gate::read(credential, Object::file(&it.key), gate)
}

/// Whether the current task is being ended by a signal.
#[inline(always)]
fn is_dying() -> bool {
    // SAFETY: no arguments; the address is only read through `read`.
    let task = unsafe { bpf_get_current_task() };
    let flags: u32 = read(task + offset!(task_flags));
    flags & SIGNALED != 0
}

/// A holder's memory goes nowhere that its entitlements do not name, and a file is not among what they can.
#[inline(never)]
fn dump() -> bool {
    let mut task = Task::NOBODY;
    task::current(&mut task);
    let verdict = decide::misuse(
        &KernelTables,
        crate::emit::now(),
        &task,
        Reason::OutsideDestination,
    );
    gate::conclude(&task, Object::nothing(Kind::Reach), verdict, Gate::CoreDump)
}
