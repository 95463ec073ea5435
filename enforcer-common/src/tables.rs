//! Keys and values of the kernel's tables, and the [`Tables`] trait through which a decision sees them.
//!
//! How a bundle is swapped without a decision seeing two of them: subjects and credentials are keyed by
//! [`Generation`]; what they refer to (grants, scopes, port sets) is numbered by content and never
//! changes in place; what is keyed by an object of the node (files, cgroups) holds [`Versioned`] values.
//! The daemon writes everything for the next generation, then stores one number.

use crate::address::{Address, Destination};
use crate::capacity::{GRANTS_PER_PAIR, KEYS_PER_CAPTURE, NODES_PER_WATCH};
use crate::ids::{
    BootNs, CgroupId, CredentialId, EntitlementId, ExecutableKey, Generation, IdentityId, InodeKey,
    PortSetId, ScopeId, SubjectId, Tgid, Uid, WatchNode,
};
use crate::verdict::{Action, Mode};

/// A value that changes with a bundle swap, both sides of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Versioned<T> {
    /// The first generation that sees `after`.
    pub from: Generation,
    /// The value for earlier generations.
    pub before: T,
    /// The value from then on.
    pub after: T,
}

impl<T: Copy> Versioned<T> {
    /// A value that is the same in every generation.
    pub const fn constant(value: T) -> Self {
        Self {
            from: Generation(0),
            before: value,
            after: value,
        }
    }

    /// The value a decision in `generation` sees.
    #[inline(always)]
    pub fn at(&self, generation: Generation) -> T {
        if generation.0 >= self.from.0 {
            self.after
        } else {
            self.before
        }
    }
}

/// What holds of a whole bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Bundle {
    /// When the bundle itself expires.
    pub expires: BootNs,
    /// Which generation this describes; 0 before the first bundle.
    pub generation: Generation,
    /// Destinations that every holder may reach.
    pub baseline: ScopeId,
    /// Default [`Mode`].
    pub mode: u8,
    /// Default [`Action`].
    pub action: u8,
    /// [`Mode`] of denials that only the bundle's own expiry causes.
    pub on_expiry: u8,
    /// 1 if answers on accepted connections are permitted without an entitlement.
    pub inbound_permitted: u8,
    /// Which selector masks some subject has: bit `mask` for each.
    pub masks: u8,
    /// Always 0.
    pub reserved: [u8; 3],
}

impl Bundle {
    /// The default mode; anything unreadable enforces.
    #[inline(always)]
    pub fn mode(&self) -> Mode {
        mode(self.mode)
    }

    /// The default action; anything unreadable blocks.
    #[inline(always)]
    pub fn action(&self) -> Action {
        action(self.action)
    }
}

/// Reads a [`Mode`] byte; anything unknown enforces.
#[inline(always)]
pub fn mode(byte: u8) -> Mode {
    match Mode::from_u8(byte) {
        Some(mode) => mode,
        None => Mode::Enforce,
    }
}

/// Reads an [`Action`] byte; anything unknown blocks.
#[inline(always)]
pub fn action(byte: u8) -> Action {
    match Action::from_u8(byte) {
        Some(action) => action,
        None => Action::Block,
    }
}

/// A credential as a bundle defines it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Credential {
    /// [`Credential::EXCLUSIVE`] and the others.
    pub flags: u32,
}

impl Credential {
    /// This credential must itself cover whatever its holder reaches.
    pub const EXCLUSIVE: u32 = 1;
    /// Some workload has an entitlement to it.
    pub const ENTITLED: u32 = 2;
    /// Held by the process tree alone, never by the instance: the daemon's canaries.
    pub const PROCESS_ONLY: u32 = 4;

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }
}

/// Key of the credentials table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct CredentialKey {
    /// The bundle.
    pub generation: Generation,
    /// The credential.
    pub credential: CredentialId,
}

/// Key of the subjects table: any subset of what identifies a task. A part that does not matter is zero,
/// and `uid` is [`SubjectKey::ANY_UID`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SubjectKey {
    /// The executable.
    pub executable: ExecutableKey,
    /// The bundle.
    pub generation: Generation,
    /// What the cgroup means.
    pub identity: IdentityId,
    /// The user.
    pub uid: Uid,
    /// Always 0.
    pub reserved: u32,
}

impl SubjectKey {
    /// `(uid_t)-1` is no user.
    pub const ANY_UID: Uid = Uid(u32::MAX);
    /// Bit of a selector mask: the executable matters.
    pub const EXECUTABLE: u32 = 1;
    /// Bit of a selector mask: the cgroup's identity matters.
    pub const IDENTITY: u32 = 2;
    /// Bit of a selector mask: the user matters.
    pub const UID: u32 = 4;
    /// How many selector masks there are.
    pub const MASKS: u32 = 8;

    /// The key for `task` when only the parts in `mask` matter; `None` if the task lacks one of them.
    #[inline(always)]
    pub fn of(
        task: &crate::facts::Task,
        generation: Generation,
        mask: u32,
    ) -> Option<Self> {
        let mut key = Self {
            generation,
            uid: Self::ANY_UID,
            ..Self::default()
        };
        if mask & Self::EXECUTABLE != 0 {
            if task.executable.inode.ino == 0 {
                return None;
            }
            key.executable = task.executable;
        }
        if mask & Self::IDENTITY != 0 {
            if task.identity.0 == 0 {
                return None;
            }
            key.identity = task.identity;
        }
        if mask & Self::UID != 0 {
            key.uid = task.uid;
        }
        Some(key)
    }
}

/// Value of the subjects table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Subject {
    /// The workloads that a task with this key belongs to.
    pub matched: SubjectId,
    /// The workloads that it would belong to with another executable.
    pub near: SubjectId,
    /// 1 if it is one of the bundle's trusted workloads.
    pub trusted: u32,
}

/// Key of the grants table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct GrantKey {
    /// Who.
    pub subject: SubjectId,
    /// May use what.
    pub credential: CredentialId,
}

/// Value of the grants table: the entitlements of one subject to one credential, and where to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Grants {
    /// The destinations of all of them: bit `n` of what [`Tables::covers`] says is for `grants[n]`.
    pub scope: ScopeId,
    /// How many there are.
    pub count: u32,
    /// The entitlements, `count` of them.
    pub grants: [Grant; GRANTS_PER_PAIR as usize],
}

/// One entitlement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Grant {
    /// In force from this moment on.
    pub valid_from: BootNs,
    /// In force until just before this moment.
    pub valid_until: BootNs,
    /// Which entitlement this is.
    pub entitlement: EntitlementId,
    /// A [`Mode`].
    pub mode: u8,
    /// An [`Action`].
    pub action: u8,
    /// Always 0.
    pub reserved: [u8; 2],
}

/// Key of the scopes table (longest prefix match) after the prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ScopeKey {
    /// The scope: always matched whole.
    pub scope: ScopeId,
    /// The address.
    pub address: [u8; 16],
}

impl ScopeKey {
    /// Significant bits before the address.
    pub const HEAD_BITS: u32 = 32;
    /// Significant bits of a whole key.
    pub const FULL_BITS: u32 = Self::HEAD_BITS + 128;
}

/// Key of the ports table (longest prefix match) after the prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, packed)]
pub struct PortKey {
    /// The port set.
    pub ports: PortSetId,
    /// IP protocol.
    pub protocol: u8,
    /// Port in network order.
    pub port: [u8; 2],
}

impl PortKey {
    /// Significant bits before the port.
    pub const HEAD_BITS: u32 = 40;
    /// Significant bits of a whole key.
    pub const FULL_BITS: u32 = Self::HEAD_BITS + 16;
}

/// Who holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Holder {
    /// cgroup id of the instance, or thread-group id of the process.
    pub id: u64,
    /// 0 for an instance, or when the process started.
    pub start: BootNs,
}

impl Holder {
    /// A workload instance.
    #[inline(always)]
    pub const fn instance(cgroup: CgroupId) -> Self {
        Self {
            id: cgroup.0,
            start: BootNs(0),
        }
    }

    /// A process; `start` is never 0, so it cannot be taken for an instance.
    #[inline(always)]
    pub const fn process(tgid: Tgid, start: BootNs) -> Self {
        Self {
            id: tgid.0 as u64,
            start: BootNs(start.0 | 1),
        }
    }
}

/// Key of the holders table. Slots are filled from 0 without a gap, each by an insert that fails if the
/// slot is taken, so that two readers at the same moment both get recorded without a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct HolderKey {
    /// Who.
    pub holder: Holder,
    /// Which of its credentials; [`crate::capacity::HELD_PER_HOLDER`] marks overflow.
    pub slot: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Value of the cgroups table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cgroup {
    /// The workload instance it belongs to; 0 if none.
    pub instance: CgroupId,
    /// What it means to the bundle.
    pub identity: Versioned<IdentityId>,
    /// 1 if it and all above it are slices: a unit directly below is a system unit.
    pub slices_only: u32,
}

/// Longest cgroup path or unit name that can be selected by, in bytes, with its ending NUL.
pub const CGROUP_NAME_BYTES: usize = 192;

/// Key of the cgroup-names table: a path from the cgroup root, or a bare system unit name; NUL-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct CgroupName(pub [u8; CGROUP_NAME_BYTES]);

/// Key of the endpoints table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct EndpointKey {
    /// The address.
    pub address: Address,
    /// Port in host order.
    pub port: u16,
    /// Always 0.
    pub reserved: [u8; 6],
}

/// Value of the watches table: the nodes of the watch tree a directory stands for; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    /// The nodes.
    pub nodes: [WatchNode; NODES_PER_WATCH],
}

/// Value of the captures table: the file keys that one open of a daemon thread showed, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Capture {
    /// The keys, `count` of them.
    pub keys: [ExecutableKey; KEYS_PER_CAPTURE],
    /// How many opens were seen; more than fit if it exceeds the array.
    pub count: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Facts recorded with a socket when a holder last used it, for the packet gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketRecord {
    /// The task of the last call; all zero if there was none.
    pub task: crate::facts::Task,
    /// 1 if the connection was accepted from outside.
    pub inbound: u32,
    /// 1 once `task` is filled.
    pub used: u32,
}

/// What a decision may ask. Implemented over BPF maps in the kernel and over hash maps in user space.
pub trait Tables {
    /// The bundle in force; `None` before the first one.
    fn bundle(&self) -> Option<Bundle>;
    /// A credential, if the bundle has it.
    fn credential(&self, key: &CredentialKey) -> Option<Credential>;
    /// The workloads behind a key.
    fn subject(&self, key: &SubjectKey) -> Option<Subject>;
    /// The entitlements of a subject to a credential.
    fn grants(&self, key: &GrantKey) -> Option<&Grants>;
    /// Which entitlements of the scope include the destination, a bit for each.
    fn covers(&self, scope: ScopeId, destination: &Destination) -> u32;
    /// The credential in one slot of a holder.
    fn held(&self, key: &HolderKey) -> Option<CredentialId>;
}

/// Fails to compile if a type that crosses the kernel boundary does not have the expected size, or has
/// padding where the sizes of its parts do not add up.
macro_rules! sizes {
    ($($type:ty = $bytes:literal),+ $(,)?) => {
        $(const _: () = assert!(size_of::<$type>() == $bytes, stringify!($type));)+
        #[cfg(feature = "user")]
        mod pod {
            use super::*;
            $(
                // SAFETY: a `repr(C)` type of integers without padding, as its size check shows; every
                // bit pattern is a value.
                unsafe impl aya::Pod for $type {}
            )+
        }
    };
}

sizes! {
    InodeKey = 16,
    ExecutableKey = 24,
    crate::facts::Task = 64,
    Versioned<CredentialId> = 12,
    Versioned<IdentityId> = 12,
    Versioned<ScopeId> = 12,
    Bundle = 24,
    Credential = 4,
    CredentialKey = 8,
    SubjectKey = 40,
    Subject = 12,
    GrantKey = 8,
    Grant = 24,
    Grants = 104,
    ScopeKey = 20,
    PortKey = 7,
    Holder = 16,
    HolderKey = 24,
    Cgroup = 24,
    CgroupName = 192,
    EndpointKey = 24,
    Watch = 16,
    Capture = 104,
    SocketRecord = 72,
    crate::watch::ChildKey = 72,
    crate::watch::PatternKey = 8,
    crate::watch::Pattern = 104,
    crate::watch::Node = 4,
    crate::layout::Offsets = 296,
    CgroupId = 8,
    Generation = 4,
    Tgid = 4,
    CredentialId = 4,
    ScopeId = 4,
    WatchNode = 4,
    PortSetId = 4,
}

const _: () = assert!(size_of::<Destination>() == 24);
