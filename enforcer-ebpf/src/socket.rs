//! Reading sockets and socket addresses.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use enforcer_common::{
    address::{Address, Destination, Protocol},
    facts::Task,
    tables::SocketRecord,
};

use crate::{kernel::read, maps::SOCKETS, offset};

/// `AF_UNSPEC`.
const UNSPECIFIED: u16 = 0;
/// `AF_INET`.
pub const INET: u16 = 2;
/// `AF_INET6`.
pub const INET6: u16 = 10;
/// `IPPROTO_MPTCP`: TCP on the wire.
const MPTCP: u16 = 262;
/// `IPPROTO_ICMPV6`.
const ICMPV6: u16 = 58;

/// Family and transport protocol of the socket at a kernel address.
#[inline(always)]
pub fn kind(sk: u64) -> (u16, Protocol) {
    (
        read(sk + offset!(sk_family)),
        protocol(read(sk + offset!(sk_protocol))),
    )
}

/// A protocol number as scopes know it.
#[inline(always)]
pub fn protocol(number: u16) -> Protocol {
    match number {
        MPTCP => Protocol::TCP,
        ICMPV6 => Protocol::ICMP,
        other => Protocol(other as u8),
    }
}

/// The destination in a `sockaddr` at a kernel address, for a socket of `family`. `None` if it names none
/// that goes out over IP.
#[inline(always)]
pub fn named(sockaddr: u64, family: u16, protocol: Protocol) -> Option<Destination> {
    let mut named: u16 = read(sockaddr);
    // An IPv4 socket takes AF_UNSPEC for AF_INET when it sends (udp_sendmsg).
    if named == UNSPECIFIED && family == INET {
        named = INET;
    }
    let port = u16::from_be(read(sockaddr + 2));
    let address = match named {
        INET => Address::from_v4(read(sockaddr + 4)),
        INET6 => Address {
            high: read(sockaddr + 8),
            low: read(sockaddr + 16),
        },
        _ => return None,
    };
    Some(Destination::new(address, port, protocol))
}

/// The peer of the connected socket at a kernel address; `None` if it has none.
#[inline(always)]
pub fn peer(sk: u64, family: u16, protocol: Protocol) -> Option<Destination> {
    let port = u16::from_be(read(sk + offset!(sk_dport)));
    let address = match family {
        INET => Address::from_v4(read(sk + offset!(sk_daddr))),
        INET6 => Address {
            high: read(sk + offset!(sk_v6_daddr)),
            low: read(sk + offset!(sk_v6_daddr) + 8),
        },
        _ => return None,
    };
    (port != 0).then(|| Destination::new(address, port, protocol))
}

/// The record kept with a socket, if there is one.
///
/// # Safety
///
/// `sk` is a socket that the verifier knows as one (a BTF-typed pointer or `bpf_sock`), not null.
#[inline(always)]
pub unsafe fn record(sk: *const bpf_sock) -> Option<*mut SocketRecord> {
    // SAFETY: the caller's promise.
    let record = unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            sk.cast_mut().cast(),
            core::ptr::null_mut(),
            0,
        )
    };
    (!record.is_null()).then_some(record.cast())
}

/// The record kept with a socket, made if there is none.
///
/// # Safety
///
/// As [`record`].
#[inline(always)]
pub unsafe fn record_or_new(sk: *const bpf_sock) -> Option<*mut SocketRecord> {
    // SAFETY: the caller's promise.
    let record = unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            sk.cast_mut().cast(),
            core::ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE as u64,
        )
    };
    (!record.is_null()).then_some(record.cast())
}

/// Leaves the facts of this call with the socket, for the packet gate.
///
/// # Safety
///
/// As [`record`].
#[inline(always)]
pub unsafe fn remember(sk: *const bpf_sock, task: &Task) {
    // SAFETY: the caller's promise; the record lives as long as the socket.
    unsafe {
        if let Some(record) = record_or_new(sk) {
            (*record).task = *task;
            (*record).used = 1;
        }
    }
}
