//! What the tables shall say, and how to speak of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use enforcer_common::capacity::{self, Room};
use enforcer_common::facts::Task;
use enforcer_common::ids::{
    BootNs, CredentialId, EntitlementId, ExecutableKey, Generation, IdentityId, PortSetId,
    WatchNode,
};
use enforcer_common::origin::{self, Origins};
use enforcer_common::tables::{
    self, Bundle, CgroupName, Credential, EndpointKey, Grant, GrantKey, Grants, OriginKey, PortKey,
    RelevantKey, ScopeKey, SocketName, Subject, SubjectKey,
};
use enforcer_common::watch::{ChildKey, Node, Pattern, PatternKey};

use super::cgroups::Identities;
use super::sources::Matcher;
use super::{CompileError, Container, Relevant, SubjectSelector, Uncovered};
use crate::bundle::{Approval, Executable, Source};

/// A bundle compiled for this node: the whole content of the kernel's tables.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The bundle itself; its generation is 0 until it is applied.
    pub bundle: Bundle,
    /// The credentials.
    pub credentials: BTreeMap<CredentialId, Credential>,
    /// Which workloads a task belongs to.
    pub subjects: BTreeMap<SubjectSelector, Subject>,
    /// What they are entitled to.
    pub grants: BTreeMap<GrantKey, Grants>,
    /// Address prefixes of all scopes.
    pub scopes: BTreeMap<ScopeKey, PortSetId>,
    /// Port prefixes of all port sets, with the slots they stand for.
    pub ports: BTreeMap<PortKey, u32>,
    /// Endpoints that hand out secrets.
    pub endpoints: BTreeMap<EndpointKey, CredentialId>,
    /// Unix sockets outside the file systems that do.
    pub sockets: BTreeMap<SocketName, CredentialId>,
    /// Environment variables that are credentials.
    pub variables: BTreeMap<String, CredentialId>,
    /// What cgroups of these paths and unit names mean.
    pub cgroup_names: BTreeMap<CgroupName, IdentityId>,
    /// Programs at which a tree of processes has its root, with the slots of the ancestors that they are.
    pub roots: BTreeMap<ExecutableKey, u64>,
    /// In cgroups of which meaning it matters where a process comes from.
    pub relevant: BTreeMap<IdentityId, Relevant>,
    /// What a task is there, by the bits of its origin.
    pub by_origin: BTreeMap<(IdentityId, u64), IdentityId>,
    /// The slot of each ancestor.
    pub ancestors: BTreeMap<Executable, u32>,
    /// Paths that become credentials when they appear.
    pub watch: WatchTree,
    /// What of the catalogue is looked for in containers, by ids of its entries or what they begin with.
    pub catalogue: BTreeMap<CredentialId, Vec<String>>,
    /// What to say of each credential.
    pub credential_info: BTreeMap<CredentialId, CredentialInfo>,
    /// What to say of each entitlement.
    pub entitlement_info: BTreeMap<EntitlementId, EntitlementInfo>,
    /// Sources of which something is not protected here.
    pub uncovered: Vec<Uncovered>,
    pub(super) members: BTreeMap<SubjectSelector, Vec<String>>,
    pub(super) identities: Identities,
    pub(super) matcher: Matcher,
}

/// The tree of watched paths, see [`enforcer_common::watch`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchTree {
    /// Literal steps.
    pub children: BTreeMap<ChildKey, WatchNode>,
    /// Wildcard steps.
    pub patterns: BTreeMap<PatternKey, Pattern>,
    /// The nodes at which a file is a credential.
    pub nodes: BTreeMap<WatchNode, Node>,
    /// The node of `/`.
    pub root: WatchNode,
}

impl WatchTree {
    /// Whether one step from one of `nodes` may lead to a credential.
    #[must_use]
    pub fn ends_below(&self, nodes: &[WatchNode]) -> bool {
        nodes.iter().any(|node| {
            let first = ChildKey {
                node: *node,
                len: 0,
                name: Default::default(),
            };
            let names = self.children.range(first..);
            let names = names.take_while(|(key, _)| key.node == *node);
            let slot = |slot| PatternKey { node: *node, slot };
            let patterns = self.patterns.range(slot(0)..=slot(u32::MAX));
            names
                .map(|(_, next)| next)
                .chain(patterns.map(|(_, pattern)| &pattern.target))
                .any(|next| self.nodes.contains_key(next))
        })
    }
}

/// A credential, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialInfo {
    /// Its id.
    pub id: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Where it can be read.
    pub sources: Vec<Source>,
}

/// An entitlement, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntitlementInfo {
    /// Its id.
    pub id: String,
    /// Who has it.
    pub workload: String,
    /// To what.
    pub credential: String,
    /// Who agreed to it.
    pub approval: Option<Approval>,
}

impl Policy {
    /// After `now`, the first moment at which some entitlement begins or ends, or the bundle does, or what is known to be
    /// fresh.
    #[must_use]
    pub fn steady_until(&self, now: BootNs, fresh_until: BootNs) -> BootNs {
        let grants = self
            .grants
            .values()
            .flat_map(|it| it.grants.iter().take(it.count as usize));
        let moments = grants.flat_map(|it| [it.valid_from, it.valid_until]);
        let all = moments.chain([fresh_until, self.bundle.expires]);
        all.filter(|it| *it > now).min().unwrap_or(BootNs::NEVER)
    }

    /// The grants that become others if the entitlements with these ids are taken back, as they are then: what a bundle
    /// without them would be compiled to, under the numbers of this one.
    #[must_use]
    pub fn taken_back(&self, ids: &HashSet<&str>) -> BTreeMap<GrantKey, Grants> {
        let numbers: HashSet<EntitlementId> = (self.entitlement_info.iter())
            .filter(|(_, info)| ids.contains(info.id.as_str()))
            .map(|(number, _)| *number)
            .collect();
        let mut changed = BTreeMap::new();
        for (key, known) in &self.grants {
            let mut grants = *known;
            for grant in grants.grants.iter_mut().take(known.count as usize) {
                if numbers.contains(&grant.entitlement) {
                    grant.flags |= Grant::REVOKED;
                }
            }
            if grants != *known {
                changed.insert(*key, grants);
            }
        }
        changed
    }

    /// What the cgroup at `path` (from the cgroup root) means: the selectors of all named cgroups it is or lies in.
    /// 0 if nothing.
    #[must_use]
    pub fn identity_of(&self, path: &str) -> IdentityId {
        self.identities.identity_of(path)
    }

    /// Whether some selector is about containers.
    #[must_use]
    pub fn asks_for_containers(&self) -> bool {
        self.identities.asks_for_containers()
    }

    /// What `container` means, whose cgroup is at `path`, and all cgroups below that. `None` if no container that was
    /// known when this was compiled was of its kind.
    #[must_use]
    pub fn identity_of_container(&self, path: &str, container: &Container) -> Option<IdentityId> {
        self.identities.identity_of_container(path, container)
    }

    /// What a task is in a cgroup that means `identity`, given the bits of its origin.
    #[must_use]
    pub fn with_origin(&self, identity: IdentityId, origin: u64) -> IdentityId {
        origin::identity(self, Generation(0), identity, || origin)
    }

    /// The origin of who descends from programs at these paths, and is interactive or not.
    #[must_use]
    pub fn origin(&self, ancestors: &[PathBuf], interactive: bool) -> u64 {
        let of = |(program, slot): (&Executable, &u32)| {
            ancestors.contains(&program.path).then_some(1 << slot)
        };
        let bits = self.ancestors.iter().filter_map(of);
        let who = if interactive { origin::INTERACTIVE } else { 0 };
        bits.fold(who, |all, bit| all | bit)
    }

    /// The slots of all its ancestors, a bit for each.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.ancestors.values().fold(0, |all, slot| all | 1 << slot)
    }

    /// What a file at `path` is: the first credential in the bundle's order that has a source there. Exact, where
    /// the kernel's patterns may be wider.
    #[must_use]
    pub fn credential_of(&self, path: &Path) -> Option<CredentialId> {
        self.matcher.credential_of(path)
    }

    /// The workloads that `task` belongs to.
    #[must_use]
    pub fn workloads_of(&self, task: &Task) -> BTreeSet<&str> {
        (0..SubjectKey::MASKS)
            .filter_map(|mask| self.members.get(&SubjectSelector::of(task, mask)))
            .flatten()
            .map(String::as_str)
            .collect()
    }

    /// The one of them that an answer is about: the entitlement's, if `task` belongs to that.
    #[must_use]
    pub fn workload_of(&self, task: &Task, entitlement: Option<&EntitlementInfo>) -> Option<&str> {
        let all = self.workloads_of(task);
        entitlement
            .and_then(|it| all.get(it.workload.as_str()))
            .or_else(|| all.first())
            .copied()
    }

    /// Whether it fits into the kernel's tables, most of which hold two bundles during a swap.
    pub fn fits(&self, room: Room) -> Result<(), CompileError> {
        let tables = [
            (
                "credentials",
                self.credentials.len(),
                room.of(capacity::CREDENTIALS) / 2,
            ),
            (
                "subjects",
                self.subjects.len(),
                room.of(capacity::SUBJECTS) / 2,
            ),
            ("grants", self.grants.len(), room.of(capacity::GRANTS) / 2),
            (
                "destination prefixes",
                self.scopes.len(),
                capacity::SCOPES / 2,
            ),
            ("port prefixes", self.ports.len(), capacity::PORTS / 2),
            ("endpoints", self.endpoints.len(), capacity::ENDPOINTS),
            (
                "abstract sockets",
                self.sockets.len(),
                capacity::SOCKET_NAMES / 2,
            ),
            (
                "environment variables",
                self.variables.len(),
                capacity::VARIABLES / 2,
            ),
            (
                "cgroup names",
                self.cgroup_names.len(),
                room.of(capacity::CGROUP_NAMES),
            ),
            ("ancestors' programs", self.roots.len(), capacity::ANCESTORS),
            (
                "kinds of cgroups where origins matter",
                self.relevant.len(),
                room.of(capacity::RELEVANT) / 2,
            ),
            (
                "combinations of cgroups and origins",
                self.by_origin.len(),
                room.of(capacity::ORIGIN_IDENTITIES) / 2,
            ),
            (
                "ancestors",
                self.ancestors.len(),
                capacity::ANCESTOR_SLOTS / 2,
            ),
            (
                "path components",
                self.watch.children.len(),
                room.of(capacity::WATCH_NODES),
            ),
            (
                "path patterns",
                self.watch.patterns.len(),
                room.of(capacity::WATCH_NODES),
            ),
            (
                "path ends",
                self.watch.nodes.len(),
                room.of(capacity::WATCH_NODES),
            ),
        ];
        for (table, got, allowed) in tables {
            let allowed = allowed as usize;
            if got > allowed {
                return Err(CompileError::Capacity {
                    table,
                    got,
                    allowed,
                });
            }
        }
        Ok(())
    }
}

/// The same in every generation.
impl Origins for Policy {
    fn relevant(&self, key: &RelevantKey) -> Option<tables::Relevant> {
        let Relevant { mask, otherwise } = *self.relevant.get(&key.identity())?;
        Some(tables::Relevant {
            mask,
            otherwise,
            reserved: 0,
        })
    }

    fn combined(&self, key: &OriginKey) -> Option<IdentityId> {
        self.by_origin.get(&(key.identity(), key.origin())).copied()
    }
}
