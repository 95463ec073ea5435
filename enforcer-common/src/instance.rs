//! Which cgroups are workload instances: where holding begins and ends.

/// Longest cgroup name that is looked at, in bytes.
pub const NAME_MAX: usize = 128;

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

/// Classifies a cgroup by its name, in `name[..len]`.
///
/// Written with masked indices and without slicing by a variable, so that the verifier of 5.10 follows.
#[inline(always)]
pub fn classify(name: &[u8; NAME_MAX], len: usize) -> NameKind {
    if len == 0 || len > NAME_MAX {
        return NameKind::Other;
    }
    if ends_with(name, len, b".slice") {
        return NameKind::Slice;
    }
    if ends_with(name, len, b".service") {
        if starts_with(name, b"user@") {
            return NameKind::UserManager;
        }
        return NameKind::Instance;
    }
    if ends_with(name, len, b".scope")
        || starts_with(name, b"lxc.payload.")
        || (len == 64 && all_hex(name))
    {
        return NameKind::Instance;
    }
    NameKind::Other
}

#[inline(always)]
fn ends_with<const N: usize>(name: &[u8; NAME_MAX], len: usize, suffix: &[u8; N]) -> bool {
    if len <= N {
        return false;
    }
    let start = len - N;
    let mut i = 0;
    while i < N {
        if name[(start + i) & (NAME_MAX - 1)] != suffix[i] {
            return false;
        }
        i += 1;
    }
    true
}

#[inline(always)]
fn starts_with<const N: usize>(name: &[u8; NAME_MAX], prefix: &[u8; N]) -> bool {
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
fn all_hex(name: &[u8; NAME_MAX]) -> bool {
    let mut i = 0;
    while i < 64 {
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
        let mut name = [0; NAME_MAX];
        name[..text.len()].copy_from_slice(text.as_bytes());
        classify(&name, text.len())
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
