//! The programs on the root of the cgroups.
//!
//! They stay there for themselves once attached, without a link that somebody could detach: to take one off takes a
//! descriptor of the program. Programs that are to end with the daemon have a link.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya_obj::generated::bpf_attach_type::{self, *};

use super::sys;

/// The programs, in the order of attaching, and what they are attached to.
pub const PROGRAMS: &[(&str, bpf_attach_type)] = &[
    ("tcp_state", BPF_CGROUP_SOCK_OPS),
    ("sock_create", BPF_CGROUP_INET_SOCK_CREATE),
    ("connect4", BPF_CGROUP_INET4_CONNECT),
    ("connect6", BPF_CGROUP_INET6_CONNECT),
    ("sendmsg4", BPF_CGROUP_UDP4_SENDMSG),
    ("sendmsg6", BPF_CGROUP_UDP6_SENDMSG),
    ("egress", BPF_CGROUP_INET_EGRESS),
];

/// One of the maps that a program of ours uses has one of these names.
const MAPS: [&str; 3] = ["HOLDERS", "SOCKETS", "SOCKET_RECORDS"];

/// Why the root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted; mount one at /sys/fs/cgroup")]
    NoCgroup2,
    /// It cannot be opened, or something in it cannot be read.
    #[error("cannot open {path} in the cgroup root")]
    Open {
        /// It, or what is in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How many cgroups there are below it.
pub fn descendants() -> Result<u64, Error> {
    let path = path()?.join("cgroup.stat");
    let count = std::fs::read_to_string(&path).and_then(|text| {
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("nr_descendants "));
        count
            .and_then(|it| it.parse().ok())
            .ok_or_else(|| io::Error::other("no count of descendants"))
    });
    count.map_err(|source| Error::Open { path, source })
}

/// The root, open.
pub struct Root(File);

impl Root {
    /// Opens it.
    pub fn open() -> Result<Self, Error> {
        let path = path()?;
        match File::open(&path) {
            Ok(root) => Ok(Self(root)),
            Err(source) => Err(Error::Open { path, source }),
        }
    }

    /// Attaches a program, until it is taken off.
    pub fn attach(&self, program: BorrowedFd<'_>, to: bpf_attach_type) -> io::Result<()> {
        sys::attach_to_cgroup(program, self.0.as_fd(), to)
    }

    /// Attaches a program for as long as the result is open.
    pub fn link(&self, program: BorrowedFd<'_>, to: bpf_attach_type) -> io::Result<OwnedFd> {
        sys::link_to_cgroup(program, self.0.as_fd(), to)
    }

    /// The programs of ours that are attached, whichever daemon's.
    pub fn ours(&self) -> io::Result<Vec<Attached>> {
        let mut ours = Vec::new();
        for (name, to) in PROGRAMS {
            for id in sys::programs_on_cgroup(self.0.as_fd(), *to)? {
                // One that has gone in the meantime, or that is hidden from us, is not ours.
                let Ok(program) = sys::program(id) else {
                    continue;
                };
                let maps = sys::program_maps(program.as_fd())?;
                if sys::name(&sys::program_info(program.as_fd())?.name) == *name
                    && maps.iter().any(|map| is_ours(*map))
                {
                    ours.push(Attached {
                        name,
                        to: *to,
                        program,
                        maps,
                    });
                }
            }
        }
        Ok(ours)
    }

    /// Takes off every program of ours but those.
    pub fn sweep(&self, stays: impl Fn(&Attached) -> bool) -> io::Result<()> {
        for attached in self.ours()? {
            if stays(&attached) {
                continue;
            }
            match sys::detach_from_cgroup(attached.program.as_fd(), self.0.as_fd(), attached.to) {
                // It has a link, and goes with that.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// The first of these programs, by name and number, that is not attached.
    pub fn missing<'a>(&self, programs: &'a BTreeMap<u32, String>) -> io::Result<Option<&'a str>> {
        for (name, to) in PROGRAMS {
            let attached = sys::programs_on_cgroup(self.0.as_fd(), *to)?;
            let mut own = programs.iter().filter(|(_, known)| known == name);
            if let Some((_, known)) = own.find(|(id, _)| !attached.contains(id)) {
                return Ok(Some(known));
            }
        }
        Ok(None)
    }
}

/// A program on the root.
pub struct Attached {
    /// Its name.
    pub name: &'static str,
    /// The program.
    pub program: OwnedFd,
    /// The numbers of the maps that it uses.
    maps: Vec<u32>,
    to: bpf_attach_type,
}

impl Attached {
    /// Whether it uses one of these maps, by their numbers.
    pub fn uses(&self, maps: &[u32]) -> bool {
        self.maps.iter().any(|map| maps.contains(map))
    }
}

fn is_ours(map: u32) -> bool {
    let info = sys::map(map).and_then(|map| sys::map_info(map.as_fd()));
    info.is_ok_and(|info| MAPS.contains(&sys::name(&info.name).as_str()))
}

/// Where cgroup v2 is mounted: the root, never a subdirectory, so that nothing lies outside.
pub fn path() -> Result<PathBuf, Error> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .find_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            (filesystem.starts_with("cgroup2 ") && root == "/").then(|| Path::new(point).to_owned())
        })
        .ok_or(Error::NoCgroup2)
}
