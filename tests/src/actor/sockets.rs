//! Ways to send.

use std::{
    io::IoSlice,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{self, SpliceFFlags},
    sys::{
        socket::{
            self, AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage,
            sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
    unistd,
};

use super::{Done, PAYLOAD, State};

/// A packet that is dropped without an error must not keep a test waiting.
const PATIENCE_S: i64 = 4;

/// A socket for this address's family.
pub fn open(to: SocketAddr, kind: SockType) -> nix::Result<OwnedFd> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(PATIENCE_S))?;
    Ok(fd)
}

pub fn connected(to: SocketAddr, kind: SockType) -> nix::Result<OwnedFd> {
    let fd = open(to, kind)?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(fd)
}

fn send_on(fd: &OwnedFd) -> nix::Result<usize> {
    socket::send(fd.as_raw_fd(), PAYLOAD, MsgFlags::MSG_NOSIGNAL)
}

/// Connects by TCP and sends.
pub fn tcp(to: SocketAddr) -> nix::Result<Done> {
    let bytes = send_on(&connected(to, SockType::Stream)?)?;
    Ok(Done::sent(to, "tcp", bytes))
}

/// Sends within the connecting.
pub fn tcp_fast_open(to: SocketAddr) -> nix::Result<Done> {
    let fd = open(to, SockType::Stream)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN) | MsgFlags::MSG_NOSIGNAL;
    let bytes = socket::sendto(fd.as_raw_fd(), PAYLOAD, &SockaddrStorage::from(to), flags)?;
    Ok(Done::sent(to, "tcp", bytes))
}

/// One datagram, its destination given with it.
pub fn udp(to: SocketAddr) -> nix::Result<Done> {
    let fd = open(to, SockType::Datagram)?;
    let to_address = SockaddrStorage::from(to);
    let bytes = socket::sendto(fd.as_raw_fd(), PAYLOAD, &to_address, MsgFlags::empty())?;
    Ok(Done::sent(to, "udp", bytes))
}

/// One datagram on a connected socket.
pub fn udp_connected(to: SocketAddr) -> nix::Result<Done> {
    let bytes = send_on(&connected(to, SockType::Datagram)?)?;
    Ok(Done::sent(to, "udp", bytes))
}

/// Two datagrams by one `sendmmsg`.
pub fn udp_many(to: SocketAddr) -> nix::Result<Done> {
    let fd = open(to, SockType::Datagram)?;
    let mut headers = MultiHeaders::preallocate(2, None);
    let slices = [[IoSlice::new(PAYLOAD)], [IoSlice::new(PAYLOAD)]];
    let addresses = [Some(SockaddrStorage::from(to)); 2];
    let results = socket::sendmmsg(
        fd.as_raw_fd(),
        &mut headers,
        &slices,
        addresses,
        [],
        MsgFlags::empty(),
    )?;
    Ok(Done::sent(to, "udp", PAYLOAD.len() * results.count()))
}

/// Opens a connection, for later.
pub fn dial(state: &mut State, to: SocketAddr) -> nix::Result<Done> {
    state.connection = Some((connected(to, SockType::Stream)?, to, "tcp"));
    Ok(Done::default())
}

/// Connects a datagram socket, for later.
pub fn dial_udp(state: &mut State, to: SocketAddr) -> nix::Result<Done> {
    state.connection = Some((connected(to, SockType::Datagram)?, to, "udp"));
    Ok(Done::default())
}

/// On the connection there is, by `send`.
pub fn send(state: &State) -> nix::Result<Done> {
    let (fd, to, protocol) = state.connection.as_ref().ok_or(Errno::ENOTCONN)?;
    Ok(Done::sent(*to, protocol, send_on(fd)?))
}

/// On the connection there is, by `write`.
pub fn write(state: &State) -> nix::Result<Done> {
    let (fd, to, protocol) = state.connection.as_ref().ok_or(Errno::ENOTCONN)?;
    Ok(Done::sent(*to, protocol, unistd::write(fd, PAYLOAD)?))
}

/// On the connection there is, out of a pipe.
pub fn splice(state: &State) -> nix::Result<Done> {
    let (fd, to, protocol) = state.connection.as_ref().ok_or(Errno::ENOTCONN)?;
    let (out, into) = unistd::pipe()?;
    unistd::write(into, PAYLOAD)?;
    let bytes = fcntl::splice(out, None, fd, None, PAYLOAD.len(), SpliceFFlags::empty())?;
    Ok(Done::sent(*to, protocol, bytes))
}
