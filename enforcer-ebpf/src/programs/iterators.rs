//! What shows the daemon tasks and their files.

use enforcer_ebpf::iterate;

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

/// The same, for where processes come from.
///
/// # Safety
///
/// As above.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe extern "C" fn iterate_origin(ctx: *const iterate::TaskContext) -> i32 {
    // SAFETY: the kernel's context.
    unsafe { iterate::origin(ctx) };
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
