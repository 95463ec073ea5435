//! Reading: of files, memory, and what unix sockets hand out.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use enforcer_common::{branchless::opaque, event::Gate, tier};
use enforcer_ebpf::{
    file, forward,
    kernel::{constant, load, read},
    maps::TIER,
    memory, offset, respond, tamper, unix,
};

/// `PROT_WRITE`.
const PROT_WRITE: u64 = 2;
/// `MAP_SHARED`.
const MAP_SHARED: u64 = 1;
/// `MAY_WRITE`.
const MAY_WRITE: u32 = 2;
/// `MAY_READ`.
const MAY_READ: u32 = 4;

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
    let sock: *const u8 = ctx.arg(0);
    // SAFETY: a `struct socket`, never null; `sk` is checked.
    let is_unix = unsafe {
        let sk: *const u8 = load(sock, offset!(socket_sk));
        !sk.is_null() && load::<u16>(sk, offset!(sk_family)) == unix::FAMILY
    };
    if !is_unix {
        return respond::PERMIT;
    }
    respond::lsm(unix::sends(read(sock as u64 + offset!(socket_sk))))
}
