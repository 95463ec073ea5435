//! The decision over random tables, against the rules said once more in the plainest way.

mod world;

use std::collections::BTreeSet;

use enforcer_common::capacity::HELD_PER_HOLDER;
use enforcer_common::decide;
use enforcer_common::ids::{BootNs, CredentialId, ScopeId};
use enforcer_common::tables::{Bundle, Credential, Grant, Grants, Subject};
use enforcer_common::verdict::{Mode, Reason, Verdict};
use proptest::prelude::*;
use world::{DESTINATIONS, Selector, World, WorldTables, destination, program, world};

/// What is decided on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Read(u32),
    Reach(usize),
    Tamper,
}

fn any_use() -> impl Strategy<Value = Use> {
    prop_oneof![
        (1..5_u32).prop_map(Use::Read),
        (0..DESTINATIONS).prop_map(Use::Reach),
        Just(Use::Tamper),
    ]
}

fn decide(world: &World, what: Use) -> Verdict {
    let tables = WorldTables::new(world);
    match what {
        Use::Read(credential) => {
            decide::read(&tables, world.now, &world.task, CredentialId(credential))
        }
        Use::Reach(index) => decide::reach(&tables, world.now, &world.task, &destination(index)),
        Use::Tamper => decide::tamper(&tables, world.now, &world.task),
    }
}

/// What a decision should say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Pass,
    Trusted,
    Allow,
    Deny(Reason),
}

impl Answer {
    fn reason(self) -> Reason {
        match self {
            Self::Deny(reason) => reason,
            other => panic!("{other:?} has no reason"),
        }
    }

    fn of(verdict: Verdict) -> Self {
        match verdict.denied() {
            _ if !verdict.governed() => Self::Pass,
            Some(reason) => Self::Deny(reason),
            None if verdict.trusted() => Self::Trusted,
            None => Self::Allow,
        }
    }
}

/// The rules.
struct Oracle<'a> {
    world: &'a World,
    bundle: &'a Bundle,
}

impl Oracle<'_> {
    fn fits(&self, (executable, identity, uid): &Selector) -> bool {
        let task = &self.world.task;
        executable.is_none_or(|ino| task.executable == program(ino))
            && identity.is_none_or(|identity| task.identity.0 == identity)
            && uid.is_none_or(|uid| task.uid.0 == uid)
    }

    fn stands(&self, standing: u32) -> bool {
        let mut subjects = self.world.subjects.iter();
        subjects.any(|(selector, subject)| self.fits(selector) && subject.standing & standing != 0)
    }

    fn is_trusted(&self) -> bool {
        self.stands(Subject::TRUSTED)
    }

    /// The entitlements to a credential of all workloads that the task belongs to, with their slots.
    fn entitlements(&self, credential: u32) -> Vec<(&Grants, usize, &Grant)> {
        let subjects = self.world.subjects.iter();
        let matching = subjects.filter(|(selector, _)| self.fits(selector));
        let all = matching.filter_map(|(_, subject)| {
            let key = (subject.matched.0, credential);
            self.world.grants.get(&key)
        });
        all.flat_map(|grants| {
            let slots = grants.grants.iter().take(grants.count as usize);
            slots
                .enumerate()
                .map(move |(slot, grant)| (grants, slot, grant))
        })
        .collect()
    }

    fn would_match_with_another_program(&self, credential: u32) -> bool {
        let mut subjects = self.world.subjects.iter();
        subjects.any(|(selector, subject)| {
            let key = (subject.near.0, credential);
            self.fits(selector) && self.world.grants.contains_key(&key)
        })
    }

    fn in_force(&self, grant: &Grant) -> bool {
        grant.flags & Grant::REVOKED == 0
            && grant.valid_from <= self.world.now
            && self.world.now < self.end_of(grant)
    }

    /// When it ends: its own end, or where it may not outlive what is known, the end of that.
    fn end_of(&self, grant: &Grant) -> BootNs {
        match grant.flags & Grant::STALE_ENDS {
            0 => grant.valid_until,
            _ => grant.valid_until.min(self.bundle.fresh_until),
        }
    }

    /// Whether it is monitored now, and would permit had anything been heard.
    fn only_stale(&self, grant: &Grant) -> bool {
        let good = Grant { flags: 0, ..*grant };
        grant.flags & (Grant::REVOKED | Grant::STALE_MONITORS) == Grant::STALE_MONITORS
            && self.world.now >= self.bundle.fresh_until
            && self.world.now < self.bundle.expires
            && self.in_force(&good)
    }

    fn covers(&self, scope: ScopeId, slot: usize, to: usize) -> bool {
        self.world.scopes[scope.0 as usize][to] >> slot & 1 == 1
    }

    /// Whether an entitlement permits it; `to` is where to, for a reach.
    fn permits(&self, credential: u32, to: Option<usize>) -> bool {
        let all = self.entitlements(credential);
        all.iter().any(|(grants, slot, grant)| {
            self.in_force(grant) && to.is_none_or(|to| self.covers(grants.scope, *slot, to))
        })
    }

    /// Whether an entitlement that is monitored by now, for nothing has been heard, would permit it.
    fn permits_though_stale(&self, credential: u32, to: Option<usize>) -> bool {
        let all = self.entitlements(credential);
        all.iter().any(|(grants, slot, grant)| {
            self.only_stale(grant) && to.is_none_or(|to| self.covers(grants.scope, *slot, to))
        })
    }

    /// Why an entitlement does not permit it.
    fn reason(&self, grant: &Grant, to: Option<usize>) -> Reason {
        if grant.flags & Grant::REVOKED != 0 {
            Reason::Revoked
        } else if self.world.now >= self.end_of(grant) {
            Reason::Expired
        } else if self.world.now < grant.valid_from {
            Reason::NotYetValid
        } else if to.is_some_and(|to| destination(to).address.is_loopback()) {
            Reason::LocalPeer
        } else {
            Reason::OutsideDestination
        }
    }

    /// Every reason that is true of a credential, if nothing permits.
    fn reasons(&self, credential: u32, to: Option<usize>) -> BTreeSet<Reason> {
        let mut reasons = BTreeSet::new();
        for (_, _, grant) in self.entitlements(credential) {
            reasons.insert(self.reason(grant, to));
        }
        if self.would_match_with_another_program(credential) {
            reasons.insert(Reason::WrongExecutable);
        }
        let entitled = self.world.credentials[&credential].has(Credential::ENTITLED);
        reasons.insert(match (entitled, self.world.task.classified) {
            (false, _) => Reason::NoEntitlement,
            (true, 0) => Reason::UnclassifiedWorkload,
            (true, _) => Reason::WrongWorkload,
        });
        reasons
    }

    /// What is said of a credential that nothing permits: of all true reasons the most specific.
    fn refused(&self, credential: u32, to: Option<usize>) -> Answer {
        if self.permits_though_stale(credential, to) {
            return Answer::Deny(Reason::Expired);
        }
        most_specific(&self.reasons(credential, to))
    }

    fn permitted(&self) -> Answer {
        if self.world.now >= self.bundle.expires {
            Answer::Deny(Reason::BundleExpired)
        } else {
            Answer::Allow
        }
    }

    fn read(&self, credential: u32) -> Answer {
        if !self.world.credentials.contains_key(&credential) {
            Answer::Pass
        } else if self.is_trusted() {
            Answer::Trusted
        } else if self.permits(credential, None) {
            self.permitted()
        } else {
            self.refused(credential, None)
        }
    }

    /// What the task holds, by its instance or by itself.
    fn held(&self) -> &[u32] {
        let [instance, process] = &self.world.held;
        if self.world.task.instance.0 != 0 && !instance.is_empty() {
            instance
        } else {
            process
        }
    }

    fn reach(&self, to: usize) -> Answer {
        let most = HELD_PER_HOLDER as usize;
        let overflow = self.held().len() > most;
        let governed: Vec<u32> = (self.held().iter().take(most).copied())
            .filter(|credential| self.world.credentials.contains_key(credential))
            .collect();
        if self.is_trusted() || (governed.is_empty() && !overflow) {
            return Answer::Pass;
        }
        let (goes, otherwise) = self.reach_of(&governed, overflow, to);
        if goes && self.bundle.degraded != 0 {
            return Answer::Deny(Reason::Degraded);
        }
        otherwise
    }

    /// Whether it may go on, as long as the node is not degraded, and the answer then.
    fn reach_of(&self, governed: &[u32], overflow: bool, destination: usize) -> (bool, Answer) {
        let to = Some(destination);
        if (0..32).any(|slot| self.covers(self.bundle.baseline, slot, destination)) {
            return (true, self.permitted());
        }
        let permitted = |credential: &u32| self.permits(*credential, to);
        let stands = |credential: &u32| self.permits_though_stale(*credential, to);
        let forbids = |credential: &u32| {
            let exclusive = self.world.credentials[credential].has(Credential::EXCLUSIVE);
            exclusive && !permitted(credential) && !stands(credential)
        };
        if !overflow && !governed.iter().any(forbids) {
            if governed.iter().any(permitted) {
                return (true, self.permitted());
            }
            if governed.iter().any(stands) {
                return (true, Answer::Deny(Reason::Expired));
            }
            return (false, self.denied(governed, to).1);
        }
        let forbidding: Vec<u32> = governed.iter().copied().filter(|it| forbids(it)).collect();
        let mut denials: Vec<_> = forbidding
            .iter()
            .map(|it| self.denied(&[*it], to))
            .collect();
        if overflow {
            let monitored = self.bundle.mode == Mode::Monitor as u8;
            denials.push((monitored, Answer::Deny(Reason::TooManyHeld)));
        }
        if !governed.is_empty() && !governed.iter().any(|it| permitted(it) || stands(it)) {
            denials.push(self.denied(governed, to));
        }
        let strictest = denials
            .iter()
            .min_by_key(|(monitored, answer)| (*monitored, answer.reason() as u8));
        (false, strictest.expect("something forbids").1)
    }

    /// Why these, none of which is permitted, are refused; and whether that is only monitored.
    fn denied(&self, credentials: &[u32], to: Option<usize>) -> (bool, Answer) {
        let reasons = credentials
            .iter()
            .flat_map(|it| self.reasons(*it, to))
            .collect();
        let answer = most_specific(&reasons);
        let monitored = credentials.iter().all(|it| {
            !self.reasons(*it, to).contains(&answer.reason())
                || self.is_monitored(*it, to, answer.reason())
        });
        (monitored, answer)
    }

    /// Whether all that refuses this credential for this reason is only monitored.
    fn is_monitored(&self, credential: u32, to: Option<usize>, reason: Reason) -> bool {
        let monitored = |mode: u8| mode == Mode::Monitor as u8;
        match reason {
            Reason::WrongExecutable | Reason::WrongWorkload | Reason::NoEntitlement => {
                monitored(self.bundle.mode)
            }
            Reason::UnclassifiedWorkload => {
                monitored(self.bundle.mode) || self.bundle.flags & Bundle::UNCLASSIFIED_DENIED == 0
            }
            _ => {
                let all = self.entitlements(credential);
                let mut by = all
                    .iter()
                    .filter(|(_, _, grant)| self.reason(grant, to) == reason);
                by.all(|(_, _, grant)| monitored(grant.mode))
            }
        }
    }

    fn tamper(&self) -> Answer {
        if self.stands(Subject::MAINTENANCE) {
            return self.permitted();
        }
        Answer::Deny(Reason::NoEntitlement)
    }
}

fn most_specific(reasons: &BTreeSet<Reason>) -> Answer {
    let by_number = reasons.iter().min_by_key(|reason| **reason as u8);
    Answer::Deny(*by_number.expect("some reason is always true"))
}

fn oracle(world: &World, what: Use) -> Answer {
    let Some(bundle) = &world.bundle else {
        return Answer::Pass;
    };
    let oracle = Oracle { world, bundle };
    match what {
        Use::Read(credential) => oracle.read(credential),
        Use::Reach(to) => oracle.reach(to),
        Use::Tamper => oracle.tamper(),
    }
}

/// A change that only takes away.
#[derive(Clone, Debug)]
enum Tightening {
    DropGrants(u32, u32),
    DropLast(u32, u32),
    End(u32, u32, usize, u64),
    Begin(u32, u32, usize, u64),
    Shrink(usize, usize, u32),
    Exclusive(u32),
    Revoke(u32, u32, usize),
    Expire(u64),
    Stale(u64),
    Degrade,
    NoBaseline,
    DropSubject(prop::sample::Index),
    Distrust,
}

fn tightening() -> impl Strategy<Value = Tightening> {
    use Tightening::*;
    let pair = || (1..4_u32, 1..4_u32);
    prop_oneof![
        pair().prop_map(|(s, c)| DropGrants(s, c)),
        pair().prop_map(|(s, c)| DropLast(s, c)),
        (pair(), 0..4_usize, 0..10_u64).prop_map(|((s, c), slot, at)| End(s, c, slot, at)),
        (pair(), 0..4_usize, 0..10_u64).prop_map(|((s, c), slot, at)| Begin(s, c, slot, at)),
        (0..4_usize, 0..DESTINATIONS, 0..16_u32).prop_map(|(s, to, bits)| Shrink(s, to, bits)),
        (1..4_u32).prop_map(Exclusive),
        (pair(), 0..4_usize).prop_map(|((s, c), slot)| Revoke(s, c, slot)),
        (0..10_u64).prop_map(Expire),
        (0..10_u64).prop_map(Stale),
        Just(Degrade),
        Just(NoBaseline),
        any::<prop::sample::Index>().prop_map(DropSubject),
        Just(Distrust),
    ]
}

fn tighten(world: &mut World, change: &Tightening) {
    match change {
        Tightening::DropGrants(subject, credential) => {
            world.grants.remove(&(*subject, *credential));
        }
        Tightening::DropLast(subject, credential) => {
            if let Some(grants) = world.grants.get_mut(&(*subject, *credential)) {
                grants.count = grants.count.saturating_sub(1);
            }
        }
        Tightening::End(subject, credential, slot, at) => {
            if let Some(grants) = world.grants.get_mut(&(*subject, *credential)) {
                let until = &mut grants.grants[*slot].valid_until;
                *until = (*until).min(BootNs(*at));
            }
        }
        Tightening::Begin(subject, credential, slot, at) => {
            if let Some(grants) = world.grants.get_mut(&(*subject, *credential)) {
                let from = &mut grants.grants[*slot].valid_from;
                *from = (*from).max(BootNs(*at));
            }
        }
        Tightening::Shrink(scope, to, bits) => world.scopes[*scope][*to] &= bits,
        Tightening::Exclusive(credential) => {
            if let Some(credential) = world.credentials.get_mut(credential) {
                credential.flags |= Credential::EXCLUSIVE;
            }
        }
        Tightening::Expire(at) => {
            if let Some(bundle) = &mut world.bundle {
                bundle.expires = bundle.expires.min(BootNs(*at));
            }
        }
        Tightening::Revoke(subject, credential, slot) => {
            if let Some(grants) = world.grants.get_mut(&(*subject, *credential)) {
                grants.grants[*slot].flags |= Grant::REVOKED;
            }
        }
        Tightening::Stale(at) => {
            if let Some(bundle) = &mut world.bundle {
                bundle.fresh_until = bundle.fresh_until.min(BootNs(*at));
            }
        }
        Tightening::Degrade => {
            if let Some(bundle) = &mut world.bundle {
                bundle.degraded = 1;
            }
        }
        Tightening::NoBaseline => {
            if let Some(bundle) = &mut world.bundle {
                bundle.baseline = ScopeId(0);
            }
        }
        Tightening::DropSubject(index) => {
            if !world.subjects.is_empty() {
                let keys: Vec<Selector> = world.subjects.keys().copied().collect();
                world.subjects.remove(index.get(&keys));
            }
        }
        Tightening::Distrust => {
            for subject in world.subjects.values_mut() {
                subject.standing = 0;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Permitted or not, and why not: of all true reasons the most specific.
    #[test]
    fn invariant_the_answer_follows_the_rules(world in world(), what in any_use()) {
        prop_assert_eq!(Answer::of(decide(&world, what)), oracle(&world, what));
    }

    /// What is permitted without being trusted has an entitlement of its own in force, or is in the baseline; and
    /// the verdict names that entitlement.
    #[test]
    fn invariant_permission_comes_from_an_entitlement(world in world(), what in any_use()) {
        let verdict = decide(&world, what);
        if let (Answer::Allow, Some(bundle)) = (Answer::of(verdict), &world.bundle) {
            let oracle = Oracle { world: &world, bundle };
            let (by, to) = match what {
                Use::Read(credential) => {
                    prop_assert_eq!(verdict.credential(), CredentialId(credential));
                    (credential, None)
                }
                Use::Reach(to) => (verdict.credential().0, Some(to)),
                Use::Tamper => {
                    prop_assert!(oracle.stands(Subject::MAINTENANCE));
                    return Ok(());
                }
            };
            let entitlements = oracle.entitlements(by);
            let named = entitlements
                .iter()
                .find(|(_, _, grant)| grant.entitlement == verdict.entitlement());
            match (named, to) {
                (Some((_, _, grant)), None) => prop_assert!(oracle.in_force(grant)),
                (Some((grants, slot, grant)), Some(to)) => {
                    prop_assert!(oracle.in_force(grant));
                    prop_assert!(oracle.covers(grants.scope, *slot, to));
                    prop_assert!(oracle.held().contains(&by));
                }
                (None, Some(to)) => {
                    prop_assert!((0..4).any(|slot| oracle.covers(bundle.baseline, slot, to)));
                    prop_assert_eq!((by, verdict.entitlement().0), (0, 0));
                }
                (None, None) => prop_assert!(false, "{:?} of no entitlement", verdict),
            }
            prop_assert!(world.now < bundle.expires);
        }
    }

    /// Mode and action are those of the entitlement that the verdict names, or else of the bundle; an
    /// entitlement of another executable only came near.
    #[test]
    fn invariant_mode_and_action_are_somebodys(world in world(), what in any_use()) {
        let verdict = decide(&world, what);
        if let (true, Some(bundle)) = (verdict.governed(), &world.bundle) {
            let oracle = Oracle { world: &world, bundle };
            let all = world.grants.values().flat_map(|grants| {
                grants.grants.iter().enumerate().map(move |(slot, grant)| (grants.scope, slot, grant))
            });
            let named = all.clone().find(|(_, _, grant)| grant.entitlement == verdict.entitlement());
            let (mode, action) = match named {
                Some((scope, slot, grant)) if verdict.denied() != Some(Reason::WrongExecutable) => {
                    let covered = match what {
                        Use::Reach(to) => oracle.covers(scope, slot, to),
                        _ => true,
                    };
                    let lapsed = verdict.denied() == Some(Reason::Expired);
                    let monitored = lapsed && oracle.only_stale(grant) && covered;
                    (grant.mode * u8::from(!monitored), grant.action)
                }
                _ => (bundle.mode, bundle.action),
            };
            let expired = verdict.denied() == Some(Reason::BundleExpired);
            let mode = if expired { bundle.on_expiry } else { mode };
            let unclassified = verdict.denied() == Some(Reason::UnclassifiedWorkload);
            let permitted = bundle.flags & Bundle::UNCLASSIFIED_DENIED == 0;
            let mode = if unclassified && permitted { Mode::Monitor as u8 } else { mode };
            let action = if what == Use::Tamper { 0 } else { action };
            prop_assert_eq!((verdict.mode() as u8, verdict.action() as u8), (mode, action));
        }
    }

    /// Taking something away never turns a denial into a permission.
    #[test]
    fn invariant_tightening_never_permits(
        world in world(),
        what in any_use(),
        changes in prop::collection::vec(tightening(), 1..4),
    ) {
        let before = decide(&world, what);
        let mut tighter = world.clone();
        for change in &changes {
            tighten(&mut tighter, change);
        }
        let after = decide(&tighter, what);
        prop_assert!(before.denied().is_none() || after.denied().is_some(), "{before:?} became {after:?}");
    }

    /// What was refused is refused all the same once governance has not been heard of for too long, where everything is
    /// enforced: elsewhere a more specific reason may come from an entitlement that is only monitored.
    #[test]
    fn invariant_staleness_never_permits(mut world in world(), what in any_use(), at in 0..10_u64, all: bool) {
        for grant in world.grants.values_mut().flat_map(|it| &mut it.grants) {
            grant.mode = Mode::Enforce as u8;
            if all {
                *grant = Grant { valid_until: BootNs::NEVER, flags: Grant::STALE_ENDS | Grant::STALE_MONITORS, ..*grant };
            }
        }
        let refused = |verdict: Verdict| verdict.denied().is_some() && verdict.mode() == Mode::Enforce;
        let before = decide(&world, what);
        let mut stale = world.clone();
        tighten(&mut stale, &Tightening::Stale(at));
        let after = decide(&stale, what);
        prop_assert!(!refused(before) || refused(after), "{before:?} became {after:?}");
    }

    /// Who holds nothing goes anywhere, unrecorded.
    #[test]
    fn invariant_holding_nothing_passes(mut world in world(), to in 0..DESTINATIONS) {
        world.held = Default::default();
        prop_assert_eq!(decide(&world, Use::Reach(to)), Verdict::PASS);
    }

    /// Who is trusted reads everything, and holds nothing by it.
    #[test]
    fn invariant_trusted_passes(mut world in world(), what in any_use()) {
        let anybody = (None, None, None);
        world.subjects.entry(anybody).or_default().standing = Subject::TRUSTED;
        let verdict = decide(&world, what);
        if what != Use::Tamper {
            prop_assert_eq!(verdict.denied(), None);
            prop_assert!(verdict.trusted() || !verdict.governed());
        }
    }
}
