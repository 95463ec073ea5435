//! Where processes come from, as far as it matters to a bundle: which ancestors they descend from, and whether a person is
//! behind them.
//!
//! The kernel knows a process's origin as a word of bits, and what its cgroup means as a number. Where a selector asks
//! for an origin, each combination of both has a number of its own, which stands in the place of the cgroup's.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::capacity::ANCESTORS_AT_ONCE;
use enforcer_common::ids::{ExecutableKey, IdentityId};
use enforcer_common::origin::INTERACTIVE;

use super::cgroups::Atom;
use super::{CompileError, Facts, Numbering};
use crate::bundle::{Bundle, Executable, Match};

/// What a kind of task means to a bundle: the selectors that its cgroup matches, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Meaning {
    pub cgroup: Vec<Atom>,
    pub origin: Origin,
}

/// Where a task comes from, as far as a selector asks for that in its cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// None does.
    Whatever,
    /// It is not known, or more than the tables tell of.
    Unknown,
    /// From these ancestors and no others, and interactively or not; `None` if only ancestors are asked for.
    Known {
        ancestors: BTreeSet<Executable>,
        interactive: Option<bool>,
    },
}

impl Origin {
    /// Whether it is what the selectors of a workload ask for.
    fn fits(&self, selectors: &Match) -> bool {
        match self {
            Self::Known {
                ancestors,
                interactive,
            } => {
                let descends = |ancestor| ancestors.contains(ancestor);
                selectors.ancestor.iter().all(descends)
                    && (selectors.interactive.is_none() || selectors.interactive == *interactive)
            }
            Self::Whatever | Self::Unknown => !asks(selectors),
        }
    }
}

fn asks(selectors: &Match) -> bool {
    selectors.ancestor.is_some() || selectors.interactive.is_some()
}

/// What matters in cgroups of one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relevant {
    /// The bits of an origin.
    pub mask: u64,
    /// What a task is there whose origin is not known.
    pub otherwise: IdentityId,
}

/// Numbers of what tasks can be in cgroups of one meaning.
pub(super) struct Numbered {
    /// Who comes from nowhere in particular.
    pub plain: IdentityId,
    /// Anybody.
    pub all: Vec<IdentityId>,
}

/// The selectors of one bundle that ask for an origin, and the numbers of what they can match.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins {
    /// By what a workload's cgroup has to match, its ancestor and whether it asks who is interactive.
    asked: Vec<(Vec<Atom>, Option<Executable>, bool)>,
    slots: BTreeMap<Executable, u32>,
    meanings: BTreeMap<IdentityId, Origin>,
    relevant: BTreeMap<IdentityId, Relevant>,
    combined: BTreeMap<(IdentityId, u64), IdentityId>,
    roots: BTreeMap<ExecutableKey, u64>,
}

impl Origins {
    pub fn of(
        bundle: &Bundle,
        facts: &Facts,
        numbering: &mut Numbering,
    ) -> Result<Self, CompileError> {
        let mut origins = Self::default();
        for selectors in bundle.selectors().filter(|it| asks(it)) {
            let ancestor = selectors.ancestor.clone();
            if let Some(program) = &ancestor {
                let slot = numbering.ancestor(program)?;
                origins.slots.insert(program.clone(), slot);
                for key in facts.executable(program) {
                    *origins.roots.entry(key).or_default() |= 1 << slot;
                }
            }
            let cgroup = Atom::of(selectors, facts);
            let asked = (cgroup, ancestor, selectors.interactive.is_some());
            origins.asked.push(asked);
        }
        Ok(origins)
    }

    /// Numbers what tasks can be in cgroups that match `cgroup`, which are in order.
    pub fn number(
        &mut self,
        cgroup: &[Atom],
        numbering: &mut Numbering,
    ) -> Result<Numbered, CompileError> {
        let here = |it: &&(Vec<Atom>, Option<Executable>, bool)| {
            it.0.iter().all(|atom| cgroup.binary_search(atom).is_ok())
        };
        let asked: Vec<_> = self.asked.iter().filter(here).collect();
        let ancestors: BTreeSet<Executable> = asked.iter().filter_map(|it| it.1.clone()).collect();
        let asks_who = asked.iter().any(|it| it.2);
        if asked.is_empty() {
            // Nobody asks for anything.
            let plain = match cgroup.is_empty() {
                true => IdentityId(0),
                false => self.meaning(cgroup, Origin::Whatever, numbering)?,
            };
            let all = vec![plain];
            return Ok(Numbered { plain, all });
        }
        let mut numbered = Vec::new();
        let answers: &[_] = match asks_who {
            true => &[Some(false), Some(true)],
            false => &[None],
        };
        for ancestors in subsets(&ancestors.iter().cloned().collect::<Vec<_>>()) {
            for interactive in answers.iter().copied() {
                let bits = ancestors.iter().map(|it| 1 << self.slots[it]);
                let bits = bits.fold(0, |all, bit| all | bit);
                let word = bits
                    | if interactive == Some(true) {
                        INTERACTIVE
                    } else {
                        0
                    };
                let ancestors = ancestors.iter().cloned().collect();
                let origin = Origin::Known {
                    ancestors,
                    interactive,
                };
                numbered.push((word, self.meaning(cgroup, origin, numbering)?));
            }
        }
        let otherwise = self.meaning(cgroup, Origin::Unknown, numbering)?;
        // The first subset is the empty one, and the first answer no.
        let plain = numbered[0].1;
        let others = numbered[1..].iter();
        self.combined
            .extend(others.map(|(word, id)| ((plain, *word), *id)));
        let mask = ancestors
            .iter()
            .fold(if asks_who { INTERACTIVE } else { 0 }, |mask, ancestor| {
                mask | 1 << self.slots[ancestor]
            });
        self.relevant.insert(plain, Relevant { mask, otherwise });
        let mut all: Vec<_> = numbered.into_iter().map(|(_, id)| id).collect();
        all.push(otherwise);
        Ok(Numbered { plain, all })
    }

    fn meaning(
        &mut self,
        cgroup: &[Atom],
        origin: Origin,
        numbering: &mut Numbering,
    ) -> Result<IdentityId, CompileError> {
        let meaning = Meaning {
            cgroup: cgroup.to_vec(),
            origin: origin.clone(),
        };
        let id = numbering.identity(meaning)?;
        self.meanings.insert(id, origin);
        Ok(id)
    }

    /// Of the identities that a workload's cgroup can have, those that its origin fits as well; `None` if neither
    /// matters.
    pub fn matching(
        &self,
        selectors: &Match,
        by_cgroup: Option<BTreeSet<IdentityId>>,
    ) -> Option<BTreeSet<IdentityId>> {
        if !asks(selectors) {
            return by_cgroup;
        }
        let fits = |id: &IdentityId| {
            let origin = self.meanings.get(id);
            origin.is_some_and(|it| it.fits(selectors))
        };
        Some(match by_cgroup {
            Some(ids) => ids.into_iter().filter(fits).collect(),
            None => self.meanings.keys().copied().filter(fits).collect(),
        })
    }

    /// The slot of each ancestor.
    pub fn slots(&self) -> &BTreeMap<Executable, u32> {
        &self.slots
    }

    /// What matters where.
    pub fn relevant(&self) -> &BTreeMap<IdentityId, Relevant> {
        &self.relevant
    }

    /// What a task is by its cgroup and its origin.
    pub fn combined(&self) -> &BTreeMap<(IdentityId, u64), IdentityId> {
        &self.combined
    }

    /// Programs at which a tree has its root.
    pub fn roots(&self) -> &BTreeMap<ExecutableKey, u64> {
        &self.roots
    }
}

/// All subsets of up to [`ANCESTORS_AT_ONCE`], the empty one first.
fn subsets<T: Clone>(of: &[T]) -> Vec<Vec<T>> {
    let mut all = vec![Vec::new()];
    for item in of {
        let with = all.iter().filter(|it| it.len() < ANCESTORS_AT_ONCE);
        let with: Vec<Vec<T>> = with
            .map(|it| it.iter().chain([item]).cloned().collect())
            .collect();
        all.extend(with);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_up_to_a_size() {
        assert_eq!(subsets::<u8>(&[]), [Vec::new()] as [Vec<u8>; 1]);
        assert_eq!(subsets(&[1, 2]), [vec![], vec![1], vec![2], vec![1, 2]]);
        let all = subsets(&[1, 2, 3, 4, 5]);
        assert_eq!(all.len(), 1 + 5 + 10 + 10);
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
