//! Processes that had a credential mapped before the gates were in place.

use std::collections::{BTreeSet, HashMap};

use enforcer_common::ids::{CredentialId, InodeKey, Tgid};
use procfs::process::Process;

/// Looks through the mappings of all processes. `/proc/PID/maps` names files by device and inode as the kernel
/// has them, which is not what `stat` says on overlayfs and btrfs. A process that ends meanwhile is left out.
pub fn holding(
    files: impl Iterator<Item = (InodeKey, CredentialId)>,
) -> BTreeSet<(Tgid, CredentialId)> {
    let known: HashMap<(u32, u64), CredentialId> = files
        .map(|(key, credential)| ((key.dev, key.ino), credential))
        .collect();
    let own = std::process::id();
    let processes = procfs::process::all_processes().into_iter().flatten();
    processes
        .flatten()
        .map(|process| (Tgid(process.pid().cast_unsigned()), process))
        .filter(|(tgid, _)| tgid.0 != own)
        .flat_map(|(tgid, process)| {
            mapped(&process, &known)
                .map(move |it| (tgid, it))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn mapped(
    process: &Process,
    known: &HashMap<(u32, u64), CredentialId>,
) -> impl Iterator<Item = CredentialId> {
    let maps = process.maps().map(|maps| maps.0).unwrap_or_default();
    maps.into_iter().filter_map(|map| {
        let device = kernel_device(map.dev.0.cast_unsigned(), map.dev.1.cast_unsigned());
        known.get(&(device, map.inode)).copied()
    })
}

/// A device number in the kernel's own encoding.
fn kernel_device(major: u32, minor: u32) -> u32 {
    major << 20 | minor
}
