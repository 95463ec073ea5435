//! What cgroups are.

use super::Versioned;
use crate::ids::{CgroupId, IdentityId};

/// Value of the cgroups table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cgroup {
    /// The workload instance it belongs to; 0 if none.
    pub instance: CgroupId,
    /// What it means to the bundle, and whether that is known ([`IdentityId::UNCLASSIFIED`]).
    pub identity: Versioned<IdentityId>,
    /// [`Cgroup::SLICES_ONLY`] and the others.
    pub flags: u16,
    /// 1 if it is an instance into which more was brought than there was room for.
    pub unaccounted: u16,
    /// Uid plus one of whom the service manager belongs to that it is, or only slices away from: a unit directly below
    /// is one of that user. 0 if it is none.
    pub user: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Cgroup {
    /// It and all above it are slices: a unit directly below is a system unit.
    pub const SLICES_ONLY: u16 = 1;
    /// It is the root.
    pub const ROOT: u16 = 2;
    /// It is a login session.
    pub const SESSION: u16 = 4;
    /// It is where the host's service manager is, and what that starts before it is put where it belongs.
    pub const MANAGER: u16 = 8;

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// Longest cgroup path or unit name that can be selected by, in bytes, with its ending NUL.
pub const CGROUP_NAME_BYTES: usize = 192;

/// Key of the cgroup-names table: a path from the cgroup root, a bare system unit name, or a user's unit by
/// [`CgroupName::user_prefix`] and its name; NUL-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct CgroupName(pub [u8; CGROUP_NAME_BYTES]);

impl CgroupName {
    /// How long the text can be after a prefix.
    pub const USER_UNIT_BYTES: usize = CGROUP_NAME_BYTES - 8;

    /// What stands before the name of a user's unit: no path and no unit begins with that byte. `user` is as in
    /// [`Cgroup::user`].
    #[inline(always)]
    pub const fn user_prefix(user: u32) -> u64 {
        (user as u64) << 8 | 1
    }
}
