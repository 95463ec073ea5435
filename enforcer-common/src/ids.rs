//! Identifiers, each its own type, so that one cannot be passed for another.

/// Declares a number that is an identifier: transparent, comparable, ordered.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);
    };
}

id!(
    /// Thread-group id, what user space calls a pid, in the initial pid namespace.
    Tgid(u32)
);
id!(
    /// Thread id in the initial pid namespace. A map that is keyed by process must not take one.
    Tid(u32)
);
id!(
    /// Real user id in the initial user namespace.
    Uid(u32)
);
id!(
    /// cgroup v2 id: the inode number of the cgroup's directory. 0 means none.
    CgroupId(u64)
);
id!(
    /// A credential of the bundle, numbered by the daemon. Stable while the programs are loaded, also
    /// from one bundle to the next: holdings refer to it. 0 means none.
    CredentialId(u32)
);
id!(
    /// A set of workloads that some kind of task belongs to, numbered by its grants. 0 means none.
    SubjectId(u32)
);
id!(
    /// A set of destinations, numbered by its content. 0 means the empty set.
    ScopeId(u32)
);
id!(
    /// A set of port ranges and protocols, numbered by its content.
    PortSetId(u32)
);
id!(
    /// An entitlement of the bundle in force, numbered by the daemon. 0 means none.
    EntitlementId(u32)
);
id!(
    /// What a cgroup means to the bundle: the set of cgroup and unit selectors that it matches.
    /// 0 means that it matches none.
    IdentityId(u32)
);

impl IdentityId {
    /// Set in what a cgroup means as long as the daemon has not said what the container is that it is or lies in. Numbers do
    /// not come so far.
    pub const UNCLASSIFIED: u32 = 1 << 31;

    /// The same, and it is not known what it is.
    #[inline(always)]
    pub const fn unclassified(self) -> Self {
        Self(self.0 | Self::UNCLASSIFIED)
    }

    /// The number, and 1 if it is known what it is, else 0.
    #[inline(always)]
    pub const fn classified(self) -> (Self, u32) {
        (Self(self.0 & !Self::UNCLASSIFIED), self.0 >> 31 ^ 1)
    }
}
id!(
    /// A node of the tree of watched paths, see [`crate::watch`]. 0 means none.
    WatchNode(u32)
);
id!(
    /// A bundle as applied on this node; counts up by one with every swap. 0 means that no bundle has
    /// been applied.
    Generation(u32)
);
id!(
    /// Nanoseconds on `CLOCK_BOOTTIME`, the only clock that decides.
    BootNs(u64)
);

impl BootNs {
    /// Later than any moment this node can see.
    pub const NEVER: Self = Self(u64::MAX);
}

/// A file as the kernel knows it: never a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct InodeKey {
    /// `inode.i_ino`.
    pub ino: u64,
    /// `super_block.s_dev`, in the kernel's own encoding (major << 20 | minor). It differs from
    /// `st_dev` on overlayfs and btrfs.
    pub dev: u32,
    /// `inode.i_generation`: a reused inode number is another file.
    pub generation: u32,
}

/// The beginning of the SHA-256 of a name. Two names of a node with the same one are not to be expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NameDigest(pub [u64; 2]);

/// An executable: its inode and when that was last changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ExecutableKey {
    /// The file.
    pub inode: InodeKey,
    /// The inode's change time (ctime), nanoseconds since the epoch. Content, owner and mode cannot
    /// change without changing it, so a rewritten executable has another key.
    pub changed_ns: u64,
}
