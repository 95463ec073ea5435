//! Processes and cgroups come and go.

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, lsm},
    programs::{BtfTracePointContext, FEntryContext, LsmContext},
};
use aya_log_ebpf::warn;
use enforcer_ebpf::{copy_up, environment, lifecycle, origin, respond, tamper};

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
    origin::started();
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

/// `int cgroup_attach_task(struct cgroup *dst_cgrp, struct task_struct *leader, bool threadgroup)`, at its beginning.
#[fentry(function = "cgroup_attach_task")]
pub fn cgroup_attach_begins(ctx: FEntryContext) -> i32 {
    lifecycle::attaching(
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
