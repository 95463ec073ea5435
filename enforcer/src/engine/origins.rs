//! Where processes come from: what the kernel notes of it by itself, and what has to be looked for.

use enforcer_common::ids::{ExecutableKey, Generation, IdentityId};
use enforcer_common::iterate::Marking;
use enforcer_common::tables::{OriginKey, Relevant, RelevantKey};

use super::{Engine, Error};
use crate::compile::Policy;
use crate::kernel::iterate;
use crate::kernel::maps::Maps;

impl Engine {
    /// Writes what origins mean from generation `next` on, and has the processes that run already looked at: for who is
    /// interactive, if that is the first time, and for descendants of ancestors that the bundle in force does not name.
    /// Their programs are known to the kernel before, so that from now on it sees every other tree's root by itself.
    pub(super) fn write_origins(&mut self, new: &Policy, next: Generation) -> Result<(), Error> {
        let mut maps = Maps(&mut self.loaded.ebpf);
        for (identity, relevant) in &new.relevant {
            let value = Relevant {
                mask: relevant.mask,
                otherwise: relevant.otherwise,
                reserved: 0,
            };
            maps.put("RELEVANT", RelevantKey::new(next, *identity), value)?;
        }
        for ((identity, origin), combined) in &new.by_origin {
            let key = OriginKey::new(next, *identity, *origin);
            maps.put("ORIGIN_IDENTITIES", key, *combined)?;
        }
        for (program, slots) in &new.roots {
            let known = maps.get::<ExecutableKey, u64>("ANCESTORS", program)?;
            // What they are to the bundle in force they stay until it is not.
            maps.put("ANCESTORS", *program, known.unwrap_or(0) | slots)?;
        }
        let marking = Marking {
            fresh: self.numbers.numbering.slots().incomplete(new.slots()),
            keep: u64::MAX,
            interactive: u64::from(self.generation == Generation(0)),
        };
        if marking.fresh | marking.interactive != 0 {
            self.mark_origins(marking)?;
        }
        Ok(())
    }

    /// Takes out of the tables what the policy in force does not need of that.
    pub(super) fn sweep_origins(&mut self, stays: &Policy) -> Result<(), Error> {
        let generation = self.generation;
        let mut maps = Maps(&mut self.loaded.ebpf);
        maps.retain::<RelevantKey, Relevant>("RELEVANT", |key| {
            *key == RelevantKey::new(generation, key.identity())
                && stays.relevant.contains_key(&key.identity())
        })?;
        maps.retain::<OriginKey, IdentityId>("ORIGIN_IDENTITIES", |key| {
            *key == OriginKey::new(generation, key.identity(), key.origin())
                && stays
                    .by_origin
                    .contains_key(&(key.identity(), key.origin()))
        })?;
        maps.retain::<ExecutableKey, u64>("ANCESTORS", |key| stays.roots.contains_key(key))?;
        for (program, slots) in &stays.roots {
            if maps.get("ANCESTORS", program)? != Some(*slots) {
                maps.put("ANCESTORS", *program, *slots)?;
            }
        }
        Ok(())
    }

    /// The policy is in force, and nobody is noted as a descendant of other ancestors than its any more. Forgets those
    /// who were, so that their slots are free, and looks once more for the descendants of new ones: of programs that
    /// were started while the tables were written.
    pub(super) fn settle_origins(&mut self, stays: &Policy) -> Result<(), Error> {
        let slots = self.numbers.numbering.slots();
        let gone = slots.used() & !stays.slots();
        let fresh = slots.incomplete(stays.slots());
        if gone | fresh == 0 {
            return Ok(());
        }
        self.mark_origins(Marking {
            fresh,
            keep: stays.slots(),
            interactive: 0,
        })?;
        let slots = self.numbers.numbering.slots();
        slots.keep(stays.slots());
        slots.complete(stays.slots());
        self.numbers.keep(&mut self.loaded.ebpf)?;
        Ok(())
    }

    fn mark_origins(&mut self, marking: Marking) -> Result<(), Error> {
        if !iterate::mark_origins(&mut self.loaded.ebpf, marking)? {
            tracing::warn!(
                "processes are made faster than it can be looked who descends from whom: some that ran before may not match the ancestors and `interactive` of the bundle"
            );
        }
        Ok(())
    }
}
