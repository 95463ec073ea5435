//! The moments that the bundle's description in the kernel names, and that move while it is in force.

use enforcer_common::ids::BootNs;
use enforcer_common::tables::Bundle;

use super::Engine;
use crate::kernel::clock::boot_now;
use crate::kernel::maps::{self, Maps};

impl Engine {
    /// Until when it is known that governance has issued nothing newer.
    pub(super) fn fresh_until(&self) -> BootNs {
        self.clock.clock().until(self.fresh_until)
    }

    /// Writes both moments.
    pub(super) fn set_times(&mut self) -> Result<(), maps::Error> {
        let fresh_until = self.fresh_until();
        // Of what a daemon before this one put in force it is not known what ends when.
        let steady_until = self.in_force.as_ref().map_or(BootNs(0), |it| {
            it.policy.steady_until(boot_now(), fresh_until)
        });
        let index = self.generation.0 & 1;
        let mut tables = Maps(&mut self.loaded.ebpf);
        let known: Bundle = tables.at("BUNDLES", index)?;
        let moved = Bundle {
            fresh_until,
            steady_until,
            ..known
        };
        if moved != known {
            tables.set("BUNDLES", index, moved)?;
        }
        self.steady_until = steady_until;
        Ok(())
    }

    /// Past a moment at which something began or ended, the next one counts.
    pub(super) fn keep_steady(&mut self) {
        if self.in_force.is_some()
            && boot_now() >= self.steady_until
            && let Err(error) = self.set_times()
        {
            tracing::warn!(
                "every packet of a holder is decided anew, which costs more, until a table can be written; that is tried again each second: {}",
                crate::chain(&error)
            );
        }
    }
}
