//! Sockets of other kinds than TCP and UDP.

use std::{net::SocketAddr, os::fd::OwnedFd};

use nix::{errno::Errno, net::if_::if_nametoindex, sys::socket::SockaddrStorage};
use serde_json::json;

use super::{
    Done, PAYLOAD, State, Words,
    sys::{bind_raw, connect, connect_raw, family, send, send_to, send_to_raw, set, socket},
};

const UDP_LITE: i32 = 136;
const DCCP_TYPE: i32 = 6;
const SOL_DCCP: i32 = 269;
const DCCP_SERVICE: i32 = 2;
const AF_SMC: i32 = 43;
/// One more than the last family there is.
const FAMILIES: i32 = 47;
const HEADER: usize = 8;

/// The steps of this file.
pub fn perform(verb: &str, state: &mut State, words: &mut Words) -> Option<nix::Result<Done>> {
    let way: fn(SocketAddr) -> nix::Result<usize> = match verb {
        "udplite" => |to| unconnected(to, libc::SOCK_DGRAM, UDP_LITE, PAYLOAD),
        "udplite-connected" => |to| connected(to, libc::SOCK_DGRAM, UDP_LITE, PAYLOAD),
        "sctp" => |to| connected(to, libc::SOCK_STREAM, libc::IPPROTO_SCTP, PAYLOAD),
        "sctp-implicit" => |to| unconnected(to, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP, PAYLOAD),
        "dccp" => dccp,
        "mptcp" => |to| connected(to, libc::SOCK_STREAM, libc::IPPROTO_MPTCP, PAYLOAD),
        "mptcp-fast-open" => mptcp_fast_open,
        "ping" => |to| unconnected(to, libc::SOCK_DGRAM, libc::IPPROTO_ICMP, &echo()),
        "ping-connected" => |to| connected(to, libc::SOCK_DGRAM, libc::IPPROTO_ICMP, &echo()),
        "icmp-raw" => |to| unconnected(portless(to), libc::SOCK_RAW, libc::IPPROTO_ICMP, &echo()),
        "raw" => |to| {
            unconnected(
                portless(to),
                libc::SOCK_RAW,
                libc::IPPROTO_UDP,
                &udp_by_hand(to),
            )
        },
        "raw-connected" => |to| {
            connected(
                portless(to),
                libc::SOCK_RAW,
                libc::IPPROTO_UDP,
                &udp_by_hand(to),
            )
        },
        "raw-unknown" => |to| unconnected(portless(to), libc::SOCK_RAW, 253, PAYLOAD),
        "packet" => |to| packet(to, false),
        "packet-bound" => |to| packet(to, true),
        "smc" => smc,
        "prepare-packet" => return Some(prepare(state)),
        "send-prepared" => return Some(words.address().and_then(|to| send_prepared(state, to))),
        "dial-udplite" => return Some(words.address().and_then(|to| dial_udp_lite(state, to))),
        "families" => return Some(Ok(families())),
        "socket" => return Some(any(words)),
        "vsock" => return Some(vsock(words)),
        "vsock-serve" => return Some(vsock_serve(words)),
        _ => return None,
    };
    Some(words.address().and_then(way).map(|_| Done::default()))
}

fn connected(to: SocketAddr, kind: i32, protocol: i32, bytes: &[u8]) -> nix::Result<usize> {
    let fd = socket(family(to), kind, protocol)?;
    connect(&fd, to)?;
    send(&fd, bytes)
}

fn unconnected(to: SocketAddr, kind: i32, protocol: i32, bytes: &[u8]) -> nix::Result<usize> {
    let fd = socket(family(to), kind, protocol)?;
    send_to(&fd, bytes, &SockaddrStorage::from(to), 0)
}

fn portless(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(to.ip(), 0)
}

fn dccp(to: SocketAddr) -> nix::Result<usize> {
    let fd = socket(family(to), DCCP_TYPE, libc::IPPROTO_DCCP)?;
    set(&fd, SOL_DCCP, DCCP_SERVICE, &0_u32)?;
    connect(&fd, to)?;
    send(&fd, PAYLOAD)
}

fn mptcp_fast_open(to: SocketAddr) -> nix::Result<usize> {
    let fd = socket(family(to), libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    send_to(&fd, PAYLOAD, &SockaddrStorage::from(to), libc::MSG_FASTOPEN)
}

/// An echo request with the payload.
fn echo() -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0, 0, 1, 0, 1];
    bytes.extend(PAYLOAD);
    let checksum = !sum(&bytes);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A UDP header and the payload; without a checksum, which IPv4 allows.
fn udp_by_hand(to: SocketAddr) -> Vec<u8> {
    let length = (HEADER + PAYLOAD.len()) as u16;
    let mut bytes = Vec::new();
    for word in [40_000, to.port(), length, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(PAYLOAD);
    bytes
}

/// The Internet's sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded + (folded >> 16)) as u16
}

/// A whole IPv4 packet with a UDP datagram.
pub fn ipv4_by_hand(from: [u8; 4], to: SocketAddr) -> nix::Result<Vec<u8>> {
    let SocketAddr::V4(to4) = to else {
        return Err(Errno::EAFNOSUPPORT);
    };
    let datagram = udp_by_hand(to);
    let mut packet = vec![0x45, 0];
    packet.extend((20 + datagram.len() as u16).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
    packet.extend(from);
    packet.extend(to4.ip().octets());
    let checksum = !sum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(datagram);
    Ok(packet)
}

/// The interface to the world outside, for frames to everybody there.
fn link() -> nix::Result<libc::sockaddr_ll> {
    Ok(libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: if_nametoindex("near0")?.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    })
}

/// Below IP.
fn packet(to: SocketAddr, bound: bool) -> nix::Result<usize> {
    let fd = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    let address = link()?;
    if bound {
        bind_raw(&fd, &address)?;
    }
    send_to_raw(&fd, &ipv4_by_hand([10, 20, 0, 1], to)?, &address)
}

/// A packet socket for later.
fn prepare(state: &mut State) -> nix::Result<Done> {
    state.file = Some(socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?);
    Ok(Done::default())
}

fn send_prepared(state: &State, to: SocketAddr) -> nix::Result<Done> {
    let fd = state.file.as_ref().ok_or(Errno::EBADF)?;
    send_to_raw(fd, &ipv4_by_hand([10, 20, 0, 1], to)?, &link()?)?;
    Ok(Done::default())
}

fn dial_udp_lite(state: &mut State, to: SocketAddr) -> nix::Result<Done> {
    let fd = socket(family(to), libc::SOCK_DGRAM, UDP_LITE)?;
    connect(&fd, to)?;
    state.connection = Some((fd, to, "udplite"));
    Ok(Done::default())
}

fn smc(to: SocketAddr) -> nix::Result<usize> {
    let fd = socket(AF_SMC, libc::SOCK_STREAM, i32::from(to.is_ipv6()))?;
    connect(&fd, to)?;
    send(&fd, PAYLOAD)
}

/// Which families there are, by trying all with all types.
fn families() -> Done {
    let mut made = Vec::new();
    for family in 1..FAMILIES {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, 5, 6] {
            for protocol in [0, 1, 3, libc::IPPROTO_SCTP, UDP_LITE] {
                if socket(family, kind, protocol).is_ok() {
                    made.push(format!("{family}/{kind}/{protocol}"));
                }
            }
        }
    }
    Done {
        more: json!({"count": made.len(), "made": made}),
        ..Done::default()
    }
}

/// Only makes one: family, type, protocol.
fn any(words: &mut Words) -> nix::Result<Done> {
    let mut number = || Ok(words.number()? as i32);
    let _: OwnedFd = socket(number()?, number()?, number()?)?;
    Ok(Done::default())
}

fn vsock_address(port: u64) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as u16,
        svm_reserved1: 0,
        svm_port: port as u32,
        svm_cid: libc::VMADDR_CID_LOCAL,
        svm_zero: [0; 4],
    }
}

/// To this port of our own machine.
fn vsock(words: &mut Words) -> nix::Result<Done> {
    let address = vsock_address(words.number()?);
    let fd = socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)?;
    connect_raw(&fd, &address)?;
    send(&fd, PAYLOAD)?;
    Ok(Done::default())
}

/// Takes one connection and says what came.
fn vsock_serve(words: &mut Words) -> nix::Result<Done> {
    let address = vsock_address(words.number()?);
    let fd = socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)?;
    super::local::serve(&fd, &address)
}
