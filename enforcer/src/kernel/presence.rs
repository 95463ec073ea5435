//! Counting keys as the programs do, in memory that is shared with them: see [`enforcer_common::presence`].

use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::Map;
use enforcer_common::presence::slot;

use super::maps::{Error, failed};
use super::shared::Words;

/// The counters of one table.
pub struct Counters {
    words: Words,
    /// There are two to the power of this many.
    bits: u32,
}

/// The words of an array, and how many there are.
fn open(ebpf: &Ebpf, name: &'static str) -> Result<(Words, u32), Error> {
    let Some(Map::Array(array)) = ebpf.map(name) else {
        return Err(Error::Missing(name));
    };
    let info = array.info().map_err(failed("open", name))?;
    let count = info.max_entries();
    let words = Words::open(array, count as usize).map_err(failed("open", name))?;
    Ok((words, count))
}

/// How many holdings were recorded, ever.
pub struct Holdings(Words);

impl Holdings {
    /// Opens the count.
    pub fn open(ebpf: &Ebpf) -> Result<Self, Error> {
        Ok(Self(open(ebpf, "HOLDINGS")?.0))
    }

    /// Counts one more, which is in its table.
    pub fn add(&self) {
        self.0.at(0).fetch_add(1, Ordering::SeqCst);
    }
}

impl Counters {
    /// Opens them; `name` is that of the array.
    pub fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, Error> {
        let (words, count) = open(ebpf, name)?;
        Ok(Self {
            words,
            bits: count.trailing_zeros(),
        })
    }

    /// Counts one key more, before it is written to the table.
    pub fn add(&self, word: u64) {
        self.of(word).fetch_add(1, Ordering::SeqCst);
    }

    fn of(&self, word: u64) -> &AtomicU64 {
        self.words.at(slot(word, self.bits) as usize)
    }

    /// How many keys are counted.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let all = (0..1 << self.bits).map(|slot| self.words.at(slot));
        all.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Counts one key less, which was in the table and no longer is.
    pub fn take(&self, word: u64) {
        self.of(word).fetch_sub(1, Ordering::SeqCst);
    }
}
