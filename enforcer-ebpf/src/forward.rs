//! Following secrets from hand to hand. A holder labels the pipe that it writes to, the socket that it sends to, the
//! file that it writes; who takes something out of a labelled pipe or socket holds it from then on.
//!
//! Between processes that belong to no workload instance every credential is followed through pipes: there a shell
//! and what it runs are holders each for itself. All else, within instances and between them, is followed for
//! credentials that the bundle marks so, and not past who declassifies.

use aya_ebpf::maps::HashMap;
use enforcer_common::{
    address::Destination,
    branchless::{is_zero, opaque},
    capacity::HELD_PER_HOLDER,
    decide,
    event::{Gate, NoticeKind, taken},
    facts::Task,
    ids::{CgroupId, CredentialId, InodeKey},
    tables::{Bundle, Credential, CredentialKey, Holder, HolderKey, Tables, Versioned},
    verdict::{Mode, Verdict},
};

use crate::{
    emit::{self, Object},
    environment, gate,
    holders::{self, added},
    kernel::{inode_key, load, read, untyped},
    maps::{FILES, HOLDERS, LABELS},
    offset, presence,
    tables::{KernelTables, settled},
    task,
};

/// `S_IFMT`, and what of it a pipe and an ordinary file have.
const KIND: u16 = 0o170_000;
const PIPE: u16 = 0o010_000;
const FILE: u16 = 0o100_000;

/// What something is handed on through.
mod through {
    /// A pipe or FIFO.
    pub const PIPE: u64 = 0;
    /// A unix socket.
    pub const UNIX: u64 = 1;
    /// A file.
    pub const FILE: u64 = 2;
}

/// The current task writes to a file. `true` refuses: there is no room to remember it.
///
/// # Safety
///
/// `file` is a `struct file` typed by the kernel's BTF, not null.
#[inline(always)]
pub unsafe fn written(file: *const u8) -> bool {
    // SAFETY: what hangs on an open file is never null.
    let (mode, magic) = unsafe {
        let inode: *const u8 = load(file, offset!(file_inode));
        let sb: *const u8 = load(inode, offset!(inode_sb));
        (
            load::<u16>(inode, offset!(inode_mode)),
            load::<u64>(sb, offset!(sb_magic)),
        )
    };
    // The address is read anew: a typed pointer is no number, as which a global function wants it.
    match mode & KIND {
        PIPE => task::may_hold() && hand_on(inode(file as u64), through::PIPE) != 0,
        FILE => {
            follows()
                && task::may_hold()
                && keeps(magic)
                && hand_on(inode(file as u64), through::FILE) != 0
        }
        _ => false,
    }
}

/// Whether what is written to a file system of this kind stays there, for others to read; not so where files are the
/// kernel's words.
#[inline(never)]
fn keeps(magic: u64) -> bool {
    let is = |kind: u64| is_zero(magic ^ kind);
    let proc_or_sysfs = is(0x9fa0) | is(0x6265_6572);
    let cgroup = is(0x6367_7270) | is(0x0027_e0eb);
    let debugfs_or_tracefs = is(0x6462_6720) | is(0x7472_6163);
    let securityfs_or_configfs = is(0x7363_6673) | is(0x6265_6570);
    let bpf_or_efivarfs = is(0xcafe_4a11) | is(0xde5e_81e4);
    let none = proc_or_sysfs | cgroup | debugfs_or_tracefs | securityfs_or_configfs;
    (none | bpf_or_efivarfs) == 0
}

/// The current task sends to the unix socket at a kernel address.
#[inline(always)]
pub fn sent(to: u64) -> bool {
    to != 0 && follows() && task::may_hold() && hand_on(to, through::UNIX) != 0
}

/// Bytes go from one open file to another without passing through the current task's memory. Kernel addresses.
#[inline(always)]
pub fn spliced(from: u64, to: u64) {
    if is_pipe(from) {
        took(inode(from), through::PIPE);
    }
    if task::may_hold() && is_pipe(to) {
        hand_on(inode(to), through::PIPE);
    }
}

/// The current task read from the pipe that is open as the file at a kernel address.
#[inline(always)]
pub fn read_pipe(file: u64) {
    took(inode(file), through::PIPE);
}

/// An open file of the pipe with the inode at a kernel address was closed. With the last one goes what is in the pipe;
/// one with a name can be opened again.
#[inline(always)]
pub fn closed_pipe(inode: u64) {
    if read::<u64>(inode + offset!(inode_pipe)) == 0 {
        freed(inode);
    }
}

/// The current task received something by the unix socket at a kernel address.
#[inline(always)]
pub fn received(socket: u64) {
    took(read(socket + offset!(socket_sk)), through::UNIX);
}

/// A pipe or socket is no more.
#[inline(always)]
pub fn freed(object: u64) {
    let object = untyped(object);
    if presence::may_be_held(object) && (is_labelled(object) || is_overflowing(object)) {
        forget(object);
    }
}

/// Whether more went into an object than can be tracked.
#[inline(always)]
fn is_overflowing(object: u64) -> bool {
    LABELS.get_ptr(&label(object, HELD_PER_HOLDER)).is_some()
}

#[inline(always)]
fn inode(file: u64) -> u64 {
    read(file + offset!(file_inode))
}

#[inline(always)]
fn is_pipe(file: u64) -> bool {
    let mode: u16 = read(inode(file) + offset!(inode_mode));
    mode & KIND == PIPE
}

/// Whether the bundle in force has credentials that are followed.
#[inline(always)]
fn follows() -> bool {
    KernelTables
        .bundle()
        .is_some_and(|bundle| bundle.flags & Bundle::FOLLOWS != 0)
}

#[inline(always)]
fn label(object: u64, slot: u64) -> HolderKey {
    let holder = Holder::object(object);
    HolderKey { holder, slot }
}

#[inline(always)]
fn is_labelled(object: u64) -> bool {
    LABELS.get_ptr(&label(object, 0)).is_some()
}

#[inline(never)]
fn forget(object: u64) -> u32 {
    let mut slot = 0;
    while slot <= HELD_PER_HOLDER {
        presence::release(&LABELS, &label(object, slot));
        slot = opaque(slot + 1);
    }
    0
}

/// What the bundle says of a credential; nothing for the daemon's own and for those it does not have.
#[inline(always)]
fn flags(credential: CredentialId) -> u32 {
    let key = CredentialKey::new(task::generation(), credential);
    let info = KernelTables.credential(&key).unwrap_or(Credential {
        flags: Credential::PROCESS_ONLY,
    });
    info.flags
}

/// Whether a credential goes from or to a process in an instance or, if `lone`, in none.
#[inline(always)]
fn goes(credential: CredentialId, lone: bool) -> bool {
    let flags = flags(credential);
    flags & Credential::PROCESS_ONLY == 0 && (lone || flags & Credential::FOLLOW != 0)
}

/// The current task hands on what it holds, by the object at a kernel address. A global function, so that it is
/// verified once. 1 refuses: there is no room to remember it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hand_on(object: u64, through: u64) -> u64 {
    let mut holder = Holder::default();
    // Without a branch: 6.1 takes the one of two constants that it walks first for the only one.
    let lone = is_zero(holding(&mut holder)) & is_zero(through ^ through::PIPE) != 0;
    let mut full = 0;
    let mut slot = 0;
    while slot < HELD_PER_HOLDER {
        let key = HolderKey { holder, slot };
        slot = opaque(slot + 1);
        let Some(held) = HOLDERS.get_ptr(&key) else {
            break;
        };
        // SAFETY: a pointer into the map's preallocated memory.
        let credential = unsafe { *held };
        if goes(credential, lone) {
            full |= put(object, u64::from(credential.0), through);
        }
    }
    let slot = HELD_PER_HOLDER;
    let goes = through != through::FILE && (lone || follows());
    if goes && HOLDERS.get_ptr(&HolderKey { holder, slot }).is_some() {
        presence::hold(&LABELS, &label(object, slot), CredentialId(0));
    }
    full
}

/// As what the current task holds, if it does. Returns its instance; 0 if it is in none.
#[inline(never)]
fn holding(holder: &mut Holder) -> u64 {
    let task = task::current_holder();
    *holder = Holder::instance(task.instance);
    if task.instance.0 == 0 || !holders::holds(*holder) {
        *holder = Holder::process(task.tgid, task.start);
    }
    task.instance.0
}

/// Labels the object with one credential, and tells it. 1 if there was no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn put(object: u64, credential: u64, through: u64) -> u64 {
    let credential = CredentialId(credential as u32);
    let is_file = through == through::FILE;
    if is_file && is_known(object)
        || !is_file && is_among(&LABELS, Holder::object(object), credential)
    {
        return 0;
    }
    let mut task = Task::NOBODY;
    task::current(&mut task);
    if decide::declassifies(&KernelTables, &task) {
        return 0;
    }
    if is_file {
        let key = inode_key(object);
        if !presence::protect(&key, credential) {
            return 1;
        }
        tell_copy(&task, &key, credential.0);
        return 0;
    }
    if holders::add_to(&LABELS, Holder::object(object), credential) == added::NOT {
        return no_room();
    }
    tell(&task, object, through, credential.0, false);
    0
}

/// Tells that there was no room. What could not be remembered is refused, where the bundle refuses anything: 1.
#[inline(never)]
fn no_room() -> u64 {
    let nothing = InodeKey::default();
    emit::notice(NoticeKind::TableFull, CgroupId(0), nothing, nothing, 0);
    let enforce = |bundle: &Bundle| bundle.mode == Mode::Enforce as u8;
    u64::from(KernelTables.bundle().is_some_and(enforce))
}

/// Whether the file whose inode is at a kernel address is a credential already, or declassified.
#[inline(never)]
fn is_known(inode: u64) -> bool {
    let mut known = Versioned::constant(CredentialId(0));
    settled(&FILES, &inode_key(inode), &mut known) && known.at(task::generation()).0 != 0
}

/// The current task took something out of the object at a kernel address. Returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn took(object: u64, through: u64) -> u64 {
    if !presence::may_be_held(object) {
        return 0;
    }
    let mut slot = 0;
    while slot < HELD_PER_HOLDER {
        let key = label(object, slot);
        slot = opaque(slot + 1);
        let Some(held) = LABELS.get_ptr(&key) else {
            break;
        };
        // SAFETY: a pointer into the map, good until the program ends.
        hold(object, u64::from(unsafe { *held }.0), through);
    }
    if is_overflowing(object) {
        overflow();
    }
    0
}

/// The current task was handed more than can be tracked.
#[inline(never)]
fn overflow() -> u32 {
    let mut task = Task::NOBODY;
    task::current(&mut task);
    let goes = task.instance.0 == 0 || follows();
    if goes && !decide::declassifies(&KernelTables, &task) {
        environment::overflow();
    }
    0
}

/// The current task holds one credential more, if that goes to it. A global function, as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hold(object: u64, credential: u64, through: u64) -> u64 {
    let credential = CredentialId(credential as u32);
    let mut holder = Holder::default();
    let lone = holding(&mut holder) == 0;
    if !goes(credential, lone) || is_among(&HOLDERS, holder, credential) {
        return 0;
    }
    let mut task = Task::NOBODY;
    task::current(&mut task);
    if decide::declassifies(&KernelTables, &task) {
        return 0;
    }
    let added = gate::hold(&task, credential);
    if added == added::NOW {
        tell(&task, object, through, credential.0, true);
    }
    if added == added::NOT {
        holders::unaccounted(task.instance);
    }
    0
}

/// Whether an entry of a table of holders has the credential.
#[inline(always)]
fn is_among(
    table: &HashMap<HolderKey, CredentialId>,
    holder: Holder,
    credential: CredentialId,
) -> bool {
    let mut slot = 0;
    while slot < HELD_PER_HOLDER {
        let key = HolderKey { holder, slot };
        slot = opaque(slot + 1);
        let Some(held) = table.get_ptr(&key) else {
            return false;
        };
        // SAFETY: a pointer into the map, good until the program ends.
        if unsafe { *held } == credential {
            return true;
        }
    }
    false
}

/// Tells that something was handed on, or taken.
#[inline(never)]
fn tell(task: &Task, object: u64, through: u64, credential: u32, taken: bool) -> u32 {
    let gate = if through == through::PIPE {
        Gate::Pipe
    } else {
        Gate::Unix
    };
    let what = Destination::detail([object, u64::from(taken), 0]);
    send(task, Object::handed_on(&what), credential, gate)
}

/// Tells that a file is a copy now.
#[inline(never)]
fn tell_copy(task: &Task, file: &InodeKey, credential: u32) -> u32 {
    send(task, Object::copy(file), credential, Gate::FileWrite)
}

#[inline(always)]
fn send(task: &Task, object: Object<'_>, credential: u32, gate: Gate) -> u32 {
    let verdict = Verdict::forwarded(CredentialId(credential));
    emit::use_of(
        emit::now(),
        task,
        object,
        verdict,
        gate,
        taken::NOTHING,
        true,
    );
    0
}
