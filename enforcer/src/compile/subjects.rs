//! Which keys of a task belong to which workloads.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::facts::Task;
use enforcer_common::ids::{ExecutableKey, Generation, IdentityId, Uid};
use enforcer_common::tables::{Subject, SubjectKey};

use super::cgroups::Identities;
use super::{Contained, Facts, Reserved};
use crate::bundle::{Bundle, Match};

/// The key of a subject, in whatever generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubjectSelector {
    /// The program, if it matters.
    pub executable: Option<ExecutableKey>,
    /// What the cgroup means; 0 if that does not matter.
    pub identity: IdentityId,
    /// The user, if it matters.
    pub uid: Option<Uid>,
}

impl SubjectSelector {
    /// The parts that matter, as bits of [`SubjectKey`].
    #[must_use]
    pub fn mask(&self) -> u64 {
        let bit = |given: bool, bit| if given { bit } else { 0 };
        bit(self.executable.is_some(), SubjectKey::EXECUTABLE)
            | bit(self.identity.0 != 0, SubjectKey::IDENTITY)
            | bit(self.uid.is_some(), SubjectKey::UID)
    }

    /// The key in the kernel's table.
    #[must_use]
    pub fn key(&self, generation: Generation) -> SubjectKey {
        let task = Task {
            executable: self.executable.unwrap_or_default(),
            identity: self.identity,
            uid: self.uid.unwrap_or_default(),
            ..Task::default()
        };
        SubjectKey::of(&task, generation, self.mask())
    }

    /// The selector that fits `task` when only the parts in `mask` matter.
    #[must_use]
    pub fn of(task: &Task, mask: u64) -> Self {
        Self {
            executable: (mask & SubjectKey::EXECUTABLE != 0).then_some(task.executable),
            identity: if mask & SubjectKey::IDENTITY != 0 {
                task.identity
            } else {
                IdentityId(0)
            },
            uid: (mask & SubjectKey::UID != 0).then_some(task.uid),
        }
    }
}

/// What a key says, by the numbers of parties: the workloads in the bundle's order, then the reserved credentials.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub matched: BTreeSet<usize>,
    pub near: BTreeSet<usize>,
    /// Bits of [`Subject::standing`].
    pub standing: u32,
}

/// All keys at which something is to be said.
pub(super) fn rows(
    bundle: &Bundle,
    facts: &Facts,
    reserved: &[Reserved],
    identities: &Identities,
) -> BTreeMap<SubjectSelector, Row> {
    let mut rows: BTreeMap<SubjectSelector, Row> = BTreeMap::new();
    for (party, workload) in bundle.workloads.iter().enumerate() {
        for place in places(&workload.selectors, facts, identities) {
            for key in programs(&workload.selectors, facts, place) {
                rows.entry(key).or_default().matched.insert(party);
            }
            if workload.selectors.executable.is_some() {
                rows.entry(place).or_default().near.insert(party);
            }
        }
    }
    for (selectors, standing) in standings(bundle) {
        for place in places(selectors, facts, identities) {
            for key in programs(selectors, facts, place) {
                rows.entry(key).or_default().standing |= standing;
            }
        }
    }
    for (party, own) in (bundle.workloads.len()..).zip(reserved) {
        let program = own
            .entitled
            .filter(|program| *program != ExecutableKey::default());
        if program.is_some() {
            let key = SubjectSelector {
                executable: program,
                ..SubjectSelector::default()
            };
            rows.entry(key).or_default().matched.insert(party);
        }
        // So that everybody else is denied in the mode of the canary, not of the bundle.
        let anybody = rows.entry(SubjectSelector::default()).or_default();
        anybody.near.insert(party);
    }
    rows
}

/// Who may do more than others.
fn standings(bundle: &Bundle) -> impl Iterator<Item = (&Match, u32)> {
    let trusted = bundle.trusted.iter().map(|it| (it, Subject::TRUSTED));
    let maintenance = bundle.maintenance.iter();
    let declassify = bundle.declassify.programs.iter();
    trusted
        .chain(maintenance.map(|it| (it, Subject::MAINTENANCE)))
        .chain(declassify.map(|it| (it, Subject::DECLASSIFIES)))
}

/// The keys of a workload but for its program.
fn places(selectors: &Match, facts: &Facts, identities: &Identities) -> Vec<SubjectSelector> {
    let uid = match &selectors.user {
        None => None,
        Some(user) => match facts.user(user) {
            Some(uid) => Some(uid),
            None => return Vec::new(),
        },
    };
    let identities = identities
        .matching(selectors, facts)
        .unwrap_or_else(|| BTreeSet::from([IdentityId(0)]));
    identities
        .into_iter()
        .map(|identity| SubjectSelector {
            executable: None,
            identity,
            uid,
        })
        .collect()
}

/// `place` with each key of the workload's program.
fn programs(selectors: &Match, facts: &Facts, place: SubjectSelector) -> Vec<SubjectSelector> {
    let Some(program) = &selectors.executable else {
        return vec![place];
    };
    let with = |key| SubjectSelector {
        executable: Some(key),
        ..place
    };
    let keys = match Contained::of(selectors) {
        Some(contained) => facts.contained(&contained),
        None => facts.executable(program),
    };
    keys.into_iter().map(with).collect()
}
