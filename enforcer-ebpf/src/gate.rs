//! What the gates have in common: the read of a credential, and the reach of a holder.

use enforcer_common::{
    address::Destination,
    decide,
    event::{Gate, taken},
    facts::Task,
    ids::CredentialId,
    seal,
    tables::{CredentialKey, EndpointKey, Tables, Versioned},
    verdict::{Reason, Verdict},
};

use crate::{
    emit::{self, Object},
    holders::{self, added},
    maps::ENDPOINTS,
    presence, respond,
    socket::Handle,
    tables::{KernelTables, settled},
    task,
};

/// Decides the current task's read of `credential`, records the holding, reports and acts. `true` refuses.
#[inline(never)]
pub fn read(credential: CredentialId, object: Object<'_>, gate: Gate) -> bool {
    let mut task = Task::NOBODY;
    task::current(&mut task);
    let now = emit::now();
    let mut verdict = decide::read(&KernelTables, now, &task, credential);
    if !verdict.governed() {
        return false;
    }
    let mut added = added::BEFORE;
    if !verdict.refuses() && !verdict.trusted() {
        added = hold(&task, credential);
        if added == added::NOT {
            verdict = verdict.because(Reason::TooManyHeld);
        }
    }
    if gate.repeats() && added == added::BEFORE && verdict.reason() == 0 {
        return false;
    }
    conclude(&task, object, verdict, gate)
}

/// Acts on a verdict about the current task, and reports it if it says anything. `true` refuses.
#[inline(always)]
pub fn conclude(task: &Task, object: Object<'_>, verdict: Verdict, gate: Gate) -> bool {
    if !verdict.governed() {
        return false;
    }
    let taken = respond::act(verdict, task);
    emit::use_of(emit::now(), task, object, verdict, gate, taken, true);
    verdict.refuses()
}

/// Records a holding of the credential as the bundle in force describes it. Returns one of [`added`].
#[inline(always)]
pub fn hold(task: &Task, credential: CredentialId) -> u32 {
    let info = KernelTables
        .credential(&CredentialKey::new(task::generation(), credential))
        .unwrap_or_default();
    holders::record(task, credential, info)
}

/// How a call came to its destination; numbers, because an enum costs the verifier a path for each value.
pub mod named {
    /// The call named it.
    pub const BY_CALL: u64 = 0;
    /// It is the peer of a connected socket: what it may send was reported when it connected.
    pub const BY_CONNECTION: u64 = 1;
    /// Another gate decided the same call before, and reported what it let through.
    pub const BEFORE: u64 = 2;
    /// No other gate sees the call.
    pub const ALONE: u64 = 3;
}

/// Decides the current task's call on the socket to `destination`, `named` as in [`named`], leaves its facts with the socket,
/// reports and acts. `true` refuses.
#[inline(never)]
pub fn reach(socket: Handle, destination: &Destination, gate: Gate, named: u64) -> bool {
    let mut task = Task::NOBODY;
    task::current(&mut task);
    let moment = moment();
    let now = emit::now();
    let mut verdict = remembered(socket, &task, destination, moment);
    if !verdict.governed() {
        verdict = decide::reach(&KernelTables, now, &task, destination);
        if !verdict.governed() {
            return false;
        }
        if !verdict.refuses() {
            let seal = seal(&task, destination, moment, verdict.0);
            socket.remember(&task, verdict.0, seal);
        }
    }
    let reported = match named {
        named::BY_CONNECTION => verdict.reason() != 0,
        named::BEFORE => verdict.refuses(),
        _ => true,
    };
    if reported {
        // A signal is the LSM hooks' to send: cgroup programs may not, before 6.18.
        let taken = match named {
            named::BEFORE | named::ALONE if verdict.refuses() => taken::REFUSED,
            named::BEFORE | named::ALONE => taken::NOTHING,
            _ => respond::act(verdict, &task),
        };
        emit::use_of(
            now,
            &task,
            Object::destination(destination),
            verdict,
            gate,
            taken,
            true,
        );
    }
    verdict.refuses()
}

/// See [`seal::moment`].
#[inline(always)]
pub fn moment() -> u64 {
    KernelTables
        .bundle()
        .map_or(0, |bundle| seal::moment(bundle, presence::holdings()))
}

/// The seal of a verdict; 0 if it lets nothing pass for long: it denies, if only for the record, or the node is degraded, or
/// an entitlement begins or ends about now. In a frame of its own.
#[inline(never)]
pub fn seal(task: &Task, to: &Destination, moment: u64, verdict: u64) -> u64 {
    let Some(bundle) = KernelTables.bundle() else {
        return 0;
    };
    let verdict = Verdict(verdict);
    let is_steady = bundle.degraded == 0 && emit::now() < bundle.steady_until;
    if !is_steady || verdict.reason() != 0 {
        return 0;
    }
    seal::of(&bundle.secret, task, to, moment, verdict)
}

/// Whether a hook has let the current process's same call go on, which left its facts with the socket, and all that this
/// depended on is as it was. In a frame of its own.
#[inline(never)]
pub fn has_just_permitted(socket: Handle, to: &Destination) -> bool {
    let Some(record) = socket.record() else {
        return false;
    };
    // SAFETY: the record lives as long as the program.
    let record = unsafe { &*record };
    record.seal != 0
        && record.task.tgid == task::ids().0
        && record.seal == seal(&record.task, to, moment(), record.verdict)
}

/// What was permitted to the same task on the socket before, to the same destination, if all that this depended on is as
/// it was. In a frame of its own.
#[inline(never)]
fn remembered(socket: Handle, task: &Task, to: &Destination, moment: u64) -> Verdict {
    let Some(record) = socket.record() else {
        return Verdict::PASS;
    };
    // SAFETY: the record lives as long as the program.
    let (verdict, known) = unsafe { ((*record).verdict, (*record).seal) };
    if known == 0 || known != seal(task, to, moment, verdict) {
        return Verdict::PASS;
    }
    Verdict(verdict)
}

/// Leaves with a socket who uses it, if that is in no instance: should the process read a credential later, the
/// packet gate finds it by this. (What was corked before goes out without a call, and before 6.5 `splice` to a socket
/// passes no other gate.) Returns 0: a result that is no stack pointer.
#[inline(never)]
pub fn remember_loner(socket: Handle) -> u32 {
    if let Some(record) = socket.record() {
        // SAFETY: the record lives as long as the program.
        let record = unsafe { &*record };
        if record.used != 0 && record.task.tgid == task::ids().0 {
            return 0;
        }
    }
    if task::current_instance().0 != 0 || task::generation().0 == 0 {
        return 0;
    }
    let mut task = Task::NOBODY;
    task::current(&mut task);
    socket.remember(&task, 0, 0);
    0
}

/// A holder sends on a connected socket. If that was accepted from a client, who may be answered is the packet
/// gate's to decide: it needs to know who sends. In a frame of its own.
#[inline(never)]
pub fn answers(socket: Handle) -> bool {
    let Some(record) = socket.record() else {
        return false;
    };
    // SAFETY: the record lives as long as the program.
    if unsafe { (*record).inbound } == 0 {
        return false;
    }
    let mut task = Task::NOBODY;
    task::current(&mut task);
    socket.remember(&task, 0, 0);
    true
}

/// As [`reach`], by the facts that an earlier call left, where the kernel hides the current task. `true`
/// refuses.
#[inline(never)]
pub fn reach_as(task: &Task, destination: &Destination, gate: Gate) -> bool {
    let now = emit::now();
    let verdict = decide::reach(&KernelTables, now, task, destination);
    if !verdict.refuses() {
        return false;
    }
    emit::use_of(
        now,
        task,
        Object::destination(destination),
        verdict,
        gate,
        taken::REFUSED,
        false,
    );
    true
}

/// The credential that the destination hands out, if it does.
#[inline(always)]
pub fn endpoint(destination: &Destination) -> Option<CredentialId> {
    let key = EndpointKey::new(&destination.address, destination.port());
    let mut known = Versioned::constant(CredentialId(0));
    if !settled(&ENDPOINTS, &key, &mut known) {
        return None;
    }
    let credential = known.at(task::generation());
    (credential.0 != 0).then_some(credential)
}
