//! What has become of the records that were taken out of the rings, and of those for which these had no room: in memory
//! that outlives the daemon, so that the next one can tell what was lost with this one.

use std::sync::atomic::Ordering;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError, PerCpuArray};
use enforcer_common::event::{Gate, Ring, Use};
use enforcer_common::settled;

use super::fill::Fill;
use super::maps::{Error, failed};
use super::pins::Set;
use super::rings::fill;
use super::shared::Words;

/// The rings of uses.
const RINGS: [&str; 2] = ["DENIALS", "USES"];
const TABLE: &str = "SETTLED";

/// What is settled when something has been told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settles {
    /// Records out of the rings.
    pub records: u64,
    /// Records for which a ring had no room, by [`Ring`].
    pub lost: [u64; Ring::ALL.len()],
}

impl Settles {
    /// What the record of a use settles: those of the read gate come out of no ring.
    #[must_use]
    pub fn of(record: &Use) -> Self {
        Self {
            records: u64::from(record.gate != Gate::Fanotify as u8),
            ..Self::default()
        }
    }

    /// Adds what another one settles.
    pub fn add(&mut self, other: Self) {
        self.records += other.records;
        for (sum, more) in self.lost.iter_mut().zip(other.lost) {
            *sum += more;
        }
    }
}

/// The counts.
pub struct Settled(Words);

impl Settled {
    /// Opens those of a loaded object.
    pub fn open(ebpf: &Ebpf) -> Result<Self, Error> {
        let Some(Map::Array(array)) = ebpf.map(TABLE) else {
            return Err(Error::Missing(TABLE));
        };
        let words = Words::open(array, settled::WORDS as usize);
        let settled = Self(words.map_err(failed("open", TABLE))?);
        let size = size_of::<Use>().next_multiple_of(8) + settled::HEADER;
        let at = settled.0.at(settled::RECORD_BYTES);
        at.store(size as u64, Ordering::Relaxed);
        Ok(settled)
    }

    /// Settles something.
    pub fn settle(&self, what: Settles) {
        let add = |word: usize, count| self.0.at(word).fetch_add(count, Ordering::Relaxed);
        add(settled::RECORDS, what.records);
        for (index, count) in what.lost.into_iter().enumerate() {
            add(settled::LOST + index, count);
        }
    }

    /// How many records for which a ring had no room have been told, by [`Ring`].
    #[must_use]
    pub fn lost(&self) -> [u64; Ring::ALL.len()] {
        std::array::from_fn(|ring| self.0.at(settled::LOST + ring).load(Ordering::Relaxed))
    }

    /// How many records were taken out of the rings and nothing came of them. Only while nobody takes any.
    pub fn unsettled(&self, ebpf: &Ebpf) -> Result<u64, Error> {
        let mut taken = 0;
        for ring in RINGS {
            taken += fill(ebpf, ring)?.taken() as u64;
        }
        Ok(self.unsettled_of(taken))
    }

    fn unsettled_of(&self, bytes: u64) -> u64 {
        let of = |word| self.0.at(word).load(Ordering::Relaxed);
        let records = bytes / of(settled::RECORD_BYTES).max(1);
        records.saturating_sub(of(settled::RECORDS))
    }
}

/// The counts of a set of pins that goes away.
pub struct Leaving {
    settled: Settled,
    rings: Vec<Fill>,
    lost: PerCpuArray<MapData, u64>,
}

impl Leaving {
    /// Opens them, so that they can be looked at when the programs have ended.
    pub fn open(set: &Set) -> Result<Self, MapError> {
        let table = |name| MapData::from_pin(set.map(name));
        let rings = RINGS.map(|name| {
            let ring = table(name)?;
            let capacity = ring.info()?.max_entries() as usize;
            let opened = Fill::open(name, ring.fd(), capacity);
            opened.map_err(|error| MapError::IoError(error.into()))
        });
        Ok(Self {
            settled: Settled(Words::open(&table(TABLE)?, settled::WORDS as usize)?),
            rings: rings.into_iter().collect::<Result<_, _>>()?,
            lost: PerCpuArray::try_from(Map::PerCpuArray(table("LOST")?))?,
        })
    }

    /// How many records nobody has told, and nobody will.
    pub fn untold(&self) -> Result<u64, MapError> {
        let written = self.rings.iter().map(|ring| ring.written() as u64).sum();
        let mut untold = self.settled.unsettled_of(written);
        let told = self.settled.lost();
        for ring in [Ring::Denials, Ring::Uses] {
            let lost: u64 = self.lost.get(&(ring as u32), 0)?.iter().sum();
            untold += lost.saturating_sub(told[ring as usize]);
        }
        Ok(untold)
    }
}
