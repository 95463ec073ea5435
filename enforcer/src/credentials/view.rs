//! The roots that processes have: the host's and those of containers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};

use super::access::Names;
use super::material::printable;

/// Directory entries and files that are looked at below one root.
const BUDGET: u32 = 200_000;
/// Roots that are looked at: as many as containers fit on a node, and some more.
const MOST_VIEWS: usize = 1_000;
/// A user database is no larger than this.
const DATABASE_BYTES: u64 = 1 << 20;

/// A root directory, with the users it has.
#[derive(Debug)]
pub struct View {
    /// `host`, or the cgroup and a process of those whose root it is.
    pub name: String,
    /// Whether it is the host's.
    pub host: bool,
    /// Who is who there.
    pub names: Names,
    /// The home directories of its users.
    pub homes: std::collections::BTreeSet<PathBuf>,
    root: OwnedFd,
    budget: AtomicU32,
}

impl View {
    /// The root at this path, whose users have the numbers that its user database says.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn at(root: &Path, name: String, host: bool) -> io::Result<Self> {
        let mut view = Self {
            name,
            host,
            names: Names::default(),
            homes: std::collections::BTreeSet::new(),
            root: File::open(root)?.into(),
            budget: AtomicU32::new(BUDGET),
        };
        let passwd = view.database("/etc/passwd");
        view.homes = crate::node::users::homes_in(&passwd);
        view.names = Names::of(&passwd, &view.database("/etc/group"));
        Ok(view)
    }

    fn database(&self, path: &str) -> String {
        let mut text = String::new();
        if let Ok(file) = self.open(Path::new(path), OFlag::O_PATH)
            && let Ok(file) = readable(&file)
        {
            // What is no text has no users.
            let _ = file.take(DATABASE_BYTES).read_to_string(&mut text);
        }
        text
    }

    /// Opens a path as a process with this root would see it: links lead nowhere else (`RESOLVE_IN_ROOT`, since 5.6).
    pub fn open(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.root, path, how)
    }

    /// A regular file, as a place that is yet to be opened.
    ///
    /// # Errors
    /// It is not there, or something else.
    pub fn place(&self, path: &Path) -> io::Result<OwnedFd> {
        let place = self.open(path, OFlag::O_PATH)?;
        match fstat(&place)?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits() {
            true => Ok(place),
            false => Err(io::Error::other("no regular file")),
        }
    }

    /// Whether one more thing may be looked at.
    pub fn spend(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        let order = Ordering::Relaxed;
        self.budget.fetch_update(order, order, less).is_ok()
    }

    /// Lets this much be looked at, and no more.
    #[cfg(test)]
    pub fn limit(&mut self, budget: u32) {
        self.budget = AtomicU32::new(budget);
    }

    /// Whether nothing more may be looked at.
    pub fn is_spent(&self) -> bool {
        self.budget.load(Ordering::Relaxed) == 0
    }

    /// The names in a directory; none if there is no such directory. `true` with those that are directories themselves,
    /// and no links to them.
    pub fn list(&self, directory: &Path) -> Vec<(OsString, bool)> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let Ok(opened) = self.open(directory, flags) else {
            return Vec::new();
        };
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        let entries = entries.into_iter().flatten();
        entries
            .take_while(|_| self.spend())
            .flatten()
            .map(|entry| {
                let is_directory = entry.file_type().is_ok_and(|it| it.is_dir());
                (entry.file_name(), is_directory)
            })
            .collect()
    }
}

/// Opens for reading what was opened as a place, if it is a regular file: nothing else is safe to open.
pub fn readable(place: &OwnedFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    if !std::fs::metadata(&path)?.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    File::open(path)
}

/// A mount namespace and a root directory in it.
type Root = (PathBuf, u64, u64);

/// Every root that some process has, the host's first, and how many processes cannot be looked into.
pub fn all() -> (Vec<View>, usize) {
    let mut refused = 0;
    let mut roots: BTreeMap<Root, u32> = BTreeMap::new();
    for pid in pids() {
        match root_of(&pid.to_string()) {
            Ok(root) => drop(roots.entry(root).or_insert(pid)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused += 1,
            // It has ended.
            Err(_) => {}
        }
    }
    // A host's init may be hidden from us; then what we see ourselves is as near as can be.
    let host = root_of("1").or_else(|_| root_of("self"));
    let host = host.ok().and_then(|root| roots.remove(&root));
    let mut pids: Vec<u32> = roots.into_values().collect();
    pids.sort_unstable();
    let others = pids.into_iter().map(|pid| (pid, false));
    let views = host.map(|pid| (pid, true)).into_iter().chain(others);
    let views = views.take(MOST_VIEWS);
    let views = views.filter_map(|(pid, host)| of_process(pid, host).ok());
    (views.collect(), refused)
}

/// What a process has for a root.
fn root_of(process: &str) -> io::Result<Root> {
    let namespace = std::fs::read_link(format!("/proc/{process}/ns/mnt"))?;
    let root = std::fs::metadata(format!("/proc/{process}/root"))?;
    Ok((namespace, root.dev(), root.ino()))
}

/// Processes in the order of their numbers.
fn pids() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

fn of_process(pid: u32, host: bool) -> io::Result<View> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let name = if host {
        "host".to_owned()
    } else {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        format!("{} (pid {pid})", printable(cgroup.unwrap_or("/")))
    };
    let mut view = View::at(&root, name, host)?;
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let own: Vec<&str> = map.split_whitespace().collect();
    if own != ["0", "0", "4294967295"] {
        // Its numbers are others than ours.
        view.names = Names::default();
    }
    Ok(view)
}
