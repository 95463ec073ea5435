//! Counting keys as the programs do, in memory that is shared with them: see [`enforcer_common::presence`].

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Map, MapError};
use enforcer_common::capacity::PRESENCE_BITS;
use enforcer_common::presence::slot;
use nix::sys::mman::{self, MapFlags, ProtFlags};

use super::maps::{Error, failed};

const BYTES: usize = size_of::<[AtomicU64; 1 << PRESENCE_BITS]>();

/// The counters of one table.
pub struct Counters(NonNull<AtomicU64>);

// SAFETY: shared memory of atomic words.
unsafe impl Send for Counters {}

impl Counters {
    /// Opens them; `name` is that of the array.
    pub fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, Error> {
        let Some(Map::Array(array)) = ebpf.map(name) else {
            return Err(Error::Missing(name));
        };
        let length = NonZeroUsize::MIN.saturating_add(BYTES - 1);
        // SAFETY: a new mapping of the whole array.
        let memory = unsafe {
            mman::mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                array.fd(),
                0,
            )
        };
        let memory = memory.map_err(|error| MapError::IoError(error.into()));
        Ok(Self(memory.map_err(failed("open", name))?.cast()))
    }

    /// Counts one key more, before it is written to the table.
    pub fn add(&self, word: u64) {
        self.counter(word).fetch_add(1, Ordering::SeqCst);
    }

    /// Counts one key less, which was in the table and no longer is.
    pub fn take(&self, word: u64) {
        self.counter(word).fetch_sub(1, Ordering::SeqCst);
    }

    fn counter(&self, word: u64) -> &AtomicU64 {
        // SAFETY: a slot is below the number of counters, all of which are mapped as long as this lives.
        unsafe { self.0.add(slot(word) as usize).as_ref() }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to a counter any more.
        let _ = unsafe { mman::munmap(self.0.cast(), BYTES) };
    }
}
