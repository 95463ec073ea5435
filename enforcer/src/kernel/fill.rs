//! How full a ring is, from the positions that the kernel shares with its readers.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::mman::{self, MapFlags, ProtFlags};

/// The two pages of a ring that have its positions: of the reader, and of the programs.
pub struct Fill {
    positions: NonNull<AtomicUsize>,
    page: NonZeroUsize,
    /// The ring's name.
    pub name: &'static str,
    /// Bytes that fit.
    pub capacity: usize,
}

// SAFETY: shared memory of words that are only read, as wholes.
unsafe impl Send for Fill {}

impl Fill {
    /// Of the ring behind a descriptor.
    pub fn open(name: &'static str, ring: impl AsFd, capacity: usize) -> nix::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let page = page.and_then(|it| NonZeroUsize::new(it as usize));
        let page = page.ok_or(nix::errno::Errno::EINVAL)?;
        let both = page.saturating_add(page.get());
        // SAFETY: a new mapping, which nothing is written through.
        let memory = unsafe {
            mman::mmap(
                None,
                both,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                ring,
                0,
            )
        }?;
        Ok(Self {
            positions: memory.cast(),
            page,
            name,
            capacity,
        })
    }

    /// Bytes that wait to be read.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // The reader's first: it never overtakes the programs'.
        let taken = self.taken();
        self.written().wrapping_sub(taken)
    }

    /// Bytes that were ever read.
    #[must_use]
    pub fn taken(&self) -> usize {
        // SAFETY: at the beginning of the first page, which is mapped as long as this lives.
        let position = unsafe { self.positions.as_ref() };
        position.load(Ordering::Acquire)
    }

    /// Bytes that were ever written.
    #[must_use]
    pub fn written(&self) -> usize {
        let programs = self.page.get() / size_of::<AtomicUsize>();
        // SAFETY: at the beginning of the second page, likewise.
        let position = unsafe { self.positions.add(programs).as_ref() };
        position.load(Ordering::Acquire)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        // SAFETY: nobody has a position any more.
        let _ = unsafe { mman::munmap(self.positions.cast(), 2 * self.page.get()) };
    }
}
