//! The programs of the `lsm` tier, and the network and lifecycle programs of all tiers.
//!
//! Above each hook stands the kernel's prototype. On the `modify-return` tier the same program sits on the
//! function `security_HOOK`, which has the same first arguments.
#![no_std]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied, and 512 bytes of stack must do"
)]
#![no_main]
#![allow(
    missing_docs,
    reason = "the program macros make public functions without the docs of ours"
)]

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::bpf_get_socket_cookie,
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock, cgroup_sock_addr, lsm, sock_ops},
    programs::{
        BtfTracePointContext, LsmContext, SkBuffContext, SockAddrContext, SockContext,
        SockOpsContext,
    },
};
use aya_log_ebpf::warn;
use enforcer_common::{
    address::{Address, Destination, Protocol},
    event::Gate,
    facts::Task,
    ids::{CredentialId, InodeKey},
    tables::Versioned,
};
use enforcer_ebpf::{
    capture,
    emit::Object,
    gate::{self, Named},
    kernel::{constant, load, read},
    lifecycle,
    maps::{DAEMON, FILES, TASK_IN_CGROUP_PROGRAMS},
    offset, packet, respond,
    socket::{self, Handle, INET, INET6},
    tables::{KernelTables, settled},
    task, watch,
};

/// `FMODE_READ`.
const READABLE: u32 = 1;
/// `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`.
const PASSIVE_ESTABLISHED: u32 = 5;

/// `int file_open(struct file *file)`
#[lsm(hook = "file_open")]
pub fn file_open(ctx: LsmContext) -> i32 {
    respond::lsm(try_file_open(ctx.arg(0)))
}

#[inline(always)]
fn try_file_open(file: *const u8) -> bool {
    // SAFETY: a `struct file` and what hangs on it, never null for an open file.
    let (inode, key) = unsafe {
        let inode: *const u8 = load(file, offset!(file_inode));
        let sb: *const u8 = load(inode, offset!(inode_sb));
        let key = InodeKey {
            ino: load(inode, offset!(inode_ino)),
            dev: load(sb, offset!(sb_dev)),
            generation: load(inode, offset!(inode_generation)),
        };
        (inode, key)
    };
    let (tgid, tid) = task::ids();
    if DAEMON.get(0).copied() == Some(tgid) {
        capture::show(tid, inode as u64);
        return false;
    }
    let mut file_entry = Versioned::constant(CredentialId(0));
    if !settled(&FILES, &key, &mut file_entry) {
        return false;
    }
    let credential = file_entry.at(task::generation());
    // SAFETY: as above.
    let mode: u32 = unsafe { load(file, offset!(file_mode)) };
    if credential.0 == 0 || mode & READABLE == 0 {
        return false;
    }
    gate::read(credential, Object::File(&key), Gate::FileOpen)
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
    let Some(destination) = socket::named(name, sk.family, sk.protocol) else {
        return false;
    };
    match gate::endpoint(&destination) {
        Some(credential) => gate::read(credential, Object::Endpoint(&destination), gate),
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
        if matches!(gate, Gate::SocketConnect) {
            gate::remember_loner(sk.handle());
        }
        return false;
    }
    let mut named = Named::ByCall;
    let mut destination = None;
    if name != 0 {
        destination = socket::named(name, sk.family, sk.protocol);
    }
    if destination.is_none() {
        if is_inbound(sk.handle()) {
            return false;
        }
        named = Named::ByConnection;
        destination = socket::peer(sk.sk as u64, sk.family, sk.protocol);
    }
    let Some(destination) = destination else {
        return false;
    };
    gate::reach(sk.handle(), &destination, gate, named)
}

/// A socket of an IP family.
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

/// The IP socket behind a `struct socket`; `None` for other families.
#[inline(always)]
fn inet_socket(sock: *const u8) -> Option<InetSocket> {
    // SAFETY: a `struct socket`, never null; `sk` is checked.
    let sk: *const bpf_sock = unsafe { load(sock, offset!(socket_sk)) };
    if sk.is_null() {
        return None;
    }
    let (family, protocol) = socket::kind(sk as u64);
    (family == INET || family == INET6).then_some(InetSocket {
        sk,
        family,
        protocol,
    })
}

/// Whether the socket is an accepted connection on which the bundle permits answers. In a frame of its own.
#[inline(never)]
fn is_inbound(socket: Handle) -> bool {
    use enforcer_common::tables::Tables;
    let Some(record) = socket.record() else {
        return false;
    };
    // SAFETY: the record lives as long as the program.
    let inbound = unsafe { (*record).inbound } != 0;
    inbound
        && KernelTables
            .bundle()
            .is_some_and(|bundle| bundle.inbound_permitted != 0)
}

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
        return task::holds() && gate::reach(socket, &destination, gate, Named::Before);
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

/// TCP state changes: an accepted connection is marked as such.
#[sock_ops]
pub fn tcp_established(ctx: SockOpsContext) -> u32 {
    if ctx.op() == PASSIVE_ESTABLISHED {
        // SAFETY: the context of a sock-ops program; the socket is checked.
        unsafe {
            let sk = (*ctx.ops).__bindgen_anon_2.sk;
            if !sk.is_null() {
                let socket = Handle::new(sk, || bpf_get_socket_cookie(ctx.ops.cast()));
                if let Some(record) = socket.record_or_new() {
                    (*record).inbound = 1;
                }
            }
        }
    }
    1
}

/// Every IP socket, when it is made: gives it the cookie under which its record is kept.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    // SAFETY: the context of a cgroup sock program.
    unsafe { bpf_get_socket_cookie(ctx.sock.cast()) };
    respond::cgroup(false)
}

/// `void sk_free_security(struct sock *sk)`
#[lsm(hook = "sk_free_security")]
pub fn sk_free_security(ctx: LsmContext) -> i32 {
    socket::freed(ctx.arg::<*const u8>(0) as u64);
    respond::PERMIT
}

/// `void d_instantiate(struct dentry *dentry, struct inode *inode)`
#[lsm(hook = "d_instantiate")]
pub fn d_instantiate(ctx: LsmContext) -> i32 {
    watch::appears(
        ctx.arg::<*const u8>(0) as u64,
        ctx.arg::<*const u8>(1) as u64,
    );
    respond::PERMIT
}

/// `int inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir,
/// struct dentry *new_dentry)`: protected before the name changes, over-protected if that then fails.
#[lsm(hook = "inode_rename")]
pub fn inode_rename(ctx: LsmContext) -> i32 {
    let old = ctx.arg::<*const u8>(1) as u64;
    let new = ctx.arg::<*const u8>(3) as u64;
    let protected = watch::appears(new, read(old + offset!(dentry_inode)));
    respond::lsm(!protected)
}

/// `int inode_link(struct dentry *old_dentry, struct inode *dir, struct dentry *new_dentry)`
#[lsm(hook = "inode_link")]
pub fn inode_link(ctx: LsmContext) -> i32 {
    let old = ctx.arg::<*const u8>(0) as u64;
    let new = ctx.arg::<*const u8>(2) as u64;
    let protected = watch::appears(new, read(old + offset!(dentry_inode)));
    respond::lsm(!protected)
}

/// `void inode_free_security(struct inode *inode)`
#[lsm(hook = "inode_free_security")]
pub fn inode_free_security(ctx: LsmContext) -> i32 {
    watch::freed(ctx.arg::<*const u8>(0) as u64);
    respond::PERMIT
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`, in the parent, before the
/// child can run.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    lifecycle::forked(
        ctx.arg::<*const u8>(0) as u64,
        ctx.arg::<*const u8>(1) as u64,
    );
    0
}

/// `sched_process_exit(struct task_struct *p)`
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    lifecycle::exited(ctx.arg::<*const u8>(0) as u64);
    0
}

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)`
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let recorded = lifecycle::created(
        ctx.arg::<*const u8>(0) as u64,
        ctx.arg::<*const u8>(1) as u64,
    );
    if !recorded {
        warn!(
            &ctx,
            "the table of cgroups is full: a new cgroup matches no workload"
        );
    }
    0
}

/// `cgroup_rmdir(struct cgroup *cgrp, const char *path)`
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    lifecycle::removed(
        ctx.arg::<*const u8>(0) as u64,
        ctx.arg::<*const u8>(1) as u64,
    );
    0
}

/// `cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task,
/// bool threadgroup)`
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    lifecycle::attached(
        ctx.arg::<*const u8>(0) as u64,
        ctx.arg::<*const u8>(2) as u64,
    );
    0
}
