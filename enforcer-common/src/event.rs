//! Records that the programs send to user space.

use crate::address::Destination;
use crate::facts::Task;
use crate::ids::{BootNs, CgroupId, CredentialId, EntitlementId, Generation, InodeKey, Tid};
use crate::verdict::code;

code!(
    /// What was attempted.
    Kind {
        /// A credential was read.
        Read = 1 => "read",
        /// A holder sent or connected.
        Reach = 2 => "reach",
        /// Something was done to the enforcer itself.
        Tamper = 3 => "tamper",
        /// A holder handed something on, or somebody took it.
        Forward = 4 => "forward",
    }
);

code!(
    /// Which gate decided.
    Gate {
        /// LSM `file_open`.
        FileOpen = 1 => "file_open",
        /// LSM `socket_connect`.
        SocketConnect = 2 => "socket_connect",
        /// LSM `socket_sendmsg`.
        SocketSendmsg = 3 => "socket_sendmsg",
        /// cgroup `connect4` and `connect6`.
        CgroupConnect = 4 => "cgroup_connect",
        /// cgroup `sendmsg4` and `sendmsg6`.
        CgroupSendmsg = 5 => "cgroup_sendmsg",
        /// cgroup skb egress.
        Packet = 6 => "packet",
        /// LSM `file_permission`: a read through an open descriptor; of a tampering, a write.
        FilePermission = 7 => "file_permission",
        /// LSM `mmap_file`.
        MmapFile = 8 => "mmap_file",
        /// LSM `file_receive`: a descriptor came from another process.
        FileReceive = 9 => "file_receive",
        /// LSM `ptrace_access_check`: another process's memory.
        PtraceAccessCheck = 10 => "ptrace_access_check",
        /// LSM `socket_create`, or cgroup `sock_create`.
        SocketCreate = 11 => "socket_create",
        /// A dying holder's memory, on its way into a file.
        CoreDump = 12 => "core_dump",
        /// LSM `unix_stream_connect`.
        UnixStreamConnect = 13 => "unix_stream_connect",
        /// LSM `unix_may_send`.
        UnixMaySend = 14 => "unix_may_send",
        /// A program was started with a credential in its environment.
        Exec = 15 => "exec",
        /// LSM `task_kill`.
        TaskKill = 16 => "task_kill",
        /// LSM `task_setrlimit`.
        TaskSetrlimit = 17 => "task_setrlimit",
        /// LSM `task_setnice`.
        TaskSetnice = 18 => "task_setnice",
        /// LSM `task_setscheduler`.
        TaskSetscheduler = 19 => "task_setscheduler",
        /// LSM `task_setioprio`.
        TaskSetioprio = 20 => "task_setioprio",
        /// LSM `bpf`.
        Bpf = 21 => "bpf",
        /// Tracepoint `cgroup_attach_task`, which can only tell.
        CgroupAttach = 22 => "cgroup_attach_task",
        /// Into or out of a pipe.
        Pipe = 23 => "pipe",
        /// Over a unix socket.
        Unix = 24 => "unix",
        /// Into a file.
        FileWrite = 25 => "file_write",
        /// LSM `bpf_map`: a map was opened.
        BpfMap = 26 => "bpf_map",
        /// LSM `bpf_prog`: a program was opened.
        BpfProg = 27 => "bpf_prog",
        /// LSM `inode_unlink`.
        InodeUnlink = 28 => "inode_unlink",
        /// LSM `inode_rename`.
        InodeRename = 29 => "inode_rename",
        /// LSM `sb_umount`.
        SbUmount = 30 => "sb_umount",
        /// A permission event, answered by the daemon.
        Fanotify = 64 => "fanotify",
    }
);

code!(
    /// Which ring lost a record.
    Ring {
        /// Denials.
        Denials = 0 => "denials",
        /// Allowed uses.
        Uses = 1 => "uses",
        /// Notices to the daemon.
        Notices = 2 => "notices",
    }
);

/// How many generations before its parent are told of a process.
pub const ANCESTORS: usize = 4;

/// One use: who, what, and what was decided.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Use {
    /// When, on `CLOCK_BOOTTIME`.
    pub time: BootNs,
    /// The task; for [`Gate::Packet`] the one last seen with the socket.
    pub task: Task,
    /// The destination of a reach; of a tampering what was done, of something handed on through what and whether it was
    /// taken, see [`Destination::detail`]; all zero for a read.
    pub destination: Destination,
    /// The file of a read; all zero for a reach.
    pub file: InodeKey,
    /// The bundle.
    pub generation: Generation,
    /// The credential that decided.
    pub credential: CredentialId,
    /// The entitlement that decided, or the nearest.
    pub entitlement: EntitlementId,
    /// The thread.
    pub tid: Tid,
    /// Parent process.
    pub parent: crate::ids::Tgid,
    /// Its parents in turn, nearest first; 0 where there is none.
    pub ancestors: [crate::ids::Tgid; ANCESTORS],
    /// The process whose memory was read, or that something was done to; 0 for all else.
    pub target: crate::ids::Tgid,
    /// A [`Kind`].
    pub kind: u8,
    /// A [`Gate`].
    pub gate: u8,
    /// A [`crate::verdict::Reason`], or 0 for allow.
    pub reason: u8,
    /// The [`crate::verdict::Mode`] that was asked for, and that was applied.
    pub mode: u8,
    /// The [`crate::verdict::Action`] that was asked for.
    pub action: u8,
    /// What was done, one of [`taken`].
    pub taken: u8,
    /// 1 if the task is trusted.
    pub trusted: u8,
    /// Always 0.
    pub reserved: u8,
    /// `comm` of the thread: for reading, never for deciding.
    pub comm: [u8; 16],
    /// Last component of the executable's path, NUL-padded.
    pub executable_name: [u8; 64],
}

impl Gate {
    /// Whether the gate sees one use again and again: then what it permits is reported once for each holder.
    #[inline(always)]
    pub const fn repeats(self) -> bool {
        matches!(
            self,
            Self::FilePermission | Self::MmapFile | Self::UnixMaySend
        )
    }
}

/// Values of [`Use::taken`].
pub mod taken {
    /// Nothing was done to the call.
    pub const NOTHING: u8 = 0;
    /// The call was refused.
    pub const REFUSED: u8 = 1;
    /// The call was refused and the process sent SIGKILL.
    pub const KILLED: u8 = 2;
    /// The call was refused, and the daemon froze the workload instance.
    pub const FROZEN: u8 = 3;
    /// The call was refused, and the daemon killed the workload instance.
    pub const KILLED_WORKLOAD: u8 = 4;

    /// The call was refused, and the process not killed, because that was done too often in the last minute.
    pub const LIMITED: u8 = 5;

    /// The name used in events.
    pub const fn name(taken: u8) -> &'static str {
        match taken {
            REFUSED | LIMITED => "block",
            KILLED => "kill",
            FROZEN => "freeze",
            KILLED_WORKLOAD => "kill-workload",
            _ => "none",
        }
    }
}

code!(
    /// What a notice is about.
    NoticeKind {
        /// A cgroup was created: its path is in `name`.
        CgroupCreated = 1 => "cgroup-created",
        /// A cgroup was removed.
        CgroupRemoved = 2 => "cgroup-removed",
        /// A name in a watched directory matched.
        Appeared = 3 => "appeared",
        /// A table was full: what should have been recorded was not.
        TableFull = 4 => "table-full",
    }
);

/// Something the daemon should look at.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Notice {
    /// When, on `CLOCK_BOOTTIME`.
    pub time: BootNs,
    /// The cgroup, if it is about one.
    pub cgroup: CgroupId,
    /// The directory, if it is about a name.
    pub directory: InodeKey,
    /// The file, if it is about a name.
    pub file: InodeKey,
    /// A [`NoticeKind`].
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
    /// cgroup path or file name, NUL-terminated.
    pub name: [u8; 256],
}

impl Notice {
    /// The path or name, without what ends it.
    pub fn name(&self) -> &[u8] {
        let end = self.name.iter().position(|byte| *byte == 0);
        &self.name[..end.unwrap_or(self.name.len())]
    }
}

const _: () = assert!(size_of::<Use>() == 8 + 64 + 24 + 16 + 24 + 16 + 8 + 80);
const _: () = assert!(size_of::<Notice>() == 8 + 8 + 32 + 8 + 256);
