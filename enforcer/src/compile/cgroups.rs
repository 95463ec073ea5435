//! What cgroups mean to a bundle: each is the set of cgroup and unit selectors that it matches.
//!
//! The kernel classifies a cgroup when it is created: by its path, else by its name if it is a unit directly below
//! slices (of the system, or of a user's service manager), else like its parent. So each name in its table carries what
//! all names above it mean as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use enforcer_common::ids::{IdentityId, Uid};
use enforcer_common::tables::{CGROUP_NAME_BYTES, Cgroup, CgroupName};

use super::containers::{Container, has};
use super::origins::Origins;
use super::{CompileError, Facts, Numbering};
use crate::bundle::{self, Bundle, Match, Unit};
use crate::node::cgroups;

/// Longest text the kernel looks up: it takes one that fills the key together with its NUL for cut off.
const LONGEST: usize = CGROUP_NAME_BYTES - 2;

/// One selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Atom {
    /// The cgroup of this path and all below it.
    Path(String),
    /// The unit of this name, wherever only slices are above it, and all below it.
    Unit(String),
    /// The unit of this name of a user's own service manager, wherever only slices are between them, and all below it.
    UserUnit(Uid, String),
    /// The containers of pods that match this, and all below them.
    Kubernetes(bundle::Kubernetes),
    /// The containers that match this, and all below them.
    Container(bundle::Container),
    /// What no cgroup matches: of a user that does not exist, or of another node.
    Nothing,
}

impl Atom {
    /// The selectors of a workload that are about its cgroup.
    pub(super) fn of(selectors: &Match, facts: &Facts) -> Vec<Self> {
        let path = selectors.cgroup.clone().map(Self::Path);
        let unit = selectors.systemd_unit.as_ref();
        let unit = unit.map(|Unit { name, user }| match user {
            None => Self::unit(name),
            Some(user) => match facts.user(user) {
                Some(uid) => Self::UserUnit(uid, name.clone()),
                None => Self::Nothing,
            },
        });
        let kubernetes = selectors.kubernetes.clone();
        let kubernetes = kubernetes.map(|it| match has(&facts.labels, &it.node_labels) {
            true => Self::Kubernetes(it),
            false => Self::Nothing,
        });
        let container = selectors.container.clone().map(Self::Container);
        let all = path.into_iter().chain(unit).chain(kubernetes);
        all.chain(container).collect()
    }

    /// Whether it is about containers, and this is one that it means.
    fn means(&self, container: &Container) -> bool {
        match self {
            Self::Kubernetes(wanted) => container.is_in_pod(wanted),
            Self::Container(wanted) => container.is(wanted),
            _ => false,
        }
    }

    /// As which it is in the kernel's table; `None` if the kernel cannot see it by a name.
    fn name(&self) -> Result<Option<CgroupName>, CompileError> {
        let (prefix, text) = match self {
            Self::Path(text) | Self::Unit(text) => (None, text),
            Self::UserUnit(uid, text) => (Some(CgroupName::user_prefix(uid.0 + 1)), text),
            Self::Kubernetes(_) | Self::Container(_) | Self::Nothing => return Ok(None),
        };
        let prefix = prefix.map(u64::to_ne_bytes);
        let prefix = prefix.as_ref().map_or(&[][..], <[u8; 8]>::as_slice);
        let allowed = LONGEST - prefix.len();
        if text.len() > allowed {
            let name = text.clone();
            return Err(CompileError::NameTooLong { name, allowed });
        }
        let mut bytes = [0; CGROUP_NAME_BYTES];
        bytes[..prefix.len()].copy_from_slice(prefix);
        bytes[prefix.len()..prefix.len() + text.len()].copy_from_slice(text.as_bytes());
        Ok(Some(CgroupName(bytes)))
    }

    /// A unit; as a path where its name says which.
    fn unit(name: &str) -> Self {
        let manager = name
            .strip_prefix("user@")
            .and_then(|rest| rest.strip_suffix(".service"))
            .and_then(|uid| uid.parse().ok());
        if let Some(uid) = manager {
            return Self::Path(self::manager(Uid(uid)));
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
    selected: BTreeSet<Atom>,
    by_content: HashMap<Vec<Atom>, IdentityId>,
    having: HashMap<Atom, BTreeSet<IdentityId>>,
    names: BTreeMap<CgroupName, IdentityId>,
    origins: Origins,
}

impl Identities {
    pub fn of(
        bundle: &Bundle,
        facts: &Facts,
        numbering: &mut Numbering,
    ) -> Result<Self, CompileError> {
        let mut identities = Self {
            origins: Origins::of(bundle, facts, numbering)?,
            ..Self::default()
        };
        let atoms = |selectors| Atom::of(selectors, facts);
        identities.selected = bundle.selectors().flat_map(atoms).collect();
        // Where no selector of a cgroup matches, others may all the same.
        identities.number(Vec::new(), numbering)?;
        let mut units = BTreeSet::new();
        for atom in identities.selected.clone() {
            match &atom {
                Atom::Unit(unit) => {
                    units.insert(unit.clone());
                    identities.add(&atom, vec![atom.clone()], numbering)?;
                }
                Atom::UserUnit(uid, _) => {
                    // It lies in the manager's own unit, where the path of that is selected as well.
                    let mut atoms = identities.atoms(&manager(*uid));
                    atoms.push(atom.clone());
                    atoms.sort();
                    identities.add(&atom, atoms, numbering)?;
                }
                Atom::Kubernetes(_) | Atom::Container(_) => {
                    identities.number(vec![atom.clone()], numbering)?;
                }
                Atom::Path(_) | Atom::Nothing => {}
            }
        }
        for atom in identities.selected.clone() {
            let Atom::Path(path) = &atom else { continue };
            identities.add(&atom, identities.atoms(path), numbering)?;
            if !path[1..].split('/').all(is_slice) {
                continue;
            }
            // Units that are directly within a slice that means something too.
            for unit in &units {
                let path = format!("{path}/{unit}");
                if path.len() <= LONGEST {
                    let atoms = identities.atoms(&path);
                    identities.add(&Atom::Path(path), atoms, numbering)?;
                }
            }
        }
        for (path, container) in &facts.containers {
            identities.number(identities.atoms_of(path, container), numbering)?;
        }
        Ok(identities)
    }

    fn add(
        &mut self,
        name: &Atom,
        atoms: Vec<Atom>,
        numbering: &mut Numbering,
    ) -> Result<(), CompileError> {
        if let Some(name) = name.name()? {
            let id = self.number(atoms, numbering)?;
            self.names.insert(name, id);
        }
        Ok(())
    }

    /// The number of cgroups that match these selectors, and of what tasks can be there.
    fn number(
        &mut self,
        atoms: Vec<Atom>,
        numbering: &mut Numbering,
    ) -> Result<IdentityId, CompileError> {
        if let Some(known) = self.by_content.get(&atoms) {
            return Ok(*known);
        }
        let numbered = self.origins.number(&atoms, numbering)?;
        for (atom, id) in numbered
            .all
            .iter()
            .flat_map(|id| atoms.iter().map(move |atom| (atom, id)))
        {
            self.having.entry(atom.clone()).or_default().insert(*id);
        }
        self.by_content.insert(atoms, numbered.plain);
        Ok(numbered.plain)
    }

    /// The selectors that the cgroup at `path` matches, in order.
    fn atoms(&self, path: &str) -> Vec<Atom> {
        let mut atoms = BTreeSet::new();
        let mut try_one = |atom: Atom| {
            if self.selected.contains(&atom) {
                atoms.insert(atom);
            }
        };
        let mut above = cgroups::root_record();
        let mut start = 1;
        while let Some(rest) = path.get(start..)
            && !rest.is_empty()
        {
            let name = rest.split('/').next().unwrap_or(rest);
            let end = start + name.len();
            try_one(Atom::Path(path[..end].to_owned()));
            if above.has(Cgroup::SLICES_ONLY) {
                try_one(Atom::Unit(name.to_owned()));
            }
            if let Some(uid) = above.user.checked_sub(1) {
                try_one(Atom::UserUnit(Uid(uid), name.to_owned()));
            }
            cgroups::descend(&mut above, name);
            start = end + 1;
        }
        atoms.into_iter().collect()
    }

    /// The selectors that `container` matches, whose cgroup is at `path`, in order.
    fn atoms_of(&self, path: &str, container: &Container) -> Vec<Atom> {
        let mut atoms = self.atoms(path);
        let means = |atom: &&Atom| atom.means(container);
        atoms.extend(self.selected.iter().filter(means).cloned());
        atoms.sort();
        atoms
    }

    /// Whether some selector is about containers.
    pub fn asks_for_containers(&self) -> bool {
        let of_container = |atom: &Atom| matches!(atom, Atom::Kubernetes(_) | Atom::Container(_));
        self.selected.iter().any(of_container)
    }

    /// What `container` means, whose cgroup is at `path`, and all cgroups below that. `None` if no container that was
    /// known was of its kind: then the bundle is to be compiled again.
    pub fn identity_of_container(&self, path: &str, container: &Container) -> Option<IdentityId> {
        self.by_content
            .get(&self.atoms_of(path, container))
            .copied()
    }

    /// What the cgroup at `path` means; 0 if nothing.
    pub fn identity_of(&self, path: &str) -> IdentityId {
        let known = self.by_content.get(&self.atoms(path));
        known.copied().unwrap_or_default()
    }

    /// The identities that match all selectors of a workload that are about its cgroup and its origin; `None` if it has
    /// none.
    pub fn matching(&self, selectors: &Match, facts: &Facts) -> Option<BTreeSet<IdentityId>> {
        let having = |atom| self.having.get(&atom).cloned().unwrap_or_default();
        let each = Atom::of(selectors, facts).into_iter().map(having);
        let by_cgroup = each.reduce(|one, other| &one & &other);
        self.origins.matching(selectors, by_cgroup)
    }

    pub fn names(&self) -> &BTreeMap<CgroupName, IdentityId> {
        &self.names
    }

    pub fn origins(&self) -> &Origins {
        &self.origins
    }
}

/// The path of a user's service manager.
fn manager(uid: Uid) -> String {
    let Uid(uid) = uid;
    format!("/user.slice/user-{uid}.slice/user@{uid}.service")
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
