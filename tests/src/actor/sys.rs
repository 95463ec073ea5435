//! The system calls that several kinds of steps make, without the libraries' opinion about what is sensible.

use std::{
    mem,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{self, MsgFlags, SockaddrLike, SockaddrStorage},
};

/// A packet that is dropped without an error must not keep a test waiting.
const PATIENCE: libc::timeval = libc::timeval {
    tv_sec: 4,
    tv_usec: 0,
};

/// What a system call returned, if it was a descriptor.
pub fn owned(fd: impl TryInto<RawFd>) -> nix::Result<OwnedFd> {
    let fd = fd.try_into().map_err(|_| Errno::EBADF)?;
    let fd = Errno::result(fd)?;
    // SAFETY: the callers pass what the kernel returned a moment ago, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Any socket.
pub fn socket(family: i32, kind: i32, protocol: i32) -> nix::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = owned(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    for option in [libc::SO_SNDTIMEO, libc::SO_RCVTIMEO] {
        set(&fd, libc::SOL_SOCKET, option, &PATIENCE)?;
    }
    Ok(fd)
}

/// The address family's number for a destination.
pub fn family(to: SocketAddr) -> i32 {
    if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }
}

/// Sets an option to any plain value.
pub fn set<T>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> nix::Result<()> {
    // SAFETY: the value is as long as said.
    Errno::result(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const *value).cast(),
            mem::size_of_val(value) as u32,
        )
    })?;
    Ok(())
}

/// Sets an option to these bytes.
pub fn set_bytes(fd: &OwnedFd, level: i32, option: i32, value: &[u8]) -> nix::Result<()> {
    // SAFETY: the value is as long as said.
    Errno::result(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as u32,
        )
    })?;
    Ok(())
}

/// Connects to an Internet address.
pub fn connect(fd: &OwnedFd, to: SocketAddr) -> nix::Result<()> {
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
}

/// Connects to an address of any kind.
pub fn connect_raw<T>(fd: &OwnedFd, address: &T) -> nix::Result<()> {
    // SAFETY: the address is as long as said.
    Errno::result(unsafe {
        libc::connect(
            fd.as_raw_fd(),
            (&raw const *address).cast(),
            mem::size_of_val(address) as u32,
        )
    })?;
    Ok(())
}

/// Binds to an address of any kind.
pub fn bind_raw<T>(fd: &OwnedFd, address: &T) -> nix::Result<()> {
    // SAFETY: the address is as long as said.
    Errno::result(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const *address).cast(),
            mem::size_of_val(address) as u32,
        )
    })?;
    Ok(())
}

/// Sends to an address of any kind.
pub fn send_to_raw<T>(fd: &OwnedFd, bytes: &[u8], address: &T) -> nix::Result<usize> {
    // SAFETY: buffer and address are as long as said.
    let sent = Errno::result(unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_NOSIGNAL,
            (&raw const *address).cast(),
            mem::size_of_val(address) as u32,
        )
    })?;
    Ok(sent.cast_unsigned())
}

/// Sends on a connection.
pub fn send(fd: &OwnedFd, bytes: &[u8]) -> nix::Result<usize> {
    socket::send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)
}

/// Sends to an address.
pub fn send_to(
    fd: &OwnedFd,
    bytes: &[u8],
    to: &dyn SockaddrLike,
    flags: i32,
) -> nix::Result<usize> {
    // SAFETY: buffer and address are as long as said.
    let sent = Errno::result(unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags | libc::MSG_NOSIGNAL,
            to.as_ptr(),
            to.len(),
        )
    })?;
    Ok(sent.cast_unsigned())
}

/// Receives up to a page.
pub fn receive(fd: &OwnedFd) -> nix::Result<usize> {
    socket::recv(fd.as_raw_fd(), &mut [0; 4096], MsgFlags::empty())
}
