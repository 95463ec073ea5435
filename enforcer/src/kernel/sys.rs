//! Commands of bpf(2) that aya does not have.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{
    BPF_F_ALLOW_MULTI, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_map_info,
    bpf_prog_info,
};
use enforcer_common::ids::Tid;

/// A command of bpf(2) that returns a new descriptor.
///
/// # Safety
///
/// Every pointer in `attr` is good for what the command does with it.
pub unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { call(command, attr) }?;
    // SAFETY: the kernel just opened it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// What the kernel says of a program. What it does not know stays zero.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: a struct of plain numbers, for which zero is "nothing asked for".
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    // SAFETY: asks for nothing behind pointers.
    unsafe { object_info(program, &mut info) }?;
    Ok(info)
}

/// The ids of the maps that a program uses.
pub fn program_maps(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0; program_info(program)?.nr_map_ids as usize];
    // SAFETY: a struct of plain numbers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    info.nr_map_ids = ids.len() as u32;
    info.map_ids = ids.as_mut_ptr() as u64;
    // SAFETY: the ids have as much room as said.
    unsafe { object_info(program, &mut info) }?;
    Ok(ids)
}

/// What the kernel says of a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: a struct of plain numbers.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    // SAFETY: asks for nothing behind pointers.
    unsafe { object_info(link, &mut info) }?;
    Ok(info)
}

/// The ids of all links.
pub fn link_ids() -> impl Iterator<Item = u32> {
    let mut last = 0;
    std::iter::from_fn(move || {
        // SAFETY: a union of plain numbers.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        attr.__bindgen_anon_6.__bindgen_anon_1.start_id = last;
        // SAFETY: the command reads and writes only numbers.
        unsafe { call(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) }.ok()?;
        // SAFETY: the member that the command writes.
        last = unsafe { attr.__bindgen_anon_6.next_id };
        Some(last)
    })
}

/// The link with this id.
pub fn link(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    // SAFETY: the command reads only numbers.
    unsafe { bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr) }
}

/// The program with this id.
pub fn program(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    // SAFETY: the command reads only numbers.
    unsafe { bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr) }
}

/// The map with this id.
pub fn map(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
    // SAFETY: the command reads only numbers.
    unsafe { bpf(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attr) }
}

/// What the kernel says of a map.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    // SAFETY: a struct of plain numbers, for which zero is "nothing asked for".
    let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
    // SAFETY: asks for nothing behind pointers.
    unsafe { object_info(map, &mut info) }?;
    Ok(info)
}

/// The name that the kernel has of a program or map: its first 15 bytes.
pub fn name(name: &[c_char]) -> String {
    let bytes: Vec<u8> = name.iter().map(|byte| byte.cast_unsigned()).collect();
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

/// Gives a map, program or link a name in a bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    // SAFETY: the path outlives the call.
    unsafe { call(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what has this name there.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }
}

/// Attaches a program to a cgroup beside what is there, until it is detached.
pub fn attach_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    to: bpf_attach_type,
) -> io::Result<()> {
    let mut attr = on_cgroup(program, cgroup, to);
    attr.__bindgen_anon_5.attach_flags = BPF_F_ALLOW_MULTI;
    // SAFETY: the command reads only numbers.
    unsafe { call(bpf_cmd::BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// Takes it off.
pub fn detach_from_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    from: bpf_attach_type,
) -> io::Result<()> {
    let mut attr = on_cgroup(program, cgroup, from);
    // SAFETY: the command reads only numbers.
    unsafe { call(bpf_cmd::BPF_PROG_DETACH, &mut attr) }.map(drop)
}

fn on_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, at: bpf_attach_type) -> bpf_attr {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the member that attaching and detaching read.
    let attach = unsafe { &mut attr.__bindgen_anon_5 };
    attach.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
    attach.attach_bpf_fd = program.as_raw_fd() as u32;
    attach.attach_type = at as u32;
    attr
}

/// Attaches a program to a cgroup for as long as the result is open.
pub fn link_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    to: bpf_attach_type,
) -> io::Result<OwnedFd> {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the member that BPF_LINK_CREATE reads.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    link.__bindgen_anon_2.target_fd = cgroup.as_raw_fd() as u32;
    link.attach_type = to as u32;
    // SAFETY: the command reads only numbers.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// The ids of the programs on a cgroup.
pub fn programs_on_cgroup(cgroup: BorrowedFd<'_>, at: bpf_attach_type) -> io::Result<Vec<u32>> {
    // The kernel allows 64 at each place (BPF_CGROUP_MAX_PROGS, since 4.15).
    let mut ids = vec![0_u32; 64];
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
    attr.query.attach_type = at as u32;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    // SAFETY: the ids have as much room as said.
    unsafe { call(bpf_cmd::BPF_PROG_QUERY, &mut attr) }?;
    // SAFETY: the member that the command writes.
    ids.truncate(unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize);
    Ok(ids)
}

/// Has the kernel fill in what it knows of a program or link.
///
/// # Safety
///
/// `T` is the kernel's type for such an object, and its pointers are good for what it says.
unsafe fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.info.bpf_fd = object.as_raw_fd() as u32;
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = std::ptr::from_mut(info) as u64;
    // SAFETY: `info` outlives the call and is of the size given; the rest is the caller's promise.
    unsafe { call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// # Safety
///
/// Every pointer in `attr` is good for what the command does with it.
unsafe fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the caller's promise; the size is that of the union.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}

/// Links an iterator program, so that it can be read: over all tasks, or from 6.1 on over this one. Kernels
/// before that take no notice of `thread`.
pub fn link_iterator(program: BorrowedFd<'_>, thread: Option<Tid>) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info` with `task.tid` first; zero is "all".
    let info = [thread.map_or(0, |tid| tid.0), 0, 0, 0];
    // SAFETY: a union of plain numbers, for which zero is "not given".
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the member that BPF_LINK_CREATE reads.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    link.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    if thread.is_some() {
        link.__bindgen_anon_3.__bindgen_anon_1.iter_info = info.as_ptr() as u64;
        link.__bindgen_anon_3.__bindgen_anon_1.iter_info_len = size_of_val(&info) as u32;
    }
    // SAFETY: the one pointer is to memory that outlives the call, of the size given.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// Starts a linked iterator; what it says is read from the result.
pub fn start_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.iter_create.link_fd = link.as_raw_fd() as u32;
    // SAFETY: the command reads only numbers.
    unsafe { bpf(bpf_cmd::BPF_ITER_CREATE, &mut attr) }
}
