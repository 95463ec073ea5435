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
    macros::{
        btf_tracepoint, cgroup_skb, cgroup_sock, cgroup_sock_addr, fentry, fexit, lsm, sock_ops,
    },
    programs::{
        BtfTracePointContext, FEntryContext, FExitContext, LsmContext, SkBuffContext,
        SockAddrContext, SockContext, SockOpsContext,
    },
};
use aya_log_ebpf::warn;
use enforcer_common::{
    address::{Address, Destination, Protocol},
    branchless::opaque,
    event::Gate,
    facts::Task,
    tables::Tables,
    tier,
};
use enforcer_ebpf::{
    copy_up,
    emit::Object,
    environment, family, file, forward,
    gate::{self, Named},
    iterate,
    kernel::{constant, load, read},
    lifecycle,
    maps::{TASK_IN_CGROUP_PROGRAMS, TIER},
    memory, offset, packet, respond,
    socket::{self, Handle, INET, INET6},
    tables::{KernelTables, blur},
    tamper, task, unix, watch,
};

/// `PROT_WRITE`.
const PROT_WRITE: u64 = 2;
/// `MAP_SHARED`.
const MAP_SHARED: u64 = 1;
/// `MAY_WRITE`.
const MAY_WRITE: u32 = 2;
/// `MAY_READ`.
const MAY_READ: u32 = 4;
/// `SOCK_TYPE_MASK`.
const SOCKET_TYPE: u32 = 0xf;

/// `int file_open(struct file *file)`
#[lsm(hook = "file_open")]
pub fn file_open(ctx: LsmContext) -> i32 {
    // SAFETY: never null.
    respond::lsm(unsafe { file::opened(ctx.arg(0)) })
}

/// `int file_permission(struct file *file, int mask)`: before each read and write of an open file, whoever opened it.
#[lsm(hook = "file_permission")]
pub fn file_permission(ctx: LsmContext) -> i32 {
    let (file, mask): (*const u8, u32) = (ctx.arg(0), ctx.arg(1));
    // SAFETY: never null.
    let refuse = unsafe {
        mask & MAY_READ != 0 && file::used(file, Gate::FilePermission)
            || mask & MAY_WRITE != 0 && (tamper::written(file) || forward::written(file))
    };
    respond::lsm(refuse)
}

/// `int mmap_file(struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags)`
#[lsm(hook = "mmap_file")]
pub fn mmap_file(ctx: LsmContext) -> i32 {
    let file: *const u8 = ctx.arg(0);
    // Memory of no file.
    if file.is_null() {
        return respond::PERMIT;
    }
    // Opaque, or the compiler chooses among places in the context, which 5.10 does not allow.
    let [first, second, third] = [ctx.arg(1), ctx.arg(2), ctx.arg(3)].map(opaque);
    // `security_mmap_file` has no `reqprot`.
    let (protection, flags) = if constant(&TIER) == tier::MODIFY_RETURN {
        (first, second)
    } else {
        (second, third)
    };
    let shows = protection & PROT_WRITE != 0 && flags & MAP_SHARED != 0;
    // SAFETY: not null.
    let refuse = unsafe { file::used(file, Gate::MmapFile) || shows && forward::written(file) };
    respond::lsm(refuse)
}

/// `int file_receive(struct file *file)`: a descriptor comes from another process.
#[lsm(hook = "file_receive")]
pub fn file_receive(ctx: LsmContext) -> i32 {
    // SAFETY: never null.
    respond::lsm(unsafe { file::used(ctx.arg(0), Gate::FileReceive) })
}

/// `int ptrace_access_check(struct task_struct *child, unsigned int mode)`: memory, descriptors and environment of
/// another process.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(ctx: LsmContext) -> i32 {
    let (target, mode) = (ctx.arg::<*const u8>(0) as u64, ctx.arg(1));
    respond::lsm(tamper::traced(target, mode) || memory::accessed(target, mode))
}

/// `int unix_stream_connect(struct sock *sock, struct sock *other, struct sock *newsk)`
#[lsm(hook = "unix_stream_connect")]
pub fn unix_stream_connect(ctx: LsmContext) -> i32 {
    let other = ctx.arg::<*const u8>(1) as u64;
    respond::lsm(unix::reached(other, Gate::UnixStreamConnect))
}

/// `int unix_may_send(struct socket *sock, struct socket *other)`: datagrams, also when they connect.
#[lsm(hook = "unix_may_send")]
pub fn unix_may_send(ctx: LsmContext) -> i32 {
    let other = read(ctx.arg::<*const u8>(1) as u64 + offset!(socket_sk));
    respond::lsm(unix::reached(other, Gate::UnixMaySend))
}

/// `int socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`, the read gate of unix sockets.
#[lsm(hook = "socket_sendmsg")]
pub fn unix_sendmsg(ctx: LsmContext) -> i32 {
    let sk = read(ctx.arg::<*const u8>(0) as u64 + offset!(socket_sk));
    respond::lsm(unix::sends(sk))
}

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
fn makes(family: u32, kind: u32, protocol: u32) -> bool {
    let kind = kind & SOCKET_TYPE;
    !family::is_open_to_holders(family, kind, protocol)
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
    let mut named = Named::ByCall;
    let mut destination = None;
    if name != 0 {
        destination = socket::named(name, sk.family, sk.protocol);
    }
    if destination.is_none() {
        if gate::answers(sk.handle()) {
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
    let (family, kind, protocol) = socket::kind(sk as u64);
    let is_ip = family == u32::from(INET) || family == u32::from(INET6);
    (is_ip && family::is_open_to_holders(family, kind, protocol)).then_some(InetSocket {
        sk,
        family: family as u16,
        protocol: socket::protocol(protocol as u16),
    })
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
        if !task::holds() {
            // Elsewhere a hook has done so.
            if constant(&TIER) == tier::FANOTIFY {
                gate::remember_loner(socket);
            }
            return false;
        }
        return gate::reach(socket, &destination, gate, Named::Before);
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

/// `void sk_free_security(struct sock *sk)`
#[lsm(hook = "sk_free_security")]
pub fn sk_free_security(ctx: LsmContext) -> i32 {
    let sk = ctx.arg::<*const u8>(0) as u64;
    socket::freed(sk);
    forward::freed(sk);
    respond::PERMIT
}

/// `int task_alloc(struct task_struct *task, unsigned long clone_flags)`, in the parent.
#[lsm(hook = "task_alloc")]
pub fn task_alloc(ctx: LsmContext) -> i32 {
    lifecycle::conceived(ctx.arg::<*const u8>(0) as u64, ctx.arg::<u64>(1));
    respond::PERMIT
}

/// `void task_free(struct task_struct *task)`
#[lsm(hook = "task_free")]
pub fn task_free(ctx: LsmContext) -> i32 {
    lifecycle::freed(ctx.arg::<*const u8>(0) as u64);
    respond::PERMIT
}

/// `void d_instantiate(struct dentry *dentry, struct inode *inode)`
#[lsm(hook = "d_instantiate")]
pub fn d_instantiate(ctx: LsmContext) -> i32 {
    let inode = ctx.arg::<*const u8>(1) as u64;
    watch::appears(ctx.arg::<*const u8>(0) as u64, inode);
    copy_up::named(inode);
    respond::PERMIT
}

/// `int inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir,
/// struct dentry *new_dentry)`: protected before the name changes, over-protected if that then fails.
#[lsm(hook = "inode_rename")]
pub fn inode_rename(ctx: LsmContext) -> i32 {
    let old = ctx.arg::<*const u8>(1) as u64;
    let new = ctx.arg::<*const u8>(3) as u64;
    let protected = watch::appears(new, read(old + offset!(dentry_inode)));
    respond::lsm(!protected || tamper::unpinned(old, Gate::InodeRename))
}

/// `int inode_copy_up(struct dentry *src, struct cred **new)`: an overlay is about to copy a file.
#[lsm(hook = "inode_copy_up")]
pub fn inode_copy_up(ctx: LsmContext) -> i32 {
    copy_up::announced(ctx.arg::<*const u8>(0) as u64);
    respond::PERMIT
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
    let inode = ctx.arg::<*const u8>(0) as u64;
    watch::freed(inode);
    forward::freed(inode);
    respond::PERMIT
}

/// `ssize_t pipe_read(struct kiocb *iocb, struct iov_iter *to)`; from 6.15 on `anon_pipe_read`.
#[fexit(function = "pipe_read")]
pub fn pipe_read(ctx: FExitContext) -> i32 {
    if ctx.arg::<i64>(2) > 0 {
        let call = ctx.arg::<*const u8>(0) as u64;
        forward::read_pipe(read(call + offset!(kiocb_file)));
    }
    0
}

/// The same of FIFOs, from 6.15 on: `fifo_pipe_read`.
#[fexit(function = "fifo_pipe_read")]
pub fn fifo_pipe_read(ctx: FExitContext) -> i32 {
    if ctx.arg::<i64>(2) > 0 {
        let call = ctx.arg::<*const u8>(0) as u64;
        forward::read_pipe(read(call + offset!(kiocb_file)));
    }
    0
}

/// `int pipe_release(struct inode *inode, struct file *file)`
#[fexit(function = "pipe_release")]
pub fn pipe_release(ctx: FExitContext) -> i32 {
    forward::closed_pipe(ctx.arg::<*const u8>(0) as u64);
    0
}

/// `long do_splice(struct file *in, loff_t *off_in, struct file *out, loff_t *off_out, size_t len,
/// unsigned int flags)`: before the bytes are where somebody can read them, and after they have come.
#[fentry(function = "do_splice")]
pub fn splice_begins(ctx: FEntryContext) -> i32 {
    forward::spliced(file_argument(&ctx, 0), file_argument(&ctx, 2));
    0
}

/// The same.
#[fexit(function = "do_splice")]
pub fn splice_ends(ctx: FExitContext) -> i32 {
    let (from, to) = (ctx.arg::<*const u8>(0), ctx.arg::<*const u8>(2));
    forward::spliced(from as u64, to as u64);
    0
}

/// `long do_tee(struct file *in, struct file *out, size_t len, unsigned int flags)`, likewise.
#[fentry(function = "do_tee")]
pub fn tee_begins(ctx: FEntryContext) -> i32 {
    forward::spliced(file_argument(&ctx, 0), file_argument(&ctx, 1));
    0
}

/// The same.
#[fexit(function = "do_tee")]
pub fn tee_ends(ctx: FExitContext) -> i32 {
    let (from, to) = (ctx.arg::<*const u8>(0), ctx.arg::<*const u8>(1));
    forward::spliced(from as u64, to as u64);
    0
}

#[inline(always)]
fn file_argument(ctx: &FEntryContext, index: usize) -> u64 {
    ctx.arg::<*const u8>(index) as u64
}

/// `int unix_stream_recvmsg(struct socket *sock, struct msghdr *msg, size_t size, int flags)`
#[fexit(function = "unix_stream_recvmsg")]
pub fn unix_stream_recvmsg(ctx: FExitContext) -> i32 {
    received(&ctx, 4)
}

/// `int unix_dgram_recvmsg(struct socket *sock, struct msghdr *msg, size_t size, int flags)`
#[fexit(function = "unix_dgram_recvmsg")]
pub fn unix_dgram_recvmsg(ctx: FExitContext) -> i32 {
    received(&ctx, 4)
}

/// `int unix_seqpacket_recvmsg(struct socket *sock, struct msghdr *msg, size_t size, int flags)`
#[fexit(function = "unix_seqpacket_recvmsg")]
pub fn unix_seqpacket_recvmsg(ctx: FExitContext) -> i32 {
    received(&ctx, 4)
}

/// `ssize_t unix_stream_splice_read(struct socket *sock, loff_t *ppos, struct pipe_inode_info *pipe, size_t size,
/// unsigned int flags)`
#[fexit(function = "unix_stream_splice_read")]
pub fn unix_stream_splice_read(ctx: FExitContext) -> i32 {
    received(&ctx, 5)
}

/// Something came by a unix socket, if the result says so, which follows the arguments.
#[inline(always)]
fn received(ctx: &FExitContext, result: usize) -> i32 {
    if ctx.arg::<i32>(result) > 0 {
        forward::received(ctx.arg::<*const u8>(0) as u64);
    }
    0
}

/// `int task_kill(struct task_struct *p, struct kernel_siginfo *info, int sig, const struct cred *cred)`
#[lsm(hook = "task_kill")]
pub fn task_kill(ctx: LsmContext) -> i32 {
    let target = ctx.arg::<*const u8>(0) as u64;
    respond::lsm(tamper::signalled(target, ctx.arg(2)))
}

/// `int task_setrlimit(struct task_struct *p, unsigned int resource, struct rlimit *new_rlim)`
#[lsm(hook = "task_setrlimit")]
pub fn task_setrlimit(ctx: LsmContext) -> i32 {
    limits(&ctx, Gate::TaskSetrlimit, ctx.arg::<u32>(1))
}

/// `int task_setnice(struct task_struct *p, int nice)`
#[lsm(hook = "task_setnice")]
pub fn task_setnice(ctx: LsmContext) -> i32 {
    limits(&ctx, Gate::TaskSetnice, ctx.arg::<u32>(1))
}

/// `int task_setscheduler(struct task_struct *p)`: its policy, or the processors it may run on.
#[lsm(hook = "task_setscheduler")]
pub fn task_setscheduler(ctx: LsmContext) -> i32 {
    limits(&ctx, Gate::TaskSetscheduler, 0)
}

/// `int task_setioprio(struct task_struct *p, int ioprio)`
#[lsm(hook = "task_setioprio")]
pub fn task_setioprio(ctx: LsmContext) -> i32 {
    limits(&ctx, Gate::TaskSetioprio, ctx.arg::<u32>(1))
}

#[inline(always)]
fn limits(ctx: &LsmContext, gate: Gate, what: u32) -> i32 {
    let target = ctx.arg::<*const u8>(0) as u64;
    respond::lsm(tamper::limited(target, gate, u64::from(what)))
}

/// `int bpf(int cmd, union bpf_attr *attr, unsigned int size)`; from 6.15 on a fourth says whether the kernel asks.
#[lsm(hook = "bpf")]
pub fn bpf(ctx: LsmContext) -> i32 {
    let attributes = ctx.arg::<*const u8>(1) as u64;
    respond::hidden(tamper::opened_by_number(ctx.arg(0), attributes))
}

/// `int bpf_map(struct bpf_map *map, fmode_t fmode)`: somebody gets a descriptor for a map.
#[lsm(hook = "bpf_map")]
pub fn bpf_map(ctx: LsmContext) -> i32 {
    respond::lsm(tamper::map_opened(ctx.arg::<*const u8>(0) as u64))
}

/// `int bpf_prog(struct bpf_prog *prog)`: somebody gets a descriptor for a program.
#[lsm(hook = "bpf_prog")]
pub fn bpf_prog(ctx: LsmContext) -> i32 {
    respond::lsm(tamper::program_opened(ctx.arg::<*const u8>(0) as u64))
}

/// `int inode_unlink(struct inode *dir, struct dentry *dentry)`
#[lsm(hook = "inode_unlink")]
pub fn inode_unlink(ctx: LsmContext) -> i32 {
    let dentry = ctx.arg::<*const u8>(1) as u64;
    respond::lsm(tamper::unpinned(dentry, Gate::InodeUnlink))
}

/// `int sb_umount(struct vfsmount *mnt, int flags)`
#[lsm(hook = "sb_umount")]
pub fn sb_umount(ctx: LsmContext) -> i32 {
    respond::lsm(tamper::unmounted(ctx.arg::<*const u8>(0) as u64))
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
    copy_up::ended();
    0
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, by the task itself.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(_ctx: BtfTracePointContext) -> i32 {
    environment::started();
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
    let task = ctx.arg::<*const u8>(2) as u64;
    lifecycle::attached(ctx.arg::<*const u8>(0) as u64, task);
    tamper::moved(task);
    0
}

/// `bpf_iter_task(struct bpf_iter_meta *meta, struct task_struct *task)`
///
/// # Safety
///
/// The kernel's context, here and below.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn iterate_thread(ctx: *const iterate::TaskContext) -> i32 {
    // SAFETY: the kernel's context.
    unsafe { iterate::thread(ctx, false) };
    0
}

/// The same, from 5.15 on.
///
/// # Safety
///
/// As above.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn iterate_thread_call(ctx: *const iterate::TaskContext) -> i32 {
    // SAFETY: the kernel's context.
    unsafe { iterate::thread(ctx, true) };
    0
}

/// `bpf_iter_task_file(struct bpf_iter_meta *meta, struct task_struct *task, u32 fd, struct file *file)`
///
/// # Safety
///
/// As above.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub unsafe extern "C" fn iterate_own_file(ctx: *const iterate::TaskFileContext) -> i32 {
    // SAFETY: the kernel's context.
    unsafe { iterate::own_file(ctx) };
    0
}

/// The same, where hooks show the daemon's files: those do not see sockets.
///
/// # Safety
///
/// As above.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub unsafe extern "C" fn iterate_own_socket(ctx: *const iterate::TaskFileContext) -> i32 {
    // SAFETY: the kernel's context.
    unsafe { iterate::own_file(ctx) };
    0
}

/// The same.
///
/// # Safety
///
/// As above.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub unsafe extern "C" fn iterate_holder(ctx: *const iterate::TaskFileContext) -> i32 {
    // SAFETY: the kernel's context.
    unsafe { iterate::holder(ctx) };
    0
}
