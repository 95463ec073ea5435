//! Counting keys as the programs do, in memory that is shared with them: see [`enforcer_common::presence`].

use std::sync::atomic::Ordering;

use aya::Ebpf;
use aya::maps::Map;
use enforcer_common::capacity::PRESENCE_BITS;
use enforcer_common::presence::slot;

use super::maps::{Error, failed};
use super::shared::Words;

/// The counters of one table.
pub struct Counters(Words);

fn open(ebpf: &Ebpf, name: &'static str, count: usize) -> Result<Words, Error> {
    let Some(Map::Array(array)) = ebpf.map(name) else {
        return Err(Error::Missing(name));
    };
    Words::open(array, count).map_err(failed("open", name))
}

/// How many holdings were recorded, ever.
pub struct Holdings(Words);

impl Holdings {
    /// Opens the count.
    pub fn open(ebpf: &Ebpf) -> Result<Self, Error> {
        open(ebpf, "HOLDINGS", 1).map(Self)
    }

    /// Counts one more, which is in its table.
    pub fn add(&self) {
        self.0.at(0).fetch_add(1, Ordering::SeqCst);
    }
}

impl Counters {
    /// Opens them; `name` is that of the array.
    pub fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, Error> {
        open(ebpf, name, 1 << PRESENCE_BITS).map(Self)
    }

    /// Counts one key more, before it is written to the table.
    pub fn add(&self, word: u64) {
        self.0
            .at(slot(word) as usize)
            .fetch_add(1, Ordering::SeqCst);
    }

    /// How many keys are counted.
    #[must_use]
    pub fn sum(&self) -> u64 {
        (0..1 << PRESENCE_BITS)
            .map(|slot| self.0.at(slot).load(Ordering::Relaxed))
            .sum()
    }

    /// Counts one key less, which was in the table and no longer is.
    pub fn take(&self, word: u64) {
        self.0
            .at(slot(word) as usize)
            .fetch_sub(1, Ordering::SeqCst);
    }
}
