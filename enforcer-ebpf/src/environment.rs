//! Credentials in the environment of a program that starts.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_user_str};
use enforcer_common::{
    branchless::opaque,
    capacity::{ENVIRONMENT_PIECES, HELD_PER_HOLDER},
    event::{Gate, Kind},
    ids::CredentialId,
    tables::{Holder, HolderKey, Tables, Variable},
};

use crate::{
    emit::Object,
    gate,
    holders::{self, added},
    kernel::read,
    maps::{HOLDERS, VARIABLES},
    offset, presence,
    tables::{KernelTables, lookup},
    task,
};

/// The current task has started a program: what its environment has of credentials, it holds.
#[inline(always)]
pub fn started() {
    match KernelTables.bundle() {
        Some(bundle) if bundle.environment != 0 => {}
        _ => return,
    }
    // SAFETY: no arguments; the address is only read through `read`.
    let current = unsafe { bpf_get_current_task() };
    let mm: u64 = read(current + offset!(task_mm));
    let begin: u64 = read(mm + offset!(mm_env_start));
    let end: u64 = read(mm + offset!(mm_env_end));
    let mut at = begin | BEGINS;
    let mut piece = 0;
    while piece < ENVIRONMENT_PIECES {
        piece = opaque(piece + PIECES_AT_ONCE);
        at = look_on(at, end);
        if at == 0 {
            break;
        }
        if at & !BEGINS >= end {
            return;
        }
    }
    overflow();
}

/// A loop of a global function, which is walked once, in a loop: fewer steps to walk.
const PIECES_AT_ONCE: u64 = 16;

/// Set in an address where a variable begins; no program's memory is there.
const BEGINS: u64 = 1 << 63;

/// Looks at some pieces from an address on, with [`BEGINS`]. Returns where it got to, likewise, or 0 if something could
/// not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_on(from: u64, end: u64) -> u64 {
    let mut at = from;
    let mut piece = 0;
    while piece < PIECES_AT_ONCE {
        piece = opaque(piece + 1);
        let address = at & !BEGINS;
        if address >= end {
            break;
        }
        let found = look(address, at >> 63);
        let len = found & 0xffff_ffff;
        if found >> 32 != 0 {
            start_with(found >> 32);
        }
        // Nothing could be read, which cannot be told from something hidden.
        if len == 0 {
            return 0;
        }
        // A piece that fills its place has no end of its own: the last byte was written over by one.
        at = if len < 64 {
            (address + len) | BEGINS
        } else {
            address + len - 1
        };
    }
    at
}

/// Looks at one piece of text. Returns in the lower half its length with its end, 64 if that does not come, 0 if it
/// cannot be read; in the upper half the credential that it is, if it begins a variable. A global function, so that
/// it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look(at: u64, begins: u64) -> u64 {
    let mut key = Variable {
        bits: Variable::ALL_BITS,
        generation: task::generation(),
        text: [0; 64],
    };
    // SAFETY: writes at most the array's size, and checks the address.
    let read = unsafe { bpf_probe_read_user_str((&raw mut key.text).cast(), 64, at as *const _) };
    if read <= 0 {
        return 0;
    }
    let mut credential = 0;
    if begins != 0
        && let Some(known) = lookup::<_, CredentialId>(&VARIABLES, &key)
    {
        credential = u64::from(known.0);
    }
    credential << 32 | read as u64
}

/// The current task holds a credential from now on, be it entitled or not: the program runs already.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn start_with(credential: u64) -> u64 {
    let credential = CredentialId(credential as u32);
    gate::read(credential, Object::nothing(Kind::Read), Gate::Exec);
    hold(credential);
    0
}

/// In a frame of its own.
#[inline(never)]
fn hold(credential: CredentialId) -> u32 {
    let task = task::current_holder();
    if gate::hold(&task, credential) == added::NOT {
        holders::unaccounted(task.instance);
    }
    0
}

/// The current task may hold more than can be known.
#[inline(never)]
pub fn overflow() -> u32 {
    let task = task::current_holder();
    let process = Holder::process(task.tgid, task.start);
    mark(process);
    if task.instance.0 != 0 {
        mark(Holder::instance(task.instance));
    }
    if !holders::holds(process) {
        holders::unaccounted(task.instance);
    }
    0
}

/// The slot that marks overflow, and the first, without which a holder is none.
#[inline(always)]
fn mark(holder: Holder) {
    let mut slot = HELD_PER_HOLDER;
    while slot <= HELD_PER_HOLDER {
        let key = HolderKey { holder, slot };
        presence::hold(&HOLDERS, &key, CredentialId(0));
        slot = if slot == 0 { HELD_PER_HOLDER + 1 } else { 0 };
    }
}
