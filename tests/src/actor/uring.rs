//! Opening and connecting by io_uring, so that no `open` or `connect` system call is made.

use std::{
    ffi::CString,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    sys::socket::{self, MsgFlags, SockType, SockaddrLike as _, SockaddrStorage},
};

use super::{Done, PAYLOAD, files, sockets, sys};

const OP_SENDMSG: u8 = 9;
const OP_CONNECT: u8 = 16;
const OP_OPENAT: u8 = 18;
const OP_READ: u8 = 22;
const OP_SEND: u8 = 26;
const OP_SPLICE: u8 = 30;
const OP_SOCKET: u8 = 45;
/// The descriptor is the number of a registered one.
const SQE_FIXED_FILE: u8 = 1;
/// Not by the caller, but by a worker thread of the kernel.
const SQE_ASYNC: u8 = 1 << 4;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_WAKE_UP: u32 = 2;
const SETUP_SQPOLL: u32 = 2;
const REGISTER_FILES: u32 = 2;
const OFFSET_SQ_RING: i64 = 0;
const OFFSET_CQ_RING: i64 = 0x800_0000;
const OFFSET_SQES: i64 = 0x1000_0000;
const RING_BYTES: usize = 4096;

/// Who does it, and how it names the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// The caller, within its system call.
    Inline,
    /// A worker thread.
    Worker,
    /// A thread that looks by itself whether there is something to do.
    Polled,
    /// The caller, by a registered file.
    Fixed,
}

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
fn one(mut submission: Submission, how: How) -> nix::Result<i32> {
    let mut params = Params::default();
    match how {
        How::Inline => {}
        How::Worker => submission.flags |= SQE_ASYNC,
        How::Polled => params.flags[0] = SETUP_SQPOLL,
        How::Fixed => submission.flags |= SQE_FIXED_FILE,
    }
    // SAFETY: the kernel writes within the structure, whose size is checked above.
    let fd =
        Errno::result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1u32, &raw mut params) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    if how == How::Fixed {
        // SAFETY: one descriptor, as said.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                fd,
                REGISTER_FILES,
                &raw const submission.fd,
                1u32,
            )
        })?;
        submission.fd = 0;
    }
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
            ENTER_GETEVENTS | if how == How::Polled { ENTER_WAKE_UP } else { 0 },
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

/// Opens by the ring, and reads plainly.
pub fn read(path: &str, how: How) -> nix::Result<Done> {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    let open = Submission {
        opcode: OP_OPENAT,
        fd: libc::AT_FDCWD,
        address: path.as_ptr() as u64,
        op_flags: (libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned(),
        ..Submission::default()
    };
    files::take(sys::owned(one(open, how)?)?).map(Done::read)
}

/// Reads by the ring what is open.
pub fn read_held(file: &OwnedFd, how: How) -> nix::Result<usize> {
    let mut buffer = [0_u8; 64];
    let read = Submission {
        opcode: OP_READ,
        fd: file.as_raw_fd(),
        address: buffer.as_mut_ptr() as u64,
        length: buffer.len() as u32,
        ..Submission::default()
    };
    Ok(one(read, how)?.cast_unsigned() as usize)
}

/// Connects by the ring, and sends plainly.
pub fn connect(to: SocketAddr, how: How) -> nix::Result<Done> {
    let fd = sockets::open(to, SockType::Stream)?;
    connect_by(&fd, to, how)?;
    let bytes = socket::send(fd.as_raw_fd(), PAYLOAD, MsgFlags::MSG_NOSIGNAL)?;
    Ok(Done::sent(to, "tcp", bytes))
}

fn connect_by(fd: &OwnedFd, to: SocketAddr, how: How) -> nix::Result<()> {
    let address = SockaddrStorage::from(to);
    let connect = Submission {
        opcode: OP_CONNECT,
        fd: fd.as_raw_fd(),
        address: address.as_ptr() as u64,
        offset: u64::from(address.len()),
        ..Submission::default()
    };
    one(connect, how).map(|_| ())
}

/// Makes the socket, connects and sends by the ring.
pub fn all(to: SocketAddr, how: How) -> nix::Result<Done> {
    let make = Submission {
        opcode: OP_SOCKET,
        fd: sys::family(to),
        offset: libc::SOCK_STREAM as u64,
        ..Submission::default()
    };
    let fd = sys::owned(one(make, how)?)?;
    connect_by(&fd, to, how)?;
    send(&fd, how)?;
    Ok(Done::default())
}

/// Sends by the ring on a connection.
pub fn send(fd: &OwnedFd, how: How) -> nix::Result<()> {
    let send = Submission {
        opcode: OP_SEND,
        fd: fd.as_raw_fd(),
        address: PAYLOAD.as_ptr() as u64,
        length: PAYLOAD.len() as u32,
        op_flags: libc::MSG_NOSIGNAL.cast_unsigned(),
        ..Submission::default()
    };
    one(send, how).map(|_| ())
}

/// Moves what is in a pipe to a connection by the ring.
pub fn splice(from: &OwnedFd, to: &OwnedFd) -> nix::Result<()> {
    let splice = Submission {
        opcode: OP_SPLICE,
        fd: to.as_raw_fd(),
        // No offsets: both are streams.
        offset: u64::MAX,
        address: u64::MAX,
        length: PAYLOAD.len() as u32,
        rest: [u64::from(from.as_raw_fd().cast_unsigned()) << 32, 0, 0],
        ..Submission::default()
    };
    one(splice, How::Inline).map(|_| ())
}

/// One datagram with its destination, by the ring.
pub fn udp(to: SocketAddr, how: How) -> nix::Result<Done> {
    let fd = sockets::open(to, SockType::Datagram)?;
    let address = SockaddrStorage::from(to);
    let mut slice = libc::iovec {
        iov_base: PAYLOAD.as_ptr().cast_mut().cast(),
        iov_len: PAYLOAD.len(),
    };
    // SAFETY: all bytes zero is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    let send = Submission {
        opcode: OP_SENDMSG,
        fd: fd.as_raw_fd(),
        address: &raw const message as u64,
        length: 1,
        ..Submission::default()
    };
    one(send, how)?;
    Ok(Done::sent(to, "udp", PAYLOAD.len()))
}
