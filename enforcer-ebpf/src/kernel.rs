//! Reading kernel structures.

use aya_ebpf::helpers::bpf_probe_read_kernel;
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

/// Reads a `T` at a kernel address. A bad address gives the default, as the kernel's own fault handling
/// fills zeroes: all callers treat zero as absent.
#[inline(always)]
pub fn read<T: Copy + Default>(address: u64) -> T {
    // SAFETY: `bpf_probe_read_kernel` checks the address and never faults.
    unsafe { bpf_probe_read_kernel(address as *const T) }.unwrap_or_default()
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

/// The key of an inode at a kernel address; all zero for a null address.
#[inline(always)]
pub fn inode_key(inode: u64) -> InodeKey {
    if inode == 0 {
        return InodeKey::default();
    }
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
    if inode == 0 {
        return ExecutableKey::default();
    }
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
