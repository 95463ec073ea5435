//! Memory that is not needed any more.

use std::ffi::{c_int, c_void};

/// Gives back to the kernel what was freed, and the pages of this program that only a start or a new bundle needs. After much
/// was needed for a moment, glibc keeps what lies below anything that is still in use.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but the allocator's own state, which it locks.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the callback has the type that is asked for, and no data.
    unsafe {
        libc::dl_iterate_phdr(Some(give_back_text), std::ptr::null_mut());
    }
}

/// Of the program, which comes first, and of no library.
extern "C" fn give_back_text(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    const PAGE: u64 = 4096;
    // SAFETY: the C library describes what it has loaded for as long as this runs.
    let (base, headers) = unsafe {
        let info = &*info;
        let count = usize::from(info.dlpi_phnum);
        (
            info.dlpi_addr,
            std::slice::from_raw_parts(info.dlpi_phdr, count),
        )
    };
    let never_written =
        |it: &&libc::Elf64_Phdr| it.p_type == libc::PT_LOAD && it.p_flags & libc::PF_W == 0;
    for part in headers.iter().filter(never_written) {
        let begin = (base + part.p_vaddr).next_multiple_of(PAGE);
        let end = (base + part.p_vaddr + part.p_memsz) / PAGE * PAGE;
        if begin < end {
            // SAFETY: whole pages that are mapped from the program's file and never written: they are read from there, or
            // from the page cache, when they are needed again.
            unsafe {
                libc::madvise(
                    begin as *mut c_void,
                    (end - begin) as usize,
                    libc::MADV_DONTNEED,
                );
            }
        }
    }
    1
}
