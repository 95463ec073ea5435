//! The decision: facts and tables in, a verdict out.
//!
//! Compiled into the eBPF programs and into the daemon. For the verifier of 5.10 the loops have constant
//! bounds; for its 512 bytes of stack over all frames, the steps are functions of their own and hand
//! small values on.

use crate::address::Destination;
use crate::capacity::{GRANTS_PER_PAIR, HELD_PER_HOLDER};
use crate::facts::Task;
use crate::ids::{BootNs, CredentialId, EntitlementId};
use crate::tables::{
    Bundle, Credential, CredentialKey, Grant, GrantKey, Grants, Holder, HolderKey, SubjectKey,
    Tables, action, mode,
};
use crate::verdict::{Action, Mode, Reason, Verdict};

/// What is asked, the same for every credential that is looked at.
struct Question<'a> {
    now: BootNs,
    task: &'a Task,
    bundle: Bundle,
    /// The destination, and why it is refused if an entitlement in force does not cover it. `None` for a
    /// read.
    destination: Option<(&'a Destination, Reason)>,
}

/// What one credential says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// The task is trusted.
    Trusted,
    /// An entitlement permits.
    Permitted,
    /// None does.
    Denied,
}

/// The entitlement that permits; or the nearest one, and what in it did not fit.
#[derive(Clone, Copy)]
struct Nearest {
    reason: Reason,
    mode: Mode,
    action: Action,
    credential: CredentialId,
    entitlement: EntitlementId,
}

impl Nearest {
    /// Nothing known yet but what the bundle says of denials.
    #[inline(always)]
    fn of(bundle: &Bundle, reason: Reason, credential: CredentialId) -> Self {
        Self {
            reason,
            mode: bundle.mode(),
            action: bundle.action(),
            credential,
            entitlement: EntitlementId(0),
        }
    }

    /// Keeps `reason` if it is more specific than what was known. Of two equal ones the first stays.
    #[inline(always)]
    fn consider(&mut self, reason: Reason, grant: &Grant) {
        if (reason as u8) < self.reason as u8 {
            self.reason = reason;
            self.take(grant);
        }
    }

    #[inline(always)]
    fn take(&mut self, grant: &Grant) {
        self.entitlement = grant.entitlement;
        self.mode = mode(grant.mode);
        self.action = action(grant.action);
    }

    #[inline(always)]
    fn verdict(&self, denied: Option<Reason>) -> Verdict {
        Verdict {
            denied,
            governed: true,
            trusted: false,
            mode: self.mode,
            action: self.action,
            credential: self.credential,
            entitlement: self.entitlement,
        }
    }

    /// Permits, unless the bundle has expired.
    #[inline(always)]
    fn permitted(&self, question: &Question<'_>) -> Verdict {
        if question.now.0 < question.bundle.expires.0 {
            return self.verdict(None);
        }
        Verdict {
            mode: mode(question.bundle.on_expiry),
            ..self.verdict(Some(Reason::BundleExpired))
        }
    }
}

/// May `task` read `credential` now?
///
/// The caller records the holding *before* it lets a permitted read go on, unless the verdict says that
/// the task is trusted.
#[inline(never)]
pub fn read<T: Tables>(tables: &T, now: BootNs, task: &Task, credential: CredentialId) -> Verdict {
    let Some(bundle) = tables.bundle() else {
        return Verdict::PASS;
    };
    let question = Question {
        now,
        task,
        bundle,
        destination: None,
    };
    let Some(info) = info(tables, &bundle, credential) else {
        return Verdict::PASS;
    };
    let mut nearest = Nearest::of(&bundle, unmatched(task, info), credential);
    match search(tables, &question, credential, &mut nearest) {
        Found::Trusted => Verdict {
            trusted: true,
            ..nearest.verdict(None)
        },
        Found::Permitted => nearest.permitted(&question),
        Found::Denied => nearest.verdict(Some(nearest.reason)),
    }
}

/// May `task` send to `destination` now, given what it holds?
///
/// A task that holds nothing of what the bundle governs passes, without a record.
#[inline(never)]
pub fn reach<T: Tables>(
    tables: &T,
    now: BootNs,
    task: &Task,
    destination: &Destination,
) -> Verdict {
    let Some(bundle) = tables.bundle() else {
        return Verdict::PASS;
    };
    let Some(holder) = holder(tables, task) else {
        return Verdict::PASS;
    };
    let question = Question {
        now,
        task,
        bundle,
        destination: Some((
            destination,
            if destination.address.is_loopback() {
                Reason::LocalPeer
            } else {
                Reason::OutsideDestination
            },
        )),
    };
    let mut denied = Nearest::of(&bundle, Reason::BundleExpired, CredentialId(0));
    let mut permitted: Option<Nearest> = None;
    let mut exclusively_denied = false;
    let mut governed = false;
    let mut key = HolderKey {
        holder,
        slot: 0,
        reserved: 0,
    };
    while key.slot <= HELD_PER_HOLDER {
        let Some(credential) = tables.held(&key) else {
            // Slots are filled without a gap.
            break;
        };
        key.slot += 1;
        if key.slot > HELD_PER_HOLDER {
            // The mark that there were more than can be tracked.
            governed = true;
            exclusively_denied = true;
            if (Reason::TooManyHeld as u8) < denied.reason as u8 {
                denied = Nearest::of(&bundle, Reason::TooManyHeld, CredentialId(0));
            }
            break;
        }
        let Some(info) = info(tables, &bundle, credential) else {
            // The bundle no longer governs it: as good as not held.
            continue;
        };
        governed = true;
        let mut nearest = Nearest::of(&bundle, unmatched(task, info), credential);
        match search(tables, &question, credential, &mut nearest) {
            Found::Trusted => return Verdict::PASS,
            Found::Permitted => {
                if permitted.is_none() {
                    permitted = Some(nearest);
                }
            }
            Found::Denied => {
                exclusively_denied |= info.has(Credential::EXCLUSIVE);
                if (nearest.reason as u8) < denied.reason as u8 {
                    denied = nearest;
                }
            }
        }
    }
    if !governed {
        return Verdict::PASS;
    }
    if tables.covers(bundle.baseline, destination) != 0 {
        return Nearest::of(&bundle, Reason::BundleExpired, CredentialId(0)).permitted(&question);
    }
    match permitted {
        Some(nearest) if !exclusively_denied => nearest.permitted(&question),
        _ => denied.verdict(Some(denied.reason)),
    }
}

/// The holder that `task` belongs to: its workload instance if that holds anything, or else its process
/// if that does. What a process brings into an instance, the instance holds.
#[inline(always)]
pub fn holder<T: Tables>(tables: &T, task: &Task) -> Option<Holder> {
    let instance = Holder::instance(task.instance);
    if task.instance.0 != 0 && holds(tables, instance) {
        return Some(instance);
    }
    let process = Holder::process(task.tgid, task.start);
    holds(tables, process).then_some(process)
}

#[inline(always)]
fn holds<T: Tables>(tables: &T, holder: Holder) -> bool {
    tables
        .held(&HolderKey {
            holder,
            slot: 0,
            reserved: 0,
        })
        .is_some()
}

#[inline(always)]
fn info<T: Tables>(tables: &T, bundle: &Bundle, credential: CredentialId) -> Option<Credential> {
    tables.credential(&CredentialKey {
        generation: bundle.generation,
        credential,
    })
}

/// The reason that holds when no entitlement comes near.
#[inline(always)]
fn unmatched(task: &Task, info: Credential) -> Reason {
    if !info.has(Credential::ENTITLED) {
        Reason::NoEntitlement
    } else if task.classified == 0 {
        Reason::UnclassifiedWorkload
    } else {
        Reason::WrongWorkload
    }
}

/// Looks for an entitlement of the task to `credential` that answers the question, and leaves in
/// `nearest` it or what came closest.
#[inline(never)]
fn search<T: Tables>(
    tables: &T,
    question: &Question<'_>,
    credential: CredentialId,
    nearest: &mut Nearest,
) -> Found {
    let mut permitted = false;
    let mut mask = 0;
    while mask < SubjectKey::MASKS {
        let current = mask;
        mask += 1;
        if question.bundle.masks & (1 << current) == 0 {
            continue;
        }
        let Some(key) = SubjectKey::of(question.task, question.bundle.generation, current) else {
            continue;
        };
        let Some(subject) = tables.subject(&key) else {
            continue;
        };
        if subject.trusted != 0 {
            return Found::Trusted;
        }
        if permitted {
            continue;
        }
        if let Some(grants) = tables.grants(&GrantKey {
            subject: subject.matched,
            credential,
        }) {
            permitted = weigh(tables, question, grants, nearest);
        }
        if subject.near.0 != 0
            && !permitted
            && let Some(grants) = tables.grants(&GrantKey {
                subject: subject.near,
                credential,
            })
        {
            nearest.consider(Reason::WrongExecutable, &grants.grants[0]);
        }
    }
    if permitted {
        Found::Permitted
    } else {
        Found::Denied
    }
}

/// Whether one of `grants` permits. Leaves in `nearest` it or what came closest.
#[inline(always)]
fn weigh<T: Tables>(
    tables: &T,
    question: &Question<'_>,
    grants: &Grants,
    nearest: &mut Nearest,
) -> bool {
    let (covered, otherwise) = match question.destination {
        Some((destination, reason)) => (tables.covers(grants.scope, destination), reason),
        None => (u32::MAX, Reason::OutsideDestination),
    };
    let mut slot = 0;
    while slot < GRANTS_PER_PAIR as usize {
        if slot as u32 >= grants.count {
            break;
        }
        let grant = &grants.grants[slot];
        if question.now.0 >= grant.valid_until.0 {
            nearest.consider(Reason::Expired, grant);
        } else if question.now.0 < grant.valid_from.0 {
            nearest.consider(Reason::NotYetValid, grant);
        } else if covered >> slot & 1 == 0 {
            nearest.consider(otherwise, grant);
        } else {
            nearest.take(grant);
            return true;
        }
        slot += 1;
    }
    false
}
