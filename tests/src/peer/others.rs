//! Listeners for protocols that have connections and are neither TCP nor UDP.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

use nix::{
    errno::Errno,
    sys::socket::{self, SockaddrStorage},
};

/// Type and protocol of what is listened to; DCCP's name for its type is missing in libc.
const KINDS: [(i32, i32); 2] = [
    (libc::SOCK_STREAM, libc::IPPROTO_SCTP),
    (6, libc::IPPROTO_DCCP),
];

/// Accepts what the kernel has; what arrives is for the sniffer to see.
pub fn listen(address: SocketAddr) {
    for (kind, protocol) in KINDS {
        // A kernel without the protocol has no attack by it either.
        if let Ok(fd) = open(address, kind, protocol) {
            thread::spawn(move || {
                let mut accepted = Vec::new();
                while let Ok(connection) = socket::accept(fd.as_raw_fd()) {
                    accepted.push(connection);
                }
            });
        }
    }
}

fn open(address: SocketAddr, kind: i32, protocol: i32) -> nix::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd =
        Errno::result(unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel gave us this descriptor, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&fd, socket::Backlog::new(16)?)?;
    Ok(fd)
}
