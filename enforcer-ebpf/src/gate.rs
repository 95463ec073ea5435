//! What the gates have in common: the read of a credential, and the reach of a holder.

use enforcer_common::{
    address::Destination,
    decide,
    event::{Gate, Kind},
    facts::Task,
    ids::{CredentialId, InodeKey},
    tables::{CredentialKey, EndpointKey, Tables},
    verdict::{Reason, Verdict},
};

use crate::{
    emit::{self, Object, Outcome},
    holders,
    maps::{ENDPOINTS, UNACCOUNTED},
    respond,
    tables::KernelTables,
    task,
};

/// Decides a read of `credential` by `task`, records the holding, reports and acts. `true` refuses.
#[inline(always)]
pub fn read(task: &Task, credential: CredentialId, object: &Object, gate: Gate) -> bool {
    let now = emit::now();
    let mut verdict = decide::read(&KernelTables, now, task, credential);
    if !verdict.governed {
        return false;
    }
    if !verdict.refuses() && !verdict.trusted && !hold(task, credential) {
        verdict.denied = Some(Reason::TooManyHeld);
    }
    let taken = respond::act(&verdict);
    emit::use_of(
        now,
        task,
        object,
        &verdict,
        &Outcome {
            kind: Kind::Read,
            gate,
            taken,
            current: true,
        },
    );
    verdict.refuses()
}

/// Records a holding of the credential as the bundle in force describes it.
#[inline(always)]
fn hold(task: &Task, credential: CredentialId) -> bool {
    let info = KernelTables
        .credential(&CredentialKey {
            generation: task::generation(),
            credential,
        })
        .unwrap_or_default();
    holders::record(task, credential, info)
}

/// Decides a call of the current task to `destination`. `addressed` says that the call named it, and was
/// not merely another send on a connection. `true` refuses.
#[inline(always)]
pub fn reach(task: &Task, destination: &Destination, gate: Gate, addressed: bool) -> bool {
    let object = Object {
        file: InodeKey::default(),
        destination: *destination,
    };
    if addressed
        && let Some(credential) = endpoint(destination)
        && read(task, credential, &object, gate)
    {
        return true;
    }
    let now = emit::now();
    let verdict = decide_reach(now, task, destination);
    if !verdict.governed {
        return false;
    }
    let taken = respond::act(&verdict);
    if addressed || verdict.denied.is_some() {
        emit::use_of(
            now,
            task,
            &object,
            &verdict,
            &Outcome {
                kind: Kind::Reach,
                gate,
                taken,
                current: true,
            },
        );
    }
    verdict.refuses()
}

/// As [`reach`] for a gate behind another one: what that one let through is not reported twice.
#[inline(always)]
pub fn reach_quietly(task: &Task, destination: &Destination, gate: Gate) -> bool {
    let now = emit::now();
    let verdict = decide_reach(now, task, destination);
    if !verdict.refuses() {
        return false;
    }
    emit::use_of(
        now,
        task,
        &Object {
            file: InodeKey::default(),
            destination: *destination,
        },
        &verdict,
        &Outcome {
            kind: Kind::Reach,
            gate,
            taken: enforcer_common::event::taken::REFUSED,
            current: false,
        },
    );
    true
}

/// [`decide::reach`], and denial for a process that should have been recorded as a holder and was not.
#[inline(always)]
pub fn decide_reach(
    now: enforcer_common::ids::BootNs,
    task: &Task,
    destination: &Destination,
) -> Verdict {
    let mut verdict = decide::reach(&KernelTables, now, task, destination);
    if task.instance.0 == 0
        && !verdict.governed
        && UNACCOUNTED.get(0).copied().unwrap_or_default() != 0
        && let Some(bundle) = KernelTables.bundle()
    {
        verdict.denied = Some(Reason::TooManyHeld);
        verdict.governed = true;
        verdict.mode = bundle.mode();
        verdict.action = bundle.action();
    }
    verdict
}

/// The credential that the destination hands out, if it does.
#[inline(always)]
fn endpoint(destination: &Destination) -> Option<CredentialId> {
    let key = EndpointKey {
        address: destination.address,
        port: destination.port,
        reserved: [0; 6],
    };
    // SAFETY: copied at once.
    let credential = unsafe { ENDPOINTS.get(&key) }?.at(task::generation());
    (credential.0 != 0).then_some(credential)
}
