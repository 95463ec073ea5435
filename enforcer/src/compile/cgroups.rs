//! What cgroups mean to a bundle: each is the set of cgroup and unit selectors that it matches.
//!
//! The kernel classifies a cgroup when it is created: by its path, else by its name if it is a unit directly below
//! slices, else like its parent. So each name in its table carries what all names above it mean as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use enforcer_common::ids::IdentityId;
use enforcer_common::tables::{CGROUP_NAME_BYTES, CgroupName};

use super::{CompileError, Numbering};
use crate::bundle::{Bundle, Match};

/// Longest text the kernel looks up: it takes one that fills the key together with its NUL for cut off.
const LONGEST: usize = CGROUP_NAME_BYTES - 2;

/// One selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Atom {
    /// The cgroup of this path and all below it.
    Path(String),
    /// The unit of this name, wherever only slices are above it, and all below it.
    Unit(String),
}

impl Atom {
    /// The selectors of a workload that are about its cgroup.
    fn of(selectors: &Match) -> Vec<Self> {
        let path = selectors.cgroup.clone().map(Self::Path);
        let unit = selectors.systemd_unit.as_deref().map(Self::unit);
        path.into_iter().chain(unit).collect()
    }

    /// A unit; as a path where its name says which.
    fn unit(name: &str) -> Self {
        let manager = name
            .strip_prefix("user@")
            .and_then(|rest| rest.strip_suffix(".service"))
            .filter(|uid| uid.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(uid) = manager {
            return Self::Path(format!("/user.slice/user-{uid}.slice/{name}"));
        }
        match name.strip_suffix(".slice") {
            Some(stem) if stem != "-" => Self::Path(slice(stem)),
            _ => Self::Unit(name.to_owned()),
        }
    }
}

/// The path of a slice: `a-b.slice` is within `a.slice`.
fn slice(stem: &str) -> String {
    let ends = stem.match_indices('-').map(|(end, _)| end);
    let mut path = String::new();
    for end in ends.chain([stem.len()]) {
        path.push('/');
        path.push_str(&stem[..end]);
        path.push_str(".slice");
    }
    path
}

/// The cgroup and unit selectors of one bundle, and the numbers of what can match together.
#[derive(Clone, Debug, Default)]
pub(super) struct Identities {
    paths: BTreeSet<String>,
    units: BTreeSet<String>,
    by_content: HashMap<Vec<Atom>, IdentityId>,
    having: HashMap<Atom, BTreeSet<IdentityId>>,
    names: BTreeMap<CgroupName, IdentityId>,
}

impl Identities {
    pub fn of(bundle: &Bundle, numbering: &mut Numbering) -> Result<Self, CompileError> {
        let mut identities = Self::default();
        for atom in bundle.selectors().flat_map(Atom::of) {
            match atom {
                Atom::Path(path) => identities.paths.insert(path),
                Atom::Unit(unit) => identities.units.insert(unit),
            };
        }
        for unit in identities.units.clone() {
            identities.add(&unit, vec![Atom::Unit(unit.clone())], numbering)?;
        }
        for path in identities.paths.clone() {
            identities.add(&path, identities.atoms(&path), numbering)?;
            if !path[1..].split('/').all(is_slice) {
                continue;
            }
            // Units that are directly within a slice that means something too.
            for unit in identities.units.clone() {
                let path = format!("{path}/{unit}");
                if path.len() <= LONGEST {
                    identities.add(&path, identities.atoms(&path), numbering)?;
                }
            }
        }
        Ok(identities)
    }

    fn add(
        &mut self,
        name: &str,
        atoms: Vec<Atom>,
        numbering: &mut Numbering,
    ) -> Result<(), CompileError> {
        let id = numbering.identity(atoms.clone())?;
        for atom in &atoms {
            self.having.entry(atom.clone()).or_default().insert(id);
        }
        self.by_content.insert(atoms, id);
        if name.len() > LONGEST {
            return Err(CompileError::NameTooLong {
                name: name.to_owned(),
                allowed: LONGEST,
            });
        }
        let mut bytes = [0; CGROUP_NAME_BYTES];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        self.names.insert(CgroupName(bytes), id);
        Ok(())
    }

    /// The selectors that the cgroup at `path` matches, in order.
    fn atoms(&self, path: &str) -> Vec<Atom> {
        let mut atoms = BTreeSet::new();
        let mut below_slices = true;
        let mut start = 1;
        while let Some(rest) = path.get(start..)
            && !rest.is_empty()
        {
            let name = rest.split('/').next().unwrap_or(rest);
            let end = start + name.len();
            if self.paths.contains(&path[..end]) {
                atoms.insert(Atom::Path(path[..end].to_owned()));
            }
            if below_slices && self.units.contains(name) {
                atoms.insert(Atom::Unit(name.to_owned()));
            }
            below_slices &= is_slice(name);
            start = end + 1;
        }
        atoms.into_iter().collect()
    }

    /// What the cgroup at `path` means; 0 if nothing.
    pub fn identity_of(&self, path: &str) -> IdentityId {
        let known = self.by_content.get(&self.atoms(path));
        known.copied().unwrap_or_default()
    }

    /// The identities that match all selectors of a workload that are about its cgroup; `None` if it has none.
    pub fn matching(&self, selectors: &Match) -> Option<BTreeSet<IdentityId>> {
        let having = |atom| self.having.get(&atom).cloned().unwrap_or_default();
        let each = Atom::of(selectors).into_iter().map(having);
        each.reduce(|one, other| &one & &other)
    }

    pub fn names(&self) -> &BTreeMap<CgroupName, IdentityId> {
        &self.names
    }
}

fn is_slice(name: &str) -> bool {
    name.len() > ".slice".len() && name.ends_with(".slice")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_whose_name_says_where_they_are() {
        for (unit, expected) in [
            ("a.slice", Atom::Path("/a.slice".into())),
            (
                "a-b-c.slice",
                Atom::Path("/a.slice/a-b.slice/a-b-c.slice".into()),
            ),
            ("-.slice", Atom::Unit("-.slice".into())),
            (
                "user@1000.service",
                Atom::Path("/user.slice/user-1000.slice/user@1000.service".into()),
            ),
            ("cron.service", Atom::Unit("cron.service".into())),
        ] {
            assert_eq!(Atom::unit(unit), expected, "{unit}");
        }
    }
}
