//! Where a process comes from: which of the bundle's ancestors it descends from, and whether a person is behind it.
//!
//! An origin is recorded for the process itself, handed on at fork, kept over exec, and ends with the process. In a
//! decision it is part of what the task's cgroup means: [`identity`] makes one [`IdentityId`] of both.

use crate::ids::{Generation, IdentityId};
use crate::tables::{Origin, OriginKey, Relevant, RelevantKey};

/// The process is interactive.
pub const INTERACTIVE: u64 = 1 << 63;
/// It is not known where it comes from.
pub const UNKNOWN: u64 = 1 << 62;

impl Origin {
    /// As one word: a bit for each ancestor, and [`INTERACTIVE`].
    #[inline(always)]
    pub const fn bits(&self) -> u64 {
        self.ancestors | self.interactive << 63
    }

    /// From such a word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            ancestors: bits & (UNKNOWN - 1),
            interactive: bits >> 63,
        }
    }
}

/// The tables that say what origins matter.
pub trait Origins {
    /// Which of them do in a cgroup of this meaning; `None` if none.
    fn relevant(&self, key: &RelevantKey) -> Option<Relevant>;
    /// What a task is there with this origin.
    fn combined(&self, key: &OriginKey) -> Option<IdentityId>;
}

/// What a task is to the bundle in a cgroup that means `identity`. `origin` is asked only if it matters.
#[inline(always)]
pub fn identity<T: Origins>(
    tables: &T,
    generation: Generation,
    identity: IdentityId,
    origin: impl FnOnce() -> u64,
) -> IdentityId {
    let Some(relevant) = tables.relevant(&RelevantKey::new(generation, identity)) else {
        return identity;
    };
    let origin = origin() & (relevant.mask | UNKNOWN);
    if origin == 0 {
        return identity;
    }
    if origin & UNKNOWN == 0
        && let Some(combined) = tables.combined(&OriginKey::new(generation, identity, origin))
    {
        return combined;
    }
    // Also for a process with more ancestors at once than the tables tell of.
    relevant.otherwise
}
