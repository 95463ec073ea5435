//! How much each table holds, and why that much.

/// How much room the tables have that a bundle, the node's files or its processes fill. An empty bucket of a hash table
/// takes 16 bytes, and an entry that is preallocated all of its memory, whether it is used or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// A sixteenth, enough for a node with some thousand entitlements, files and processes that hold something.
    Ordinary,
    /// As much as the constants here say.
    Large,
}

impl Room {
    /// Its word, in the pins' names and in `enforcer status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Large => "large",
        }
    }

    /// Entries of a table that has `entries` where there is much room.
    #[must_use]
    pub const fn of(self, entries: u32) -> u32 {
        match self {
            Self::Ordinary => entries / 16,
            Self::Large => entries,
        }
    }

    /// By how many bits of their hash keys are counted.
    #[must_use]
    pub const fn presence_bits(self) -> u32 {
        match self {
            Self::Ordinary => PRESENCE_BITS,
            Self::Large => LARGE_PRESENCE_BITS,
        }
    }
}

/// Entitlements for one workload and one credential that can be in the tables together. Four windows or
/// destination sets for the same pair are already unusual, and the verifier walks through each.
pub const GRANTS_PER_PAIR: u32 = 4;

/// Credentials one holder can have read. A service reads one or two, an operator's session a few; more than this is
/// remembered as overflow, and overflow denies.
pub const HELD_PER_HOLDER: u64 = 8;

/// Files and directory members under protection: 50,000 secret files on a node, with room for doubling.
pub const FILES: u32 = 131_072;

/// Directories on the way to a protected path, or below a protected directory.
pub const WATCHES: u32 = 65_536;

/// Nodes of the tree of watched paths: one for each path component of every source in the bundle.
pub const WATCH_NODES: u32 = 131_072;

/// Nodes of that tree one directory can stand for at the same time.
pub const NODES_PER_WATCH: usize = 4;

/// Patterns with a wildcard that one node of that tree can have.
pub const PATTERNS_PER_NODE: u32 = 4;

/// Distinct combinations of executable, user and cgroup selectors, for two bundles during a swap.
pub const SUBJECTS: u32 = 65_536;

/// Credentials, for two bundles during a swap.
pub const CREDENTIALS: u32 = 131_072;

/// Entitlements as seen by each subject, for two bundles during a swap.
pub const GRANTS: u32 = 262_144;

/// Address prefixes over all scopes.
pub const SCOPES: u32 = 262_144;

/// Port prefixes over all port sets. A range needs at most 30 prefixes, and sets are shared.
pub const PORTS: u32 = 65_536;

/// Endpoints that hand out secrets (cloud metadata and the like).
pub const ENDPOINTS: u32 = 1_024;

/// cgroups alive on one node: 250 pods with a few containers each, their sub-cgroups, and every unit.
pub const CGROUPS: u32 = 32_768;

/// cgroup paths and unit names that a bundle selects by.
pub const CGROUP_NAMES: u32 = 16_384;

/// Held credentials over all holders. Preallocated: a read that cannot be recorded is denied.
pub const HOLDERS: u32 = 65_536;

/// With ordinary room, keys are counted by so many bits of their hash, see [`crate::presence`]: counters of eight bytes,
/// 128 KiB for each table. With 500 keys, three in a hundred that are asked for and are not there are looked for in the
/// table.
pub const PRESENCE_BITS: u32 = 14;

/// The same with much room: 2 MiB for each table. With 50,000 keys, seventeen in a hundred are looked for.
pub const LARGE_PRESENCE_BITS: u32 = 18;

/// Threads of the daemon that capture file keys at the same time, with room to spare.
pub const CAPTURES: u32 = 64;

/// File keys one open of the daemon can show: overlayfs opens the lower file within the upper's open.
pub const KEYS_PER_CAPTURE: usize = 4;

/// Each of the rings, for denials, for allowed uses, and for notices that steer the daemon, bytes. 256 KiB holds over
/// 700 records; a consumer that is woken for each keeps up with far more than that many a millisecond apart.
pub const RING_BYTES: u32 = 256 * 1024;

/// Abstract unix sockets that hand out secrets, for two bundles during a swap.
pub const SOCKET_NAMES: u32 = 1_024;

/// Environment variables that are credentials, for two bundles during a swap.
pub const VARIABLES: u32 = 4_096;

/// Pieces of 63 bytes of a new program's environment that are looked at: 32 KiB. A process with more is taken to
/// hold more than can be known, if any variable is a credential.
pub const ENVIRONMENT_PIECES: u64 = 512;

/// Threads that copy a file to an overlay's upper layer at the same moment.
pub const COPY_UPS: u32 = 4_096;

/// Denials of one process that are told in a second; the rest is counted as lost. The daemon writes more than that, and
/// a ring of denials takes a second's worth of forty processes.
pub const DENIALS_PER_SECOND: u64 = 16;

/// Processes whose denials are counted.
pub const SHARES: u32 = 4_096;

/// Sockets of holders, where their records cannot be kept with the sockets themselves. A packet of a socket
/// without a record is judged by its cgroup alone.
pub const SOCKET_RECORDS: u32 = 65_536;

/// Executables that may take over from a daemon that has gone: its own, at each of its last versions.
pub const HEIRS: u32 = 64;

/// Credentials that have had a number since the programs were loaded: those of many bundles.
pub const CREDENTIAL_NUMBERS: u32 = 131_072;

/// Kinds of things with numbers, besides credentials.
pub const NUMBERED: u32 = 6;

/// Programs, maps and links of the daemon: about fifty of each.
pub const OWN_OBJECTS: u32 = 256;

/// Pipes, sockets and the like that a secret went into and that are still there, times the credentials in each.
pub const LABELS: u32 = 65_536;

/// Processes that have a terminal, are in a login session, or descend from an ancestor the bundle selects by.
pub const ORIGINS: u32 = 65_536;

/// Ancestors that the bundle in force and the next one select by; each is a bit of a process's origin.
pub const ANCESTOR_SLOTS: u32 = 62;

/// Of these, those that one process can descend from and still be told by each: with more it matches none of them. A
/// tool of an agent in a job of a runner has three.
pub const ANCESTORS_AT_ONCE: usize = 3;

/// Files that the ancestors' programs are.
pub const ANCESTORS: u32 = 1_024;

/// Meanings of cgroups in which origins matter, for two bundles during a swap.
pub const RELEVANT: u32 = 32_768;

/// What tasks are by cgroup and origin, for two bundles during a swap.
pub const ORIGIN_IDENTITIES: u32 = 131_072;

/// Instances in which a program has been started.
pub const RUNNING: u32 = CGROUPS;

/// Kinds of allowed use that are counted at the same time: who, which credential, where to. A service has a few; with
/// more than this each use is told by itself.
pub const USAGES: u32 = 16_384;

/// Workloads whose kills are counted, for the limit of them.
pub const KILLERS: u32 = 1_024;
