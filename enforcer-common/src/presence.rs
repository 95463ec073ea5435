//! What is looked at before a table: how many keys it has by a few bits of their hash. None means that the table has
//! no such key, and most keys that are asked for are in no table.
//!
//! Whoever adds a key counts it before, and whoever has taken one out counts it off after, so that at no moment there are
//! more keys than are counted. More may be counted than there are, which costs a look into the table.

use crate::ids::{CgroupId, InodeKey, Tgid};
use crate::tables::{Cgroup, Holder};

/// The hash of a word. Fibonacci hashing: inode numbers and process numbers follow each other.
#[inline(always)]
pub const fn spread(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Which of `1 << bits` counters the keys are counted in that say this word.
#[inline(always)]
pub const fn slot(word: u64, bits: u32) -> u32 {
    (spread(word) >> (64 - bits)) as u32
}

impl InodeKey {
    /// The word of a protected file.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        self.ino ^ (self.dev as u64) << 32
    }
}

impl Holder {
    /// The word of what is held by anybody: by processes that have no number yet, and what nobody knows who holds. Its
    /// counter is the first, however many there are.
    pub const ANYBODY: u64 = 0;

    const PROCESS: u64 = 1 << 63;

    /// The word of a holder, or of a labelled object.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        match self.start.0 {
            0 => self.id,
            2 => Self::ANYBODY,
            _ => self.id | Self::PROCESS,
        }
    }

    /// The word of a process, whenever it started.
    #[inline(always)]
    pub const fn process_word(tgid: Tgid) -> u64 {
        tgid.0 as u64 | Self::PROCESS
    }

    /// The word of a cgroup: of the instance that it is, and if it is only part of one, of itself
    /// ([`Cgroup::is_part`]).
    #[inline(always)]
    pub const fn cgroup_word(cgroup: CgroupId) -> u64 {
        cgroup.0
    }
}

impl Cgroup {
    /// Whether the cgroup `own` belongs to an instance that has another number. Such a cgroup counts as if it held
    /// something, because what it does hold is counted elsewhere.
    #[inline(always)]
    pub const fn is_part(&self, own: CgroupId) -> bool {
        self.instance.0 != 0 && self.instance.0 != own.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::Room;
    use crate::ids::BootNs;

    #[test]
    fn holders_are_counted_where_tasks_look() {
        let (tgid, cgroup) = (Tgid(4242), CgroupId(4242));
        let process = Holder::process(tgid, BootNs(77_000));
        assert_eq!(process.word(), Holder::process_word(tgid));
        let instance = Holder::instance(cgroup);
        assert_eq!(instance.word(), Holder::cgroup_word(cgroup));
        assert_ne!(instance.word(), process.word());
        let unborn = Holder::unborn(0xffff_8881_0000_0000);
        assert_eq!(unborn.word(), Holder::ANYBODY);
    }

    /// The programs look there without asking how many counters there are.
    #[test]
    fn what_anybody_holds_is_counted_first() {
        for bits in 1..=32 {
            assert_eq!(slot(Holder::ANYBODY, bits), 0, "of 1 << {bits} counters");
        }
    }

    #[test]
    fn slots_are_there_and_differ_for_neighbours() {
        for room in [Room::Ordinary, Room::Large] {
            let bits = room.presence_bits();
            let mut seen = std::collections::BTreeSet::new();
            for word in (0..1000).chain(u64::MAX - 1000..=u64::MAX) {
                assert!(slot(word, bits) < 1 << bits);
                seen.insert(slot(word, bits));
            }
            assert!(seen.len() > 1800, "{} of 2001", seen.len());
        }
    }
}
