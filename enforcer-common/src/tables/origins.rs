//! Where processes come from, and what that makes of them.

use crate::ids::{Generation, IdentityId, NameDigest};

/// Value of the origins table: where a process comes from, see [`crate::origin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Origin {
    /// The ancestors by which the bundle selects that it descends from, by their slots, a bit for each.
    pub ancestors: u64,
    /// 1 if it is interactive.
    pub interactive: u64,
}

word_key!(
    /// Key of the table of origins that matter, by what a cgroup means in one generation.
    RelevantKey[1]
);

impl RelevantKey {
    /// The key.
    #[inline(always)]
    pub const fn new(generation: Generation, identity: IdentityId) -> Self {
        Self([(generation.0 as u64) << 32 | identity.0 as u64])
    }

    /// What the cgroup means.
    pub const fn identity(&self) -> IdentityId {
        IdentityId(self.0[0] as u32)
    }
}

/// Value of that table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Relevant {
    /// The bits of an origin that make a difference in such a cgroup.
    pub mask: u64,
    /// What a task is there whose origin is not known.
    pub otherwise: IdentityId,
    /// Always 0.
    pub reserved: u32,
}

word_key!(
    /// Key of the table of what a task is in a cgroup, given where it comes from.
    OriginKey[2]
);

impl OriginKey {
    /// The key, for those bits of the origin that matter.
    #[inline(always)]
    pub const fn new(generation: Generation, identity: IdentityId, origin: u64) -> Self {
        Self([(generation.0 as u64) << 32 | identity.0 as u64, origin])
    }

    /// What the cgroup means.
    pub const fn identity(&self) -> IdentityId {
        IdentityId(self.0[0] as u32)
    }

    /// The bits of the origin.
    pub const fn origin(&self) -> u64 {
        self.0[1]
    }
}

/// Element of the array of ancestors' slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AncestorSlot {
    /// The selector; all zero if the slot is free.
    pub selector: NameDigest,
    /// 1 once the processes that ran before have been looked at.
    pub complete: u64,
}
