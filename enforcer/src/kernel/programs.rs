//! Which programs there are, and where in the kernel they go.

use super::at_root;
use super::modify_return::Attach;
use super::tier::Tier;

/// A program of the two tiers with hooks.
pub struct Hook {
    /// Its name.
    pub program: &'static str,
    /// The LSM hook.
    pub hook: &'static str,
    /// The function that calls the hook.
    pub function: &'static str,
    /// Whether it has a result, by which it can refuse.
    pub attach: Attach,
}

impl Hook {
    const fn gate(program: &'static str, hook: &'static str, function: &'static str) -> Self {
        let attach = Attach::ModifyReturn;
        Self {
            program,
            hook,
            function,
            attach,
        }
    }

    const fn notice(hook: &'static str, function: &'static str) -> Self {
        let attach = Attach::Entry;
        Self {
            program: hook,
            hook,
            function,
            attach,
        }
    }
}

/// In the order of attaching: those that follow processes and keep file keys up to date, the read gate, the call gate,
/// and what protects the daemon.
pub const HOOKS: &[Hook] = &[
    Hook::gate("task_alloc", "task_alloc", "security_task_alloc"),
    Hook::notice("task_free", "security_task_free"),
    Hook::notice("d_instantiate", "security_d_instantiate"),
    Hook::gate("inode_rename", "inode_rename", "security_inode_rename"),
    Hook::gate("inode_copy_up", "inode_copy_up", "security_inode_copy_up"),
    Hook::gate("inode_link", "inode_link", "security_inode_link"),
    Hook::notice("inode_free_security", "security_inode_free"),
    Hook::gate("file_open", "file_open", "security_file_open"),
    Hook::gate(
        "file_permission",
        "file_permission",
        "security_file_permission",
    ),
    Hook::gate("mmap_file", "mmap_file", "security_mmap_file"),
    Hook::gate("file_receive", "file_receive", "security_file_receive"),
    Hook::gate(
        "ptrace_access_check",
        "ptrace_access_check",
        "security_ptrace_access_check",
    ),
    Hook::gate(
        "unix_stream_connect",
        "unix_stream_connect",
        "security_unix_stream_connect",
    ),
    Hook::gate("unix_may_send", "unix_may_send", "security_unix_may_send"),
    Hook::gate("unix_sendmsg", "socket_sendmsg", "security_socket_sendmsg"),
    Hook::gate("socket_create", "socket_create", "security_socket_create"),
    Hook::gate(
        "family_connect",
        "socket_connect",
        "security_socket_connect",
    ),
    Hook::gate(
        "family_sendmsg",
        "socket_sendmsg",
        "security_socket_sendmsg",
    ),
    Hook::gate(
        "endpoint_connect",
        "socket_connect",
        "security_socket_connect",
    ),
    Hook::gate(
        "endpoint_sendmsg",
        "socket_sendmsg",
        "security_socket_sendmsg",
    ),
    Hook::gate(
        "socket_connect",
        "socket_connect",
        "security_socket_connect",
    ),
    Hook::gate(
        "socket_sendmsg",
        "socket_sendmsg",
        "security_socket_sendmsg",
    ),
    Hook::notice("sk_free_security", "security_sk_free"),
    Hook::gate("task_kill", "task_kill", "security_task_kill"),
    Hook::gate(
        "task_setrlimit",
        "task_setrlimit",
        "security_task_setrlimit",
    ),
    Hook::gate("task_setnice", "task_setnice", "security_task_setnice"),
    Hook::gate(
        "task_setscheduler",
        "task_setscheduler",
        "security_task_setscheduler",
    ),
    Hook::gate(
        "task_setioprio",
        "task_setioprio",
        "security_task_setioprio",
    ),
    Hook::gate("bpf", "bpf", "security_bpf"),
    Hook::gate("bpf_map", "bpf_map", "security_bpf_map"),
    Hook::gate("bpf_prog", "bpf_prog", "security_bpf_prog"),
    Hook::gate("inode_unlink", "inode_unlink", "security_inode_unlink"),
    Hook::gate("sb_umount", "sb_umount", "security_sb_umount"),
];

/// Programs that see what comes out of pipes and unix sockets and goes from one to another, that pipes are closed, and
/// that a process is about to be moved to another cgroup, and the kernel functions that they are on. Of two names the newer kernels have the second; what a kernel has no function for is left out.
pub const FOLLOWING: &[(&str, &[&str])] = &[
    ("cgroup_attach_begins", &["cgroup_attach_task"]),
    ("pipe_read", &["pipe_read", "anon_pipe_read"]),
    ("fifo_pipe_read", &["fifo_pipe_read"]),
    ("pipe_release", &["pipe_release"]),
    ("splice_begins", &["do_splice"]),
    ("splice_ends", &["do_splice"]),
    ("tee_begins", &["do_tee"]),
    ("tee_ends", &["do_tee"]),
    ("unix_stream_recvmsg", &["unix_stream_recvmsg"]),
    ("unix_dgram_recvmsg", &["unix_dgram_recvmsg"]),
    ("unix_seqpacket_recvmsg", &["unix_seqpacket_recvmsg"]),
    ("unix_stream_splice_read", &["unix_stream_splice_read"]),
];

/// BTF tracepoints that follow processes and cgroups.
pub const TRACEPOINTS: &[&str] = &[
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "cgroup_mkdir",
    "cgroup_rmdir",
    "cgroup_attach_task",
];

/// cgroup programs of the call gate.
pub const SOCK_ADDR: &[&str] = &["connect4", "connect6", "sendmsg4", "sendmsg6"];

/// The programs without which a tier is not whole.
pub fn needed(tier: Tier) -> impl Iterator<Item = &'static str> {
    let hooks: &[Hook] = match tier {
        Tier::Lsm | Tier::ModifyReturn => HOOKS,
        Tier::Fanotify => &[],
    };
    let at_root = at_root::PROGRAMS.iter().map(|(name, _)| *name);
    let hooks = hooks.iter().map(|hook| hook.program);
    hooks.chain(TRACEPOINTS.iter().copied()).chain(at_root)
}
