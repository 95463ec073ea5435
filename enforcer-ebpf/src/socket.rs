//! Reading sockets and socket addresses.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use enforcer_common::{
    address::{Address, Destination, Protocol},
    facts::Task,
    tables::SocketRecord,
};

use crate::{
    kernel::{constant, read},
    maps::{NO_RECORD, RECORDS_BY_COOKIE, SOCKET_RECORDS, SOCKETS},
    offset,
};

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

/// Family (`AF_*`), type (`SOCK_*`) and protocol (`IPPROTO_*`) of the socket at a kernel address.
#[inline(always)]
pub fn kind(sk: u64) -> (u32, u32, u32) {
    let family: u16 = read(sk + offset!(sk_family));
    let kind: u16 = read(sk + offset!(sk_type));
    let protocol: u16 = read(sk + offset!(sk_protocol));
    (u32::from(family), u32::from(kind), u32::from(protocol))
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
    // Family, port and the address of IPv4: one look instead of three.
    let beginning: u64 = read(sockaddr);
    let mut named = beginning as u16;
    // An IPv4 socket takes AF_UNSPEC for AF_INET when it sends (udp_sendmsg).
    if named == UNSPECIFIED && family == INET {
        named = INET;
    }
    let port = u16::from_be((beginning >> 16) as u16);
    let address = match named {
        INET => Address::from_v4((beginning >> 32) as u32),
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

/// A socket and what is kept with it.
#[derive(Clone, Copy)]
pub struct Handle {
    sk: *const bpf_sock,
    cookie: u64,
}

impl Handle {
    /// A socket by its address; `cookie` is asked for where the kernel does not let all programs keep
    /// something with a socket.
    ///
    /// # Safety
    ///
    /// `sk` is a socket that the verifier knows as one (a BTF-typed pointer or `bpf_sock`), not null.
    #[inline(always)]
    pub unsafe fn new(sk: *const bpf_sock, cookie: impl FnOnce() -> u64) -> Self {
        let mut handle = Self { sk, cookie: 0 };
        if by_cookie() {
            handle.cookie = cookie();
        }
        handle
    }

    /// The record, if there is one.
    #[inline(always)]
    pub fn record(&self) -> Option<*mut SocketRecord> {
        if by_cookie() {
            return SOCKET_RECORDS.get_ptr_mut(self.cookie);
        }
        self.stored(core::ptr::null(), 0)
    }

    /// The record, made if there is none; `None` if there is no room for it.
    #[inline(always)]
    pub fn record_or_new(&self) -> Option<*mut SocketRecord> {
        if by_cookie() {
            // A socket from before the programs may have no cookie yet.
            if self.cookie == 0 {
                return None;
            }
            if let Some(record) = SOCKET_RECORDS.get_ptr_mut(self.cookie) {
                return Some(record);
            }
            let _ = SOCKET_RECORDS.insert(&self.cookie, &NO_RECORD, BPF_NOEXIST as u64);
            return SOCKET_RECORDS.get_ptr_mut(self.cookie);
        }
        self.stored(core::ptr::null(), BPF_SK_STORAGE_GET_F_CREATE as u64)
    }

    #[inline(always)]
    fn stored(&self, initial: *const SocketRecord, flags: u64) -> Option<*mut SocketRecord> {
        // SAFETY: a socket, by the promise of `new`.
        let record = unsafe {
            bpf_sk_storage_get(
                (&raw const SOCKETS).cast_mut().cast(),
                self.sk.cast_mut().cast(),
                initial.cast_mut().cast(),
                flags,
            )
        };
        (!record.is_null()).then_some(record.cast())
    }

    /// Leaves the facts of this call with the socket, for the packet gate, and the verdict with its seal, if it permits
    /// (otherwise 0). In a frame of its own; returns 0, which is no stack pointer.
    #[inline(never)]
    pub fn remember(self, task: &Task, verdict: u64, seal: u64) -> u32 {
        if let Some(record) = self.record_or_new() {
            // SAFETY: the record lives as long as the program.
            unsafe {
                (*record).task = *task;
                (*record).used = 1;
                (*record).verdict = verdict;
                (*record).seal = seal;
            }
        }
        0
    }
}

/// Whether records are found by the socket's cookie.
#[inline(always)]
fn by_cookie() -> bool {
    constant(&RECORDS_BY_COOKIE) != 0
}

/// The cookie of the socket at a kernel address; 0 if nobody asked for it yet.
#[inline(always)]
pub fn cookie(sk: u64) -> u64 {
    read(sk + offset!(sk_cookie))
}

/// A socket ends: so does its record.
#[inline(always)]
pub fn freed(sk: u64) {
    if by_cookie() {
        let _ = SOCKET_RECORDS.remove(cookie(sk));
    }
}
