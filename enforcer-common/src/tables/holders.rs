//! Who holds something.

use crate::ids::{BootNs, CgroupId, Tgid};

/// Who holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Holder {
    /// cgroup id of the instance, thread-group id of the process, or address of one that has none yet.
    pub id: u64,
    /// 0 for an instance, 2 for a process without number, or when the process started.
    pub start: BootNs,
}

impl Holder {
    /// A workload instance.
    #[inline(always)]
    pub const fn instance(cgroup: CgroupId) -> Self {
        Self {
            id: cgroup.0,
            start: BootNs(0),
        }
    }

    /// A process; `start` is never 0, so it cannot be taken for an instance.
    #[inline(always)]
    pub const fn process(tgid: Tgid, start: BootNs) -> Self {
        Self {
            id: tgid.0 as u64,
            start: BootNs(start.0 | 1),
        }
    }

    /// The process, if it is one with a number.
    #[inline(always)]
    pub const fn tgid(&self) -> Option<Tgid> {
        // The others' starts are even.
        if self.start.0 & 1 == 1 {
            Some(Tgid(self.id as u32))
        } else {
            None
        }
    }

    /// A pipe or socket, by its address in the kernel. They are in a table of their own.
    #[inline(always)]
    pub const fn object(address: u64) -> Self {
        Self {
            id: address,
            start: BootNs(0),
        }
    }

    /// A process that has no number yet, by its address in the kernel; even and not 0, so it cannot be taken for one of
    /// the others.
    #[inline(always)]
    pub const fn unborn(address: u64) -> Self {
        Self {
            id: address,
            start: BootNs(2),
        }
    }
}

/// Key of the holders table. Slots are filled from 0 without a gap, each by an insert that fails if the
/// slot is taken, so that two readers at the same moment both get recorded without a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct HolderKey {
    /// Who.
    pub holder: Holder,
    /// Which of its credentials; [`crate::capacity::HELD_PER_HOLDER`] marks overflow.
    pub slot: u64,
}
