//! What protects the daemon, its programs and its tables.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use enforcer_common::event::Gate;
use enforcer_ebpf::{respond, tamper};

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
