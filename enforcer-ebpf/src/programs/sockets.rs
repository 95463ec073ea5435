//! Calls on sockets: the family gate, the call gate, and endpoints that hand out secrets.

use aya_ebpf::{bindings::bpf_sock, macros::lsm, programs::LsmContext};
use enforcer_common::{address::Protocol, branchless::reload, event::Gate, tables::Tables};
use enforcer_ebpf::{
    emit::Object,
    family, forward,
    gate::{self, named},
    kernel::{load, read},
    offset, respond,
    socket::{self, Handle, INET, INET6},
    tables::{KernelTables, blur},
    task,
};

/// `SOCK_TYPE_MASK`.
const SOCKET_TYPE: u32 = 0xf;

/// `int socket_create(int family, int type, int protocol, int kern)`
#[lsm(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    let (family, kind, protocol): (u32, u32, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // The kernel's own sockets are nobody's.
    if ctx.arg::<u32>(3) != 0 {
        return respond::PERMIT;
    }
    respond::lsm(makes(family, kind, protocol))
}

/// A socket of this kind is made. Flags may stand in the upper bits of `kind`.
#[inline(always)]
pub(super) fn makes(family: u32, kind: u32, protocol: u32) -> bool {
    let kind = kind & SOCKET_TYPE;
    task::may_hold()
        && !family::is_open_to_holders(family, kind, protocol)
        && task::holds()
        && family::refuse(family, kind, protocol, Gate::SocketCreate)
}

/// `int socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`: whoever contacts an
/// endpoint that hands out secrets reads a credential. A program of its own, attached before the gate, so
/// that the gate finds the holding; and because each program has its own share of the verifier's patience.
#[lsm(hook = "socket_connect")]
pub fn endpoint_connect(ctx: LsmContext) -> i32 {
    let name = ctx.arg::<*const u8>(1) as u64;
    respond::lsm(try_endpoint(ctx.arg(0), name, Gate::SocketConnect))
}

/// `int socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`, likewise.
#[lsm(hook = "socket_sendmsg")]
pub fn endpoint_sendmsg(ctx: LsmContext) -> i32 {
    let message = ctx.arg::<*const u8>(1) as u64;
    let name = read(message + offset!(msg_name));
    respond::lsm(try_endpoint(ctx.arg(0), name, Gate::SocketSendmsg))
}

/// `int socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`
#[lsm(hook = "socket_connect")]
pub fn socket_connect(ctx: LsmContext) -> i32 {
    let name = ctx.arg::<*const u8>(1) as u64;
    respond::lsm(try_socket(ctx.arg(0), name, Gate::SocketConnect))
}

/// `int socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`
#[lsm(hook = "socket_sendmsg")]
pub fn socket_sendmsg(ctx: LsmContext) -> i32 {
    let message = ctx.arg::<*const u8>(1) as u64;
    let name = read(message + offset!(msg_name));
    respond::lsm(try_socket(ctx.arg(0), name, Gate::SocketSendmsg))
}

/// A call that names a destination, the `sockaddr` at a kernel address.
#[inline(always)]
fn try_endpoint(sock: *const u8, name: u64, gate: Gate) -> bool {
    if name == 0 {
        return false;
    }
    let Some(sk) = inet_socket(sock) else {
        return false;
    };
    let Some(mut destination) = socket::named(name, sk.family, sk.protocol) else {
        return false;
    };
    let Some(bundle) = KernelTables.bundle() else {
        return false;
    };
    // What follows is walked once, not for each family.
    blur(&mut destination, bundle);
    match gate::endpoint(&destination) {
        Some(credential) => gate::read(credential, Object::endpoint(&destination), gate),
        None => false,
    }
}

/// A holder's call on a socket, to the `sockaddr` at a kernel address or, if that names nothing, to the
/// socket's peer.
#[inline(always)]
fn try_socket(sock: *const u8, name: u64, gate: Gate) -> bool {
    let Some(sk) = inet_socket(sock) else {
        return false;
    };
    if !task::holds() {
        gate::remember_loner(sk.handle());
        return false;
    }
    let mut how = named::BY_CALL;
    let mut destination = None;
    if name != 0 {
        destination = socket::named(name, sk.family, sk.protocol);
    }
    if destination.is_none() {
        if gate::answers(sk.handle()) {
            return false;
        }
        how = named::BY_CONNECTION;
        destination = socket::peer(sk.sk as u64, sk.family, sk.protocol);
    }
    let (Some(mut destination), Some(bundle)) = (destination, KernelTables.bundle()) else {
        return false;
    };
    // What follows is walked once, not for each way to here.
    blur(&mut destination, bundle);
    gate::reach(sk.handle(), &destination, gate, how | reload(&bundle.zero))
}

/// `int socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`, the family gate.
#[lsm(hook = "socket_connect")]
pub fn family_connect(ctx: LsmContext) -> i32 {
    respond::lsm(uses(ctx.arg(0), Gate::SocketConnect))
}

/// `int socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`, the family gate.
#[lsm(hook = "socket_sendmsg")]
pub fn family_sendmsg(ctx: LsmContext) -> i32 {
    respond::lsm(uses(ctx.arg(0), Gate::SocketSendmsg))
}

/// A call on a socket: of a kind that no holder may have, it may be older than the holding.
#[inline(always)]
fn uses(sock: *const u8, gate: Gate) -> bool {
    if !task::may_hold() {
        return false;
    }
    let sk: u64 = read(sock as u64 + offset!(socket_sk));
    let (family, kind, protocol) = socket::kind(sk);
    !family::is_open_to_holders(family, kind, protocol)
        && task::holds()
        && family::refuse(family, kind, protocol, gate)
}

/// A socket of TCP or UDP.
struct InetSocket {
    sk: *const bpf_sock,
    family: u16,
    protocol: Protocol,
}

impl InetSocket {
    #[inline(always)]
    fn handle(&self) -> Handle {
        // SAFETY: a socket typed by the kernel's BTF, not null.
        unsafe { Handle::new(self.sk, || socket::cookie(self.sk as u64)) }
    }
}

/// The TCP or UDP socket behind a `struct socket`; `None` for others.
#[inline(always)]
fn inet_socket(sock: *const u8) -> Option<InetSocket> {
    // SAFETY: a `struct socket`, never null; `sk` is checked.
    let sk: *const bpf_sock = unsafe { load(sock, offset!(socket_sk)) };
    if sk.is_null() {
        return None;
    }
    // SAFETY: a socket typed by the kernel's BTF, not null.
    let [family, kind, protocol] = unsafe {
        let sk = sk.cast();
        [
            load::<u16>(sk, offset!(sk_family)),
            load::<u16>(sk, offset!(sk_type)),
            load::<u16>(sk, offset!(sk_protocol)),
        ]
    }
    .map(u32::from);
    let is_ip = family == u32::from(INET) || family == u32::from(INET6);
    (is_ip && family::is_open_to_holders(family, kind, protocol)).then_some(InetSocket {
        sk,
        family: family as u16,
        protocol: socket::protocol(protocol as u16),
    })
}

/// `void sk_free_security(struct sock *sk)`
#[lsm(hook = "sk_free_security")]
pub fn sk_free_security(ctx: LsmContext) -> i32 {
    let sk = ctx.arg::<*const u8>(0) as u64;
    socket::freed(sk);
    forward::freed(sk);
    respond::PERMIT
}
