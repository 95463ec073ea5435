//! The family gate: which sockets a holder may have at all.

use enforcer_common::{
    address::{Destination, Protocol},
    branchless::opaque,
    decide,
    event::Gate,
    facts::Task,
    verdict::Reason,
};

use crate::{emit, emit::Object, gate, socket, tables::KernelTables, task};

/// `AF_UNIX`.
const UNIX: u32 = 1;
/// `AF_NETLINK`.
const NETLINK: u32 = 16;
/// `NETLINK_ROUTE`.
const ROUTE: u32 = 0;
/// `SOCK_STREAM`.
const STREAM: u32 = 1;
/// `SOCK_DGRAM`.
const DATAGRAM: u32 = 2;

/// Whether every holder may have such a socket: those whose destinations the other gates see, and those that go to
/// another process here or to the kernel's tables of routes. `kind` is a `SOCK_*`, `protocol` an `IPPROTO_*`, or 0
/// for the usual one.
///
/// In a frame of its own and with a number the verifier does not know, so that the ways through it are one.
#[inline(never)]
pub fn is_open_to_holders(family: u32, kind: u32, protocol: u32) -> bool {
    let is_ip = family == u32::from(socket::INET) || family == u32::from(socket::INET6);
    let tcp =
        kind == STREAM && (protocol == 0 || socket::protocol(protocol as u16) == Protocol::TCP);
    let udp = kind == DATAGRAM && (protocol == 0 || protocol == u32::from(Protocol::UDP.0));
    let local = family == UNIX || family == NETLINK && protocol == ROUTE;
    opaque(u64::from(local || is_ip && (tcp || udp))) != 0
}

/// A socket of a kind that no holder may have is made, or used. `true` refuses.
#[inline(never)]
pub fn refuse(family: u32, kind: u32, protocol: u32, gate: Gate) -> bool {
    let mut task = Task::NOBODY;
    task::current(&mut task);
    let verdict = decide::misuse(&KernelTables, emit::now(), &task, Reason::SocketFamily);
    let kind = Destination::socket(family, kind, protocol);
    gate::conclude(&task, Object::destination(&kind), verdict, gate)
}
