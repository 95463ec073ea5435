//! Files get names, get others, and go.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use enforcer_common::event::Gate;
use enforcer_ebpf::{copy_up, forward, kernel::read, offset, respond, tamper, watch};

/// `void d_instantiate(struct dentry *dentry, struct inode *inode)`
#[lsm(hook = "d_instantiate")]
pub fn d_instantiate(ctx: LsmContext) -> i32 {
    let inode = ctx.arg::<*const u8>(1) as u64;
    watch::appears(ctx.arg::<*const u8>(0) as u64, inode);
    copy_up::named(inode);
    respond::PERMIT
}

/// `int inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir,
/// struct dentry *new_dentry)`: protected before the name changes, over-protected if that then fails.
#[lsm(hook = "inode_rename")]
pub fn inode_rename(ctx: LsmContext) -> i32 {
    let old = ctx.arg::<*const u8>(1) as u64;
    let new = ctx.arg::<*const u8>(3) as u64;
    let protected = watch::appears(new, read(old + offset!(dentry_inode)));
    respond::lsm(!protected || tamper::unpinned(old, Gate::InodeRename))
}

/// `int inode_copy_up(struct dentry *src, struct cred **new)`: an overlay is about to copy a file.
#[lsm(hook = "inode_copy_up")]
pub fn inode_copy_up(ctx: LsmContext) -> i32 {
    copy_up::announced(ctx.arg::<*const u8>(0) as u64);
    respond::PERMIT
}

/// `int inode_link(struct dentry *old_dentry, struct inode *dir, struct dentry *new_dentry)`
#[lsm(hook = "inode_link")]
pub fn inode_link(ctx: LsmContext) -> i32 {
    let old = ctx.arg::<*const u8>(0) as u64;
    let new = ctx.arg::<*const u8>(2) as u64;
    let protected = watch::appears(new, read(old + offset!(dentry_inode)));
    respond::lsm(!protected)
}

/// `void inode_free_security(struct inode *inode)`
#[lsm(hook = "inode_free_security")]
pub fn inode_free_security(ctx: LsmContext) -> i32 {
    let inode = ctx.arg::<*const u8>(0) as u64;
    watch::freed(inode);
    forward::freed(inode);
    respond::PERMIT
}
