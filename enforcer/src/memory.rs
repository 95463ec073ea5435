//! Memory that is not needed any more.

/// Gives what was freed back to the kernel. After much was needed for a moment, to load the programs or to read a bundle,
/// glibc keeps what lies below anything that is still in use.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but the allocator's own state, which it locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
