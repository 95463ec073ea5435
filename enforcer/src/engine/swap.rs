//! From one bundle to the next, without a decision that sees two of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use enforcer_common::ids::{CgroupId, CredentialId, Generation, IdentityId, WatchNode};
use enforcer_common::tables::{
    Cgroup, CgroupName, Credential, CredentialKey, EndpointKey, GrantKey, SocketName, SubjectKey,
    Variable, Versioned,
};
use enforcer_common::watch::{ChildKey, Node, PatternKey};

use super::{Engine, Error};
use crate::compile::{Policy, difference};
use crate::fanotify::{Rules, Snapshot};
use crate::kernel::load::cgroup_root;
use crate::kernel::maps::{self, Maps};
use crate::node::cgroups;

impl Engine {
    /// Writes everything for the next generation, makes it the one in force with a single store, and takes
    /// out what only the previous one used.
    pub(super) fn swap(
        &mut self,
        old: Option<&Policy>,
        new: &Arc<Policy>,
        next: Generation,
    ) -> Result<(), Error> {
        self.write_cgroups(old, new, next)?;
        let mut maps = Maps(&mut self.loaded.ebpf);
        for (id, credential) in &new.credentials {
            maps.put("CREDENTIALS", CredentialKey::new(next, *id), *credential)?;
        }
        for (selector, subject) in &new.subjects {
            maps.put("SUBJECTS", selector.key(next), *subject)?;
        }
        let none = BTreeMap::new();
        let grants = difference(old.map_or(&none, |it| &it.grants), &new.grants);
        for (key, value) in &grants.put {
            maps.put("GRANTS", *key, *value)?;
        }
        let none = BTreeMap::new();
        let ports = difference(old.map_or(&none, |it| &it.ports), &new.ports);
        for (key, value) in &ports.put {
            maps.put_prefix("PORTS", key.prefix_bits(), key.data(), *value)?;
        }
        let none = BTreeMap::new();
        let scopes = difference(old.map_or(&none, |it| &it.scopes), &new.scopes);
        for (key, value) in &scopes.put {
            maps.put_prefix("SCOPES", key.prefix_bits(), key.data(), value.0)?;
        }
        let none = BTreeMap::new();
        let endpoints = old.map_or(&none, |it| &it.endpoints);
        let current = self.generation;
        write_versioned(
            &mut maps,
            "ENDPOINTS",
            endpoints,
            &new.endpoints,
            current,
            next,
        )?;
        let none = BTreeMap::new();
        let sockets = old.map_or(&none, |it| &it.sockets);
        let table = "SOCKET_NAMES";
        write_versioned(&mut maps, table, sockets, &new.sockets, current, next)?;
        for (name, id) in &new.variables {
            if let Some(key) = Variable::new(next, name) {
                maps.put_prefix("VARIABLES", key.bits, key.data(), id.0)?;
            }
        }
        let watch = self.write_watch_tree(old, new)?;
        let prepared = self
            .files
            .prepare(&mut self.loaded.ebpf, new, self.generation, next)?;
        self.canaries.protect(&mut self.loaded.ebpf, new)?;
        self.mark_canaries(new);
        let places = self.places(new, Some(&prepared));

        let mut maps = Maps(&mut self.loaded.ebpf);
        let mut description = new.bundle;
        description.generation = next;
        maps.set("BUNDLES", next.0 & 1, description)?;
        maps.set("GENERATION", 0, next)?;
        let previous = std::mem::replace(&mut self.generation, next);
        if let Some(gate) = &self.gate {
            gate.publish(Snapshot {
                rules: Some(Arc::new(Rules::new(new.clone(), next))),
                places: Arc::new(places),
            });
        }
        grace();

        self.files.finish(&mut self.loaded.ebpf, prepared)?;
        self.canaries.protect(&mut self.loaded.ebpf, new)?;
        self.unmark(new);
        let mut maps = Maps(&mut self.loaded.ebpf);
        if let Some(old) = old {
            for id in old.credentials.keys() {
                maps.remove::<_, Credential>("CREDENTIALS", &CredentialKey::new(previous, *id))?;
            }
            for selector in old.subjects.keys() {
                maps.remove::<SubjectKey, enforcer_common::tables::Subject>(
                    "SUBJECTS",
                    &selector.key(previous),
                )?;
            }
            for key in old
                .endpoints
                .keys()
                .filter(|key| !new.endpoints.contains_key(key))
            {
                maps.remove::<EndpointKey, Versioned<CredentialId>>("ENDPOINTS", key)?;
            }
            for key in old.sockets.keys() {
                if !new.sockets.contains_key(key) {
                    maps.remove::<SocketName, Versioned<CredentialId>>("SOCKET_NAMES", key)?;
                }
            }
            for name in old.variables.keys() {
                if let Some(key) = Variable::new(previous, name) {
                    maps.remove_prefix("VARIABLES", key.bits, key.data())?;
                }
            }
            for key in old
                .cgroup_names
                .keys()
                .filter(|key| !new.cgroup_names.contains_key(key))
            {
                maps.remove::<CgroupName, Versioned<IdentityId>>("CGROUP_NAMES", key)?;
            }
        }
        for key in &grants.delete {
            maps.remove::<GrantKey, enforcer_common::tables::Grants>("GRANTS", key)?;
        }
        for key in &scopes.delete {
            maps.remove_prefix("SCOPES", key.prefix_bits(), key.data())?;
        }
        for key in &ports.delete {
            maps.remove_prefix("PORTS", key.prefix_bits(), key.data())?;
        }
        for key in &watch.0 {
            maps.remove::<ChildKey, WatchNode>("CHILDREN", key)?;
        }
        for key in &watch.1 {
            maps.remove::<PatternKey, enforcer_common::watch::Pattern>("PATTERNS", key)?;
        }
        for key in &watch.2 {
            maps.remove::<WatchNode, Node>("NODES", key)?;
        }
        Ok(())
    }

    /// What each cgroup means, of those there are and those to come.
    fn write_cgroups(
        &mut self,
        old: Option<&Policy>,
        new: &Policy,
        next: Generation,
    ) -> Result<(), Error> {
        let mut maps = Maps(&mut self.loaded.ebpf);
        let none = BTreeMap::new();
        let names = old.map_or(&none, |it| &it.cgroup_names);
        let current = self.generation;
        write_versioned(
            &mut maps,
            "CGROUP_NAMES",
            names,
            &new.cgroup_names,
            current,
            next,
        )?;
        let found = cgroups::scan(&cgroup_root()?).map_err(Error::Cgroups)?;
        for cgroup in found {
            let known = maps.get::<CgroupId, Cgroup>("CGROUPS", &cgroup.id)?;
            let mut record = Cgroup {
                instance: cgroup.instance,
                identity: Versioned {
                    from: next,
                    before: old.map_or(IdentityId(0), |it| it.identity_of(&cgroup.path)),
                    after: new.identity_of(&cgroup.path),
                },
                slices_only: u16::from(cgroup.slices_only),
                unaccounted: known.map_or(0, |it| it.unaccounted),
            };
            if let Some(known) = known
                && known.identity.at(current) == record.identity.before
                && known.identity.at(next) == record.identity.after
            {
                record.identity = known.identity;
            }
            if known != Some(record) {
                maps.put("CGROUPS", cgroup.id, record)?;
            }
        }
        Ok(())
    }

    /// Adds to the watch tree; returns what to remove from children, patterns and nodes after the swap.
    #[allow(clippy::type_complexity, reason = "three lists of keys, used once")]
    fn write_watch_tree(
        &mut self,
        old: Option<&Policy>,
        new: &Policy,
    ) -> Result<(Vec<ChildKey>, Vec<PatternKey>, Vec<WatchNode>), Error> {
        let mut maps = Maps(&mut self.loaded.ebpf);
        let (new, empty) = (&new.watch, crate::compile::WatchTree::default());
        let old = old.map_or(&empty, |it| &it.watch);
        let nodes = difference(&old.nodes, &new.nodes);
        for (key, value) in &nodes.put {
            maps.put("NODES", *key, *value)?;
        }
        let patterns = difference(&old.patterns, &new.patterns);
        for (key, value) in &patterns.put {
            maps.put("PATTERNS", *key, *value)?;
        }
        let children = difference(&old.children, &new.children);
        for (key, value) in &children.put {
            maps.put("CHILDREN", *key, *value)?;
        }
        Ok((children.delete, patterns.delete, nodes.delete))
    }
}

/// Writes a table whose values hold both sides of a swap.
fn write_versioned<K, V>(
    maps: &mut Maps<'_>,
    table: &'static str,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    current: Generation,
    next: Generation,
) -> Result<(), maps::Error>
where
    K: aya::Pod + Ord,
    V: Copy + Default + PartialEq,
    Versioned<V>: aya::Pod,
{
    for key in old.keys().chain(new.keys()) {
        let after = new.get(key).copied().unwrap_or_default();
        maps.put_from(table, *key, after, current, next)?;
    }
    Ok(())
}

/// Waits until no program that runs can still see the previous generation: the kernel does so in
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` (synchronize_rcu, since 4.3), but does nothing on one processor and
/// refuses with nohz_full. A decision takes microseconds; then a pause stands in.
fn grace() {
    // SAFETY: a system call on numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if result != 0 || processors == 1 {
        std::thread::sleep(Duration::from_millis(20));
    }
}
