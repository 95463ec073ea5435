//! Loading and attaching the programs.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::SkStorage;
use aya::programs::{BtfTracePoint, CgroupSockAddr, Iter, Lsm, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use aya_obj::btf::BtfKind;
use enforcer_common::capacity::{self, Room};
use enforcer_common::ids::Tgid;
use enforcer_common::tables::SocketRecord;

use super::at_once::at_once;
use super::at_root::{self, Root};
use super::btf::{self, Types};
use super::capture::{self, capture};
use super::iterate;
use super::legacy;
use super::maps::{self, Maps};
use super::modify_return::{self, Programs};
use super::pins::{self, Set};
use super::programs::{FOLLOWING, HOOKS, SOCK_ADDR, TRACEPOINTS};
use super::sys;
use super::take_over::Pinned;
use super::tier::Tier;

/// The kernel side's object, as built with this daemon.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-ebpf"));

/// Why the programs could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's type information is missing or lacks something.
    #[error(transparent)]
    Types(#[from] btf::Error),
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
    /// `bpf` is not among the kernel's security modules: LSM programs would be accepted and never run.
    #[error(
        "the kernel's security modules are `{list}`, without `bpf`; add it to lsm= on the kernel's command line, or use --tier modify-return"
    )]
    NotListed {
        /// What there is.
        list: String,
    },
    /// The object cannot be linked for BPF_MODIFY_RETURN.
    #[error("cannot prepare the programs of the modify-return tier")]
    Relink(#[source] modify_return::Error),
    /// A BPF_MODIFY_RETURN program was refused.
    #[error("program `{program}` on {function}")]
    NotHooked {
        /// The program.
        program: String,
        /// The kernel function.
        function: String,
        /// Why.
        source: modify_return::Error,
    },
    /// The hooks do not see what they should.
    #[error("the programs are attached, and the kernel does not call them")]
    NotCalled(#[from] Box<capture::Error>),
    /// A table cannot be written.
    #[error(transparent)]
    Table(#[from] maps::Error),
    /// No tier can be had.
    #[error("this kernel has none of the tiers; `enforcer probe` tells why")]
    NoTier,
    /// The cgroup root is not there.
    #[error(transparent)]
    Root(#[from] at_root::Error),
    /// A program was not attached there.
    #[error("cannot attach program `{program}` to the cgroup root")]
    NotAtRoot {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What an earlier daemon left cannot be taken over, or nothing be left for the next.
    #[error(transparent)]
    Pins(#[from] pins::Error),
    /// What an earlier daemon left cannot be read.
    #[error(transparent)]
    Legacy(#[from] legacy::Error),
    /// The kernel does not say what it has.
    #[error("the kernel does not say which programs and links there are")]
    Ask(#[source] io::Error),
}

/// Options that tests and large nodes set.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The tier to use; the strongest to be had if not given.
    pub tier: Option<Tier>,
    /// How much room the tables have that are made.
    pub room: Room,
    /// Entries of the holders table, whatever the room.
    pub holders: Option<u32>,
    /// Bytes of the ring for denials, and of that for allowed uses.
    pub ring_bytes: u32,
    /// So many processes, and so many workload instances, are killed or frozen a minute, of one workload and in all.
    pub actions_per_minute: u32,
}

/// The tables that have more or less room, and their entries where there is much.
pub(super) const ROOMY: [(&str, u32); 17] = [
    ("CGROUPS", capacity::CGROUPS),
    ("CGROUP_NAMES", capacity::CGROUP_NAMES),
    ("CHILDREN", capacity::WATCH_NODES),
    ("CREDENTIALS", capacity::CREDENTIALS),
    ("CREDENTIAL_NUMBERS", capacity::CREDENTIAL_NUMBERS),
    ("FILES", capacity::FILES),
    ("GRANTS", capacity::GRANTS),
    ("HOLDERS", capacity::HOLDERS),
    ("LABELS", capacity::LABELS),
    ("NODES", capacity::WATCH_NODES),
    ("ORIGINS", capacity::ORIGINS),
    ("ORIGIN_IDENTITIES", capacity::ORIGIN_IDENTITIES),
    ("PATTERNS", capacity::WATCH_NODES),
    ("RELEVANT", capacity::RELEVANT),
    ("RUNNING", capacity::RUNNING),
    ("SUBJECTS", capacity::SUBJECTS),
    ("WATCHES", capacity::WATCHES),
];

/// The counters of keys, see [`enforcer_common::presence`].
const PRESENT: [&str; 3] = ["FILES_PRESENT", "HELD_PRESENT", "ORIGINS_PRESENT"];

impl Default for Options {
    fn default() -> Self {
        Self {
            tier: None,
            room: Room::Ordinary,
            holders: None,
            ring_bytes: capacity::RING_BYTES,
            actions_per_minute: 5,
        }
    }
}

/// The programs in the kernel, and what keeps them there.
pub struct Loaded {
    /// The object: its maps, and the programs that aya loads.
    pub ebpf: Ebpf,
    /// By what means reads and calls are refused.
    pub tier: Tier,
    /// How much room its tables have.
    pub room: Room,
    /// Those programs that aya did not load: those of the hooks on the `modify-return` tier, or all that were taken
    /// over.
    programs: Vec<(String, OwnedFd)>,
    /// What keeps those attached that would go otherwise.
    links: Vec<OwnedFd>,
    /// What keeps them all when the daemon has gone.
    pub pinned: Option<Pinned>,
}

impl Loaded {
    pub(super) fn new(
        ebpf: Ebpf,
        tier: Tier,
        room: Room,
        programs: Vec<(String, OwnedFd)>,
    ) -> Self {
        Self {
            ebpf,
            tier,
            room,
            programs,
            links: Vec::new(),
            pinned: None,
        }
    }

    /// Every program that is in the kernel.
    pub fn programs(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        let loaded = self.ebpf.programs().filter_map(|(name, program)| {
            let descriptor = program.fd().ok()?;
            Some((name, descriptor.as_fd()))
        });
        let others = self.programs.iter();
        loaded.chain(others.map(|(name, program)| (name.as_str(), program.as_fd())))
    }
}

/// Loads and attaches one tier for as long as the result lives, and sees that its hooks are called.
pub fn start_tier(
    types: &Types,
    options: &Options,
    tier: Tier,
    daemon: Tgid,
) -> Result<Loaded, Error> {
    let mut loaded = load_tier(types, options, tier, None)?;
    begin(&mut loaded, options, daemon)?;
    attach(&mut loaded, None)?;
    see(&mut loaded)?;
    Ok(loaded)
}

/// Tells the programs whose they are.
pub(super) fn begin(loaded: &mut Loaded, options: &Options, daemon: Tgid) -> Result<(), Error> {
    let mut maps = Maps(&mut loaded.ebpf);
    maps.set("KILL_LIMIT", 0, options.actions_per_minute)?;
    maps.set("DAEMON", 0, daemon)?;
    maps.set("HANDED_OVER", 0, 0_u32)?;
    Ok(())
}

/// Sees that the hooks are called.
pub(super) fn see(loaded: &mut Loaded) -> Result<(), Error> {
    capture(&mut loaded.ebpf, Path::new("/proc/self/exe")).map_err(Box::new)?;
    Ok(())
}

pub(super) fn load_tier(
    types: &Types,
    options: &Options,
    tier: Tier,
    set: Option<&Set>,
) -> Result<Loaded, Error> {
    if tier == Tier::Lsm
        && let Some(list) = lsm_list()
        && !list.split(',').any(|name| name == "bpf")
    {
        return Err(Error::NotListed { list });
    }
    let btf = &types.functions;
    // What this kernel can is found by trying, the usual first.
    let mut constants = Constants {
        task_in_cgroup_programs: 1,
        by_cookie: u32::from(tier == Tier::ModifyReturn),
        ..Constants::of(tier)
    };
    let mut ebpf = loop {
        let mut ebpf = open(types, options, &constants, set)?;
        if constants.by_cookie == 0 && !keeps_records_with_sockets(&mut ebpf)? {
            constants.by_cookie = 1;
            continue;
        }
        match load_sock_addr(&mut ebpf) {
            Ok(()) => break ebpf,
            // 6.1 and later let cgroup programs read the task.
            Err(_) if constants.task_in_cgroup_programs == 1 => {
                constants.task_in_cgroup_programs = 0;
            }
            Err(error) => return Err(error),
        }
    };
    let mut programs = Vec::new();
    if tier == Tier::ModifyReturn {
        let linked = Programs::new(OBJECT, &ebpf).map_err(Error::Relink)?;
        programs = at_once(HOOKS.iter().collect(), |hook| {
            let program = linked.load(hook.program, hook.function, hook.attach, btf);
            let program = program.map_err(not_hooked(hook.program, hook.function))?;
            Ok::<_, Error>((hook.program.to_owned(), program))
        })?;
    }
    load_iterators(&mut ebpf, tier, btf)?;
    let mut rest: Vec<_> = ebpf.programs_mut().collect();
    rest.sort_by_key(|(name, _)| *name);
    at_once(rest, |(name, program)| {
        load_program(name, program, tier, btf).map_err(refused(name, "loading"))
    })?;
    Ok(Loaded::new(ebpf, tier, options.room, programs))
}

/// Loads the programs that only show the daemon something, which it has anew each time.
pub(super) fn load_iterators(ebpf: &mut Ebpf, tier: Tier, btf: &Btf) -> Result<(), Error> {
    let own = match tier {
        Tier::Fanotify => iterate::OWN_FILE,
        Tier::Lsm | Tier::ModifyReturn => iterate::OWN_SOCKET,
    };
    for (name, over) in iterate::PROGRAMS.iter().chain([&own]) {
        program::<Iter>(ebpf, name)?
            .load(over, btf)
            .map_err(refused(name, "loading"))?;
    }
    if tier == Tier::Fanotify {
        let (name, over) = iterate::THREAD_CALL;
        // Before 5.15 the other one does.
        let _ = program::<Iter>(ebpf, name)?.load(over, btf);
    }
    Ok(())
}

/// Loads a program, unless the tier has no use for it, the kernel has no place for it, or others load it.
fn load_program(
    name: &str,
    program: &mut Program,
    tier: Tier,
    btf: &Btf,
) -> Result<(), ProgramError> {
    let has = |function: &&&str| btf.id_by_type_name_kind(function, BtfKind::Func).is_ok();
    let following = FOLLOWING.iter().find(|(known, _)| *known == name);
    let function = following
        .filter(|_| tier != Tier::Fanotify)
        .and_then(|(_, functions)| functions.iter().find(has));
    let hook = HOOKS.iter().find(|hook| hook.program == name);
    match (program, hook, function) {
        (Program::Lsm(program), Some(hook), _) if tier == Tier::Lsm => program.load(hook.hook, btf),
        (Program::FEntry(program), _, Some(function)) => program.load(function, btf),
        (Program::FExit(program), _, Some(function)) => program.load(function, btf),
        (Program::BtfTracePoint(program), ..) => program.load(name, btf),
        (Program::CgroupSkb(program), ..) => program.load(),
        (Program::CgroupSock(program), ..) => program.load(),
        (Program::SockOps(program), ..) => program.load(),
        _ => Ok(()),
    }
}

/// Attaches those that are loaded.
fn attach_following(ebpf: &mut Ebpf) -> Result<(), Error> {
    for (name, _) in FOLLOWING {
        match ebpf.program_mut(name) {
            Some(Program::FEntry(program)) if program.fd().is_ok() => program.attach().map(drop),
            Some(Program::FExit(program)) if program.fd().is_ok() => program.attach().map(drop),
            _ => Ok(()),
        }
        .map_err(refused(name, "attaching"))?;
    }
    Ok(())
}

/// What programs are told at load time.
pub(super) struct Constants {
    tier: Tier,
    task_in_cgroup_programs: u32,
    by_cookie: u32,
}

impl Constants {
    /// What all programs of a tier are told.
    pub(super) const fn of(tier: Tier) -> Self {
        Self {
            tier,
            task_in_cgroup_programs: 0,
            by_cookie: 0,
        }
    }
}

/// Whether this kernel keeps a record with a socket. From 6.19 on it does not on processors without `cmpxchg16b`, where the
/// kernel has no allocation without locks (`kmalloc_nolock`).
fn keeps_records_with_sockets(ebpf: &mut Ebpf) -> Result<bool, Error> {
    let map = ebpf
        .map_mut("SOCKETS")
        .ok_or_else(|| Error::Missing("SOCKETS".to_owned()))?;
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) else {
        return Ok(true);
    };
    // It goes with the socket.
    let tried = SkStorage::<_, SocketRecord>::try_from(map)
        .and_then(|mut records| records.insert(&socket, SocketRecord::NONE, 0));
    Ok(tried.is_ok())
}

/// Creates the maps, or takes those that are pinned, and prepares the programs.
pub(super) fn open(
    types: &Types,
    options: &Options,
    constants: &Constants,
    set: Option<&Set>,
) -> Result<Ebpf, Error> {
    let tier = constants.tier.code();
    let mut loader = EbpfLoader::new();
    let tables = tables()?;
    if let Some(set) = set {
        for name in &tables {
            loader.map_pin_path(name, set.map(name));
        }
    }
    for (name, most) in ROOMY {
        loader.map_max_entries(name, options.room.of(most));
    }
    if let Some(holders) = options.holders {
        loader.map_max_entries("HOLDERS", holders);
    }
    let presence_bits = options.room.presence_bits();
    for name in PRESENT {
        loader.map_max_entries(name, 1 << presence_bits);
    }
    loader
        .btf(Some(&types.functions))
        .verifier_log_level(VerifierLogLevel::DISABLE | VerifierLogLevel::STATS)
        .override_global("OFFSETS", &types.offsets, true)
        .override_global(
            "TASK_IN_CGROUP_PROGRAMS",
            &constants.task_in_cgroup_programs,
            true,
        )
        .override_global("TIER", &tier, true)
        .override_global("PRESENCE_SHIFT", &(64 - presence_bits), true)
        .override_global("RECORDS_BY_COOKIE", &constants.by_cookie, true)
        .map_max_entries("DENIALS", options.ring_bytes)
        .map_max_entries("USES", options.ring_bytes)
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

/// The names of the maps. Constants go with the programs.
pub(super) fn tables() -> Result<Vec<String>, Error> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|error| Error::Object(Box::new(EbpfError::ParseError(error))))?;
    let names = object.maps.into_keys();
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}

/// Attaches every program: first those that follow processes, cgroups and files, then the gates, so that
/// no gate decides on facts that nobody keeps up to date. With pins, so that they stay.
pub(super) fn attach(loaded: &mut Loaded, set: Option<&Set>) -> Result<(), Error> {
    let root = Root::open()?;
    let ebpf = &mut loaded.ebpf;
    for tracepoint in TRACEPOINTS {
        program::<BtfTracePoint>(ebpf, tracepoint)?
            .attach()
            .map_err(refused(tracepoint, "attaching"))?;
    }
    attach_following(&mut loaded.ebpf)?;
    attach_hooks(loaded)?;
    if let Some(set) = set {
        keep_links(loaded, set)?;
    }
    for (name, to) in at_root::PROGRAMS {
        let not_there = |source| Error::NotAtRoot {
            program: name,
            source,
        };
        let program = loaded.ebpf.program(name);
        let program = program.ok_or_else(|| Error::Missing((*name).to_owned()))?;
        let program = program.fd().map_err(refused(name, "finding"))?;
        if set.is_some() {
            root.attach(program.as_fd(), *to).map_err(not_there)?;
        } else {
            let link = root.link(program.as_fd(), *to).map_err(not_there)?;
            loaded.links.push(link);
        }
    }
    Ok(())
}

/// Pins the link of every program that has one.
fn keep_links(loaded: &Loaded, set: &Set) -> Result<(), Error> {
    let mut programs = std::collections::BTreeMap::new();
    for (name, program) in loaded.programs() {
        let info = sys::program_info(program).map_err(Error::Ask)?;
        programs.insert(info.id, name);
    }
    for id in sys::link_ids() {
        // One that has gone in the meantime, or that another daemon's programs hide, is not ours.
        let Ok(link) = sys::link(id) else { continue };
        let info = sys::link_info(link.as_fd()).map_err(Error::Ask)?;
        if let Some(name) = programs.get(&info.prog_id) {
            set.keep(name, link.as_fd())?;
        }
    }
    Ok(())
}

fn attach_hooks(loaded: &mut Loaded) -> Result<(), Error> {
    if loaded.tier == Tier::Lsm {
        for hook in HOOKS {
            program::<Lsm>(&mut loaded.ebpf, hook.program)?
                .attach()
                .map_err(refused(hook.program, "attaching"))?;
        }
    }
    for (name, program) in &loaded.programs {
        let link = modify_return::attach(program).map_err(not_hooked(name, "its function"))?;
        loaded.links.push(link);
    }
    Ok(())
}

/// The kernel's list of security modules; `None` if it does not say (securityfs is not mounted).
pub fn lsm_list() -> Option<String> {
    let list = std::fs::read_to_string("/sys/kernel/security/lsm").ok()?;
    Some(list.trim().to_owned())
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

fn not_hooked(program: &str, function: &str) -> impl FnOnce(modify_return::Error) -> Error {
    let (program, function) = (program.to_owned(), function.to_owned());
    move |source| Error::NotHooked {
        program,
        function,
        source,
    }
}
