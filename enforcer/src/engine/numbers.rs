//! The numbers that an engine gives out, kept in the kernel for the next one.

use aya::Ebpf;
use enforcer_common::ids::{CredentialId, Generation, NameDigest};

use crate::compile::{NUMBERED, Numbering};
use crate::kernel::maps::{Error, Maps};

/// Numbers for names and contents, and for generations.
#[derive(Default)]
pub(super) struct Numbers {
    /// What a compilation uses.
    pub numbering: Numbering,
    /// The last generation that was begun.
    last: Generation,
    /// The last credential that the kernel's table has.
    kept: CredentialId,
}

impl Numbers {
    /// Goes on where the daemon before this one ended.
    pub fn resume(&mut self, ebpf: &mut Ebpf) -> Result<(), Error> {
        let mut maps = Maps(ebpf);
        let credentials = maps.entries::<NameDigest, CredentialId>("CREDENTIAL_NUMBERS")?;
        let mut last = [0; NUMBERED];
        for (number, index) in last.iter_mut().zip(0..) {
            *number = maps.at("LAST_NUMBERS", index)?;
        }
        self.numbering.resume(credentials, last);
        for (slot, index) in self.numbering.slots().all().iter_mut().zip(0..) {
            *slot = maps.at("ANCESTOR_SLOTS", index)?;
        }
        self.last = maps.at("LAST_NUMBERS", GENERATION)?;
        Ok(())
    }

    /// The number of the next generation, for a place that `current` does not take: that is the number's last bit.
    /// What comes of it, it is not used again: half-written tables may have it.
    pub fn next(&mut self, current: Generation) -> Generation {
        let next = self.last.0.max(current.0) + 1;
        self.last = Generation(next + u32::from(next & 1 == current.0 & 1));
        self.last
    }

    /// Keeps all this in the kernel, before any table has a number that is new.
    pub fn keep(&mut self, ebpf: &mut Ebpf) -> Result<(), Error> {
        let mut maps = Maps(ebpf);
        for (number, index) in self.numbering.last().into_iter().zip(0..) {
            maps.set("LAST_NUMBERS", index, number)?;
        }
        maps.set("LAST_NUMBERS", GENERATION, self.last.0)?;
        for (slot, index) in self.numbering.slots().all().iter().zip(0..) {
            maps.set("ANCESTOR_SLOTS", index, *slot)?;
        }
        let mut last = self.kept;
        for (name, number) in self.numbering.credentials() {
            if number > self.kept {
                maps.put("CREDENTIAL_NUMBERS", name, number)?;
                last = last.max(number);
            }
        }
        self.kept = last;
        Ok(())
    }
}

/// Where the last generation is, after the numbers of the compilation.
const GENERATION: u32 = NUMBERED as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_has_another_place_than_the_one_in_force_and_is_not_used_again() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.next(Generation(0)), Generation(1));
        // It was not put in force.
        assert_eq!(numbers.next(Generation(0)), Generation(3));
        assert_eq!(numbers.next(Generation(3)), Generation(4));
        assert_eq!(numbers.next(Generation(3)), Generation(6));
    }
}
