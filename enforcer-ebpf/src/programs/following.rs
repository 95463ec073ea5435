//! What comes out of pipes and unix sockets, and goes from one to another.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use enforcer_ebpf::{forward, kernel::read, offset};

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
