//! Files that are credentials, and the directories on the way to them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aya::Ebpf;
use enforcer_common::capacity::NODES_PER_WATCH;
use enforcer_common::ids::{CredentialId, Generation, InodeKey, WatchNode};
use enforcer_common::tables::{Versioned, Watch};
use enforcer_common::watch::{ChildKey, NAME_BYTES, PREFIX_BYTES, PatternKey, SUFFIX_BYTES};

use crate::compile::{Policy, WatchTree};
use crate::fanotify::{Kind, Marks, Places, Survey};
use crate::kernel::capture::{self, capture, capture_socket};
use crate::kernel::maps::{self, Maps};
use crate::kernel::protected::Protected;

/// How deep below a source's first directory files are looked for: no tree is deeper, a loop of symbolic
/// links is.
const DEPTH: u32 = 40;

/// What the daemon has put into the tables.
#[derive(Default)]
pub struct Files {
    protected: BTreeMap<InodeKey, (CredentialId, PathBuf)>,
    watched: BTreeMap<InodeKey, PathBuf>,
    /// Where reads are gated by marks, those.
    marks: Option<Marks>,
    /// Sockets that are there and not protected.
    open_sockets: BTreeSet<PathBuf>,
    /// As the last scan of everything found them.
    looked_at: LookedAt,
}

/// What one scan found.
#[derive(Default)]
struct Scan {
    files: BTreeMap<InodeKey, (CredentialId, PathBuf)>,
    watched: BTreeMap<InodeKey, PathBuf>,
    sockets: Vec<(PathBuf, CredentialId)>,
    looked_at: LookedAt,
    /// What was looked at before, which is not opened again.
    before: LookedAt,
    /// Where reads are gated by marks: which there are.
    survey: Option<Survey>,
}

/// The keys of files that were opened, the first being the file's own.
type LookedAt = HashMap<Stamp, Vec<InodeKey>>;

/// Which file it is, without opening it: there is no other one with all of this. A new file in the place of another has
/// another time of change, which nobody can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stamp {
    dev: u64,
    ino: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// `None` for a file that was changed so shortly before `now` that another one may yet come to have the same time.
    fn of(file: &Metadata, now: SystemTime) -> Option<Self> {
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        let now = i64::try_from(now.as_secs()).ok()?;
        (file.ctime() + 1 < now).then_some(Self {
            dev: file.dev(),
            ino: file.ino(),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

impl Scan {
    /// The keys of a file that was looked at before and has the mark that it needs.
    fn known(&self, file: &Metadata) -> Option<(Stamp, Vec<InodeKey>)> {
        let stamp = Stamp::of(file, SystemTime::now())?;
        let keys = self.before.get(&stamp)?;
        let marked = |key| (self.survey.as_ref()).is_none_or(|it| it.has(key, Kind::File));
        (keys.first().is_some_and(marked)).then(|| (stamp, keys.clone()))
    }
}

impl Files {
    /// Takes what is in the tables for its own, whoever put it there. Under which paths is not known.
    pub fn resume(&mut self, ebpf: &mut Ebpf, current: Generation) -> Result<(), maps::Error> {
        let mut maps = Maps(ebpf);
        for (key, credential) in maps.entries::<InodeKey, Versioned<CredentialId>>("FILES")? {
            let known = (credential.at(current), PathBuf::new());
            self.protected.insert(key, known);
        }
        for key in maps.keys::<InodeKey, Watch>("WATCHES")? {
            self.watched.insert(key, PathBuf::new());
        }
        Ok(())
    }

    /// A scan of everything. What was looked at before is lost, unless the scan is [adopted](Self::adopt).
    fn whole_scan(&mut self) -> Scan {
        Scan {
            before: std::mem::take(&mut self.looked_at),
            // Without a survey nothing is known to have its mark.
            survey: (self.marks.as_ref()).map(|it| it.survey().unwrap_or_default()),
            ..Scan::default()
        }
    }

    /// Files whose reads are gated by marks.
    pub fn with_marks(marks: Marks) -> Self {
        Self {
            marks: Some(marks),
            ..Self::default()
        }
    }

    /// The marks, where reads are gated so.
    pub fn marks(&mut self) -> Option<&mut Marks> {
        self.marks.as_mut()
    }

    /// What is protected and watched now, or with a scan that is about to count.
    pub fn places(&self, prepared: Option<&Prepared>) -> Places {
        let (files, directories) = match prepared {
            Some(Prepared { scan, .. }) => (&scan.files, &scan.watched),
            None => (&self.protected, &self.watched),
        };
        Places {
            files: files.iter().map(|(key, (id, _))| (*key, *id)).collect(),
            directories: directories
                .iter()
                .map(|(key, path)| (*key, path.clone()))
                .collect(),
            volumes: self
                .marks
                .iter()
                .flat_map(Marks::volumes)
                .map(|(device, credential)| (*device, *credential))
                .collect(),
        }
    }

    /// Sockets that are credentials and not protected, for instance because this tier gates none.
    pub fn open_sockets(&self) -> impl Iterator<Item = &Path> {
        self.open_sockets.iter().map(PathBuf::as_path)
    }

    /// How many files are protected.
    pub fn count(&self) -> usize {
        self.protected.len()
    }

    /// The directories in which credentials are looked for.
    pub fn watched(&self) -> impl Iterator<Item = &Path> {
        self.watched.values().map(PathBuf::as_path)
    }

    /// Whether the directory that is now at this path is the one that is watched.
    pub fn is_watched(&self, ebpf: &mut Ebpf, path: &Path) -> bool {
        match capture(ebpf, path) {
            Ok((keys, _)) => keys.iter().any(|key| {
                self.watched
                    .get(&key.inode)
                    .is_some_and(|known| known == path)
            }),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "a directory with credentials cannot be looked at");
                false
            }
        }
    }

    /// The path under which a protected file was found.
    pub fn path_of(&self, file: &InodeKey) -> Option<&Path> {
        self.protected.get(file).map(|(_, path)| path.as_path())
    }

    /// Every protected file, with its credential.
    pub fn protected(&self) -> impl Iterator<Item = (InodeKey, CredentialId)> {
        self.protected.iter().map(|(key, (id, _))| (*key, *id))
    }

    /// Watches the tree's directories and protects what matches in them, from generation `next` on, and the files
    /// `inside` containers. Directories are watched before they are listed, so that what appears meanwhile is not missed.
    pub fn prepare(
        &mut self,
        ebpf: &mut Ebpf,
        policy: &Policy,
        current: Generation,
        next: Generation,
        inside: Vec<(InodeKey, CredentialId, PathBuf)>,
    ) -> Result<Prepared, maps::Error> {
        let mut scan = self.whole_scan();
        let marks = &mut self.marks;
        let root = Path::new("/");
        let nodes = [policy.watch.root];
        visit(ebpf, policy, marks, root, &nodes, DEPTH, &mut scan)?;
        for (key, credential, path) in inside {
            scan.files.entry(key).or_insert((credential, path));
        }
        let found = &scan.sockets;
        self.open_sockets
            .retain(|known| found.iter().any(|(path, _)| path == known));
        self.recognise_sockets(ebpf, &mut scan);
        let mut protected = Protected::new(ebpf)?;
        for (key, (credential, _)) in &scan.files {
            protected.put_from(*key, *credential, current, next)?;
        }
        let gone: Vec<InodeKey> = Maps(ebpf)
            .entries::<InodeKey, Versioned<CredentialId>>("FILES")?
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| !scan.files.contains_key(key))
            .collect();
        for key in &gone {
            // What the kernel itself protected since the scan keeps its entry; the notice tells of it.
            if self.protected.contains_key(key) {
                protected.put_from(*key, CredentialId(0), current, next)?;
            }
        }
        Ok(Prepared { scan, gone })
    }

    /// After the swap: takes out what no longer matches.
    pub fn finish(&mut self, ebpf: &mut Ebpf, prepared: Prepared) -> Result<(), maps::Error> {
        let Prepared { scan, gone } = prepared;
        let mut protected = Protected::new(ebpf)?;
        for key in gone {
            if self.protected.contains_key(&key) {
                protected.remove(&key)?;
            }
        }
        self.adopt(ebpf, scan)
    }

    /// From now on this is what is protected and watched.
    fn adopt(&mut self, ebpf: &mut Ebpf, scan: Scan) -> Result<(), maps::Error> {
        for key in self.watched.keys() {
            if !scan.watched.contains_key(key) {
                Maps(ebpf).remove::<InodeKey, Watch>("WATCHES", key)?;
            }
        }
        self.protected = scan.files;
        self.watched = scan.watched;
        self.looked_at = scan.looked_at;
        Ok(())
    }

    /// After a swap: takes off the marks that nothing needs any more. `others` are files that are protected for
    /// other reasons than a path.
    pub fn unmark(&mut self, others: &[InodeKey]) {
        let (protected, watched) = (&self.protected, &self.watched);
        if let Some(marks) = &mut self.marks {
            marks.retain(|key, kind| match kind {
                Kind::File => protected.contains_key(key) || others.contains(key),
                Kind::Directory | Kind::Volume => watched.contains_key(key),
            });
        }
    }

    /// Looks at everything again between two swaps, where marks gate: protects what is there and was missed.
    /// A file that has left its place stays protected for as long as it exists, so that moving it away and
    /// waiting does not help.
    pub fn reconcile(&mut self, ebpf: &mut Ebpf, policy: &Policy) -> Result<(), maps::Error> {
        let mut scan = self.whole_scan();
        let root = Path::new("/");
        let nodes = [policy.watch.root];
        let marks = &mut self.marks;
        visit(ebpf, policy, marks, root, &nodes, DEPTH, &mut scan)?;
        self.recognise_sockets(ebpf, &mut scan);
        let mut protected = Protected::new(ebpf)?;
        for (key, (credential, _)) in &scan.files {
            if self.protected.get(key).map(|(known, _)| known) != Some(credential) {
                protected.put(*key, *credential)?;
            }
        }
        let survey = self.marks.as_ref().and_then(|it| it.survey().ok());
        let exists = |key: &InodeKey| survey.as_ref().is_none_or(|it| it.has(key, Kind::File));
        for (key, known) in std::mem::take(&mut self.protected) {
            if scan.files.contains_key(&key) || !exists(&key) {
                if !scan.files.contains_key(&key) {
                    protected.remove(&key)?;
                }
                continue;
            }
            scan.files.insert(key, known);
        }
        self.adopt(ebpf, scan)
    }

    /// A name appeared in a watched directory, where no program has followed it: protects the file, which is
    /// `file` if the gate has seen it already, or looks into the directory. Whether anything is new by that.
    pub fn arrived(
        &mut self,
        ebpf: &mut Ebpf,
        policy: &Policy,
        directory: &InodeKey,
        file: InodeKey,
        name: &[u8],
    ) -> Result<bool, maps::Error> {
        let Some(parent) = self.watched.get(directory).cloned() else {
            return Ok(false);
        };
        let path = parent.join(std::ffi::OsStr::from_bytes(name));
        let Ok(metadata) = std::fs::metadata(&path) else {
            return self.keep(ebpf, policy, file, path);
        };
        let mut scan = Scan::default();
        if metadata.is_dir() {
            let above: Option<Watch> = Maps(ebpf).get("WATCHES", directory)?;
            let nodes = step(&policy.watch, &above.unwrap_or_default().nodes, name);
            let marks = &mut self.marks;
            visit(ebpf, policy, marks, &path, &nodes, DEPTH, &mut scan)?;
        } else {
            protect_found(ebpf, policy, &mut self.marks, &path, &metadata, &mut scan)?;
        }
        self.recognise_sockets(ebpf, &mut scan);
        let found = !scan.files.is_empty() || !scan.watched.is_empty();
        let mut protected = Protected::new(ebpf)?;
        for (key, (credential, _)) in &scan.files {
            protected.put(*key, *credential)?;
        }
        self.protected.extend(scan.files);
        self.watched.extend(scan.watched);
        Ok(self.keep(ebpf, policy, file, path)? || found)
    }

    /// Keeps a file protected that the gate has seen under `path`, wherever it is now.
    fn keep(
        &mut self,
        ebpf: &mut Ebpf,
        policy: &Policy,
        file: InodeKey,
        path: PathBuf,
    ) -> Result<bool, maps::Error> {
        if file == InodeKey::default() || self.protected.contains_key(&file) {
            return Ok(false);
        }
        let Some(credential) = policy.credential_of(&path) else {
            return Ok(false);
        };
        Protected::new(ebpf)?.put(file, credential)?;
        self.protected.insert(file, (credential, path));
        Ok(true)
    }

    /// Protects these as well, unless they are something already.
    pub fn add(
        &mut self,
        ebpf: &mut Ebpf,
        files: Vec<(InodeKey, CredentialId, PathBuf)>,
    ) -> Result<(), maps::Error> {
        let mut protected = Protected::new(ebpf)?;
        for (key, credential, path) in files {
            if let Entry::Vacant(entry) = self.protected.entry(key) {
                protected.put(key, credential)?;
                entry.insert((credential, path));
            }
        }
        Ok(())
    }

    /// Adds the sockets of a scan to its files, where this tier gates them. Those that are made later are known to the
    /// kernel from the start.
    fn recognise_sockets(&mut self, ebpf: &mut Ebpf, scan: &mut Scan) {
        for (path, credential) in std::mem::take(&mut scan.sockets) {
            let reason = if self.marks.is_some() {
                "this tier does not gate sockets".to_owned()
            } else {
                match capture_socket(ebpf, &path) {
                    Ok(key) => {
                        self.open_sockets.remove(&path);
                        scan.files.insert(key, (credential, path));
                        continue;
                    }
                    Err(error) => crate::chain(&error),
                }
            };
            if self.open_sockets.insert(path.clone()) {
                tracing::warn!(path = %path.display(), reason, "a credential's socket is not protected");
            }
        }
    }

    /// A name appeared in a watched directory: makes the tables say exactly what it is. The kernel's own
    /// entry may be wider than the source's pattern.
    pub fn appeared(
        &mut self,
        ebpf: &mut Ebpf,
        policy: &Policy,
        directory: &InodeKey,
        file: InodeKey,
        name: &[u8],
    ) -> Result<(), maps::Error> {
        let Some(parent) = self.watched.get(directory).cloned() else {
            return Ok(());
        };
        let path = parent.join(std::ffi::OsStr::from_bytes(name));
        let is_directory = std::fs::symlink_metadata(&path).is_ok_and(|it| it.is_dir());
        if is_directory {
            let watch: Option<Watch> = Maps(ebpf).get("WATCHES", &file)?;
            let nodes = watch.unwrap_or_default().nodes;
            let mut scan = Scan::default();
            let marks = &mut self.marks;
            visit(ebpf, policy, marks, &path, &nodes, DEPTH, &mut scan)?;
            self.recognise_sockets(ebpf, &mut scan);
            let mut protected = Protected::new(ebpf)?;
            for (key, (credential, _)) in &scan.files {
                protected.put(*key, *credential)?;
            }
            self.protected.extend(scan.files);
            self.watched.extend(scan.watched);
            return Ok(());
        }
        match policy.credential_of(&path) {
            Some(credential) => {
                Protected::new(ebpf)?.put(file, credential)?;
                self.open_sockets.remove(&path);
                self.protected.insert(file, (credential, path));
            }
            // Only what is still there by this name, and is nothing by another, was protected too much.
            None if !self.protected.contains_key(&file) => {
                Protected::new(ebpf)?.remove(&file)?;
            }
            None => {}
        }
        Ok(())
    }
}

/// What a scan found, to be finished after the swap.
pub struct Prepared {
    scan: Scan,
    gone: Vec<InodeKey>,
}

/// Watches `directory` as `nodes`, and goes on with what is in it.
fn visit(
    ebpf: &mut Ebpf,
    policy: &Policy,
    marks: &mut Option<Marks>,
    directory: &Path,
    nodes: &[WatchNode],
    depth: u32,
    scan: &mut Scan,
) -> Result<(), maps::Error> {
    let nodes: Vec<WatchNode> = nodes.iter().copied().filter(|node| node.0 != 0).collect();
    if nodes.is_empty() || depth == 0 || is_virtual(directory) {
        return Ok(());
    }
    let Some((key, opened)) = watch(ebpf, directory, &nodes, scan)? else {
        return Ok(());
    };
    if let Some(marks) = marks {
        let ends = policy.watch.ends_below(&nodes);
        marks.directory(&opened, key, directory, policy, ends);
    }
    scan.watched.insert(key, directory.to_owned());
    let literal_only = nodes.iter().all(|node| {
        !policy.watch.patterns.contains_key(&PatternKey {
            node: *node,
            slot: 0,
        })
    });
    let names: Vec<std::ffi::OsString> = if literal_only {
        literal_names(&policy.watch, &nodes)
    } else {
        std::fs::read_dir(directory)
            .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
            .unwrap_or_default()
    };
    for name in names {
        let below = step(&policy.watch, &nodes, name.as_bytes());
        if below.is_empty() {
            continue;
        }
        let path = directory.join(&name);
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            visit(ebpf, policy, marks, &path, &below, depth - 1, scan)?;
        } else {
            protect_found(ebpf, policy, marks, &path, &metadata, scan)?;
        }
    }
    Ok(())
}

/// Adds the file at `path` to what was found, if it is a credential.
fn protect_found(
    ebpf: &mut Ebpf,
    policy: &Policy,
    marks: &mut Option<Marks>,
    path: &Path,
    metadata: &Metadata,
    scan: &mut Scan,
) -> Result<(), maps::Error> {
    let Some(credential) = policy.credential_of(path) else {
        return Ok(());
    };
    if metadata.file_type().is_socket() {
        scan.sockets.push((path.to_owned(), credential));
        return Ok(());
    }
    let (stamp, keys) = match scan.known(metadata) {
        Some((stamp, keys)) => (Some(stamp), keys),
        None => match capture(ebpf, path) {
            Ok((keys, opened)) => {
                if let Some(marks) = marks {
                    marks.file(&opened, keys[0].inode, path);
                }
                // Another file may be there by now than the one that was looked at first.
                let opened = opened.metadata().ok();
                let stamp = opened.and_then(|it| Stamp::of(&it, SystemTime::now()));
                (stamp, keys.iter().map(|key| key.inode).collect())
            }
            Err(capture::Error::Table(error)) => return Err(error),
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "a credential's file is not protected");
                return Ok(());
            }
        },
    };
    for key in &keys {
        scan.files
            .entry(*key)
            .or_insert_with(|| (credential, path.to_owned()));
    }
    scan.looked_at.extend(stamp.map(|it| (it, keys)));
    Ok(())
}

/// Puts a directory into the table of watches, together with what it already stands for in this scan.
fn watch(
    ebpf: &mut Ebpf,
    directory: &Path,
    nodes: &[WatchNode],
    scan: &Scan,
) -> Result<Option<(InodeKey, File)>, maps::Error> {
    let (key, opened) = match capture(ebpf, directory) {
        Ok((keys, opened)) => (keys[0].inode, opened),
        Err(capture::Error::Table(error)) => return Err(error),
        Err(error) => {
            tracing::debug!(error = %crate::chain(&error), "a directory is not watched");
            return Ok(None);
        }
    };
    let mut all = nodes.to_vec();
    if scan.watched.contains_key(&key) {
        let known: Option<Watch> = Maps(ebpf).get("WATCHES", &key)?;
        all.extend(known.unwrap_or_default().nodes);
    }
    all.retain(|node| node.0 != 0);
    all.sort_unstable();
    all.dedup();
    let mut value = Watch::default();
    for (slot, node) in value
        .nodes
        .iter_mut()
        .zip(all.into_iter().take(NODES_PER_WATCH))
    {
        *slot = node;
    }
    if Maps(ebpf).get::<_, Watch>("WATCHES", &key)? != Some(value) {
        Maps(ebpf).put("WATCHES", key, value)?;
    }
    Ok(Some((key, opened)))
}

/// File systems whose files the kernel makes up: no credential lies there, and they never end.
fn is_virtual(directory: &Path) -> bool {
    ["/proc", "/sys"]
        .iter()
        .any(|root| directory == Path::new(root))
}

/// The names of the literal steps from `nodes`.
fn literal_names(tree: &WatchTree, nodes: &[WatchNode]) -> Vec<std::ffi::OsString> {
    let mut names = Vec::new();
    for node in nodes {
        let first = ChildKey {
            node: *node,
            len: 0,
            name: [0; NAME_BYTES / 8],
        };
        names.extend(
            tree.children
                .range(first..)
                .take_while(|(key, _)| key.node == *node)
                .map(|(key, _)| {
                    let bytes: Vec<u8> = key
                        .name
                        .iter()
                        .flat_map(|word| word.to_ne_bytes())
                        .collect();
                    std::ffi::OsString::from(std::ffi::OsStr::from_bytes(
                        &bytes[..key.len as usize],
                    ))
                }),
        );
    }
    names
}

/// One step down the tree, as the kernel takes it.
fn step(tree: &WatchTree, nodes: &[WatchNode], name: &[u8]) -> Vec<WatchNode> {
    let mut head = [0_u8; NAME_BYTES];
    let kept = name.len().min(NAME_BYTES).max(PREFIX_BYTES.min(name.len()));
    head[..kept].copy_from_slice(&name[..kept]);
    let mut tail = [0_u8; SUFFIX_BYTES];
    let kept = name.len().min(SUFFIX_BYTES);
    tail[SUFFIX_BYTES - kept..].copy_from_slice(&name[name.len() - kept..]);
    let word = |bytes: &[u8]| {
        let mut eight = [0; 8];
        eight.copy_from_slice(bytes);
        u64::from_ne_bytes(eight)
    };
    let first: [u64; NAME_BYTES / 8] = std::array::from_fn(|at| word(&head[8 * at..8 * at + 8]));
    let last: [u64; SUFFIX_BYTES / 8] = std::array::from_fn(|at| word(&tail[8 * at..8 * at + 8]));
    let mut reached = Vec::new();
    for node in nodes {
        let literal = ChildKey::new(*node, name).and_then(|key| tree.children.get(&key));
        reached.extend(literal.copied());
        for slot in 0.. {
            let Some(pattern) = tree.patterns.get(&PatternKey { node: *node, slot }) else {
                break;
            };
            if pattern.matches(name.len() as u32, &first, &last) {
                reached.push(pattern.target);
            }
        }
    }
    let mut seen = Vec::new();
    reached.retain(|node| {
        let new = !seen.contains(node);
        seen.push(*node);
        new
    });
    reached
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[test]
    fn another_file_of_the_same_name_has_another_stamp() {
        let directory = tempfile::tempdir().expect("a directory");
        let [path, other] = ["key", "other"].map(|name| directory.path().join(name));
        let stamp = |after: u64| {
            let file = fs::metadata(&path).expect("a file");
            let changed = Duration::from_secs(file.ctime().cast_unsigned() + after);
            Stamp::of(&file, UNIX_EPOCH + changed)
        };
        fs::write(&path, "one").expect("written");
        assert_eq!(stamp(1), None);
        let first = stamp(2).expect("settled");
        assert_eq!(stamp(1000), Some(first));
        fs::write(&other, "two").expect("written");
        fs::rename(&other, &path).expect("renamed");
        assert_ne!(stamp(2).expect("settled"), first);
    }
}
