//! Overlay copy-up: a credential's bytes get a second inode, which is protected before they are in it.
//!
//! The kernel copies in one call of one thread: it announces the copy, makes the new inode, opens the old one, and
//! writes (`ovl_copy_up_one`, 5.10 to 7.x).

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use enforcer_common::{
    ids::{CredentialId, InodeKey},
    tables::CopyUp,
};

use crate::{
    file,
    kernel::{inode_key, is_directory, read},
    maps::COPY_UPS,
    offset, presence,
};

/// The current thread is about to copy what the overlay's `dentry` stands for.
#[inline(always)]
pub fn announced(dentry: u64) {
    let key = inode_key(read(dentry + offset!(dentry_inode)));
    let copy = CopyUp {
        to: InodeKey::default(),
        credential: file::credential(&key),
        reserved: 0,
    };
    let _ = COPY_UPS.insert(&bpf_get_current_pid_tgid(), &copy, 0);
}

/// An inode got a name: perhaps the one that the current thread copies to. Returns 0: a result that is no stack
/// pointer.
#[inline(never)]
pub fn named(inode: u64) -> u32 {
    let Some(copy) = COPY_UPS.get_ptr_mut(bpf_get_current_pid_tgid()) else {
        return 0;
    };
    // SAFETY: a pointer into the map, valid until the program ends; only this thread uses its entry.
    let copy = unsafe { &mut *copy };
    if inode == 0 || copy.to.ino != 0 || is_directory(inode) {
        return 0;
    }
    copy.to = inode_key(inode);
    protect(copy, copy.credential);
    0
}

/// The current thread opened a credential to read it: perhaps to copy it.
#[inline(never)]
pub fn opened(credential: CredentialId) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let Some(copy) = COPY_UPS.get_ptr_mut(thread) else {
        return 0;
    };
    // SAFETY: as above.
    protect(unsafe { &*copy }, credential);
    let _ = COPY_UPS.remove(&thread);
    0
}

/// The current thread ends.
#[inline(always)]
pub fn ended() {
    let _ = COPY_UPS.remove(&bpf_get_current_pid_tgid());
}

#[inline(always)]
fn protect(copy: &CopyUp, credential: CredentialId) {
    if copy.to.ino != 0 && credential.0 != 0 {
        let to = copy.to;
        presence::protect(&to, credential);
    }
}
