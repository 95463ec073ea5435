//! Processes that had a credential open before the gates were in place.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use enforcer_common::ids::{CredentialId, Tgid};

/// What a process has open or mapped.
pub type Open = BTreeMap<Tgid, BTreeSet<CredentialId>>;

/// Looks through all processes for descriptors and mappings of `files`, found by device and inode number as
/// `stat` tells them. A process that ends meanwhile is left out.
pub fn holding<'a>(files: impl Iterator<Item = (CredentialId, &'a Path)>) -> Open {
    let known: BTreeMap<(u64, u64), CredentialId> = files
        .filter_map(|(credential, path)| {
            let metadata = std::fs::metadata(path).ok()?;
            Some(((metadata.dev(), metadata.ino()), credential))
        })
        .collect();
    let mut open = Open::new();
    let Ok(processes) = procfs::process::all_processes() else {
        return open;
    };
    let own = std::process::id();
    for process in processes.flatten() {
        let pid = process.pid();
        if pid as u32 == own {
            continue;
        }
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        let opened = descriptors.flatten().filter_map(|descriptor| {
            let metadata = std::fs::metadata(descriptor.path()).ok()?;
            known.get(&(metadata.dev(), metadata.ino()))
        });
        let maps = process.maps().map(|maps| maps.0).unwrap_or_default();
        let mapped = maps.iter().filter_map(|map| {
            let device = libc::makedev(map.dev.0 as u32, map.dev.1 as u32);
            known.get(&(device, map.inode))
        });
        let found: BTreeSet<CredentialId> = opened.chain(mapped).copied().collect();
        if !found.is_empty() {
            open.insert(Tgid(pid as u32), found);
        }
    }
    open
}
