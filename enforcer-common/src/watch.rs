//! Paths that become credentials when they appear.
//!
//! The sources of a bundle form a tree of path components: [`Node`]s, joined by literal names
//! ([`ChildKey`]) and by wildcards ([`Pattern`]). A directory on the node that is reached by following the
//! tree is *watched*: the kernel knows by its inode which nodes it stands for. When a name appears in a
//! watched directory (created, looked up, renamed or linked there), the kernel follows the tree one step
//! and protects the file, or watches the directory, in the same operation: there is no window.
//!
//! A pattern in the kernel is a prefix and a suffix. Where a glob says more (`?`, `[a-z]`, two stars) the
//! kernel's pattern matches more than the glob; the daemon looks again and lifts what was too much.

use crate::branchless::less;
use crate::ids::{CredentialId, WatchNode};

/// Longest literal name in the tree, in bytes.
pub const NAME_BYTES: usize = 64;
/// Longest prefix of a pattern, in bytes.
pub const PREFIX_BYTES: usize = 32;
/// Longest suffix of a pattern, in bytes.
pub const SUFFIX_BYTES: usize = 16;

/// Key of the children table: one literal step down the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ChildKey {
    /// The node above.
    pub node: WatchNode,
    /// Length of the name, bytes.
    pub len: u32,
    /// The name, NUL-padded, as words in memory order.
    pub name: [u64; NAME_BYTES / 8],
}

impl ChildKey {
    /// The step from `node` by `name`; `None` if the name is too long for a literal step.
    pub fn new(node: WatchNode, name: &[u8]) -> Option<Self> {
        let mut padded = [0; NAME_BYTES];
        padded.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self {
            node,
            len: name.len() as u32,
            name: words(&padded),
        })
    }
}

/// Key of the patterns table: one wildcard step down the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PatternKey {
    /// The node above.
    pub node: WatchNode,
    /// Counts the patterns of the node from 0, without a gap.
    pub slot: u32,
}

/// Value of the patterns table. Bytes and masks as words in memory order, so that the kernel compares
/// eight bytes at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pattern {
    /// Bytes the name must begin with.
    pub prefix: [u64; PREFIX_BYTES / 8],
    /// Which of them matter.
    pub prefix_mask: [u64; PREFIX_BYTES / 8],
    /// Bytes the name must end with, right-aligned.
    pub suffix: [u64; SUFFIX_BYTES / 8],
    /// Which of them matter.
    pub suffix_mask: [u64; SUFFIX_BYTES / 8],
    /// Shortest name that can match.
    pub min_len: u32,
    /// The node below.
    pub target: WatchNode,
}

impl Pattern {
    /// A pattern for names that begin with `prefix` and end with `suffix`. What does not fit is left out,
    /// which makes the pattern wider, never narrower.
    pub fn new(prefix: &[u8], suffix: &[u8], target: WatchNode) -> Self {
        let prefix = &prefix[..prefix.len().min(PREFIX_BYTES)];
        let suffix = &suffix[suffix.len() - suffix.len().min(SUFFIX_BYTES)..];
        let mut head = ([0_u8; PREFIX_BYTES], [0_u8; PREFIX_BYTES]);
        head.0[..prefix.len()].copy_from_slice(prefix);
        head.1[..prefix.len()].fill(0xff);
        let mut tail = ([0_u8; SUFFIX_BYTES], [0_u8; SUFFIX_BYTES]);
        tail.0[SUFFIX_BYTES - suffix.len()..].copy_from_slice(suffix);
        tail.1[SUFFIX_BYTES - suffix.len()..].fill(0xff);
        Self {
            prefix: words(&head.0),
            prefix_mask: words(&head.1),
            suffix: words(&tail.0),
            suffix_mask: words(&tail.1),
            min_len: (prefix.len() + suffix.len()) as u32,
            target,
        }
    }

    /// Whether a name of `len` bytes matches, given its first bytes (NUL-padded, at least as
    /// many as a prefix has) and its last bytes
    /// (right-aligned; what stands before a shorter name does not matter).
    #[inline(always)]
    pub fn matches(
        &self,
        len: u32,
        first: &[u64; NAME_BYTES / 8],
        last: &[u64; SUFFIX_BYTES / 8],
    ) -> bool {
        // Without branches, each of which the verifier would walk.
        let differs = (first[0] ^ self.prefix[0]) & self.prefix_mask[0]
            | (first[1] ^ self.prefix[1]) & self.prefix_mask[1]
            | (first[2] ^ self.prefix[2]) & self.prefix_mask[2]
            | (first[3] ^ self.prefix[3]) & self.prefix_mask[3]
            | (last[0] ^ self.suffix[0]) & self.suffix_mask[0]
            | (last[1] ^ self.suffix[1]) & self.suffix_mask[1];
        let too_short = less(u64::from(len), u64::from(self.min_len));
        differs | too_short == 0
    }
}

/// Bytes as words in memory order.
fn words<const B: usize, const W: usize>(bytes: &[u8; B]) -> [u64; W] {
    let mut words = [0; W];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        *word = u64::from_ne_bytes(eight);
    }
    words
}

/// Value of the nodes table: what a file is that arrives at this node; 0 if it is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Node {
    /// The credential.
    pub credential: CredentialId,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &Pattern, name: &str) -> bool {
        let bytes = name.as_bytes();
        let mut first = [0_u8; NAME_BYTES];
        let head = bytes.len().min(NAME_BYTES);
        first[..head].copy_from_slice(&bytes[..head]);
        let mut last = [0x5a_u8; SUFFIX_BYTES];
        let tail = bytes.len().min(SUFFIX_BYTES);
        last[SUFFIX_BYTES - tail..].copy_from_slice(&bytes[bytes.len() - tail..]);
        pattern.matches(bytes.len() as u32, &words(&first), &words(&last))
    }

    #[test]
    fn prefix_and_suffix_must_both_fit() {
        let pattern = Pattern::new(b"id_", b".pem", WatchNode(1));
        for (name, expected) in [
            ("id_.pem", true),
            ("id_rsa.pem", true),
            ("id_rsa", false),
            ("id.pem", false),
            ("xid_rsa.pem", false),
            ("id_pem", false),
            ("", false),
        ] {
            assert_eq!(matches(&pattern, name), expected, "{name}");
        }
        assert!(matches(&Pattern::new(b"", b"", WatchNode(1)), "anything"));
    }

    #[test]
    fn parts_that_are_too_long_only_widen() {
        let long = "a".repeat(PREFIX_BYTES + 5);
        let pattern = Pattern::new(long.as_bytes(), b"", WatchNode(1));
        assert!(matches(&pattern, &long));
        assert!(!matches(&pattern, "b"));
    }
}
