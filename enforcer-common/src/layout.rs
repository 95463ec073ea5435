//! Where the running kernel keeps what the programs read.

/// Declares the byte offsets that the daemon finds in the kernel's BTF and hands to the programs.
macro_rules! offsets {
    ($($(#[$doc:meta])* $field:ident = $structure:literal . [$($member:literal)|+],)+) => {
        /// Byte offsets of kernel struct members, found in the running kernel's BTF at load time.
        /// [`Offsets::MISSING`] marks a member this kernel lacks; the daemon refuses to load then.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct Offsets { $($(#[$doc])* pub $field: u64,)+ }

        impl Offsets {
            /// For each field in order: the kernel's struct, and the member's names, newest kernel first; `+8` is added to the member's offset.
            pub const MEMBERS: &'static [(&'static str, &'static [&'static str])] =
                &[$(($structure, &[$($member),+]),)+];

            /// Fills the fields in the order of [`Offsets::MEMBERS`]; `None` if the count differs.
            pub fn from_slice(values: &[u64]) -> Option<Self> {
                let mut values = values.iter().copied();
                let offsets = Self { $($field: values.next()?,)+ };
                values.next().is_none().then_some(offsets)
            }
        }
    };
}

offsets! {
    /// The open file's inode.
    file_inode = "file".["f_inode"],
    /// The open file that a read or write is of.
    kiocb_file = "kiocb".["ki_filp"],
    /// How the file was opened (`FMODE_*`).
    file_mode = "file".["f_mode"],
    /// The open file's path.
    file_path = "file".["f_path"],
    /// Directory entry of a path.
    path_dentry = "path".["dentry"],
    /// Inode number.
    inode_ino = "inode".["i_ino"],
    /// The inode's superblock.
    inode_sb = "inode".["i_sb"],
    /// Tells inodes with a reused number apart.
    inode_generation = "inode".["i_generation"],
    /// File type and permissions.
    inode_mode = "inode".["i_mode"],
    /// Number of names.
    inode_nlink = "inode".["i_nlink"],
    /// Change time, seconds. Before 6.11 a `timespec64`, whose first eight bytes are the seconds.
    inode_ctime_sec = "inode".["i_ctime_sec"|"__i_ctime"|"i_ctime"],
    /// Change time, nanoseconds.
    inode_ctime_nsec = "inode".["i_ctime_nsec"|"__i_ctime+8"|"i_ctime+8"],
    /// Device of a superblock.
    sb_dev = "super_block".["s_dev"],
    /// Kind of a file system.
    sb_magic = "super_block".["s_magic"],
    /// Parent directory's entry.
    dentry_parent = "dentry".["d_parent"],
    /// The entry's inode.
    dentry_inode = "dentry".["d_inode"],
    /// The entry's name.
    dentry_name = "dentry".["d_name"|"__d_name"],
    /// Memory of a task.
    task_mm = "task_struct".["mm"],
    /// First thread of a process.
    task_leader = "task_struct".["group_leader"],
    /// Process id in the initial namespace.
    task_tgid = "task_struct".["tgid"],
    /// Start of a task on `CLOCK_BOOTTIME`.
    task_start = "task_struct".["start_boottime"],
    /// What threads of a process share.
    task_signal = "task_struct".["signal"],
    /// Not zero while somebody traces a thread.
    task_ptrace = "task_struct".["ptrace"],
    /// Parent process.
    task_parent = "task_struct".["real_parent"],
    /// Thread id in the initial namespace.
    task_pid = "task_struct".["pid"],
    /// A task's places in the lists of its ids, the thread's id first.
    task_pid_links = "task_struct".["pid_links"],
    /// The tasks with an id, as a thread's id first.
    pid_tasks = "pid".["tasks"],
    /// The id that a file in procfs is about.
    proc_inode_pid = "proc_inode".["pid"],
    /// The inode of such a file.
    proc_inode_vfs = "proc_inode".["vfs_inode"],
    /// What a task may do, and as whom.
    task_cred = "task_struct".["cred"],
    /// Name of a thread.
    task_comm = "task_struct".["comm"],
    /// Real user id.
    cred_uid = "cred".["uid"],
    /// Mount of a path.
    path_mnt = "path".["mnt"],
    /// The part of a mount that paths point to.
    mount_mnt = "mount".["mnt"],
    /// Namespace of a mount.
    mount_ns = "mount".["mnt_ns"],
    /// The memory at whose end a task's registers are saved.
    task_stack = "task_struct".["stack"],
    /// The last of those registers.
    regs_last = "pt_regs".["ss"|"exit_rcu"|"stackframe+8"],
    /// Number of the system call that a task is in.
    regs_call = "pt_regs".["orig_ax"|"syscallno"],
    /// Its second argument.
    regs_second = "pt_regs".["si"|"regs+8"],
    /// Its third argument.
    regs_third = "pt_regs".["dx"|"regs+16"],
    /// Living threads of a process.
    signal_live = "signal_struct".["live"],
    /// Their controlling terminal.
    signal_tty = "signal_struct".["tty"],
    /// The executable.
    mm_exe = "mm_struct".["exe_file"],
    /// Hierarchy of a cgroup.
    cgroup_root = "cgroup".["root"],
    /// The cgroup's own subsystem state, through which its parent is found.
    cgroup_self = "cgroup".["self"],
    /// Parent of a subsystem state.
    css_parent = "cgroup_subsys_state".["parent"],
    /// Number of a hierarchy; that of cgroup v2 is 0.
    root_hierarchy = "cgroup_root".["hierarchy_id"],
    /// kernfs node of a cgroup.
    cgroup_kn = "cgroup".["kn"],
    /// id of a kernfs node: of a cgroup's, the cgroup id.
    kn_id = "kernfs_node".["id"],
    /// Name of a kernfs node.
    kn_name = "kernfs_node".["name"],
    /// The protocol's part of a socket.
    socket_sk = "socket".["sk"],
    /// Transport protocol of a socket.
    sk_protocol = "sock".["sk_protocol"],
    /// Address family of a socket. `sock_common` is the first member of `sock`.
    sk_family = "sock_common".["skc_family"],
    /// Peer's port, network order.
    sk_dport = "sock_common".["skc_dport"],
    /// Peer's IPv4 address.
    sk_daddr = "sock_common".["skc_daddr"],
    /// Peer's IPv6 address.
    sk_v6_daddr = "sock_common".["skc_v6_daddr"],
    /// Number of a socket that is never used again; 0 until somebody asks for it.
    sk_cookie = "sock_common".["skc_cookie"],
    /// Type of a socket (`SOCK_*`).
    sk_type = "sock".["sk_type"],
    /// Flags of a task (`PF_*`).
    task_flags = "task_struct".["flags"],
    /// A task's place in the hierarchies.
    task_cgroups = "task_struct".["cgroups"],
    /// The cgroup v2 of such a place.
    css_set_cgroup = "css_set".["dfl_cgrp"],
    /// The other end of a unix socket.
    unix_peer = "unix_sock".["peer"],
    /// Where a unix socket is bound, if that is in a file system.
    unix_path = "unix_sock".["path"],
    /// What a unix socket is bound to.
    unix_address = "unix_sock".["addr"],
    /// Length of such an address, with the two bytes of the family.
    unix_address_len = "unix_address".["len"],
    /// Such an address, a `struct sockaddr_un`.
    unix_address_name = "unix_address".["name"],
    /// Where a process's environment starts in its memory.
    mm_env_start = "mm_struct".["env_start"],
    /// And where it ends.
    mm_env_end = "mm_struct".["env_end"],
    /// Address a message is sent to.
    msg_name = "msghdr".["msg_name"],
    /// What is in a pipe, as long as somebody has it open.
    inode_pipe = "inode".["i_pipe"],
    /// Number of a map.
    map_id = "bpf_map".["id"],
    /// What is not needed for running a program.
    program_aux = "bpf_prog".["aux"],
    /// Number of a program.
    program_id = "bpf_prog_aux".["id"],
    /// Root of a mount.
    mnt_root = "vfsmount".["mnt_root"],
    /// A task's id in all namespaces.
    task_thread_pid = "task_struct".["thread_pid"],
    /// How deep the innermost of those is; 0 is the host's.
    pid_level = "pid".["level"],
    /// The numbers, one for each, of 16 bytes that begin with the number itself.
    pid_numbers = "pid".["numbers"],
}

impl Offsets {
    /// The value for a member that this kernel does not have.
    pub const MISSING: u64 = u64::MAX;
}
