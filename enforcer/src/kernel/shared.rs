//! Memory that is shared with the kernel: the words of an array, in which programs and daemons count.

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use aya::maps::{MapData, MapError};
use nix::sys::mman::{self, MapFlags, ProtFlags};

/// The words of one array.
pub struct Words {
    first: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
}

// SAFETY: shared memory of atomic words.
unsafe impl Send for Words {}
// SAFETY: likewise.
unsafe impl Sync for Words {}

impl Words {
    /// Opens `count` words of an array that has as many, and may be mapped.
    pub fn open(array: &MapData, count: usize) -> Result<Self, MapError> {
        let bytes = NonZeroUsize::new(count * size_of::<AtomicU64>());
        let bytes = bytes.unwrap_or(NonZeroUsize::MIN);
        // SAFETY: a new mapping of the whole array.
        let memory = unsafe {
            mman::mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                array.fd(),
                0,
            )
        };
        let memory = memory.map_err(|error| MapError::IoError(error.into()))?;
        Ok(Self {
            first: memory.cast(),
            bytes,
        })
    }

    /// One of them.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn at(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.bytes.get() / size_of::<AtomicU64>());
        // SAFETY: below the number of words, all of which are mapped as long as this lives.
        unsafe { self.first.add(index).as_ref() }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to a word any more.
        let _ = unsafe { mman::munmap(self.first.cast(), self.bytes.get()) };
    }
}
