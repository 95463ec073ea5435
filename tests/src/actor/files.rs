//! Ways to read a file.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{self, OFlag},
    sys::{
        mman::{self, MapFlags, ProtFlags},
        stat::Mode,
    },
    unistd,
};
use serde_json::json;

use super::{Done, State, places, report};

/// Opens for reading.
pub fn open(path: &str) -> nix::Result<OwnedFd> {
    fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Reads what is there, up to a page.
pub fn take(file: impl AsFd) -> nix::Result<usize> {
    unistd::read(file, &mut [0; 4096])
}

/// The plain way.
pub fn read(path: &str) -> nix::Result<Done> {
    take(open(path)?).map(Done::read)
}

/// Opens, and reads later.
pub fn hold(state: &mut State, path: &str) -> nix::Result<Done> {
    state.file = Some(open(path)?);
    Ok(Done::default())
}

/// Reads what was opened before.
pub fn read_held(state: &State) -> nix::Result<Done> {
    take(state.file.as_ref().ok_or(Errno::EBADF)?).map(Done::read)
}

/// Opens the place only, and then the file through `/proc/self/fd`.
pub fn reopen(path: &str) -> nix::Result<Done> {
    let place = fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    read(&format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// By mapping it.
pub fn map(path: &str) -> nix::Result<Done> {
    let file = open(path)?;
    let length = std::num::NonZeroUsize::MIN;
    // SAFETY: a private, read-only mapping at an address of the kernel's choice touches no other memory.
    let mapping = unsafe {
        mman::mmap(
            None,
            length,
            ProtFlags::PROT_READ,
            MapFlags::MAP_PRIVATE,
            &file,
            0,
        )?
    };
    // SAFETY: the file has at least one byte, and the mapping is unmapped nowhere.
    let byte = unsafe { mapping.cast::<u8>().as_ptr().read_volatile() };
    Ok(Done::read(usize::from(byte != 0)))
}

/// By file handle, with no path at all.
pub fn read_handle(path: &str) -> nix::Result<Done> {
    /// `struct file_handle` with the most that any file system needs.
    #[repr(C)]
    struct Handle {
        header: libc::file_handle,
        space: [u8; 128],
    }
    let mut handle = Handle {
        header: libc::file_handle {
            handle_bytes: 128,
            handle_type: 0,
            f_handle: [],
        },
        space: [0; 128],
    };
    let c_path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    let mut mount_id = 0;
    // SAFETY: the path ends with NUL, and the handle has the room it says it has.
    Errno::result(unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            c_path.as_ptr(),
            (&raw mut handle).cast(),
            &mut mount_id,
            0,
        )
    })?;
    let directory = path
        .rsplit_once('/')
        .map_or("/", |(directory, _)| directory);
    let mount = open(directory)?;
    // SAFETY: the kernel filled the handle in a moment ago.
    let fd = Errno::result(unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel gave us this descriptor, and nobody else has it.
    take(unsafe { OwnedFd::from_raw_fd(fd) }).map(Done::read)
}

/// Opens and reads over and over until standard input ends.
pub fn hammer_reads(path: &str, pause_us: u64) -> nix::Result<Done> {
    hammer(pause_us, || {
        open(path).map(|file| take(file).unwrap_or_default())
    })
}

/// Tries over and over until standard input ends. Counts. After an answer, whatever it was, it pauses for so many
/// microseconds, so that the record of it is no flood; while nothing is there it does not.
pub fn hammer(pause_us: u64, mut attempt: impl FnMut() -> nix::Result<usize>) -> nix::Result<Done> {
    let over = places::input_ends();
    report("hammering", Ok(Done::default()));
    let (mut opened, mut bytes, mut refused, mut absent, mut other) = (0, 0, 0, 0, 0);
    while !over.load(Ordering::Relaxed) {
        match attempt() {
            Ok(read) => {
                opened += 1;
                bytes += read;
            }
            Err(Errno::EPERM) => refused += 1,
            Err(Errno::ENOENT) => {
                absent += 1;
                continue;
            }
            Err(_) => other += 1,
        }
        if pause_us > 0 {
            thread::sleep(Duration::from_micros(pause_us));
        }
    }
    Ok(Done {
        read: bytes,
        more: json!({"opened": opened, "refused": refused, "absent": absent, "other": other}),
        ..Done::default()
    })
}
