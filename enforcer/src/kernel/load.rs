//! Loading and attaching the programs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Lsm,
    ProgramError, SockOps,
};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use enforcer_common::capacity;

use super::btf;

/// The kernel side's object, as built with this daemon.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-ebpf"));

/// LSM programs and their hooks, in the order of attaching: those that keep file keys up to date, the read
/// gate, the call gate.
const LSM_HOOKS: &[(&str, &str)] = &[
    ("d_instantiate", "d_instantiate"),
    ("inode_rename", "inode_rename"),
    ("inode_link", "inode_link"),
    ("inode_free_security", "inode_free_security"),
    ("file_open", "file_open"),
    ("endpoint_connect", "socket_connect"),
    ("endpoint_sendmsg", "socket_sendmsg"),
    ("socket_connect", "socket_connect"),
    ("socket_sendmsg", "socket_sendmsg"),
];

/// BTF tracepoints that follow processes and cgroups.
const TRACEPOINTS: &[&str] = &[
    "sched_process_fork",
    "sched_process_exit",
    "cgroup_mkdir",
    "cgroup_rmdir",
    "cgroup_attach_task",
];

/// cgroup programs of the call gate.
const SOCK_ADDR: &[&str] = &["connect4", "connect6", "sendmsg4", "sendmsg6"];

/// Why the programs could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's type information is missing or lacks something.
    #[error(transparent)]
    Offsets(#[from] btf::Error),
    /// aya could not read the kernel's type information.
    #[error("cannot use the kernel's type information at {}", btf::VMLINUX)]
    Btf(#[source] Box<BtfError>),
    /// The object could not be loaded.
    #[error("cannot load the eBPF object")]
    Object(#[source] Box<EbpfError>),
    /// The object lacks a program.
    #[error("the eBPF object has no program `{0}`; it and this daemon were not built together")]
    Missing(String),
    /// A program was refused.
    #[error(
        "the kernel refused program `{program}` ({step}); `enforcer probe` tells what it lacks"
    )]
    Program {
        /// The program.
        program: String,
        /// Loading or attaching.
        step: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// There is no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted; mount one at /sys/fs/cgroup")]
    NoCgroup2,
    /// The cgroup root cannot be opened.
    #[error("cannot open the cgroup root {path}")]
    CgroupRoot {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Options that tests and large nodes set.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Entries of the holders table.
    pub holders: u32,
    /// Bytes of the ring for denials.
    pub denials_ring_bytes: u32,
    /// Bytes of the ring for allowed uses.
    pub uses_ring_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            holders: capacity::HOLDERS,
            denials_ring_bytes: capacity::DENIALS_RING_BYTES,
            uses_ring_bytes: capacity::USES_RING_BYTES,
        }
    }
}

/// Loads the object, with the running kernel's offsets, and every program in it. Nothing is attached.
pub fn load(options: &Options) -> Result<Ebpf, Error> {
    let btf = Btf::from_sys_fs().map_err(|error| Error::Btf(Box::new(error)))?;
    let mut loaded = None;
    // Whether cgroup programs can read the task is found by trying: 6.1 and later can.
    for task_in_cgroup_programs in [1, 0] {
        let mut ebpf = open(options, task_in_cgroup_programs)?;
        match load_sock_addr(&mut ebpf) {
            Ok(()) => {
                loaded = Some(ebpf);
                break;
            }
            Err(error) if task_in_cgroup_programs == 0 => return Err(error),
            Err(_) => {}
        }
    }
    let mut ebpf = loaded.ok_or_else(|| Error::Missing("connect4".to_owned()))?;
    for (name, hook) in LSM_HOOKS {
        program::<Lsm>(&mut ebpf, name)?
            .load(hook, &btf)
            .map_err(refused(name, "loading"))?;
    }
    for tracepoint in TRACEPOINTS {
        program::<BtfTracePoint>(&mut ebpf, tracepoint)?
            .load(tracepoint, &btf)
            .map_err(refused(tracepoint, "loading"))?;
    }
    program::<CgroupSkb>(&mut ebpf, "egress")?
        .load()
        .map_err(refused("egress", "loading"))?;
    program::<SockOps>(&mut ebpf, "tcp_established")?
        .load()
        .map_err(refused("tcp_established", "loading"))?;
    Ok(ebpf)
}

/// Creates the maps and prepares the programs.
pub fn open(options: &Options, task_in_cgroup_programs: u32) -> Result<Ebpf, Error> {
    let offsets = btf::offsets()?;
    let btf = Btf::from_sys_fs().map_err(|error| Error::Btf(Box::new(error)))?;
    EbpfLoader::new()
        .btf(Some(&btf))
        .verifier_log_level(VerifierLogLevel::DISABLE | VerifierLogLevel::STATS)
        .override_global("OFFSETS", &offsets, true)
        .override_global("TASK_IN_CGROUP_PROGRAMS", &task_in_cgroup_programs, true)
        .map_max_entries("HOLDERS", options.holders)
        .map_max_entries("DENIALS", options.denials_ring_bytes)
        .map_max_entries("USES", options.uses_ring_bytes)
        .load(OBJECT)
        .map_err(|error| Error::Object(Box::new(error)))
}

fn load_sock_addr(ebpf: &mut Ebpf) -> Result<(), Error> {
    for name in SOCK_ADDR {
        program::<CgroupSockAddr>(ebpf, name)?
            .load()
            .map_err(refused(name, "loading"))?;
    }
    Ok(())
}

/// Attaches every program: first those that follow processes, cgroups and files, then the gates, so that
/// no gate decides on facts that nobody keeps up to date.
pub fn attach(ebpf: &mut Ebpf) -> Result<(), Error> {
    let path = cgroup_root()?;
    let root = File::open(&path).map_err(|source| Error::CgroupRoot { path, source })?;
    for tracepoint in TRACEPOINTS {
        program::<BtfTracePoint>(ebpf, tracepoint)?
            .attach()
            .map_err(refused(tracepoint, "attaching"))?;
    }
    program::<SockOps>(ebpf, "tcp_established")?
        .attach(&root, CgroupAttachMode::Single)
        .map_err(refused("tcp_established", "attaching"))?;
    for (name, _) in LSM_HOOKS {
        program::<Lsm>(ebpf, name)?
            .attach()
            .map_err(refused(name, "attaching"))?;
    }
    for name in SOCK_ADDR {
        program::<CgroupSockAddr>(ebpf, name)?
            .attach(&root, CgroupAttachMode::Single)
            .map_err(refused(name, "attaching"))?;
    }
    program::<CgroupSkb>(ebpf, "egress")?
        .attach(&root, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)
        .map_err(refused("egress", "attaching"))?;
    Ok(())
}

/// Where cgroup v2 is mounted: the root, never a subdirectory, so that nothing lies outside.
pub fn cgroup_root() -> Result<PathBuf, Error> {
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

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| Error::Missing(name.to_owned()))?
        .try_into()
        .map_err(refused(name, "finding"))
}

fn refused(program: &str, step: &'static str) -> impl FnOnce(ProgramError) -> Error {
    let program = program.to_owned();
    move |source| Error::Program {
        program,
        step,
        source: Box::new(source),
    }
}
