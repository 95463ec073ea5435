//! Opening and connecting by io_uring, so that no `open` or `connect` system call is made.

use std::{
    ffi::CString,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    sys::socket::{self, MsgFlags, SockType, SockaddrLike as _, SockaddrStorage},
};

use super::{Done, PAYLOAD, files, sockets};

const OP_CONNECT: u8 = 16;
const OP_OPENAT: u8 = 18;
/// Not by the caller, but by a worker thread of the kernel.
const SQE_ASYNC: u8 = 1 << 4;
const ENTER_GETEVENTS: u32 = 1;
const OFFSET_SQ_RING: i64 = 0;
const OFFSET_CQ_RING: i64 = 0x800_0000;
const OFFSET_SQES: i64 = 0x1000_0000;
const RING_BYTES: usize = 4096;

/// `struct io_uring_params`, with the offsets within the rings.
#[repr(C)]
#[derive(Default)]
struct Params {
    entries: [u32; 2],
    flags: [u32; 8],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array, resv1, then user_addr.
    sq: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1, then user_addr.
    cq: [u32; 10],
}

/// `struct io_uring_sqe`.
#[repr(C)]
#[derive(Default)]
struct Submission {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    op_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}

const _: () = assert!(size_of::<Params>() == 120 && size_of::<Submission>() == 64);

fn map(fd: RawFd, offset: i64) -> nix::Result<*mut u8> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            RING_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd,
            offset,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(address.cast())
}

/// Does one operation and returns its result. What it sets up stays until the process ends.
fn one(submission: Submission) -> nix::Result<i32> {
    let mut params = Params::default();
    // SAFETY: the kernel writes within the structure, whose size is checked above.
    let fd =
        Errno::result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1u32, &raw mut params) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    let sq = map(fd, OFFSET_SQ_RING)?;
    let cq = map(fd, OFFSET_CQ_RING)?;
    let entries = map(fd, OFFSET_SQES)?;
    // SAFETY: the ring of one entry fits in a page; the offsets are the kernel's own, aligned, and it
    // looks at the entry only once the tail has moved.
    unsafe {
        entries.cast::<Submission>().write(submission);
        sq.add(params.sq[6] as usize).cast::<u32>().write(0);
        (*sq.add(params.sq[1] as usize).cast::<AtomicU32>()).store(1, Ordering::Release);
    }
    // SAFETY: no memory is passed but the rings.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            fd,
            1u32,
            1u32,
            ENTER_GETEVENTS,
            ptr::null::<u8>(),
            0usize,
        )
    })?;
    // SAFETY: the kernel has put one completion, `{user_data: u64, res: i32, flags: u32}`, at index 0.
    let result = unsafe {
        if (*cq.add(params.cq[1] as usize).cast::<AtomicU32>()).load(Ordering::Acquire) == 0 {
            return Err(Errno::EAGAIN);
        }
        cq.add(params.cq[5] as usize + 8).cast::<i32>().read()
    };
    if result < 0 {
        return Err(Errno::from_raw(-result));
    }
    Ok(result)
}

fn flags(worker: bool) -> u8 {
    if worker { SQE_ASYNC } else { 0 }
}

/// Opens by the ring, and reads plainly.
pub fn read(path: &str, worker: bool) -> nix::Result<Done> {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    let fd = one(Submission {
        opcode: OP_OPENAT,
        flags: flags(worker),
        fd: libc::AT_FDCWD,
        address: path.as_ptr() as u64,
        op_flags: (libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned(),
        ..Submission::default()
    })?;
    // SAFETY: the kernel gave us this descriptor, and nobody else has it.
    files::take(unsafe { OwnedFd::from_raw_fd(fd) }).map(Done::read)
}

/// Connects by the ring, and sends plainly.
pub fn connect(to: SocketAddr, worker: bool) -> nix::Result<Done> {
    let fd = sockets::open(to, SockType::Stream)?;
    let address = SockaddrStorage::from(to);
    one(Submission {
        opcode: OP_CONNECT,
        flags: flags(worker),
        fd: fd.as_raw_fd(),
        address: address.as_ptr() as u64,
        offset: u64::from(address.len()),
        ..Submission::default()
    })?;
    let bytes = socket::send(fd.as_raw_fd(), PAYLOAD, MsgFlags::MSG_NOSIGNAL)?;
    Ok(Done::sent(to, "tcp", bytes))
}
