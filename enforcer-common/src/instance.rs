//! Which cgroups are workload instances: where holding begins and ends.

/// How many bytes from the beginning of a name are looked at: a container's id.
pub const FIRST: usize = 64;
/// How many bytes from the end of a name are looked at: `.service`.
pub const LAST: usize = 8;

/// What a cgroup's own name says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A systemd slice: groups units, is none itself.
    Slice,
    /// A systemd service, scope or a container: a workload instance, with all below it.
    Instance,
    /// A per-user service manager, `user@UID.service`: the units below it are the instances.
    UserManager,
    /// Anything else: belongs to what its parent belongs to.
    Other,
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
    } else if len > 6 && last << 16 == u64::from_be_bytes(*b".scope\0\0")
        || starts_with(first, b"lxc.payload.")
        || len == FIRST && all_hex(first)
    {
        NameKind::Instance
    } else {
        NameKind::Other
    }
}

/// [`classify`] for a whole name.
pub fn classify_name(name: &[u8]) -> NameKind {
    let mut first = [0; FIRST];
    let head = name.len().min(FIRST);
    first[..head].copy_from_slice(&name[..head]);
    let mut last = [0; LAST];
    let tail = name.len().min(LAST);
    last[LAST - tail..].copy_from_slice(&name[name.len() - tail..]);
    classify(name.len(), &first, &last)
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
            ("session-3.scope", NameKind::Instance),
            ("init.scope", NameKind::Instance),
            ("user@1000.service", NameKind::UserManager),
            ("cri-containerd-0123.scope", NameKind::Instance),
            ("lxc.payload.web", NameKind::Instance),
            ("kubepods", NameKind::Other),
            (".service", NameKind::Other),
            ("services", NameKind::Other),
            ("", NameKind::Other),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(kind(&id), NameKind::Instance);
        assert_eq!(kind(&id.replace('a', "g")), NameKind::Other);
    }
}
