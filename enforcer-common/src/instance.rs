//! Which cgroups are workload instances: where holding begins and ends.

use crate::ids::CgroupId;
use crate::tables::Cgroup;

/// How many bytes from the beginning of a name are looked at: a container's id.
pub const FIRST: usize = 64;
/// How many bytes from the end of a name are looked at: `.service`.
pub const LAST: usize = 8;

/// What a cgroup's own name says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A systemd slice: groups units, is none itself.
    Slice,
    /// A systemd service or scope: a workload instance, with all below it.
    Instance,
    /// The same, with a name as container runtimes give.
    Container,
    /// The same, with the name of a login session, `session-3.scope`.
    Session,
    /// The same, with the name of where a service manager is itself, `init.scope`.
    Manager,
    /// A per-user service manager, `user@UID.service`: the units below it are the instances.
    UserManager,
    /// Anything else: belongs to what its parent belongs to.
    Other,
}

impl NameKind {
    /// Whether it is an instance, of whatever kind.
    #[inline(always)]
    pub const fn is_instance(self) -> bool {
        matches!(
            self,
            Self::Instance | Self::Container | Self::Session | Self::Manager
        )
    }
}

/// Classifies a cgroup by its name: its length, its first bytes (NUL-padded), and its last bytes
/// (right-aligned; what stands before a shorter name does not matter).
#[inline(always)]
pub fn classify(len: usize, first: &[u8; FIRST], last: &[u8; LAST]) -> NameKind {
    let last = u64::from_be_bytes(*last);
    if len > 6 && last << 16 == u64::from_be_bytes(*b".slice\0\0") {
        NameKind::Slice
    } else if len > 8 && last == u64::from_be_bytes(*b".service") {
        if starts_with(first, b"user@") {
            NameKind::UserManager
        } else {
            NameKind::Instance
        }
    } else if len > 6 && last << 16 == u64::from_be_bytes(*b".scope\0\0") {
        if starts_with(first, b"session-") {
            NameKind::Session
        } else if starts_with(first, b"init.scope\0") {
            NameKind::Manager
        } else if is_of_runtime(first) {
            NameKind::Container
        } else {
            NameKind::Instance
        }
    } else if starts_with(first, b"lxc.payload.") {
        NameKind::Instance
    } else if len == FIRST && all_hex(first) || len > FIRST && is_of_runtime(first) {
        NameKind::Container
    } else {
        NameKind::Other
    }
}

/// Whose service manager it is by the name `user@UID.service`: the UID plus one; 0 if that is no number.
#[inline(always)]
pub fn user_of(len: usize, first: &[u8; FIRST]) -> u32 {
    const BEGIN: usize = 5;
    // A uid has ten digits at most.
    const LONGEST: usize = BEGIN + 10 + LAST;
    if len <= BEGIN + LAST || len > LONGEST {
        return 0;
    }
    let mut uid = 0_u64;
    let mut at = BEGIN;
    while at < LONGEST - LAST {
        let digit = first[at].wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        uid = uid * 10 + u64::from(digit);
        at += 1;
    }
    if at + LAST == len && uid < u64::from(u32::MAX) {
        uid as u32 + 1
    } else {
        0
    }
}

impl Cgroup {
    /// Becomes what a new child of this cgroup is by its own name, but for what it means to the bundle. `user` is
    /// what [`user_of`] says of a [`NameKind::UserManager`].
    #[inline(always)]
    pub fn descend(&mut self, own: CgroupId, kind: NameKind, user: u32) {
        let below_slices = self.has(Self::SLICES_ONLY);
        let is_top = self.has(Self::ROOT);
        let keeps = if let NameKind::Slice = kind {
            Self::SLICES_ONLY
        } else {
            self.user = 0;
            0
        };
        self.flags &= keeps;
        self.unaccounted = 0;
        match kind {
            NameKind::Slice | NameKind::Other => return,
            NameKind::UserManager => {
                if below_slices {
                    self.user = user;
                }
                return;
            }
            NameKind::Session if below_slices => self.flags |= Self::SESSION,
            NameKind::Manager if is_top => self.flags |= Self::MANAGER,
            _ => {}
        }
        if self.instance.0 == 0 {
            self.instance = own;
        }
    }
}

/// [`classify`] for a whole name.
pub fn classify_name(name: &[u8]) -> NameKind {
    let mut last = [0; LAST];
    let tail = name.len().min(LAST);
    last[LAST - tail..].copy_from_slice(&name[name.len() - tail..]);
    classify(name.len(), &beginning(name), &last)
}

/// [`user_of`] for a whole name, whatever it is.
pub fn user_of_name(name: &[u8]) -> u32 {
    match classify_name(name) {
        NameKind::UserManager => user_of(name.len(), &beginning(name)),
        _ => 0,
    }
}

fn beginning(name: &[u8]) -> [u8; FIRST] {
    let mut first = [0; FIRST];
    let head = name.len().min(FIRST);
    first[..head].copy_from_slice(&name[..head]);
    first
}

#[inline(always)]
fn starts_with<const N: usize>(name: &[u8; FIRST], prefix: &[u8; N]) -> bool {
    let mut i = 0;
    while i < N {
        if name[i] != prefix[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// How runtimes begin a container's name, before its id; but not their monitors', which have no digit there but a word with
/// an `o`. Whole words are compared: the verifier counts what is kept of single bytes.
#[inline(always)]
fn is_of_runtime(name: &[u8; FIRST]) -> bool {
    let mut first = 0_u64;
    let mut i = 0;
    while i < 8 {
        first = first << 8 | name[i] as u64;
        i += 1;
    }
    let begins = |prefix: u64, len: u32| first >> (64 - 8 * len) == prefix;
    begins(u64::from_be_bytes(*b"cri-cont"), 8)
        || begins(u64::from_be_bytes(*b"nerdctl-"), 8)
        || begins(u64::from_be_bytes(*b"\0docker-"), 7)
        || begins(u64::from_be_bytes(*b"\0libpod-"), 7) && name[8] != b'o'
        || begins(u64::from_be_bytes(*b"\0\0\0crio-"), 5) && name[6] != b'o'
}

/// The name of a container's cgroup under the cgroupfs driver is its id, 64 hexadecimal digits.
#[inline(always)]
fn all_hex(name: &[u8; FIRST]) -> bool {
    let mut i = 0;
    while i < FIRST {
        if !matches!(name[i], b'0'..=b'9' | b'a'..=b'f') {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> NameKind {
        classify_name(text.as_bytes())
    }

    #[test]
    fn names_as_systemd_and_runtimes_give_them() {
        for (name, expected) in [
            ("system.slice", NameKind::Slice),
            ("backup.service", NameKind::Instance),
            ("session-3.scope", NameKind::Session),
            ("session.scope", NameKind::Instance),
            ("init.scope", NameKind::Manager),
            ("init.scope.scope", NameKind::Instance),
            ("user@1000.service", NameKind::UserManager),
            ("cri-containerd-0123.scope", NameKind::Container),
            ("docker-0123.scope", NameKind::Container),
            ("crio-conmon-0123.scope", NameKind::Instance),
            ("libpod-conmon-0123.scope", NameKind::Instance),
            ("libpod-c123.scope", NameKind::Container),
            ("nerdctl-0123.scope", NameKind::Container),
            ("lxc.payload.web", NameKind::Instance),
            ("kubepods", NameKind::Other),
            (".service", NameKind::Other),
            ("services", NameKind::Other),
            ("", NameKind::Other),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(kind(&id), NameKind::Container);
        assert_eq!(kind(&format!("crio-{id}")), NameKind::Container);
        assert_eq!(kind("crio-config"), NameKind::Other);
        assert_eq!(kind(&id.replace('a', "g")), NameKind::Other);
    }

    #[test]
    fn whose_manager_it_is() {
        for (name, expected) in [
            ("user@1000.service", 1001),
            ("user@0.service", 1),
            ("user@4294967294.service", 4_294_967_295),
            ("user@4294967295.service", 0),
            ("user@99999999999.service", 0),
            ("user@.service", 0),
            ("user@alice.service", 0),
            ("user@1000x.service", 0),
            ("user@1000", 0),
            ("user-1000.slice", 0),
        ] {
            assert_eq!(user_of_name(name.as_bytes()), expected, "{name}");
        }
    }
}
