//! The programs on the root of the cgroups: the call gate, the packet gate, and what follows connections.

use aya_ebpf::{
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext},
};
use enforcer_common::{
    address::{Address, Destination},
    event::Gate,
    facts::Task,
    tier,
};
use enforcer_ebpf::{
    gate::{self, named},
    kernel::constant,
    maps::{TASK_IN_CGROUP_PROGRAMS, TIER},
    packet, respond,
    socket::{self, Handle},
    task,
};

use super::sockets::makes;

/// `connect(2)` on IPv4, and what connects without it (TCP fast open).
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    respond::cgroup(try_sock_addr(&ctx, false, Gate::CgroupConnect))
}

/// `connect(2)` on IPv6; TCP to an IPv4-mapped address comes here too.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    respond::cgroup(try_sock_addr(&ctx, true, Gate::CgroupConnect))
}

/// Unconnected UDP on IPv4; to an IPv4-mapped address it comes here too.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    respond::cgroup(try_sock_addr(&ctx, false, Gate::CgroupSendmsg))
}

/// Unconnected UDP on IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    respond::cgroup(try_sock_addr(&ctx, true, Gate::CgroupSendmsg))
}

#[inline(always)]
fn try_sock_addr(ctx: &SockAddrContext, v6: bool, gate: Gate) -> bool {
    let addr = ctx.sock_addr;
    // SAFETY: the context of a socket-address program; fields are read at their own width, as the
    // verifier demands.
    let (address, port, protocol, sk) = unsafe {
        let address = if v6 {
            let w0 = u64::from(core::ptr::read_volatile(&raw const (*addr).user_ip6[0]));
            let w1 = u64::from(core::ptr::read_volatile(&raw const (*addr).user_ip6[1]));
            let w2 = u64::from(core::ptr::read_volatile(&raw const (*addr).user_ip6[2]));
            let w3 = u64::from(core::ptr::read_volatile(&raw const (*addr).user_ip6[3]));
            Address {
                high: w0 | w1 << 32,
                low: w2 | w3 << 32,
            }
        } else {
            Address::from_v4(core::ptr::read_volatile(&raw const (*addr).user_ip4))
        };
        let port = u16::from_be(core::ptr::read_volatile(&raw const (*addr).user_port) as u16);
        let protocol = core::ptr::read_volatile(&raw const (*addr).protocol) as u16;
        (address, port, protocol, (*addr).__bindgen_anon_1.sk)
    };
    let destination = Destination::new(address, port, socket::protocol(protocol));
    if sk.is_null() {
        return false;
    }
    // SAFETY: the context's socket, checked above.
    let socket = unsafe { Handle::new(sk, || bpf_get_socket_cookie(addr.cast())) };
    if constant(&TASK_IN_CGROUP_PROGRAMS) != 0 {
        // On the other tiers a hook has seen the call before, and told what there is to tell.
        let is_alone = constant(&TIER) == tier::FANOTIFY;
        if !task::holds() {
            if is_alone {
                gate::remember_loner(socket);
            }
            return false;
        }
        if is_alone {
            return gate::reach(socket, &destination, gate, named::ALONE);
        }
        return !gate::has_just_permitted(socket, &destination)
            && gate::reach(socket, &destination, gate, named::BEFORE);
    }
    // This kernel hides the task here. On the tiers with LSM hooks the same call has just left its facts.
    match socket.record() {
        // SAFETY: the record lives as long as the program.
        Some(record) if unsafe { (*record).used } != 0 => {
            // SAFETY: as above.
            let task: &Task = unsafe { &(*record).task };
            gate::reach_as(task, &destination, gate)
        }
        _ => false,
    }
}

/// Every packet that a socket sends, on its way out.
#[cgroup_skb]
pub fn egress(ctx: SkBuffContext) -> i32 {
    respond::cgroup(packet::egress(&ctx))
}

/// TCP state changes: accepted connections are marked as such, and connections with refused packets closed.
#[sock_ops]
pub fn tcp_state(ctx: SockOpsContext) -> u32 {
    packet::tcp_state(&ctx);
    1
}

/// Every IP socket, when it is made: gives it the cookie under which its record is kept, and is the family gate
/// where no hook is.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let sock = ctx.sock;
    // SAFETY: the context of a cgroup sock program; fields are read at their own width, as the verifier demands.
    let (family, kind, protocol) = unsafe {
        bpf_get_socket_cookie(sock.cast());
        (
            core::ptr::read_volatile(&raw const (*sock).family),
            core::ptr::read_volatile(&raw const (*sock).type_),
            core::ptr::read_volatile(&raw const (*sock).protocol),
        )
    };
    if constant(&TIER) != tier::FANOTIFY || constant(&TASK_IN_CGROUP_PROGRAMS) == 0 {
        return respond::cgroup(false);
    }
    respond::cgroup(makes(family, kind, protocol))
}
