//! Allowed uses, counted.

use crate::address::Destination;
use crate::branchless::{all_ones, is_zero};
use crate::facts::Task;
use crate::ids::{BootNs, CgroupId, ExecutableKey, IdentityId, InodeKey, Tgid, Uid};
use crate::verdict::Verdict;

word_key!(
    /// Key of the usage table: one kind of allowed use.
    UsageKey[10]
);

impl UsageKey {
    /// Marks a use of a file.
    pub const IS_FILE: u64 = 1 << 8;

    /// The key: who, the answer, [`Kind`](crate::event::Kind) and [`UsageKey::IS_FILE`], and the three words of the
    /// object: of a destination, or of an inode. Instances count as a whole, what is in none by process.
    #[inline(always)]
    pub fn new(task: &Task, verdict: Verdict, kind: u64, object: [u64; 3]) -> Self {
        let alone = all_ones(is_zero(task.instance.0));
        let inode = &task.executable.inode;
        Self([
            task.instance.0 | task.start.0 & alone,
            (task.tgid.0 as u64 & alone) << 32 | kind,
            (task.identity.0 as u64) << 32 | task.uid.0 as u64,
            inode.ino,
            (inode.dev as u64) << 32 | inode.generation as u64,
            task.executable.changed_ns,
            verdict.0,
            object[0],
            object[1],
            object[2],
        ])
    }

    /// The workload instance; 0 if it is in none.
    pub const fn instance(&self) -> CgroupId {
        match self.tgid().0 {
            0 => CgroupId(self.0[0]),
            _ => CgroupId(0),
        }
    }

    /// The process, if it is in no instance; 0 otherwise.
    pub const fn tgid(&self) -> Tgid {
        Tgid((self.0[1] >> 32) as u32)
    }

    /// A [`Kind`](crate::event::Kind).
    pub const fn kind(&self) -> u8 {
        self.0[1] as u8
    }

    /// The user.
    pub const fn uid(&self) -> Uid {
        Uid(self.0[2] as u32)
    }

    /// What the cgroup means to the bundle.
    pub const fn identity(&self) -> IdentityId {
        IdentityId((self.0[2] >> 32) as u32)
    }

    /// The program.
    pub const fn executable(&self) -> ExecutableKey {
        ExecutableKey {
            inode: InodeKey {
                ino: self.0[3],
                dev: (self.0[4] >> 32) as u32,
                generation: self.0[4] as u32,
            },
            changed_ns: self.0[5],
        }
    }

    /// The answer.
    pub const fn verdict(&self) -> Verdict {
        Verdict(self.0[6])
    }

    /// The file, if it is a use of one.
    pub const fn file(&self) -> Option<InodeKey> {
        if self.0[1] & Self::IS_FILE == 0 {
            return None;
        }
        Some(InodeKey {
            ino: self.0[7],
            dev: self.0[8] as u32,
            generation: (self.0[8] >> 32) as u32,
        })
    }

    /// The destination, if it is no use of a file.
    pub const fn destination(&self) -> Option<Destination> {
        if self.0[1] & Self::IS_FILE != 0 {
            return None;
        }
        Some(Destination::detail([self.0[7], self.0[8], self.0[9]]))
    }
}

/// Value of the usage table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Usage {
    /// How often, since `first`.
    pub count: u64,
    /// The first time.
    pub first: BootNs,
    /// The last time.
    pub last: BootNs,
}
