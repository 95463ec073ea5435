//! Going on where another daemon ended.

use aya::Ebpf;
use enforcer_common::ids::Generation;
use enforcer_common::tables::{self, Origin};
use serde_json::json;

use super::numbers::Numbers;
use super::{Engine, Error};
use crate::compile::NUMBERED;
use crate::kernel::holders::Holders;
use crate::kernel::legacy;
use crate::kernel::load::Loaded;
use crate::kernel::maps::Maps;
use crate::kernel::pins::Set;
use crate::kernel::presence::Counters;

/// What there is to go on from.
#[derive(Default)]
pub(super) struct Inheritance {
    pub numbers: Numbers,
    /// The generation in force.
    pub generation: Generation,
    /// Whether that lets holders reach nothing, because a gate did not hold.
    pub degraded: bool,
    /// Programs and tables of daemons of other builds, who enforce until this one has a bundle in force.
    pub left: Vec<Set>,
}

impl Inheritance {
    /// Looks at what the programs that were taken over have, or at what those left that were not.
    pub fn find(loaded: &mut Loaded) -> Result<Self, Error> {
        let mut found = Self {
            left: loaded.left()?,
            ..Self::default()
        };
        if loaded.taken_over() {
            found.numbers.resume(&mut loaded.ebpf)?;
            let mut maps = Maps(&mut loaded.ebpf);
            found.generation = maps.at("GENERATION", 0)?;
            let bundle: tables::Bundle = maps.at("BUNDLES", found.generation.0 & 1)?;
            found.degraded = bundle.degraded != 0;
        } else if let Some(left) = found.left.last() {
            // It went on from where those before it were.
            match legacy::governed(left) {
                Ok(governed) => Maps(&mut loaded.ebpf).set("GOVERNED", 0, governed)?,
                Err(error) => tracing::warn!(
                    "it is not known what of governance was in force before this daemon: an older copy of its files would count: {}",
                    crate::chain(&error)
                ),
            }
            match legacy::credentials(left).and_then(|it| Ok((it, legacy::slots(left)?))) {
                Ok((credentials, slots)) => {
                    let numbering = &mut found.numbers.numbering;
                    numbering.resume(credentials, [0; NUMBERED]);
                    for (own, slot) in numbering.slots().all().iter_mut().zip(slots) {
                        *own = slot;
                    }
                }
                Err(error) => {
                    not_known(&error);
                    found.left.clear();
                }
            }
        }
        Ok(found)
    }
}

impl Engine {
    /// The tables are another daemon's: what is in them is ours from now on.
    pub(super) fn take_over(&mut self) -> Result<(), Error> {
        self.files.resume(&mut self.loaded.ebpf, self.generation)?;
        self.log
            .write("taken-over", json!({"generation": self.generation.0}));
        Ok(())
    }

    /// This daemon's bundle is in force: what daemons of other builds left is not needed any more.
    pub(super) fn succeed(&mut self) {
        for left in std::mem::take(&mut self.left) {
            match copy(&left, &mut self.loaded.ebpf) {
                Ok((count, lost)) => self.log.write(
                    "taken-over",
                    json!({"generation": null, "holdings": count, "lost": lost}),
                ),
                Err(error) => not_known(&error),
            }
        }
        match self.loaded.retire() {
            Ok(untold) => self.untold_uses.0 += untold,
            Err(error) => tracing::error!(
                "what an earlier daemon left stays, and refuses what it refuses: {}",
                crate::chain(&error)
            ),
        }
    }
}

fn copy(left: &Set, ebpf: &mut Ebpf) -> Result<(usize, usize), Error> {
    let counters = Counters::open(ebpf, "ORIGINS_PRESENT")?;
    let mut maps = Maps(ebpf);
    for (process, origin) in legacy::origins(left)? {
        let known: Option<Origin> = maps.get("ORIGINS", &process)?;
        let both = Origin::from_bits(origin.bits() | known.unwrap_or_default().bits());
        counters.add(process.word());
        if !maps.put_new("ORIGINS", &process, &both)? {
            counters.take(process.word());
            maps.put("ORIGINS", process, both)?;
        }
    }
    let mut holders = Holders::new(ebpf)?;
    Ok(legacy::holders(left, &mut holders)?)
}

fn not_known(error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(
        "it is not known what the daemon before this one knew of holders: only processes that have a credential open are found: {}",
        crate::chain(error)
    );
}
