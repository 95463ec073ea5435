//! The maps, and the constants that the daemon sets before loading.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use enforcer_common::{
    capacity,
    ids::{
        CgroupId, CredentialId, ExecutableKey, Generation, IdentityId, InodeKey, NameDigest,
        PortSetId, Tgid, Tid,
    },
    iterate::{Asker, Marking, Wanted},
    layout::Offsets,
    settled,
    tables::{
        AncestorSlot, Bundle, Capture, Cgroup, CgroupName, CopyUp, Credential, CredentialKey,
        EndpointKey, Governed, GrantKey, Grants, Holder, HolderKey, Origin, OriginKey, OwnObject,
        Relevant, RelevantKey, Share, SocketName, SocketRecord, Subject, SubjectKey, Usage,
        UsageKey, Versioned, Watch,
    },
    watch::{ChildKey, Node, Pattern, PatternKey},
};

/// Member offsets of the running kernel, set at load time.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets {
    file_inode: 0,
    kiocb_file: 0,
    file_mode: 0,
    file_path: 0,
    path_dentry: 0,
    inode_ino: 0,
    inode_sb: 0,
    inode_generation: 0,
    inode_mode: 0,
    inode_nlink: 0,
    inode_ctime_sec: 0,
    inode_ctime_nsec: 0,
    sb_dev: 0,
    sb_magic: 0,
    dentry_parent: 0,
    dentry_inode: 0,
    dentry_name: 0,
    task_mm: 0,
    task_leader: 0,
    task_tgid: 0,
    task_start: 0,
    task_signal: 0,
    task_ptrace: 0,
    task_parent: 0,
    task_pid: 0,
    task_pid_links: 0,
    pid_tasks: 0,
    proc_inode_pid: 0,
    proc_inode_vfs: 0,
    task_cred: 0,
    task_comm: 0,
    cred_uid: 0,
    path_mnt: 0,
    mount_mnt: 0,
    mount_ns: 0,
    task_stack: 0,
    regs_last: 0,
    regs_call: 0,
    regs_second: 0,
    regs_third: 0,
    signal_live: 0,
    signal_tty: 0,
    mm_exe: 0,
    cgroup_root: 0,
    cgroup_self: 0,
    css_parent: 0,
    root_hierarchy: 0,
    cgroup_kn: 0,
    kn_id: 0,
    kn_name: 0,
    socket_sk: 0,
    sk_protocol: 0,
    sk_family: 0,
    sk_dport: 0,
    sk_daddr: 0,
    sk_v6_daddr: 0,
    sk_cookie: 0,
    sk_type: 0,
    task_flags: 0,
    task_cgroups: 0,
    css_set_cgroup: 0,
    unix_peer: 0,
    unix_path: 0,
    unix_address: 0,
    unix_address_len: 0,
    unix_address_name: 0,
    mm_env_start: 0,
    mm_env_end: 0,
    msg_name: 0,
    inode_pipe: 0,
    map_id: 0,
    program_aux: 0,
    program_id: 0,
    mnt_root: 0,
    task_thread_pid: 0,
    pid_level: 0,
    pid_numbers: 0,
};

/// 1 where cgroup socket-address programs can read the current task (6.1 can, 5.10 cannot); set at load
/// time by trying.
#[unsafe(no_mangle)]
pub static TASK_IN_CGROUP_PROGRAMS: u32 = 0;

/// How this node is gated, one of [`enforcer_common::tier`]; set at load time.
#[unsafe(no_mangle)]
pub static TIER: u32 = 0;

/// 1 if records are not kept with the sockets: BPF_MODIFY_RETURN programs may not, and some kernels cannot. Set at load
/// time.
#[unsafe(no_mangle)]
pub static RECORDS_BY_COOKIE: u32 = 0;

/// By how many bits of their hash keys are not counted, of 64, see [`enforcer_common::presence`]; set at load time.
#[unsafe(no_mangle)]
pub static PRESENCE_SHIFT: u32 = 64 - capacity::PRESENCE_BITS;

/// A record without anything.
#[unsafe(no_mangle)]
pub static NO_RECORD: SocketRecord = SocketRecord::NONE;

/// Process of the daemon, whose own opens are captures and not uses; 0 while there is none.
#[map]
pub static DAEMON: Array<Tgid> = Array::with_max_entries(1, 0);

/// Kernel address of the daemon's first thread, once it has opened a file.
#[map]
pub static DAEMON_TASK: Array<u64> = Array::with_max_entries(1, 0);

/// Programs, maps and links of the daemon.
#[map]
pub static OWN_OBJECTS: HashMap<OwnObject, u32> =
    HashMap::with_max_entries(capacity::OWN_OBJECTS, BPF_F_NO_PREALLOC);

/// The directory of the pins.
#[map]
pub static PINS: Array<InodeKey> = Array::with_max_entries(1, 0);

/// Executables that may take over from a daemon that has gone.
#[map]
pub static HEIRS: HashMap<ExecutableKey, u32> =
    HashMap::with_max_entries(capacity::HEIRS, BPF_F_NO_PREALLOC);

/// 1 once the daemon has ended in good order: then whatever runs among the host's processes may take over, so that a
/// newer daemon can, from another image.
#[map]
pub static HANDED_OVER: Array<u32> = Array::with_max_entries(1, 0);

/// The numbers of credentials, by [`enforcer_common::ids::NameDigest`]: for the next daemon, no program asks.
#[map]
pub static CREDENTIAL_NUMBERS: HashMap<NameDigest, CredentialId> =
    HashMap::with_max_entries(capacity::CREDENTIAL_NUMBERS, BPF_F_NO_PREALLOC);

/// What governance had in force here, likewise.
#[map]
pub static GOVERNED: Array<Governed> = Array::with_max_entries(1, 0);

/// What became of records, by the words of [`enforcer_common::settled`], likewise.
#[map]
pub static SETTLED: Array<u64> = Array::with_max_entries(settled::WORDS, BPF_F_MMAPABLE);

/// The last number given to anything else, and the last generation, likewise.
#[map]
pub static LAST_NUMBERS: Array<u32> = Array::with_max_entries(capacity::NUMBERED + 1, 0);

/// The generation in force; one store swaps the bundle.
#[map]
pub static GENERATION: Array<Generation> = Array::with_max_entries(1, 0);

/// Descriptions of the bundle in force and of the next or previous one, by the generation's last bit.
#[map]
pub static BUNDLES: Array<Bundle> = Array::with_max_entries(2, 0);

/// Protected files.
#[map]
pub static FILES: HashMap<InodeKey, Versioned<CredentialId>> =
    HashMap::with_max_entries(capacity::FILES, BPF_F_NO_PREALLOC);

/// How many protected files there are by the hash of their keys, see [`enforcer_common::presence`]. The daemon counts in
/// it as well, in memory that it shares with the programs.
#[map]
pub static FILES_PRESENT: Array<u64> =
    Array::with_max_entries(1 << capacity::PRESENCE_BITS, BPF_F_MMAPABLE);

/// Protected endpoints.
#[map]
pub static ENDPOINTS: HashMap<EndpointKey, Versioned<CredentialId>> =
    HashMap::with_max_entries(capacity::ENDPOINTS, BPF_F_NO_PREALLOC);

/// Protected abstract unix sockets.
#[map]
pub static SOCKET_NAMES: HashMap<SocketName, Versioned<CredentialId>> =
    HashMap::with_max_entries(capacity::SOCKET_NAMES, BPF_F_NO_PREALLOC);

/// Environment variables of each generation, by [`enforcer_common::tables::Variable`].
#[map]
pub static VARIABLES: LpmTrie<[u8; 68], CredentialId> =
    LpmTrie::with_max_entries(capacity::VARIABLES, 0);

/// Credentials of each generation.
#[map]
pub static CREDENTIALS: HashMap<CredentialKey, Credential> =
    HashMap::with_max_entries(capacity::CREDENTIALS, BPF_F_NO_PREALLOC);

/// Selectors of each generation.
#[map]
pub static SUBJECTS: HashMap<SubjectKey, Subject> =
    HashMap::with_max_entries(capacity::SUBJECTS, BPF_F_NO_PREALLOC);

/// Entitlements.
#[map]
pub static GRANTS: HashMap<GrantKey, Grants> =
    HashMap::with_max_entries(capacity::GRANTS, BPF_F_NO_PREALLOC);

/// Destination addresses, by [`enforcer_common::tables::ScopeKey`].
#[map]
pub static SCOPES: LpmTrie<[u8; 20], PortSetId> = LpmTrie::with_max_entries(capacity::SCOPES, 0);

/// Destination ports, by [`enforcer_common::tables::PortKey`], and which entitlements they are of, a bit for each.
#[map]
pub static PORTS: LpmTrie<[u8; 12], u32> = LpmTrie::with_max_entries(capacity::PORTS, 0);

/// Who holds what. Preallocated: a read must not fail for want of memory, and never an LRU: a holding is
/// not forgotten.
#[map]
pub static HOLDERS: HashMap<HolderKey, CredentialId> =
    HashMap::with_max_entries(capacity::HOLDERS, 0);

/// How many holdings and labels there are by the hash of who or what has them, likewise. Cgroups that are only part of an
/// instance are among them: whoever writes [`CGROUPS`] counts those.
#[map]
pub static HELD_PRESENT: Array<u64> =
    Array::with_max_entries(1 << capacity::PRESENCE_BITS, BPF_F_MMAPABLE);

/// How many holdings were recorded, ever; the daemon counts its own in memory that it shares with the programs.
#[map]
pub static HOLDINGS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What went into pipes, and what was sent to sockets: as if they were holders, by their kernel addresses.
#[map]
pub static LABELS: HashMap<HolderKey, CredentialId> =
    HashMap::with_max_entries(capacity::LABELS, BPF_F_NO_PREALLOC);

/// What each cgroup is.
#[map]
pub static CGROUPS: HashMap<CgroupId, Cgroup> =
    HashMap::with_max_entries(capacity::CGROUPS, BPF_F_NO_PREALLOC);

/// What cgroups yet to be created will mean, by path or unit name.
#[map]
pub static CGROUP_NAMES: HashMap<CgroupName, Versioned<enforcer_common::ids::IdentityId>> =
    HashMap::with_max_entries(capacity::CGROUP_NAMES, BPF_F_NO_PREALLOC);

/// Where processes come from, if there is anything to say.
#[map]
pub static ORIGINS: HashMap<Holder, Origin> =
    HashMap::with_max_entries(capacity::ORIGINS, BPF_F_NO_PREALLOC);

/// How many there are by the hash of the process, likewise.
#[map]
pub static ORIGINS_PRESENT: Array<u64> =
    Array::with_max_entries(1 << capacity::PRESENCE_BITS, BPF_F_MMAPABLE);

/// 1 once an origin could not be recorded: from then on that of a process without one is not known.
#[map]
pub static ORIGINS_LOST: Array<u32> = Array::with_max_entries(1, 0);

/// Programs at which a tree of processes has its root: the slots of the ancestors that they are, a bit for each.
#[map]
pub static ANCESTORS: HashMap<ExecutableKey, u64> =
    HashMap::with_max_entries(capacity::ANCESTORS, BPF_F_NO_PREALLOC);

/// What each slot stands for: for the daemon, no program asks.
#[map]
pub static ANCESTOR_SLOTS: Array<AncestorSlot> =
    Array::with_max_entries(capacity::ANCESTOR_SLOTS, 0);

/// Origins that matter, by what a cgroup means.
#[map]
pub static RELEVANT: HashMap<RelevantKey, Relevant> =
    HashMap::with_max_entries(capacity::RELEVANT, BPF_F_NO_PREALLOC);

/// What a task is by its cgroup and its origin.
#[map]
pub static ORIGIN_IDENTITIES: HashMap<OriginKey, IdentityId> =
    HashMap::with_max_entries(capacity::ORIGIN_IDENTITIES, BPF_F_NO_PREALLOC);

/// Instances in which a program has been started: who is put there now comes from outside.
#[map]
pub static RUNNING: HashMap<CgroupId, u32> =
    HashMap::with_max_entries(capacity::RUNNING, BPF_F_NO_PREALLOC);

/// What the iterator over processes is to note of their origins.
#[map]
pub static MARKING: Array<Marking> = Array::with_max_entries(1, 0);

/// Watched directories.
#[map]
pub static WATCHES: HashMap<InodeKey, Watch> =
    HashMap::with_max_entries(capacity::WATCHES, BPF_F_NO_PREALLOC);

/// Literal steps of the watch tree.
#[map]
pub static CHILDREN: HashMap<ChildKey, enforcer_common::ids::WatchNode> =
    HashMap::with_max_entries(capacity::WATCH_NODES, BPF_F_NO_PREALLOC);

/// Wildcard steps of the watch tree.
#[map]
pub static PATTERNS: HashMap<PatternKey, Pattern> =
    HashMap::with_max_entries(capacity::WATCH_NODES, BPF_F_NO_PREALLOC);

/// Nodes of the watch tree that are credentials.
#[map]
pub static NODES: HashMap<enforcer_common::ids::WatchNode, Node> =
    HashMap::with_max_entries(capacity::WATCH_NODES, BPF_F_NO_PREALLOC);

/// Overlay copies under way, by thread.
#[map]
pub static COPY_UPS: HashMap<u64, CopyUp> = HashMap::with_max_entries(capacity::COPY_UPS, 0);

/// Opens of daemon threads that want the file's key.
#[map]
pub static CAPTURES: HashMap<Tid, Capture> = HashMap::with_max_entries(capacity::CAPTURES, 0);

/// What the askers of the daemon want the iterators to show, by [`enforcer_common::iterate::Asker`].
#[map]
pub static WANTED: Array<Wanted> = Array::with_max_entries(Asker::COUNT, 0);

/// Facts of the last call on a socket; freed with it by the kernel (5.10 has it for LSM programs).
#[btf_map]
pub static SOCKETS: SkStorage<SocketRecord> = SkStorage::new();

/// The same by the socket's cookie, where programs have no socket storage; freed by the program on
/// `security_sk_free`.
#[map]
pub static SOCKET_RECORDS: HashMap<u64, SocketRecord> =
    HashMap::with_max_entries(capacity::SOCKET_RECORDS, BPF_F_NO_PREALLOC);

/// 1 once a holding could not be recorded: the first for a process in no instance, from then on every such process
/// is judged as if it held too much; the second for an instance, whose entry in the cgroups table then says so.
#[map]
pub static UNACCOUNTED: Array<u32> = Array::with_max_entries(2, 0);

/// Records that did not fit, by [`enforcer_common::event::Ring`].
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(3, 0);

/// How many denials of each process were told this second. The least recently used may be forgotten: nothing is decided
/// by it.
#[map]
pub static SHARES: LruHashMap<Tgid, Share> = LruHashMap::with_max_entries(capacity::SHARES, 0);

/// How many processes of each workload were killed this minute.
#[map]
pub static KILLS: LruHashMap<u64, Share> = LruHashMap::with_max_entries(capacity::KILLERS, 0);

/// How many there may be.
#[map]
pub static KILL_LIMIT: Array<u32> = Array::with_max_entries(1, 0);

/// Allowed uses that are counted and not told each. Not preallocated, which would be 2.5 MB: a use that finds no room is
/// told by itself.
#[map]
pub static USAGE: HashMap<UsageKey, Usage> =
    HashMap::with_max_entries(capacity::USAGES, BPF_F_NO_PREALLOC);

/// How many of each the daemon has told: a table of its own, so that the next daemon goes on where this one ended.
#[map]
pub static USAGE_TOLD: HashMap<UsageKey, u64> =
    HashMap::with_max_entries(capacity::USAGES, BPF_F_NO_PREALLOC);

/// Uses that found no room to be counted, and were told each.
#[map]
pub static UNCOUNTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Denials.
#[map]
pub static DENIALS: RingBuf = RingBuf::with_byte_size(capacity::RING_BYTES, 0);

/// Allowed uses, and what monitor mode would have denied.
#[map]
pub static USES: RingBuf = RingBuf::with_byte_size(capacity::RING_BYTES, 0);

/// Notices to the daemon.
#[map]
pub static NOTICES: RingBuf = RingBuf::with_byte_size(capacity::RING_BYTES, 0);
