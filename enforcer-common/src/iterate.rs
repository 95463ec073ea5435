//! What the daemon asks of the kernel by iterators, and what they answer: facts that no hook shows, because
//! the task in question is not the one that runs.

use crate::facts::Task;
use crate::ids::{CredentialId, ExecutableKey, InodeKey, Tgid, Tid};

/// Who in the daemon asks: each has its own entry in the table of what is wanted, so that neither waits for
/// the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The engine, and what is done on its behalf.
    Engine = 0,
    /// The thread that answers permission events.
    Gate = 1,
}

impl Asker {
    /// How many there are.
    pub const COUNT: u32 = 2;
}

/// What one asker wants to see. Kernels from 6.1 on go straight to it; older ones pass everything by the
/// program, which picks it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Wanted {
    /// This thread's facts.
    pub thread: Tid,
    /// What is behind this descriptor of the daemon.
    pub descriptor: u32,
}

/// What to note of where the processes that run come from, one pass after the other until nothing is new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Marking {
    /// Slots of ancestors whose descendants are looked for by what runs now and who is whose parent.
    pub fresh: u64,
    /// Slots of ancestors that stay; others are forgotten.
    pub keep: u64,
    /// 1 to look for who is interactive as well.
    pub interactive: u64,
}

/// A thread, as the gate needs it for a decision and for an event.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ThreadRecord {
    /// The facts.
    pub task: Task,
    /// The thread.
    pub tid: Tid,
    /// Parent process.
    pub parent: Tgid,
    /// `comm` of the thread: for reading, never for deciding.
    pub comm: [u8; 16],
    /// Last component of the executable's path, NUL-padded.
    pub executable_name: [u8; 64],
    /// Number of the system call it is in; all bits set if that is not known.
    pub call: u64,
    /// Second and third argument of that call.
    pub arguments: [u64; 2],
}

impl ThreadRecord {
    /// No system call is known.
    pub const NO_CALL: u64 = u64::MAX;
}

/// An open file of the daemon.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileRecord {
    /// The file.
    pub key: ExecutableKey,
    /// The directory in which it has the name by which it was opened.
    pub parent: InodeKey,
    /// The daemon's descriptor.
    pub descriptor: u32,
    /// 1 if it was opened through a mount that no process sees, as file systems do that lie on top of another.
    pub internal: u32,
    /// That name, NUL-terminated.
    pub name: [u8; 256],
}

/// A process that has a protected file open.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HolderRecord {
    /// The process.
    pub task: Task,
    /// What the file is.
    pub credential: CredentialId,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<ThreadRecord>() == 64 + 8 + 16 + 64 + 24);
const _: () = assert!(size_of::<FileRecord>() == 24 + 16 + 8 + 256);
const _: () = assert!(size_of::<HolderRecord>() == 72);
