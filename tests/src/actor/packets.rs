//! Packets that go elsewhere than they say.

use std::{
    fs::File,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{errno::Errno, sys::socket::SockaddrStorage};

use super::{
    Done, PAYLOAD, State, Words,
    odd::ipv4_by_hand,
    sys::{connect, family, send, send_to, set, set_bytes, socket},
};

const LSRR: u8 = 0x83;

/// The steps of this file.
pub fn perform(verb: &str, state: &mut State, words: &mut Words) -> Option<nix::Result<Done>> {
    let result = match verb {
        "lsrr" => source_routed(words, libc::SOCK_DGRAM, false),
        "lsrr-cmsg" => source_routed(words, libc::SOCK_DGRAM, true),
        "lsrr-tcp" => source_routed(words, libc::SOCK_STREAM, false),
        "routing" => routing(words, libc::SOCK_DGRAM),
        "routing-tcp" => routing(words, libc::SOCK_STREAM),
        "routing-preset" => routing_preset(state, words),
        "send-preset" => send_preset(state, words),
        "options" => destination_options(words),
        "cork" => cork(state, words),
        "uncork" => uncork(state, words),
        "large" => large(words),
        "fragment" => fragment(words),
        "mapped-v4" => by_the_other_family(words),
        "broadcast" => broadcast(words),
        "tunnel-device" => tunnel(words),
        _ => return None,
    };
    Some(result.map(|()| Done::default()))
}

/// IPv4: says one address, and the packet goes to another first.
fn source_routed(words: &mut Words, kind: i32, by_message: bool) -> nix::Result<()> {
    let (declared, via) = (words.address()?, words.address()?);
    let (IpAddr::V4(last), IpAddr::V4(first)) = (declared.ip(), via.ip()) else {
        return Err(Errno::EAFNOSUPPORT);
    };
    // The kernel takes the first hop out of the list and puts the destination at its end.
    let mut option = vec![LSRR, 11, 4];
    option.extend(first.octets());
    option.extend(last.octets());
    option.push(0);
    let fd = socket(libc::AF_INET, kind, 0)?;
    if by_message {
        return send_with(&fd, declared, libc::IPPROTO_IP, libc::IP_RETOPTS, &option);
    }
    set_bytes(&fd, libc::IPPROTO_IP, libc::IP_OPTIONS, &option)?;
    send_routed(&fd, declared, kind)
}

/// Sends the payload on a socket of this kind.
fn send_routed(fd: &OwnedFd, declared: SocketAddr, kind: i32) -> nix::Result<()> {
    let to = SockaddrStorage::from(declared);
    if kind == libc::SOCK_DGRAM {
        return send_to(fd, PAYLOAD, &to, 0).map(|_| ());
    }
    // Nobody answers at the end of the route; fast open puts the payload into the first packet.
    let fast = libc::MSG_FASTOPEN | libc::MSG_DONTWAIT;
    match send_to(fd, PAYLOAD, &to, fast) {
        Ok(_) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sends with one control message.
fn send_with(fd: &OwnedFd, to: SocketAddr, level: i32, kind: i32, value: &[u8]) -> nix::Result<()> {
    let address = SockaddrStorage::from(to);
    let mut control = [0_u64; 16];
    let mut slice = libc::iovec {
        iov_base: PAYLOAD.as_ptr().cast_mut().cast(),
        iov_len: PAYLOAD.len(),
    };
    // SAFETY: all bytes zero is a message without anything; the control buffer has room for a header and the
    // value, which is shorter than 64 bytes.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = nix::sys::socket::SockaddrLike::as_ptr(&address)
            .cast_mut()
            .cast();
        message.msg_namelen = nix::sys::socket::SockaddrLike::len(&address);
        message.msg_iov = &raw mut slice;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(value.len() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(value.len() as u32) as usize;
        libc::CMSG_DATA(header).copy_from(value.as_ptr(), value.len());
        Errno::result(libc::sendmsg(fd.as_raw_fd(), &raw const message, 0))?;
    }
    Ok(())
}

/// A routing header of this type with one hop.
fn routing_header(kind: u64, via: SocketAddr) -> nix::Result<Vec<u8>> {
    let IpAddr::V6(via) = via.ip() else {
        return Err(Errno::EAFNOSUPPORT);
    };
    let mut header = match kind {
        2 => vec![0, 2, 2, 1, 0, 0, 0, 0],
        // Two segments: what it will be replaced by at the end, and the first hop.
        4 => vec![0, 4, 4, 1, 1, 0, 0, 0],
        _ => return Err(Errno::EINVAL),
    };
    if kind == 4 {
        header.extend([0; 16]);
    }
    header.extend(via.octets());
    Ok(header)
}

fn routed_socket(words: &mut Words, kind: i32) -> nix::Result<(OwnedFd, SocketAddr)> {
    let header = words.number()?;
    let (declared, via) = (words.address()?, words.address()?);
    let fd = socket(libc::AF_INET6, kind, 0)?;
    set_bytes(
        &fd,
        libc::IPPROTO_IPV6,
        libc::IPV6_RTHDR,
        &routing_header(header, via)?,
    )?;
    Ok((fd, declared))
}

/// IPv6: the same by a routing header.
fn routing(words: &mut Words, kind: i32) -> nix::Result<()> {
    let (fd, declared) = routed_socket(words, kind)?;
    send_routed(&fd, declared, kind)
}

fn routing_preset(state: &mut State, words: &mut Words) -> nix::Result<()> {
    let (fd, declared) = routed_socket(words, libc::SOCK_DGRAM)?;
    connect(&fd, declared)?;
    state.connection = Some((fd, declared, "udp"));
    Ok(())
}

fn send_preset(state: &State, _: &mut Words) -> nix::Result<()> {
    let (fd, ..) = state.connection.as_ref().ok_or(Errno::ENOTCONN)?;
    send(fd, PAYLOAD).map(|_| ())
}

/// IPv6: an extension header that leaves the destination as it is.
fn destination_options(words: &mut Words) -> nix::Result<()> {
    let to = words.address()?;
    let fd = socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    // Padding only.
    let header = [0, 0, 1, 4, 0, 0, 0, 0];
    set_bytes(&fd, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &header)?;
    send_to(&fd, PAYLOAD, &SockaddrStorage::from(to), 0).map(|_| ())
}

/// Puts a datagram's first part into the queue.
fn cork(state: &mut State, words: &mut Words) -> nix::Result<()> {
    let to = words.address()?;
    let fd = socket(family(to), libc::SOCK_DGRAM, 0)?;
    send_to(&fd, PAYLOAD, &SockaddrStorage::from(to), libc::MSG_MORE)?;
    state.connection = Some((fd, to, "udp"));
    Ok(())
}

/// Sends what is queued, naming another address; with `-`, none.
fn uncork(state: &State, words: &mut Words) -> nix::Result<()> {
    let (fd, ..) = state.connection.as_ref().ok_or(Errno::ENOTCONN)?;
    let to = words.next()?;
    if to == "-" {
        return set(fd, libc::IPPROTO_UDP, libc::UDP_CORK, &0);
    }
    let to: SocketAddr = to.parse().map_err(|_| Errno::EINVAL)?;
    send_to(fd, PAYLOAD, &SockaddrStorage::from(to), 0).map(|_| ())
}

/// A datagram of several fragments, the payload in the last.
fn large(words: &mut Words) -> nix::Result<()> {
    let to = words.address()?;
    let fd = socket(family(to), libc::SOCK_DGRAM, 0)?;
    let mut bytes = vec![0; 4000];
    bytes.extend(PAYLOAD);
    send_to(&fd, &bytes, &SockaddrStorage::from(to), 0).map(|_| ())
}

/// A fragment that no first one belongs to.
fn fragment(words: &mut Words) -> nix::Result<()> {
    let to = words.address()?;
    let mut packet = ipv4_by_hand([10, 20, 0, 1], to)?;
    // Eight bytes into a datagram, the last of it.
    packet[6..8].copy_from_slice(&1_u16.to_be_bytes());
    let fd = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    send_to(
        &fd,
        &packet,
        &SockaddrStorage::from(SocketAddr::new(to.ip(), 0)),
        0,
    )
    .map(|_| ())
}

/// An IPv6 socket with an IPv4 address.
fn by_the_other_family(words: &mut Words) -> nix::Result<()> {
    let to = words.address()?;
    let fd = socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    send_to(&fd, PAYLOAD, &SockaddrStorage::from(to), 0).map(|_| ())
}

fn broadcast(words: &mut Words) -> nix::Result<()> {
    let to = words.address()?;
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    set(&fd, libc::SOL_SOCKET, libc::SO_BROADCAST, &1)?;
    send_to(&fd, PAYLOAD, &SockaddrStorage::from(to), 0).map(|_| ())
}

/// Writes a packet into a device of our own, for the machine to forward.
fn tunnel(words: &mut Words) -> nix::Result<()> {
    let to = words.address()?;
    let mut device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| super::places::errno(&error))?;
    /// `struct ifreq` with flags.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let mut request = Request {
        name: *b"tun9\0\0\0\0\0\0\0\0\0\0\0\0",
        flags: (libc::IFF_TUN | libc::IFF_NO_PI) as i16,
        rest: [0; 22],
    };
    // SAFETY: the request is as the kernel expects it.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    request.flags = libc::IFF_UP as i16;
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    let packet = ipv4_by_hand([10, 99, 0, 2], to)?;
    device
        .write_all(&packet)
        .map_err(|error| super::places::errno(&error))
}
