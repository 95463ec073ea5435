//! Reading kernel structures.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use enforcer_common::ids::{ExecutableKey, InodeKey};

/// Offset of `len` in `struct qstr`: after the hash, on little-endian machines since 3.8.
pub const QSTR_LEN: u64 = 4;
/// Offset of `name` in `struct qstr`.
pub const QSTR_NAME: u64 = 8;

/// The offset of a kernel struct member.
///
/// Read volatile, so that the compiler does not take the placeholder for the value; the verifier knows
/// the value, because the map behind read-only data is frozen.
#[macro_export]
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::constant(&$crate::maps::OFFSETS.$field)
    };
}

/// Reads a constant that the daemon set at load time.
#[inline(always)]
pub fn constant<T: Copy>(constant: &'static T) -> T {
    // SAFETY: a reference is valid; nothing writes it after loading.
    unsafe { core::ptr::read_volatile(constant) }
}

/// Reads a `T` at a kernel address. A bad address gives zeroes, with which the kernel fills what it could
/// not read: all callers treat zero as absent. The helper's result is not looked at, because each look
/// would double what the verifier walks.
#[inline(always)]
pub fn read<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: writes the size of `value`, checks the address, and never faults.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
    }
    value
}

/// An address as a mere number: a pointer typed by the kernel's BTF is none, as which a global function wants it.
#[inline(always)]
pub fn untyped(address: u64) -> u64 {
    read(core::ptr::from_ref(&address) as u64)
}

/// Loads a `T` from an argument of a BTF-typed program, or from a pointer loaded so.
///
/// # Safety
///
/// `base` is such a pointer and not null, and `offset` is that of a member of its type; the verifier
/// checks both.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: *const u8, offset: u64) -> T {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::read_volatile(base.add(offset as usize).cast::<T>()) }
}

/// The key of an inode at a kernel address; all zero for a null address, from which nothing can be read.
#[inline(always)]
pub fn inode_key(inode: u64) -> InodeKey {
    let sb: u64 = read(inode + offset!(inode_sb));
    InodeKey {
        ino: read(inode + offset!(inode_ino)),
        dev: read(sb + offset!(sb_dev)),
        generation: read(inode + offset!(inode_generation)),
    }
}

/// The key of an executable by its inode's kernel address.
#[inline(always)]
pub fn executable_key(inode: u64) -> ExecutableKey {
    let seconds: u64 = read(inode + offset!(inode_ctime_sec));
    let nanoseconds: u32 = read(inode + offset!(inode_ctime_nsec));
    ExecutableKey {
        inode: inode_key(inode),
        // From 6.13 on the top bit of the nanoseconds says that somebody has looked at them.
        changed_ns: seconds
            .wrapping_mul(1_000_000_000)
            .wrapping_add((nanoseconds & 0x7fff_ffff) as u64),
    }
}

/// Whether an inode's mode (`i_mode`) is that of a directory.
#[inline(always)]
pub fn is_directory(inode: u64) -> bool {
    let mode: u16 = read(inode + offset!(inode_mode));
    mode & 0o170_000 == 0o040_000
}
