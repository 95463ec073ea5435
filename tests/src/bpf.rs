//! What the kernel tells about BPF programs and maps.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

const PROG_GET_NEXT_ID: u32 = 11;
const MAP_GET_NEXT_ID: u32 = 12;
const PROG_GET_FD_BY_ID: u32 = 13;
const MAP_GET_FD_BY_ID: u32 = 14;
const OBJ_GET_INFO_BY_FD: u32 = 15;

/// The part of `union bpf_attr` that these commands use.
#[repr(C)]
#[derive(Default)]
struct Attr {
    words: [u32; 4],
}

/// `struct bpf_prog_info` up to `run_cnt`.
#[repr(C)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    load_time: u64,
    created_by_uid: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
    ifindex: u32,
    flags: u32,
    netns: [u64; 2],
    jited_counts: [u32; 2],
    jited: [u64; 2],
    btf_id: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_count: u32,
    line_info_count: u32,
    line_info: [u64; 2],
    jited_line_info_count: u32,
    rec_sizes: [u32; 2],
    prog_tags_count: u32,
    prog_tags: u64,
    run_time_ns: u64,
    run_count: u64,
}

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: the attribute is as long as said, and its pointers are to what lives longer than the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn ids(command: u32) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut attr = Attr::default();
    while bpf(command, &mut attr).is_ok() {
        ids.push(attr.words[1]);
        attr.words[0] = attr.words[1];
    }
    ids
}

fn open(command: u32, id: u32) -> io::Result<OwnedFd> {
    owned(bpf(
        command,
        &mut Attr {
            words: [id, 0, 0, 0],
        },
    ))
}

/// The descriptor that a command returned.
fn owned(fd: io::Result<i64>) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd?).map_err(io::Error::other)?;
    // SAFETY: the kernel gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Detaches every link that can be, whosever it is. Says how many.
pub fn detach_links() -> Result<usize> {
    const LINK_GET_FD_BY_ID: u32 = 30;
    const LINK_GET_NEXT_ID: u32 = 31;
    const LINK_DETACH: u32 = 34;
    let mut detached = 0;
    for id in ids(LINK_GET_NEXT_ID) {
        let Ok(link) = open(LINK_GET_FD_BY_ID, id) else {
            continue;
        };
        let mut attr = Attr {
            words: [link.as_raw_fd().cast_unsigned(), 0, 0, 0],
        };
        detached += usize::from(bpf(LINK_DETACH, &mut attr).is_ok());
    }
    Ok(detached)
}

/// Detaches every program from a cgroup that can be, whosever it is. Says how many.
pub fn detach_programs(cgroup: &Path) -> Result<usize> {
    const PROG_DETACH: u32 = 9;
    const PROG_QUERY: u32 = 16;
    /// Up to those of unix sockets.
    const ATTACH_TYPES: u32 = 56;
    let cgroup = fs::File::open(cgroup)?;
    let target = cgroup.as_raw_fd().cast_unsigned();
    let mut detached = 0;
    for attach_type in 0..ATTACH_TYPES {
        let mut ids = [0_u32; 64];
        let mut query = QueryAttr {
            target,
            attach_type,
            ids: ids.as_mut_ptr() as u64,
            count: ids.len() as u32,
            ..QueryAttr::default()
        };
        if bpf(PROG_QUERY, &mut query).is_err() {
            continue;
        }
        for id in &ids[..query.count as usize] {
            let Ok(program) = open(PROG_GET_FD_BY_ID, *id) else {
                continue;
            };
            let mut attr = Attr {
                words: [target, program.as_raw_fd().cast_unsigned(), attach_type, 0],
            };
            detached += usize::from(bpf(PROG_DETACH, &mut attr).is_ok());
        }
    }
    Ok(detached)
}

/// The part of `union bpf_attr` that asking for programs uses.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    flags: [u32; 2],
    ids: u64,
    count: u32,
    reserved: u32,
}

/// Gives a map, program or link a name in a bpffs.
pub fn pin(object: &OwnedFd, path: &str) -> io::Result<()> {
    const OBJ_PIN: u32 = 6;
    let path = CString::new(path)?;
    let mut attr = PathAttr {
        path: path.as_ptr() as u64,
        object: object.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

/// Opens what has this name there.
pub fn open_pin(path: &str) -> io::Result<OwnedFd> {
    const OBJ_GET: u32 = 7;
    let path = CString::new(path)?;
    let mut attr = PathAttr {
        path: path.as_ptr() as u64,
        ..PathAttr::default()
    };
    owned(bpf(OBJ_GET, &mut attr))
}

/// The part of `union bpf_attr` that naming uses.
#[repr(C)]
#[derive(Default)]
struct PathAttr {
    path: u64,
    object: u32,
    flags: u32,
}

/// Attaches a program to a cgroup that rewrites where IPv4 sockets connect to. It goes when dropped.
pub fn rewrite_connects(cgroup: &Path, to: [u8; 4]) -> Result<OwnedFd> {
    const PROG_LOAD: u32 = 5;
    const LINK_CREATE: u32 = 28;
    const CGROUP_SOCK_ADDR: u32 = 18;
    const INET4_CONNECT: u32 = 10;
    // `*(u32 *)(r1 + 4) = to; r0 = 1; exit`: the second word of the context is the address.
    let address = u32::from_ne_bytes(to);
    let instructions: [u64; 4] = [
        0xb7 | 2 << 8 | u64::from(address) << 32,
        0x63 | (1 | 2 << 4) << 8 | 4 << 16,
        0xb7 | 1 << 32,
        0x95,
    ];
    let mut load = LoadAttr {
        kind: CGROUP_SOCK_ADDR,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: INET4_CONNECT,
        ..LoadAttr::default()
    };
    // Before 5.11 programs count as locked memory.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    let program = owned(bpf(PROG_LOAD, &mut load)).context("cannot load a program")?;
    let cgroup = fs::File::open(cgroup)?;
    let mut link = Attr {
        words: [
            program.as_raw_fd().cast_unsigned(),
            cgroup.as_raw_fd().cast_unsigned(),
            INET4_CONNECT,
            0,
        ],
    };
    owned(bpf(LINK_CREATE, &mut link)).context("cannot attach a program")
}

/// The part of `union bpf_attr` that loading a program uses.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    versions: [u32; 2],
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

/// A map of our own, and its id.
pub fn new_map() -> Result<(OwnedFd, u32)> {
    const MAP_CREATE: u32 = 0;
    const ARRAY: u32 = 2;
    let mut attr = Attr {
        words: [ARRAY, 4, 4, 1],
    };
    let map = owned(bpf(MAP_CREATE, &mut attr)).context("cannot create a map")?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("map_id:"));
    let id = id
        .context("the kernel does not say its id")?
        .trim()
        .parse()?;
    Ok((map, id))
}

/// The ids of those maps and programs that can be opened by their ids.
pub fn open_all() -> (Vec<u32>, Vec<u32>) {
    let opened = |next, by_id| {
        let mut all = ids(next);
        all.retain(|id| open(by_id, *id).is_ok());
        all
    };
    (
        opened(MAP_GET_NEXT_ID, MAP_GET_FD_BY_ID),
        opened(PROG_GET_NEXT_ID, PROG_GET_FD_BY_ID),
    )
}

/// How long a program ran, and how often.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    /// All runs together.
    pub time_ns: u64,
    /// How many.
    pub count: u64,
}

/// All loaded programs by name and id, with their runs since they were loaded.
pub fn programs() -> Result<BTreeMap<String, Runs>> {
    let mut programs = BTreeMap::new();
    for id in ids(PROG_GET_NEXT_ID) {
        let Ok(fd) = open(PROG_GET_FD_BY_ID, id) else {
            continue;
        };
        // SAFETY: all bytes zero is a value of this plain type.
        let mut info: ProgInfo = unsafe { std::mem::zeroed() };
        let address = &raw mut info as u64;
        let mut attr = Attr {
            words: [
                fd.as_raw_fd().cast_unsigned(),
                size_of::<ProgInfo>() as u32,
                address as u32,
                (address >> 32) as u32,
            ],
        };
        bpf(OBJ_GET_INFO_BY_FD, &mut attr).context("cannot ask about a program")?;
        let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(16);
        let name = String::from_utf8_lossy(&info.name[..end]).into_owned();
        programs.insert(
            format!("{name}#{id}"),
            Runs {
                time_ns: info.run_time_ns,
                count: info.run_count,
            },
        );
    }
    Ok(programs)
}

/// The memory of all maps, in bytes, as the kernel counts it.
pub fn map_bytes() -> Result<(usize, u64)> {
    let mut sum = 0;
    let all = ids(MAP_GET_NEXT_ID);
    for id in &all {
        let Ok(fd) = open(MAP_GET_FD_BY_ID, *id) else {
            continue;
        };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        sum += line
            .and_then(|line| line.trim().parse::<u64>().ok())
            .unwrap_or_default();
    }
    Ok((all.len(), sum))
}
