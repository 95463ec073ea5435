//! What is done to the enforcer itself: to the daemon, to its programs, maps and links, and to what they rest on.
//!
//! Whoever started the daemon, and the init of the host, may end it and set its limits: that is their office. The
//! rest is for the daemon itself and for the bundle's maintenance tools.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel_str};
use enforcer_common::{
    address::Destination,
    branchless::opaque,
    decide,
    event::{Gate, taken},
    facts::Task,
    ids::{InodeKey, Tgid},
    tables::OwnObject,
    verdict::Verdict,
};

use crate::{
    emit::{self, Object},
    gate,
    kernel::{QSTR_LEN, QSTR_NAME, inode_key, load, read},
    lifecycle,
    maps::{DAEMON, DAEMON_TASK, HANDED_OVER, HEIRS, OWN_OBJECTS, PINS},
    offset,
    tables::KernelTables,
    task,
};

/// `PROC_SUPER_MAGIC`.
const PROC: u64 = 0x9fa0;
/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2: u64 = 0x6367_7270;
/// `BPF_FS_MAGIC`.
const BPF_FS: u64 = 0xcafe_4a11;

/// The pins lie in directories in a directory.
const PIN_DEPTH: u32 = 4;

/// `BPF_PROG_GET_FD_BY_ID`.
const PROGRAM_BY_ID: u32 = 13;
/// `BPF_MAP_GET_FD_BY_ID`.
const MAP_BY_ID: u32 = 14;
/// `BPF_LINK_GET_FD_BY_ID`.
const LINK_BY_ID: u32 = 30;

/// Signals that do no harm: none at all (which asks for existence), SIGHUP (which has the bundle read again), SIGCONT.
const HARMLESS: [u32; 3] = [0, 1, 18];
/// `PTRACE_MODE_ATTACH` and `PTRACE_MODE_NOAUDIT`.
const ATTACH: u32 = 2;
const NO_AUDIT: u32 = 4;

/// A cgroup's depth. Deeper ones are not looked at.
const LEVELS: u32 = 32;
/// What is looked at of a file's name; as words, for comparing.
type Name = [u64; 3];

const fn word(text: &[u8; 8]) -> u64 {
    u64::from_ne_bytes(*text)
}

/// A signal for the task at a kernel address. `true` refuses, here and below.
#[inline(always)]
pub fn signalled(target: u64, signal: u32) -> bool {
    let [none, hangup, go_on] = HARMLESS;
    signal != none
        && signal != hangup
        && signal != go_on
        && limited(target, Gate::TaskKill, u64::from(signal))
}

/// Limits or priority of the task at a kernel address are set.
#[inline(always)]
pub fn limited(target: u64, gate: Gate, what: u64) -> bool {
    is_daemon(target) && !is_in_charge() && refuse(what, 0, 0, gate)
}

/// The memory of the task at a kernel address, and all else of it, is to be had; `mode` is a `PTRACE_MODE_*`.
#[inline(always)]
pub fn traced(target: u64, mode: u32) -> bool {
    mode & ATTACH != 0
        && mode & NO_AUDIT == 0
        && is_daemon(target)
        && !is_own()
        && refuse(u64::from(mode), 0, 0, Gate::PtraceAccessCheck)
}

/// A program, map or link is opened by its number. The attributes are at a kernel address.
#[inline(always)]
pub fn opened_by_number(command: u32, attributes: u64) -> bool {
    if command != PROGRAM_BY_ID && command != MAP_BY_ID && command != LINK_BY_ID {
        return false;
    }
    let number: u32 = read(attributes);
    // SAFETY: only whether there is an entry.
    let ours = unsafe { OWN_OBJECTS.get(&OwnObject::new(command, number)) }.is_some();
    ours && !is_own()
        && !takes_over()
        && refuse(u64::from(command), u64::from(number), 0, Gate::Bpf)
}

/// The map at a kernel address is opened, by its number or its pin.
#[inline(always)]
pub fn map_opened(map: u64) -> bool {
    opened(MAP_BY_ID, read(map + offset!(map_id)), Gate::BpfMap)
}

/// The program at a kernel address is opened, likewise.
#[inline(always)]
pub fn program_opened(program: u64) -> bool {
    let aux: u64 = read(program + offset!(program_aux));
    opened(
        PROGRAM_BY_ID,
        read(aux + offset!(program_id)),
        Gate::BpfProg,
    )
}

#[inline(always)]
fn opened(command: u32, number: u32, gate: Gate) -> bool {
    // SAFETY: only whether there is an entry.
    let ours = unsafe { OWN_OBJECTS.get(&OwnObject::new(command, number)) }.is_some();
    ours && !is_own() && !takes_over() && refuse(u64::from(command), u64::from(number), 0, gate)
}

/// The name of a directory entry, at a kernel address, is taken away: of a pin, or of what pins lie in.
#[inline(always)]
pub fn unpinned(dentry: u64, gate: Gate) -> bool {
    let inode: u64 = read(dentry + offset!(dentry_inode));
    let sb: u64 = read(inode + offset!(inode_sb));
    read::<u64>(sb + offset!(sb_magic)) == BPF_FS && is_pin(dentry) && removed(gate)
}

/// The mount at a kernel address is taken off: with the last one of their file system the pins go.
#[inline(always)]
pub fn unmounted(mnt: u64) -> bool {
    let root: u64 = read(mnt + offset!(mnt_root));
    let sb: u64 = read(read::<u64>(root + offset!(dentry_inode)) + offset!(inode_sb));
    let device: u32 = read(sb + offset!(sb_dev));
    read::<u64>(sb + offset!(sb_magic)) == BPF_FS
        && device == pins().dev
        && read::<u64>(root + offset!(dentry_parent)) == root
        && removed(Gate::SbUmount)
}

/// In a frame of its own.
#[inline(never)]
fn removed(gate: Gate) -> bool {
    // The host's init takes everything down in the end.
    task::ids().0 != Tgid(1) && !is_own() && !takes_over() && refuse(0, 0, 0, gate)
}

/// Whether a directory entry is the directory of the pins, or in it.
#[inline(never)]
fn is_pin(dentry: u64) -> bool {
    let directory = pins();
    let mut entry = dentry;
    let mut depth = 0;
    while depth < PIN_DEPTH {
        if inode_key(read(entry + offset!(dentry_inode))) == directory {
            return true;
        }
        entry = read(entry + offset!(dentry_parent));
        depth = opaque(u64::from(depth) + 1) as u32;
    }
    false
}

#[inline(always)]
fn pins() -> InodeKey {
    PINS.get(0).copied().unwrap_or_default()
}

/// The process `tgid` has ended: if it was the daemon, there is none now.
#[inline(always)]
pub fn ended(tgid: Tgid) {
    if is_daemon_process(tgid)
        && let (Some(daemon), Some(task)) = (DAEMON.get_ptr_mut(0), DAEMON_TASK.get_ptr_mut(0))
    {
        // SAFETY: pointers into array maps, which stay.
        unsafe {
            *daemon = Tgid(0);
            *task = 0;
        }
    }
}

/// The task at a kernel address is no more. It was the daemon's first thread if nobody saw the daemon's end.
#[inline(always)]
pub fn freed(task: u64) {
    if task == daemon_task() {
        ended(DAEMON.get(0).copied().unwrap_or(Tgid(0)));
    }
}

/// A file is written: of the daemon's in procfs, of its cgroup, or the switch that takes all hooks off.
///
/// # Safety
///
/// `file` is a `struct file` typed by the kernel's BTF, not null.
#[inline(always)]
pub unsafe fn written(file: *const u8) -> bool {
    // SAFETY: what hangs on an open file is never null.
    let (inode, magic) = unsafe {
        let inode: *const u8 = load(file, offset!(file_inode));
        let sb: *const u8 = load(inode, offset!(inode_sb));
        (inode as u64, load::<u64>(sb, offset!(sb_magic)))
    };
    (magic == PROC || magic == CGROUP2) && touches(file as u64, inode, magic)
}

/// The task at a kernel address came into another cgroup, where it may be frozen. Nobody can refuse that.
#[inline(always)]
pub fn moved(thread: u64) {
    let leader: u64 = read(thread + offset!(task_leader));
    if leader == thread && is_daemon(thread) && !is_own() && !is_in_charge() {
        tell();
    }
}

#[inline(never)]
fn touches(file: u64, inode: u64, magic: u64) -> bool {
    let dentry: u64 = read(file + offset!(file_path) + offset!(path_dentry));
    let text: u64 = read(dentry + offset!(dentry_name) + QSTR_NAME);
    let mut name: Name = [0; 3];
    // SAFETY: reads at most the array's size.
    unsafe {
        bpf_probe_read_kernel_str((&raw mut name).cast(), 24, text as *const _);
    }
    let touched = if magic == CGROUP2 {
        !is_in_charge() && is_of_own_cgroup(dentry, text, &name)
    } else if name[0] == word(b"ftrace_e") && name[1] == word(b"nabled\0\0") {
        true
    } else {
        !is_in_charge() && is_daemon(process_of(inode))
    };
    touched && !is_own() && refuse(name[0], name[1], name[2], Gate::FilePermission)
}

/// Whether writing a file of this name stops or limits the daemon. Its own cgroup's controllers limit it; those above
/// belong to whoever manages the node.
#[inline(always)]
fn is_of_own_cgroup(dentry: u64, text: u64, name: &Name) -> bool {
    let parent: u64 = read(dentry + offset!(dentry_parent));
    let directory: u64 = read(read::<u64>(parent + offset!(dentry_inode)) + offset!(inode_ino));
    let len: u32 = read(dentry + offset!(dentry_name) + QSTR_LEN);
    let last: u64 = read(text.wrapping_add(u64::from(len)).wrapping_sub(8));
    let stops = name[0] == word(b"cgroup.k") && name[1] == word(b"ill\0\0\0\0\0")
        || name[0] == word(b"cgroup.f") && name[1] == word(b"reeze\0\0\0");
    // On little-endian machines the eighth byte is the topmost.
    let limits = name[0] << 8 != word(b"\0cgroup.") && last != word(b"pressure");
    if !stops && !limits {
        return false;
    }
    let place: u64 = read(daemon_task() + offset!(task_cgroups));
    let mut cgroup: u64 = read(place + offset!(css_set_cgroup));
    let mut level = 0;
    while level < LEVELS {
        if cgroup == 0 {
            return false;
        }
        if lifecycle::id(cgroup).0 == directory {
            return true;
        }
        if limits {
            return false;
        }
        cgroup = lifecycle::parent(cgroup);
        level = opaque(u64::from(level) + 1) as u32;
    }
    false
}

/// Kernel address of the task that a file in procfs is about, or of nothing.
#[inline(always)]
fn process_of(inode: u64) -> u64 {
    let whole = inode.wrapping_sub(offset!(proc_inode_vfs));
    let pid: u64 = read(whole.wrapping_add(offset!(proc_inode_pid)));
    let first: u64 = read(pid.wrapping_add(offset!(pid_tasks)));
    first.wrapping_sub(offset!(task_pid_links))
}

/// Kernel address of the daemon's first thread, or 0.
#[inline(always)]
fn daemon_task() -> u64 {
    DAEMON_TASK.get(0).copied().unwrap_or(0)
}

/// Whether the task at a kernel address is one of the daemon's.
#[inline(always)]
fn is_daemon(target: u64) -> bool {
    let leader: u64 = read(target.wrapping_add(offset!(task_leader)));
    leader != 0 && leader == daemon_task()
}

/// Whether the current task is one of the daemon's.
#[inline(always)]
fn is_own() -> bool {
    is_daemon_process(task::ids().0)
}

#[inline(always)]
fn is_daemon_process(tgid: Tgid) -> bool {
    DAEMON.get(0).copied() == Some(tgid)
}

/// Whether the current task may take over what a daemon has left. In a frame of its own.
#[inline(never)]
fn takes_over() -> bool {
    if !is_daemon_process(Tgid(0)) {
        return false;
    }
    // SAFETY: no arguments; the address is only read through `read`.
    let current = unsafe { bpf_get_current_task() };
    let pid: u64 = read(current + offset!(task_thread_pid));
    let is_of_host = read::<u32>(pid + offset!(pid_level)) == 0;
    if is_of_host && HANDED_OVER.get(0).copied() == Some(1) {
        return true;
    }
    // SAFETY: only whether there is an entry.
    unsafe { HEIRS.get(&task::executable(current)) }.is_some()
}

/// Whether the current task is one of the daemon's, of the host's init, or of whoever started the daemon.
#[inline(always)]
fn is_in_charge() -> bool {
    let parent: u64 = read(daemon_task() + offset!(task_parent));
    let current = task::ids().0;
    is_own() || current == Tgid(1) || current == Tgid(read(parent + offset!(task_tgid)))
}

/// Judges the current task. In a frame of its own.
#[inline(never)]
fn judged(task: &mut Task) -> Verdict {
    task::current(task);
    decide::tamper(&KernelTables, emit::now(), task)
}

/// The current task does something to the enforcer, by three words that say what.
#[inline(never)]
fn refuse(first: u64, second: u64, third: u64, gate: Gate) -> bool {
    let mut task = Task::NOBODY;
    let verdict = judged(&mut task);
    let what = Destination::detail([first, second, third]);
    gate::conclude(&task, object(&what), verdict, gate)
}

/// The current task has done something to the enforcer.
#[inline(never)]
fn tell() -> u32 {
    let mut task = Task::NOBODY;
    let verdict = judged(&mut task);
    if verdict.governed() {
        let gate = Gate::CgroupAttach;
        let what = Destination::NONE;
        emit::use_of(
            emit::now(),
            &task,
            object(&what),
            verdict,
            gate,
            taken::NOTHING,
            true,
        );
    }
    0
}

#[inline(always)]
fn object(what: &Destination) -> Object<'_> {
    Object::tamper(what, DAEMON.get(0).copied().unwrap_or(Tgid(0)))
}
