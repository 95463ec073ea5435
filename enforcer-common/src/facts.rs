//! Facts about who is asking, as plain data.

use crate::ids::{BootNs, CgroupId, ExecutableKey, IdentityId, InodeKey, Tgid, Uid};

/// The task that uses a credential, as the kernel saw it at that moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Task {
    /// Executable of the task's memory (`task.mm.exe_file`); all zero if it has none or cannot be read.
    pub executable: ExecutableKey,
    /// When the thread group's leader started.
    pub start: BootNs,
    /// The workload instance: cgroup of the unit, session or container; 0 if it is in none.
    pub instance: CgroupId,
    /// The cgroup itself.
    pub cgroup: CgroupId,
    /// The process.
    pub tgid: Tgid,
    /// Real user id.
    pub uid: Uid,
    /// What the task's cgroup means to the bundle.
    pub identity: IdentityId,
    /// 1 if it is known what the cgroup is, else 0.
    pub classified: u32,
}

impl Task {
    /// One number for all instances of a workload, whichever process it is: what the cgroup means to the bundle and the
    /// program. For counting, not for deciding: two workloads may have the same.
    #[inline(always)]
    pub const fn workload_number(&self) -> u64 {
        (self.identity.0 as u64) << 32 ^ self.executable.inode.ino
    }

    /// No task: all zero.
    pub const NOBODY: Self = Self {
        executable: ExecutableKey {
            inode: InodeKey {
                ino: 0,
                dev: 0,
                generation: 0,
            },
            changed_ns: 0,
        },
        start: BootNs(0),
        instance: CgroupId(0),
        cgroup: CgroupId(0),
        tgid: Tgid(0),
        uid: Uid(0),
        identity: IdentityId(0),
        classified: 0,
    };
}
