//! The decision: facts and tables in, a verdict out.
//!
//! Compiled into the eBPF programs and into the daemon, so written with the verifier of 5.10 in mind:
//! - loops have constant bounds;
//! - 512 bytes of stack must do for all frames, so the steps are functions that hand on one word;
//! - a constant that is compared later keeps paths apart that could be walked as one. What is known so far
//!   is therefore one number (`Rank`), and starts from [`Bundle::zero`], which is 0 but which the
//!   verifier does not know: a hundred thousand instructions instead of millions.

use crate::address::{Address, Destination};
use crate::branchless::{all_ones, less, opaque, reload};
use crate::capacity::HELD_PER_HOLDER;
use crate::facts::Task;
use crate::ids::{BootNs, CredentialId, EntitlementId, SubjectId};
use crate::tables::{
    Bundle, Credential, CredentialKey, Grant, GrantKey, Holder, HolderKey, Subject, SubjectKey,
    Tables,
};
use crate::verdict::{Mode, Reason, Verdict};

/// The workloads a task belongs to: for each selector mask those that match it in the upper half of the
/// word, and those that would with another executable in the lower.
type Subjects = [u64; SubjectKey::MASKS as usize];

/// Fills in the workloads `task` belongs to. Returns the bits of its standing, as of [`Subject::standing`].
#[inline(never)]
fn find_subjects<T: Tables>(tables: &T, bundle: &Bundle, task: &Task, found: &mut Subjects) -> u64 {
    let mut standing = bundle.zero;
    let mut mask = 0;
    while mask < found.len() as u64 {
        let current = mask as usize & (found.len() - 1);
        mask = opaque(mask + 1);
        // Read anew: else what one round learns of the bits would keep the next ones apart.
        if reload(&bundle.masks) & (1 << current) != 0
            && let Some(subject) = tables.subject(&SubjectKey::of(
                task,
                reload(&bundle.generation),
                current as u64 + reload(&bundle.zero),
            ))
        {
            found[current] = u64::from(subject.matched.0) << 32 | u64::from(subject.near.0);
            standing |= u64::from(subject.standing);
        }
    }
    standing
}

/// What is known of an answer, with the entitlement behind it, in one number: the smaller, the more it
/// says. Bits 56 to 62 rank: 0 trusted, 1 permitted, 2 permitted though stale, then a reason, plus 2. Below come mode
/// (byte 5) and action (byte 4), turned round so that of two equal ranks the stricter is the smaller, then the
/// holder's slot with the credential (bits 28 to 31), and the entitlement's number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rank(u64);

impl Rank {
    const TRUSTED: u64 = 0;
    const PERMITTED: u64 = 1;
    /// Permitted, for the record as if it were expired: by an entitlement that is monitored now that nothing has been
    /// heard of it. A rank of its own, for what else is forbidden stays so.
    const STALE: u64 = 2;
    const SLOT_SHIFT: u32 = 28;
    /// For an answer that is not about one credential.
    const NO_SLOT: u64 = 0xf;

    /// The rank of a reason.
    #[inline(always)]
    const fn denied(reason: Reason) -> u64 {
        reason as u64 + Self::STALE
    }

    /// An answer that no entitlement goes with.
    #[inline(always)]
    fn bare(bundle: &Bundle, rank: u64) -> Self {
        let rank = rank + reload(&bundle.zero);
        Self::new(
            rank,
            reload(&bundle.mode),
            reload(&bundle.action),
            EntitlementId(0),
        )
    }

    #[inline(always)]
    fn new(rank: u64, mode: u8, action: u8, entitlement: EntitlementId) -> Self {
        Self(
            rank << 56 | (mode as u64 ^ 1) << 40 | (action as u64 ^ 3) << 32 | entitlement.0 as u64,
        )
    }

    #[inline(always)]
    fn rank(self) -> u64 {
        self.0 >> 56 & 0x7f
    }

    /// 1 if it lets the use go on for what it says itself, or else 0.
    #[inline(always)]
    fn permits(self) -> u64 {
        less(self.rank(), Self::STALE + 1)
    }

    /// The same answer, after all those that are enforced if it is only monitored.
    #[inline(always)]
    fn enforced_first(self) -> Self {
        Self(self.0 | (self.0 >> 40 & 1) << 63)
    }

    /// The one that says more, without a branch.
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self(self.0 ^ ((self.0 ^ other.0) & all_ones(less(other.0, self.0))))
    }

    /// The same, of the credential in this slot of the holder.
    #[inline(always)]
    fn in_slot(self, slot: u64) -> Self {
        Self(self.0 | slot << Self::SLOT_SHIFT)
    }

    /// A denial for this reason, by the same entitlement.
    #[inline(always)]
    fn because(self, reason: Reason) -> Self {
        Self(self.0 << 8 >> 8 | Self::denied(reason) << 56)
    }

    /// The slot of the credential, or one that no holder has.
    #[inline(always)]
    fn slot(self) -> u64 {
        self.0 >> Self::SLOT_SHIFT & 0xf
    }

    /// The answer. An entitlement permits only as long as the bundle it stands in is good.
    #[inline(always)]
    fn verdict(self, bundle: &Bundle, now: BootNs, credential: CredentialId) -> Verdict {
        let rank = self.rank();
        let mut reason = less(Self::STALE, rank) * rank.wrapping_sub(Self::STALE);
        let mut mode = (self.0 >> 40) ^ 1;
        let action = (self.0 >> 32) ^ 3;
        if rank == Self::PERMITTED && now.0 >= bundle.expires.0 {
            reason = Reason::BundleExpired as u64;
            mode = u64::from(bundle.on_expiry);
        }
        if rank == Self::STALE {
            reason = Reason::Expired as u64;
            mode = Mode::Monitor as u64;
        }
        Verdict::new(
            reason,
            rank == Self::TRUSTED,
            mode,
            action,
            credential,
            EntitlementId(self.0 as u32 & Verdict::ID_MAX),
        )
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
    let Some(info) = info(tables, bundle, credential) else {
        return Verdict::PASS;
    };
    let mut subjects = [bundle.zero; SubjectKey::MASKS as usize];
    let standing = find_subjects(tables, bundle, task, &mut subjects);
    let verdict = search(tables, now, &Destination::NONE, &subjects, credential)
        .or(unmatched(bundle, task, info))
        .or(if_trusted(bundle, standing))
        .verdict(bundle, now, credential);
    // The daemon's canaries are refused, and only refused, whatever the bundle says of others.
    if info.has(Credential::PROCESS_ONLY) {
        return verdict.enforced();
    }
    verdict
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
    let mut key = HolderKey {
        holder: Holder::instance(task.instance),
        slot: 0,
    };
    if !find_holder(tables, task, &mut key) {
        return Verdict::PASS;
    }
    let mut subjects = [bundle.zero; SubjectKey::MASKS as usize];
    let standing = find_subjects(tables, bundle, task, &mut subjects);
    if standing & u64::from(Subject::TRUSTED) != 0 {
        return Verdict::PASS;
    }
    let nothing = Rank::bare(bundle, Rank::denied(Reason::BundleExpired)).in_slot(Rank::NO_SLOT);
    let mut best = nothing;
    // What no permission of something else helps against: that something exclusive is not permitted.
    let mut forbidding = Rank(u64::MAX);
    // Not zero once something held is governed; bit 32 is set once something forbids.
    let mut seen = bundle.zero;
    let mut slot = 0;
    while slot < HELD_PER_HOLDER {
        key.slot = slot;
        slot = opaque(slot + 1);
        // Slots are filled without a gap.
        let Some(credential) = tables.held(&key) else {
            break;
        };
        // What the bundle does not govern is as good as not held. (No `continue`: a second way back to the
        // loop's head can end up in a place from which kernels before 6.2 do not accept it.)
        let (flags, governed) = match info(tables, bundle, credential) {
            Some(info) => (info.flags, bundle.zero ^ 1),
            None => (bundle.zero as u32, bundle.zero),
        };
        let governed = all_ones(governed);
        let found = search(tables, now, destination, &subjects, credential)
            .or(unmatched(bundle, task, Credential { flags }))
            .in_slot(key.slot);
        let found = Rank(found.0 | !governed);
        let forbids = u64::from(flags & Credential::EXCLUSIVE) & (found.permits() ^ 1) & governed;
        seen |= u64::from(credential.0) & governed | forbids << 32;
        best = best.or(found);
        forbidding = forbidding.or(Rank(found.enforced_first().0 | !all_ones(forbids)));
    }
    key.slot = HELD_PER_HOLDER;
    if tables.held(&key).is_some() || tables.unaccounted(task) {
        // More was read than can be tracked.
        seen = u64::MAX;
        let overflow = Rank::bare(bundle, Rank::denied(Reason::TooManyHeld));
        forbidding = forbidding.or(overflow.in_slot(Rank::NO_SLOT).enforced_first());
    }
    if seen == 0 {
        return Verdict::PASS;
    }
    let mut answer = best;
    if tables.baseline(
        bundle.baseline,
        &destination.address,
        destination.transport(),
    ) {
        answer = Rank::bare(bundle, Rank::PERMITTED).in_slot(Rank::NO_SLOT);
    } else if seen >> 32 != 0 {
        // Something else may say more of why, as long as it is as strict.
        answer = forbidding.or(Rank(best.enforced_first().0 | all_ones(best.permits())));
    }
    if reload(&bundle.degraded) != 0 && answer.permits() != 0 {
        answer = answer.because(Reason::Degraded);
    }
    key.slot = answer.slot();
    let credential = tables.held(&key).unwrap_or_default();
    answer.verdict(bundle, now, credential)
}

/// May `task` do something to the enforcer itself? Before the first bundle there is nothing to protect.
#[inline(never)]
pub fn tamper<T: Tables>(tables: &T, now: BootNs, task: &Task) -> Verdict {
    let Some(bundle) = tables.bundle() else {
        return Verdict::PASS;
    };
    let mut subjects = [bundle.zero; SubjectKey::MASKS as usize];
    let standing = find_subjects(tables, bundle, task, &mut subjects);
    let mut rank = Rank::denied(Reason::NoEntitlement);
    if standing & u64::from(Subject::MAINTENANCE) != 0 {
        rank = Rank::PERMITTED;
    }
    Rank::bare(bundle, rank)
        .verdict(bundle, now, CredentialId(0))
        .blocked()
}

/// Whether nothing follows from what `task` is handed or hands on.
#[inline(never)]
pub fn declassifies<T: Tables>(tables: &T, task: &Task) -> bool {
    let Some(bundle) = tables.bundle() else {
        return true;
    };
    let mut subjects = [bundle.zero; SubjectKey::MASKS as usize];
    let standing = find_subjects(tables, bundle, task, &mut subjects);
    standing & u64::from(Subject::TRUSTED | Subject::DECLASSIFIES) != 0
}

/// What a holder does that no entitlement can permit, such as having a raw socket: denied with `reason`, unless
/// something more specific holds of its entitlements. Passes a task that holds nothing, and trusted ones.
#[inline(never)]
pub fn misuse<T: Tables>(tables: &T, now: BootNs, task: &Task, reason: Reason) -> Verdict {
    let verdict = reach(tables, now, task, &Destination::NOWHERE);
    let known = u64::from(verdict.reason());
    let specific = known != 0 && known < Reason::OutsideDestination as u64;
    if !verdict.governed() || specific {
        return verdict;
    }
    verdict.because(reason)
}

/// Whether `task` holds anything, itself or through its instance.
#[inline(always)]
pub fn holds<T: Tables>(tables: &T, task: &Task) -> bool {
    let mut key = HolderKey {
        holder: Holder::instance(task.instance),
        slot: 0,
    };
    find_holder(tables, task, &mut key)
}

/// Finds the holder that `task` belongs to: its workload instance if that holds anything, or else its
/// process if that does. What a process brings into an instance, the instance holds. `key` comes as the
/// instance's first slot.
#[inline(always)]
fn find_holder<T: Tables>(tables: &T, task: &Task, key: &mut HolderKey) -> bool {
    if task.instance.0 != 0 && tables.held(key).is_some() {
        return true;
    }
    key.holder = Holder::process(task.tgid, task.start);
    tables.held(key).is_some() || tables.unaccounted(task)
}

#[inline(always)]
fn info<T: Tables>(tables: &T, bundle: &Bundle, credential: CredentialId) -> Option<Credential> {
    tables.credential(&CredentialKey::new(bundle.generation, credential))
}

/// The answer if no entitlement comes near: three reasons in a row, from the most specific. The credential
/// has entitlements and the cgroup is known; it has none; the cgroup is not known.
#[inline(always)]
fn unmatched(bundle: &Bundle, task: &Task, info: Credential) -> Rank {
    let entitled = u64::from((info.flags / Credential::ENTITLED) & 1);
    let unclassified = u64::from((reload(&task.classified) & 1) ^ 1);
    let unclassified = entitled & unclassified;
    let monitored = unclassified as u8 & (bundle.flags & Bundle::UNCLASSIFIED_DENIED ^ 1);
    Rank::new(
        Rank::denied(Reason::WrongWorkload) + (entitled ^ 1) + 2 * unclassified,
        reload(&bundle.mode) & (monitored ^ 1),
        reload(&bundle.action),
        EntitlementId(0),
    )
}

/// The answer for a trusted task; without that standing, one that every other is better than.
#[inline(always)]
fn if_trusted(bundle: &Bundle, standing: u64) -> Rank {
    let trusted = standing & u64::from(Subject::TRUSTED);
    Rank(Rank::bare(bundle, Rank::TRUSTED).0 | all_ones(trusted ^ 1))
}

/// The best of what the entitlements of `subjects` to `credential` say; all bits set if there are none. Without
/// a branch: the functions behind `weigh` and `near` return at once for no subject.
#[inline(always)]
fn search<T: Tables>(
    tables: &T,
    now: BootNs,
    destination: &Destination,
    subjects: &Subjects,
    credential: CredentialId,
) -> Rank {
    let mut best = Rank(u64::MAX);
    let mut mask = 0;
    while mask < subjects.len() as u64 {
        let subject = subjects[mask as usize & (subjects.len() - 1)];
        mask = opaque(mask + 1);
        let matched = GrantKey::new(SubjectId((subject >> 32) as u32), credential);
        let to = reload(destination);
        best = best.or(Rank(tables.weigh(
            matched,
            now,
            &to.address,
            to.transport(),
        )));
        let near = GrantKey::new(SubjectId(subject as u32), credential);
        best = best.or(Rank(tables.near(near)));
    }
    best
}

/// What it says that another executable would have the grants behind `key`, as a rank; all bits set if
/// there are none.
#[inline(always)]
pub fn near<T: Tables + ?Sized>(tables: &T, key: GrantKey) -> u64 {
    if key.subject().0 == 0 {
        return u64::MAX;
    }
    let (Some(grants), Some(bundle)) = (tables.grants(&key), tables.bundle()) else {
        return u64::MAX;
    };
    // What the entitlement says of its own workload is not for this one.
    Rank::new(
        Rank::denied(Reason::WrongExecutable),
        bundle.mode,
        bundle.action,
        grants.grants[0].entitlement,
    )
    .0
}

/// Why an entitlement in force that does not cover the address is refused: a loopback address is another
/// process here.
#[inline(always)]
fn elsewhere(address: &Address) -> Reason {
    if address.is_loopback() {
        Reason::LocalPeer
    } else {
        Reason::OutsideDestination
    }
}

/// The best of what the grants behind `key` say to a destination, as a rank: without a branch, so every slot is
/// weighed, and unused ones count for nothing. All bits set if there are none.
/// Without a `transport`, as for a read, nothing need be covered.
#[inline(always)]
pub fn weigh<T: Tables + ?Sized>(
    tables: &T,
    key: GrantKey,
    now: BootNs,
    address: &Address,
    transport: u64,
) -> u64 {
    let mut best = Rank(u64::MAX);
    if key.subject().0 == 0 {
        return best.0;
    }
    let Some(grants) = tables.grants(&key) else {
        return best.0;
    };
    let Some(bundle) = tables.bundle() else {
        return best.0;
    };
    // Bit 0: nothing has been heard for too long; bit 1: the bundle is good all the same. In one number, for want of
    // stack.
    let stale = less(now.0, bundle.fresh_until.0) ^ 1 | less(now.0, bundle.expires.0) << 1;
    let mut covered = u64::MAX;
    if transport != 0 {
        covered = u64::from(tables.covers(grants.scope, address, transport));
    }
    // A byte for each combination of not ended, begun and covered.
    let ranks = u64::from_le_bytes([
        Rank::denied(Reason::Expired) as u8,
        Rank::denied(Reason::Expired) as u8,
        Rank::denied(Reason::Expired) as u8,
        Rank::denied(Reason::Expired) as u8,
        Rank::denied(Reason::NotYetValid) as u8,
        Rank::denied(Reason::NotYetValid) as u8,
        Rank::denied(elsewhere(address)) as u8,
        Rank::PERMITTED as u8,
    ]);
    let mut slot = 0;
    while let Some(grant) = grants.grants.get(slot as usize) {
        let flags = u64::from(grant.flags);
        let lapsed = stale & 1 & (flags / u64::from(Grant::STALE_ENDS));
        let in_time = less(now.0, grant.valid_until.0);
        let open = in_time & (lapsed ^ 1);
        let begun = less(now.0, grant.valid_from.0) ^ 1;
        let rank = ranks >> (8 * (open << 2 | begun << 1 | (covered >> slot & 1))) & 0xff;
        // What was taken back says nothing else any more.
        let revoked = flags & u64::from(Grant::REVOKED);
        let rank = rank ^ (rank ^ Rank::denied(Reason::Revoked)) & all_ones(revoked);
        // It would still permit, had anything been heard; in an expired bundle `onExpiry` rules.
        let monitors = stale >> 1 & lapsed & (flags / u64::from(Grant::STALE_MONITORS));
        let stands = monitors & in_time & begun & covered >> slot & (revoked ^ 1);
        let rank = rank ^ (rank ^ Rank::STALE) & all_ones(stands);
        let unused = all_ones(less(slot, u64::from(grants.count)) ^ 1);
        let found = Rank::new(rank, grant.mode, grant.action, grant.entitlement);
        best = best.or(Rank(found.0 | unused));
        slot = opaque(slot + 1);
    }
    best.0
}
