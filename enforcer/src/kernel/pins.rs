//! Pins: what keeps programs and tables in the kernel when the daemon has gone.
//!
//! A set of pins is a directory, `BUILD-TIME`, with the tables in `maps/` and the links in `links/`; programs on the
//! root of the cgroups need none. A set that is not whole yet is called `new-TIME`. The next daemon of the same build
//! takes the set over; one of another build puts its own beside it, and takes the older one away when its own bundle
//! is in force.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::at_root::{self, Root};
use super::{clock, sys};

/// Where they lie.
pub const DIRECTORY: &str = "/sys/fs/bpf/enforcer";
/// Where a bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// Programs that nothing holds any more have ended by then.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// What a set is called that is not whole. The kernel allows no dots in such names.
const UNFINISHED: &str = "new";

/// Why the pins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon has them.
    #[error("another daemon runs on this kernel: it has locked {DIRECTORY}; stop it first")]
    Busy,
    /// One of them cannot be made, opened or taken away.
    #[error("cannot {action} {path}{hint}")]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pin, or the directory.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The root of the cgroups is not there.
    #[error(transparent)]
    Root(#[from] at_root::Error),
    /// Programs without a link go on.
    #[error(
        "programs go on {ENDS_WITHIN:?} after their pins were removed; does something else hold them (bpftool prog)?"
    )]
    GoOn,
    /// What is attached there cannot be found out or taken off.
    #[error("cannot take programs off the cgroup root")]
    Sweep(#[source] io::Error),
}

/// The directory of the pins, for this process alone.
pub struct Pins {
    directory: PathBuf,
    /// Held as long as this is.
    _lock: Flock<File>,
}

impl Pins {
    /// Takes the directory. `None` where there is no bpffs and none can be mounted.
    pub fn take() -> Result<Option<Self>, Error> {
        if !has_bpffs() {
            let bpf = Some("bpf");
            let mounted = mount(bpf, BPFFS, bpf, MsFlags::empty(), None::<&str>);
            if let Err(error) = mounted {
                tracing::warn!(
                    %error,
                    "no bpffs is mounted at {BPFFS}, and none can be: the programs end with the daemon"
                );
                return Ok(None);
            }
        }
        let directory = Path::new(DIRECTORY);
        let make = || {
            fs::create_dir_all(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        };
        make().map_err(failed("make", directory))?;
        Self::lock().map(Some)
    }

    /// Takes the directory that is there.
    fn lock() -> Result<Self, Error> {
        let directory = PathBuf::from(DIRECTORY);
        let opened = File::open(&directory).map_err(failed("open", &directory))?;
        match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                directory,
                _lock: lock,
            }),
            Err((_, Errno::EWOULDBLOCK)) => Err(Error::Busy),
            Err((_, error)) => Err(failed("lock", &directory)(error.into())),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Begins a set.
    pub fn begin(&self) -> Result<Set, Error> {
        let name = format!("{UNFINISHED}-{}", clock::boot_now().0);
        let set = Set(self.directory.join(name));
        for directory in [set.maps(), set.links()] {
            fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        }
        Ok(set)
    }

    /// The set is whole: it is `build`'s from now on.
    pub fn finish(&self, set: &Set, build: &str) -> Result<Set, Error> {
        let name = format!("{build}-{}", clock::boot_now().0);
        let path = self.directory.join(name);
        fs::rename(&set.0, &path).map_err(failed("rename", &set.0))?;
        Ok(Set(path))
    }

    /// Every set, the oldest first.
    pub fn sets(&self) -> Result<Vec<Set>, Error> {
        let names = names_in(&self.directory)?;
        let sets = names.into_iter().map(|name| Set(self.directory.join(name)));
        let mut sets: Vec<Set> = sets.collect();
        sets.sort_by_key(Set::made);
        Ok(sets)
    }
}

/// Takes everything away that daemons have left, with pins or without. Returns whether there was anything.
pub fn clean_up() -> Result<bool, Error> {
    let pins = if Path::new(DIRECTORY).exists() {
        Some(Pins::lock()?)
    } else {
        None
    };
    let root = Root::open()?;
    let attached = !root.ours().map_err(Error::Sweep)?.is_empty();
    root.sweep(|_| false).map_err(Error::Sweep)?;
    if let Some(pins) = &pins {
        for set in pins.sets()? {
            set.remove()?;
        }
        fs::remove_dir(&pins.directory).map_err(failed("remove", &pins.directory))?;
    }
    Ok(attached || pins.is_some())
}

/// The pins of one daemon's programs.
#[derive(Debug, PartialEq)]
pub struct Set(PathBuf);

impl Set {
    /// Whether it is whole, and of this build.
    pub fn is_of(&self, build: &str) -> bool {
        self.rest_after(build).is_some()
    }

    /// Whether a daemon died before it was whole.
    pub fn is_unfinished(&self) -> bool {
        self.rest_after(UNFINISHED).is_some()
    }

    fn rest_after(&self, prefix: &str) -> Option<&str> {
        let name = self.0.file_name()?.to_str()?;
        name.strip_prefix(prefix)?.strip_prefix('-')
    }

    /// When it was made, by the boot-time clock; 0 if its name does not say.
    fn made(&self) -> u64 {
        let name = self.0.file_name().and_then(|name| name.to_str());
        let time = name.and_then(|name| name.rsplit('-').next());
        time.and_then(|time| time.parse().ok()).unwrap_or(0)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where a table is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Pins the link of a program.
    pub fn keep(&self, program: &str, link: BorrowedFd<'_>) -> Result<(), Error> {
        let path = self.links().join(program);
        sys::pin(link, &path).map_err(failed("pin", &path))
    }

    /// The links, by program.
    pub fn kept(&self) -> Result<Vec<(String, OwnedFd)>, Error> {
        let directory = self.links();
        let mut links = Vec::new();
        for name in names_in(&directory)? {
            let path = directory.join(&name);
            links.push((name, open(&path)?));
        }
        Ok(links)
    }

    /// The numbers of the tables.
    pub fn map_ids(&self) -> Result<Vec<u32>, Error> {
        let directory = self.maps();
        let mut ids = Vec::new();
        for name in names_in(&directory)? {
            let path = directory.join(name);
            let info = sys::map_info(open(&path)?.as_fd()).map_err(failed("read", &path))?;
            ids.push(info.id);
        }
        Ok(ids)
    }

    /// Takes it away, and waits until its programs have ended; those on the root of the cgroups do not.
    pub fn remove(&self) -> Result<(), Error> {
        let programs = self.programs()?;
        for directory in [self.links(), self.maps()] {
            for name in names_in(&directory)? {
                let path = directory.join(name);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
            // Whoever made or removed the set may have died in between.
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &directory)(error));
                }
                _ => {}
            }
        }
        fs::remove_dir(&self.0).map_err(failed("remove", &self.0))?;
        // The kernel takes a link off some time after its last name has gone, and then ends its program.
        let end = Instant::now() + ENDS_WITHIN;
        while programs.iter().any(|id| sys::program(*id).is_ok()) {
            if Instant::now() > end {
                return Err(Error::GoOn);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The numbers of the programs that have links.
    fn programs(&self) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        for (name, link) in self.kept()? {
            let info = sys::link_info(link.as_fd());
            ids.push(
                info.map_err(failed("read", &self.links().join(name)))?
                    .prog_id,
            );
        }
        Ok(ids)
    }

    fn maps(&self) -> PathBuf {
        self.0.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.0.join("links")
    }
}

fn has_bpffs() -> bool {
    statfs(BPFFS).is_ok_and(|it| it.filesystem_type() == BPF_FS_MAGIC)
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    sys::pinned(path).map_err(failed("open", path))
}

/// The names in a directory; none if that is not there.
fn names_in(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", directory))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names
        .collect::<io::Result<_>>()
        .map_err(failed("list", directory))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Pin {
        action,
        hint: match source.kind() {
            io::ErrorKind::PermissionDenied => {
                "; the programs of an earlier daemon protect it, which only the same executable, one that the bundle names under `maintenance`, or after an orderly end any of the host's processes may take over"
            }
            _ => "",
        },
        path,
        source,
    }
}
