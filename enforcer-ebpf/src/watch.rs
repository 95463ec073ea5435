//! Protecting files at the moment they appear, see [`enforcer_common::watch`].

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use enforcer_common::{
    branchless::reload,
    capacity::{NODES_PER_WATCH, PATTERNS_PER_NODE},
    event::NoticeKind,
    ids::{CgroupId, CredentialId, InodeKey, WatchNode},
    tables::{Tables, Versioned, Watch},
    watch::{ChildKey, NAME_BYTES, PatternKey, SUFFIX_BYTES},
};

use crate::{
    emit,
    kernel::{QSTR_LEN, QSTR_NAME, inode_key, is_directory, read},
    maps::{CHILDREN, FILES, NODES, PATTERNS, WATCHES},
    offset, presence,
    tables::{KernelTables, settled},
    task,
};

/// What a name leads to: nodes for a directory, a credential for a file.
struct Arrival {
    watch: Watch,
    count: usize,
    credential: CredentialId,
}

/// The inode at `inode` is about to be known, or is known, by the name of `dentry`. Addresses in the kernel.
///
/// `false` if it should be protected and could not be: the table is full.
#[inline(always)]
pub fn appears(dentry: u64, inode: u64) -> bool {
    if inode == 0 {
        return true;
    }
    let parent: u64 = read(dentry + offset!(dentry_parent));
    if parent == 0 || parent == dentry {
        return true;
    }
    let directory = inode_key(read(parent + offset!(dentry_inode)));
    let mut watch = Watch::default();
    if !settled(&WATCHES, &directory, &mut watch) {
        return true;
    }
    arrive(&watch, directory, dentry, inode)
}

/// Follows the tree one step from a watched directory.
#[inline(never)]
fn arrive(watch: &Watch, directory: InodeKey, dentry: u64, inode: u64) -> bool {
    let name: u64 = read(dentry + offset!(dentry_name) + QSTR_NAME);
    let len: u32 = read(dentry + offset!(dentry_name) + QSTR_LEN);
    let mut child = ChildKey {
        node: WatchNode(0),
        len,
        name: [0; NAME_BYTES / 8],
    };
    let kept = if len as usize > NAME_BYTES {
        NAME_BYTES as u32
    } else {
        len
    };
    // SAFETY: reads at most the array's size; a failing read leaves zeroes.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut child.name).cast(),
            kept & (2 * NAME_BYTES as u32 - 1),
            name as *const _,
        );
    }
    // What stands before a short name is masked out by the pattern.
    let last: [u64; SUFFIX_BYTES / 8] = read(
        name.wrapping_add(len as u64)
            .wrapping_sub(SUFFIX_BYTES as u64),
    );

    let Some(bundle) = KernelTables.bundle() else {
        return true;
    };
    // A zero that the verifier does not know: else it would keep apart what was found so far.
    let zero = reload(&bundle.zero);
    let mut arrival = Arrival {
        watch: Watch {
            nodes: [WatchNode(zero as u32); NODES_PER_WATCH],
        },
        count: 0,
        credential: CredentialId(zero as u32),
    };
    let mut index = 0;
    while index < NODES_PER_WATCH {
        let node = watch.nodes[index];
        index += 1;
        if node.0 == 0 {
            break;
        }
        child.node = node;
        // SAFETY: copied at once.
        if let Some(target) = unsafe { CHILDREN.get(&child) }.copied() {
            arrival.reach(target);
        }
        let mut slot = 0;
        while slot < PATTERNS_PER_NODE {
            // SAFETY: read before anything else can replace the entry.
            let Some(pattern) = (unsafe { PATTERNS.get(&PatternKey { node, slot }) }) else {
                break;
            };
            if pattern.matches(len, &child.name, &last) {
                arrival.reach(pattern.target);
            }
            slot += 1;
        }
    }
    arrival.apply(directory, name, inode)
}

impl Arrival {
    #[inline(always)]
    fn reach(&mut self, node: WatchNode) {
        // SAFETY: copied at once.
        let known = unsafe { NODES.get(&node) }.copied();
        if self.credential.0 == 0 {
            self.credential = known.unwrap_or_default().credential;
        }
        // A pattern with two `**` can lead to one node in two ways.
        let mut index = 0;
        while index < NODES_PER_WATCH {
            if self.watch.nodes[index] == node {
                return;
            }
            index += 1;
        }
        if self.count < NODES_PER_WATCH {
            self.watch.nodes[self.count] = node;
            self.count += 1;
        }
    }

    #[inline(always)]
    fn apply(&self, directory: InodeKey, name: u64, inode: u64) -> bool {
        if self.count == 0 {
            return true;
        }
        let key = inode_key(inode);
        let done = if is_directory(inode) {
            WATCHES.insert(&key, &self.watch, 0).is_ok()
        } else if self.credential.0 == 0 {
            return true;
        } else {
            protect(key, self.credential)
        };
        let kind = if done {
            NoticeKind::Appeared
        } else {
            NoticeKind::TableFull
        };
        emit::notice(kind, CgroupId(0), directory, key, name);
        done
    }
}

/// Protects a file in the generation in force and all later ones, unless the daemon already said what it is.
#[inline(always)]
fn protect(file: InodeKey, credential: CredentialId) -> bool {
    let mut known = Versioned::constant(CredentialId(0));
    if settled(&FILES, &file, &mut known) && known.at(task::generation()).0 != 0 {
        return true;
    }
    presence::protect(&file, credential)
}

/// An inode is freed: if its last name is gone, its number may come to mean another file.
#[inline(always)]
pub fn freed(inode: u64) {
    let links: u32 = read(inode + offset!(inode_nlink));
    if links == 0 {
        let key = inode_key(inode);
        presence::unprotect(&key);
        let _ = WATCHES.remove(&key);
    }
}
