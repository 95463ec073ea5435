//! Keys and values of the kernel's tables, and the [`Tables`] trait through which a decision sees them.
//!
//! How a bundle is swapped without a decision seeing two of them: subjects and credentials are keyed by
//! [`Generation`]; what they refer to (grants, scopes, port sets) is numbered by content and never
//! changes in place, except that a grant is revoked; what is keyed by an object of the node (files,
//! cgroups) holds [`Versioned`] values. The daemon writes everything for the next generation, then
//! stores one number.

use crate::address::Address;
use crate::branchless::{all_ones, reload};
use crate::capacity::{GRANTS_PER_PAIR, KEYS_PER_CAPTURE, NODES_PER_WATCH};
use crate::facts::Task;
use crate::ids::{
    BootNs, CgroupId, CredentialId, EntitlementId, ExecutableKey, Generation, IdentityId, InodeKey,
    PortSetId, ScopeId, SubjectId, Tgid, WatchNode,
};

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

    /// A value that is `after` from generation `next` on, and until then what `known` is in `current`; `None` if that is
    /// so already.
    pub fn from_then_on(
        known: Option<Self>,
        after: T,
        current: Generation,
        next: Generation,
    ) -> Option<Self>
    where
        T: Default + PartialEq,
    {
        let before = known.map_or(T::default(), |it| it.at(current));
        if known.is_some_and(|it| it.at(next) == after) && before == after {
            return None;
        }
        Some(Self {
            from: next,
            before,
            after,
        })
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bundle {
    /// When the bundle itself expires.
    pub expires: BootNs,
    /// Until when it is known that nothing newer has been issued; the daemon moves it while the bundle is in force.
    pub fresh_until: BootNs,
    /// Which generation this describes; 0 before the first bundle.
    pub generation: Generation,
    /// Destinations that every holder may reach.
    pub baseline: ScopeId,
    /// Default [`Mode`](crate::verdict::Mode).
    pub mode: u8,
    /// Default [`Action`](crate::verdict::Action).
    pub action: u8,
    /// [`Mode`](crate::verdict::Mode) of denials that only the bundle's own expiry causes.
    pub on_expiry: u8,
    /// 1 if answers on accepted connections are permitted without an entitlement.
    pub inbound_permitted: u8,
    /// Which selector masks some subject has: bit `mask` for each.
    pub masks: u8,
    /// 1 if some credential is an environment variable.
    pub environment: u8,
    /// 1 while a canary of this node gets through: then no holder may reach anything.
    pub degraded: u8,
    /// [`Bundle::UNCLASSIFIED_DENIED`] and [`Bundle::FOLLOWS`].
    pub flags: u8,
    /// Always 0, which the verifier cannot know: see [`crate::decide`].
    pub zero: u64,
    /// Before this moment no entitlement begins or ends, nor the bundle, nor what is known to be fresh; the daemon moves it.
    pub steady_until: BootNs,
    /// Random, another for each generation: what [`crate::seal`] is made with.
    pub secret: [u64; 2],
}

impl Bundle {
    /// What a container does of which it is not known yet what it is, is denied as ever, and not permitted and recorded. As
    /// a number it is [`Mode::Enforce`](crate::verdict::Mode).
    pub const UNCLASSIFIED_DENIED: u8 = 1;
    /// Some credential is followed ([`Credential::FOLLOW`]).
    pub const FOLLOWS: u8 = 2;
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

    /// It can be an environment variable: reading those of its holder reads it.
    pub const ENVIRONMENT: u32 = 8;
    /// Whoever is handed it by a holder holds it too, in another workload as well; and files that a holder writes are
    /// as protected as it is.
    pub const FOLLOW: u32 = 16;

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }
}

/// Declares a key made of whole words. The verifier tells apart what was left in a half-written word from
/// an earlier look-up, and then walks the same path again; whole words it forgets.
macro_rules! word_key {
    ($(#[$doc:meta])* $name:ident[$words:literal]) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name([u64; $words]);
    };
}

mod cgroups;
mod holders;
mod origins;
mod usage;

pub use cgroups::{CGROUP_NAME_BYTES, Cgroup, CgroupName};
pub use holders::{Holder, HolderKey};
pub use origins::{AncestorSlot, Origin, OriginKey, Relevant, RelevantKey};
pub use usage::{Usage, UsageKey};

word_key!(
    /// Key of the credentials table: a credential of one generation.
    CredentialKey[1]
);

impl CredentialKey {
    /// The key.
    #[inline(always)]
    pub const fn new(generation: Generation, credential: CredentialId) -> Self {
        Self([(generation.0 as u64) << 32 | credential.0 as u64])
    }
}

word_key!(
    /// Key of the subjects table: any subset of what identifies a task, in one generation.
    SubjectKey[5]
);

impl SubjectKey {
    /// Bit of a selector mask: the executable matters.
    pub const EXECUTABLE: u64 = 1;
    /// Bit of a selector mask: the cgroup's identity matters.
    pub const IDENTITY: u64 = 2;
    /// Bit of a selector mask: the user matters.
    pub const UID: u64 = 4;
    /// How many selector masks there are.
    pub const MASKS: u64 = 8;

    /// The key for `task` when only the parts in `mask` matter. A task that lacks such a part (no
    /// executable, a cgroup that means nothing) gets the key of the mask without it, which is its own too.
    #[inline(always)]
    pub fn of(task: &crate::facts::Task, generation: Generation, mask: u64) -> Self {
        let executable = all_ones(mask & 1);
        let identity = all_ones(mask >> 1 & 1);
        let uid = all_ones(mask >> 2 & 1);
        let inode = &task.executable.inode;
        let generation = u64::from(generation.0) << 32;
        Self([
            reload(&inode.ino) & executable,
            (u64::from(reload(&inode.dev)) << 32 | u64::from(reload(&inode.generation)))
                & executable,
            reload(&task.executable.changed_ns) & executable,
            generation | u64::from(reload(&task.identity.0)) & identity,
            // The user's id, plus one so that root is not the same as anybody.
            (u64::from(reload(&task.uid.0)) + 1) & uid,
        ])
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
    /// [`Subject::TRUSTED`] and the others.
    pub standing: u32,
}

impl Subject {
    /// It is one of the bundle's trusted workloads.
    pub const TRUSTED: u32 = 1;
    /// It is one of the bundle's maintenance tools.
    pub const MAINTENANCE: u32 = 2;
    /// What it is handed, or hands on, makes nobody a holder.
    pub const DECLASSIFIES: u32 = 4;
}

word_key!(
    /// Key of the grants table: who may use what.
    GrantKey[1]
);

impl GrantKey {
    /// The key.
    #[inline(always)]
    pub const fn new(subject: SubjectId, credential: CredentialId) -> Self {
        Self([(subject.0 as u64) << 32 | credential.0 as u64])
    }

    /// Who.
    #[inline(always)]
    pub const fn subject(self) -> SubjectId {
        SubjectId((self.0[0] >> 32) as u32)
    }

    /// The key as one word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0[0]
    }

    /// The key behind [`GrantKey::word`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self([word])
    }
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
    /// A [`Mode`](crate::verdict::Mode).
    pub mode: u8,
    /// An [`Action`](crate::verdict::Action).
    pub action: u8,
    /// [`Grant::REVOKED`] and the others.
    pub flags: u8,
    /// Always 0.
    pub reserved: u8,
}

impl Grant {
    /// It has been taken back.
    pub const REVOKED: u8 = 1;
    /// It ends with [`Bundle::fresh_until`].
    pub const STALE_ENDS: u8 = 2;
    /// With [`Grant::STALE_ENDS`]: what only it covered is permitted then, and recorded.
    pub const STALE_MONITORS: u8 = 4;
}

word_key!(
    /// Key of the scopes table (longest prefix match), in the layout `BPF_MAP_TYPE_LPM_TRIE` wants: the
    /// prefix length in bits (4 bytes), the scope (4 bytes, always matched whole), the address (16 bytes).
    ScopeKey[3]
);

impl ScopeKey {
    /// The key of a prefix of `bits` bits of the address; 128 for a look-up.
    #[inline(always)]
    pub const fn new(scope: ScopeId, address: &Address, bits: u32) -> Self {
        Self([
            (scope.0 as u64) << 32 | (32 + bits) as u64,
            address.high,
            address.low,
        ])
    }

    /// The prefix length of the whole key.
    pub const fn prefix_bits(&self) -> u32 {
        self.0[0] as u32
    }

    /// What follows the prefix length, as the trie compares it.
    pub fn data(&self) -> [u8; 20] {
        tail(&self.0)
    }
}

word_key!(
    /// Key of the ports table (longest prefix match): the prefix length in bits (4 bytes), the port set
    /// (4 bytes), the protocol (1 byte), the port (2 bytes, network order), 5 bytes that never count.
    PortKey[2]
);

impl PortKey {
    /// The key of a prefix of `bits` bits of `port`; 16 for a look-up.
    #[inline(always)]
    pub const fn new(ports: PortSetId, protocol: u8, port: u16, bits: u32) -> Self {
        Self([
            (ports.0 as u64) << 32 | (32 + 8 + bits) as u64,
            protocol as u64 | (port.swap_bytes() as u64) << 8,
        ])
    }

    /// The prefix length of the whole key.
    pub const fn prefix_bits(&self) -> u32 {
        self.0[0] as u32
    }

    /// What follows the prefix length, as the trie compares it.
    pub fn data(&self) -> [u8; 12] {
        tail(&self.0)
    }
}

/// The bytes of `words` after the first four.
fn tail<const W: usize, const B: usize>(words: &[u64; W]) -> [u8; B] {
    let mut bytes = [0; B];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = (words[(at + 4) / 8] >> (8 * ((at + 4) % 8))) as u8;
    }
    bytes
}

word_key!(
    /// Key of the table of the daemon's own programs, maps and links: the command of `bpf(2)` that opens one by its
    /// number, and the number.
    OwnObject[1]
);

impl OwnObject {
    /// The key.
    #[inline(always)]
    pub const fn new(command: u32, number: u32) -> Self {
        Self([(command as u64) << 32 | number as u64])
    }
}

word_key!(
    /// Key of the endpoints table.
    EndpointKey[3]
);

impl EndpointKey {
    /// The key.
    #[inline(always)]
    pub const fn new(address: &Address, port: u16) -> Self {
        Self([address.high, address.low, port as u64])
    }
}

/// Longest name of an abstract unix socket, in bytes.
pub const SOCKET_NAME_BYTES: usize = 107;

/// Key of the table of abstract unix sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct SocketName {
    /// How many bytes the name has.
    pub len: u64,
    /// The name, NUL-padded.
    pub name: [u8; 128],
}

impl SocketName {
    /// The key; `None` if the name is longer than [`SOCKET_NAME_BYTES`].
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut key = Self {
            len: name.len() as u64,
            name: [0; 128],
        };
        key.name[..SOCKET_NAME_BYTES]
            .get_mut(..name.len())?
            .copy_from_slice(name);
        Some(key)
    }
}

/// Longest `NAME=` of an environment variable that can be a credential, in bytes.
pub const VARIABLE_BYTES: usize = 63;

/// Key of the table of environment variables (longest prefix match): the prefix length in bits, the generation,
/// the beginning of `NAME=VALUE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct Variable {
    /// Bits of generation and text that count.
    pub bits: u32,
    /// The generation.
    pub generation: Generation,
    /// The text, NUL-padded.
    pub text: [u8; 64],
}

impl Variable {
    /// The key for a look-up: everything counts.
    pub const ALL_BITS: u32 = 32 + 8 * 64;

    /// The key of a variable; `None` if its name is longer than [`VARIABLE_BYTES`] with the `=`.
    pub fn new(generation: Generation, name: &str) -> Option<Self> {
        let mut key = Self {
            bits: 32 + 8 * (name.len() as u32 + 1),
            generation,
            text: [0; 64],
        };
        let text = key.text[..VARIABLE_BYTES].get_mut(..=name.len())?;
        text[..name.len()].copy_from_slice(name.as_bytes());
        text[name.len()] = b'=';
        Some(key)
    }

    /// What follows the prefix length, as the trie compares it.
    pub fn data(&self) -> [u8; 68] {
        let mut data = [0; 68];
        data[..4].copy_from_slice(&self.generation.0.to_ne_bytes());
        data[4..].copy_from_slice(&self.text);
        data
    }
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

/// Value of the table of overlay copies under way, by thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CopyUp {
    /// The new inode; all zero until it is made.
    pub to: InodeKey,
    /// The credential that is copied, if the overlay's own inode is known as one.
    pub credential: CredentialId,
    /// Always 0.
    pub reserved: u32,
}

/// Value of the tables of shares: what was told of a process's denials, or of a workload's kills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Share {
    /// When, in units of 2^30 ns; of kills, in minutes.
    pub second: u64,
    /// How many.
    pub told: u64,
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
    /// 1 once a packet of this TCP connection was dropped: what is still queued must not be sent again when
    /// the holder has ended.
    pub condemned: u32,
    /// Always 0.
    pub reserved: u32,
    /// The last [`Verdict`](crate::verdict::Verdict) that let `task` reach something from here.
    pub verdict: u64,
    /// That verdict's [`crate::seal`]; 0 if there is none.
    pub seal: u64,
}

impl SocketRecord {
    /// Nothing recorded.
    pub const NONE: Self = Self {
        task: crate::facts::Task::NOBODY,
        inbound: 0,
        used: 0,
        condemned: 0,
        reserved: 0,
        verdict: 0,
        seal: 0,
    };
}

/// What governance had in force on the node. No program asks; the next daemon does, and takes nothing older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Governed {
    /// The beginning of the configured trust root's digest: under another one all begins anew.
    pub anchor: u64,
    /// Of the bundle.
    pub version: u64,
    /// Of the last revocation.
    pub sequence: u64,
    /// Of the trust root that followed the configured one.
    pub root_version: u64,
    /// The first half of that one's digest, the beginning first.
    pub root_digest: [u64; 2],
}

/// What a decision may ask. Implemented over BPF maps in the kernel and over hash maps in user space.
pub trait Tables {
    /// The bundle in force; `None` before the first one.
    fn bundle(&self) -> Option<&Bundle>;
    /// A credential, if the bundle has it.
    fn credential(&self, key: &CredentialKey) -> Option<Credential>;
    /// The workloads behind a key.
    fn subject(&self, key: &SubjectKey) -> Option<Subject>;
    /// The entitlements of a subject to a credential.
    fn grants(&self, key: &GrantKey) -> Option<&Grants>;
    /// Which entitlements of the scope cover a destination, a bit for each: its address, and its
    /// [`Destination::transport`](crate::address::Destination::transport), of which the low 24 bits count.
    fn covers(&self, scope: ScopeId, address: &Address, transport: u64) -> u32;
    /// [`crate::decide::weigh`]. The kernel makes it a function that is verified once for all its callers.
    #[inline(always)]
    fn weigh(&self, key: GrantKey, now: BootNs, address: &Address, transport: u64) -> u64 {
        crate::decide::weigh(self, key, now, address, transport)
    }
    /// Whether the baseline covers a destination, likewise.
    #[inline(always)]
    fn baseline(&self, scope: ScopeId, address: &Address, transport: u64) -> bool {
        self.covers(scope, address, transport) != 0
    }
    /// [`crate::decide::near`], likewise.
    #[inline(always)]
    fn near(&self, key: GrantKey) -> u64 {
        crate::decide::near(self, key)
    }
    /// The credential in one slot of a holder.
    fn held(&self, key: &HolderKey) -> Option<CredentialId>;
    /// Whether the task may hold something that could not be recorded, for want of room.
    #[inline(always)]
    fn unaccounted(&self, _task: &Task) -> bool {
        false
    }
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
    crate::ids::NameDigest = 16,
    crate::facts::Task = 64,
    Versioned<CredentialId> = 12,
    Versioned<IdentityId> = 12,
    Versioned<ScopeId> = 12,
    Bundle = 64,
    Credential = 4,
    CredentialKey = 8,
    SubjectKey = 40,
    Subject = 12,
    GrantKey = 8,
    Grant = 24,
    Grants = 104,
    ScopeKey = 24,
    PortKey = 16,
    Holder = 16,
    HolderKey = 24,
    Cgroup = 32,
    Origin = 16,
    OriginKey = 16,
    RelevantKey = 8,
    Relevant = 16,
    AncestorSlot = 24,
    Governed = 48,
    CgroupName = 192,
    EndpointKey = 24,
    OwnObject = 8,
    SocketName = 136,
    Variable = 72,
    Watch = 16,
    Capture = 104,
    crate::address::Destination = 24,
    CopyUp = 24,
    Share = 16,
    UsageKey = 80,
    Usage = 24,
    SocketRecord = 96,
    crate::watch::ChildKey = 72,
    crate::watch::PatternKey = 8,
    crate::watch::Pattern = 104,
    crate::watch::Node = 4,
    crate::layout::Offsets = 616,
    crate::iterate::Wanted = 8,
    crate::iterate::Marking = 24,
    CgroupId = 8,
    Generation = 4,
    IdentityId = 4,
    Tgid = 4,
    crate::ids::Tid = 4,
    CredentialId = 4,
    ScopeId = 4,
    WatchNode = 4,
    PortSetId = 4,
}
