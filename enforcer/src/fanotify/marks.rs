//! Marks: of which files and directories the kernel asks before it lets them be opened.
//!
//! - A protected file has a mark on its inode, which a hard link, a rename, a bind mount or another mount
//!   namespace does not change. It asks for each open, and for each read where the kernel still can.
//! - A directory in which a protected file may appear has a mark for its children: a new file is asked about
//!   before anybody has read it, even before the daemon has heard of it.
//! - A file system of its own, all of whose content is one credential (a Kubernetes secret volume), has a mark
//!   as a whole.
//! - Every watched directory is followed by inotify for what is created in it or moved there. This one does not
//!   ask, it tells, and so there is a moment in which a new subdirectory is not marked yet.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use enforcer_common::ids::{CredentialId, InodeKey};
use nix::sys::fanotify::{Fanotify, MarkFlags, MaskFlags};
use nix::sys::inotify::{AddWatchFlags, Inotify, WatchDescriptor};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};

use crate::compile::Policy;

/// `RAMFS_MAGIC`, which libc does not have.
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// What a mark is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A protected file.
    File,
    /// A directory in which one may appear.
    Directory,
    /// A file system of nothing else.
    Volume,
}

impl Kind {
    fn flags(self) -> MarkFlags {
        match self {
            Self::File | Self::Directory => MarkFlags::FAN_MARK_INODE,
            Self::Volume => MarkFlags::FAN_MARK_FILESYSTEM,
        }
    }

    fn mask(self) -> MaskFlags {
        let open = MaskFlags::FAN_OPEN_PERM;
        match self {
            Self::File | Self::Volume => open | MaskFlags::FAN_ACCESS_PERM,
            Self::Directory => open | MaskFlags::FAN_EVENT_ON_CHILD,
        }
    }
}

/// What there should be, and what the kernel says there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// How many marks are needed.
    pub wanted: usize,
    /// How many of those the kernel has.
    pub effective: usize,
}

/// Which directory an inotify watch is of.
pub(super) type Directories = Arc<Mutex<HashMap<WatchDescriptor, InodeKey>>>;

/// The marks of one group.
pub struct Marks {
    group: Arc<Fanotify>,
    notify: Arc<Inotify>,
    directories: Directories,
    wanted: BTreeMap<(InodeKey, Kind), PathBuf>,
    volumes: BTreeMap<u32, CredentialId>,
}

impl Marks {
    pub(super) fn new(
        group: Arc<Fanotify>,
        notify: Arc<Inotify>,
        directories: Directories,
    ) -> Self {
        Self {
            group,
            notify,
            directories,
            wanted: BTreeMap::new(),
            volumes: BTreeMap::new(),
        }
    }

    /// Marks a protected file.
    pub fn file(&mut self, file: &File, key: InodeKey, path: &Path) {
        self.add(file, key, Kind::File, path);
    }

    /// Marks a watched directory; `ends` says whether a protected file may appear right in it.
    pub fn directory(
        &mut self,
        directory: &File,
        key: InodeKey,
        path: &Path,
        policy: &Policy,
        ends: bool,
    ) {
        let descriptor = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let flags =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        match self.notify.add_watch(descriptor.as_str(), flags) {
            Ok(watch) => {
                self.directories
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(watch, key);
            }
            Err(error) => {
                tracing::warn!(directory = %path.display(), %error, "cannot be watched: what appears in it is found at the next look, within ten seconds; raise fs.inotify.max_user_watches");
            }
        }
        if let Some(credential) = volume(directory, path, policy) {
            self.add(directory, key, Kind::Volume, path);
            self.volumes.insert(key.dev, credential);
        }
        if ends {
            self.add(directory, key, Kind::Directory, path);
        }
    }

    fn add(&mut self, file: &File, key: InodeKey, kind: Kind, path: &Path) {
        let marked = mark(&self.group, file.as_fd(), kind);
        let new = self.wanted.insert((key, kind), path.to_owned()).is_none();
        if let Err(error) = marked
            && new
        {
            tracing::error!(path = %path.display(), %error, "the kernel does not take a mark here: reads are not gated");
        }
    }

    /// File systems all of whose content is a credential.
    pub fn volumes(&self) -> &BTreeMap<u32, CredentialId> {
        &self.volumes
    }

    /// Takes off what is not wanted any more, except where another file has the path now.
    pub fn retain(&mut self, wanted: impl Fn(&InodeKey, Kind) -> bool) {
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.wanted)
            .into_iter()
            .partition(|((key, kind), _)| wanted(key, *kind));
        for ((key, kind), path) in gone {
            if kind == Kind::Volume {
                self.volumes.remove(&key.dev);
            }
            if !kept.values().any(|it| *it == path) {
                let flags = MarkFlags::FAN_MARK_REMOVE | kind.flags();
                // What is gone has no mark any more.
                let _ = self
                    .group
                    .mark(flags, kind.mask(), nix::fcntl::AT_FDCWD, Some(&path));
            }
        }
        self.wanted = kept;
    }

    /// Asks the kernel which marks there are.
    pub fn survey(&self) -> io::Result<Survey> {
        let path = format!("/proc/self/fdinfo/{}", self.group.as_fd().as_raw_fd());
        Ok(Survey::parse(&std::fs::read_to_string(path)?))
    }

    /// How many marks there should be and are.
    pub fn count(&self) -> Count {
        let survey = self.survey().unwrap_or_default();
        Count {
            wanted: self.wanted.len(),
            effective: self
                .wanted
                .keys()
                .filter(|(key, kind)| survey.has(key, *kind))
                .count(),
        }
    }
}

/// Marks an open file or directory. One that has the mark keeps it.
pub(super) fn mark(group: &Fanotify, file: BorrowedFd<'_>, kind: Kind) -> nix::Result<()> {
    let flags = MarkFlags::FAN_MARK_ADD | kind.flags();
    group.mark(flags, kind.mask(), file, None::<&Path>)
}

/// The credential that everything on the file system of `directory` is: if the directory is where the whole of
/// it is mounted, it lies in memory, and whatever might be in it is that credential.
fn volume(directory: &File, path: &Path, policy: &Policy) -> Option<CredentialId> {
    let kind = fstatfs(directory).ok()?.filesystem_type();
    if kind != TMPFS_MAGIC && kind != FsType(RAMFS_MAGIC as _) {
        return None;
    }
    let credential = policy.credential_of(&path.join("\u{1}"))?;
    if policy.credential_of(&path.join("\u{1}/\u{1}")) != Some(credential) {
        return None;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    is_mounted_whole(&mounts, path).then_some(credential)
}

/// Whether `path` is the mount point of a whole file system.
fn is_mounted_whole(mounts: &str, path: &Path) -> bool {
    mounts.lines().rev().any(|line| {
        let mut fields = line.split(' ').skip(3);
        fields.next() == Some("/")
            && fields
                .next()
                .is_some_and(|point| Path::new(&unescape(point)) == path)
    })
}

/// The kernel writes blanks and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// The marks that the kernel says a group has.
#[derive(Debug, Default)]
pub struct Survey {
    inodes: HashMap<(u64, u32), u64>,
    filesystems: HashMap<u32, u64>,
}

impl Survey {
    fn parse(text: &str) -> Self {
        let mut survey = Self::default();
        for line in text.lines() {
            let Some(fields) = line.strip_prefix("fanotify ") else {
                continue;
            };
            let field = |name: &str| {
                let value = fields
                    .split(' ')
                    .find_map(|field| field.strip_prefix(name)?.strip_prefix(':'))?;
                u64::from_str_radix(value, 16).ok()
            };
            let (Some(device), Some(mask)) = (field("sdev"), field("mask")) else {
                continue;
            };
            match field("ino") {
                Some(inode) => survey.inodes.insert((inode, device as u32), mask),
                None => survey.filesystems.insert(device as u32, mask),
            };
        }
        survey
    }

    /// Whether there is such a mark.
    pub fn has(&self, key: &InodeKey, kind: Kind) -> bool {
        let mask = match kind {
            Kind::File | Kind::Directory => self.inodes.get(&(key.ino, key.dev)),
            Kind::Volume => self.filesystems.get(&key.dev),
        };
        mask.is_some_and(|mask| mask & kind.mask().bits() == kind.mask().bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: InodeKey = InodeKey {
        ino: 0x1a,
        dev: 0x80_0013,
        generation: 7,
    };

    #[test]
    fn a_survey_knows_marks_by_inode_and_by_file_system() {
        let survey = Survey::parse(
            "pos:\t0\nflags:\t02004002\nmnt_id:\t15\nino:\t1\nfanotify flags:114 event-flags:88000\n\
             fanotify ino:1a sdev:800013 mflags:0 mask:30000 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:4f261900a82ad2b6\n\
             fanotify sdev:2b mflags:100 mask:30000 ignored_mask:0\n",
        );
        assert!(survey.has(&KEY, Kind::File));
        assert!(!survey.has(&KEY, Kind::Directory));
        assert!(!survey.has(&KEY, Kind::Volume));
        assert!(survey.has(&InodeKey { dev: 0x2b, ..KEY }, Kind::Volume));
        assert!(!survey.has(&InodeKey { ino: 0x1b, ..KEY }, Kind::File));
    }

    #[test]
    fn only_a_whole_file_system_is_a_volume() {
        let mounts = "30 25 0:26 / /run rw shared:5 - tmpfs tmpfs rw\n\
                      31 25 0:27 /part /srv/part rw - tmpfs tmpfs rw\n\
                      32 25 0:28 / /srv/a\\040b rw - tmpfs tmpfs rw\n";
        assert!(is_mounted_whole(mounts, Path::new("/run")));
        assert!(is_mounted_whole(mounts, Path::new("/srv/a b")));
        assert!(!is_mounted_whole(mounts, Path::new("/srv/part")));
        assert!(!is_mounted_whole(mounts, Path::new("/run/enforcer")));
    }
}
