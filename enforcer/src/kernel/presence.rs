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

impl Counters {
    /// Opens them; `name` is that of the array.
    pub fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, Error> {
        let Some(Map::Array(array)) = ebpf.map(name) else {
            return Err(Error::Missing(name));
        };
        let words = Words::open(array, 1 << PRESENCE_BITS);
        words.map(Self).map_err(failed("open", name))
    }

    /// Counts one key more, before it is written to the table.
    pub fn add(&self, word: u64) {
        self.0
            .at(slot(word) as usize)
            .fetch_add(1, Ordering::SeqCst);
    }

    /// Counts one key less, which was in the table and no longer is.
    pub fn take(&self, word: u64) {
        self.0
            .at(slot(word) as usize)
            .fetch_sub(1, Ordering::SeqCst);
    }
}
