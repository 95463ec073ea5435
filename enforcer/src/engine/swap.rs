//! From one bundle to the next, without a decision that sees two of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use enforcer_common::ids::{CgroupId, CredentialId, Generation, IdentityId, WatchNode};
use enforcer_common::tables::{
    Cgroup, CgroupName, Credential, CredentialKey, EndpointKey, GrantKey, Grants, SocketName,
    Subject, SubjectKey, Variable, Versioned,
};
use enforcer_common::watch::{ChildKey, Node, Pattern, PatternKey};

use super::{Engine, Error};
use crate::compile::{Policy, absent, changed};
use crate::fanotify::{Rules, Snapshot};
use crate::kernel::load::cgroup_root;
use crate::kernel::maps::{self, Maps};
use crate::node::cgroups;
use crate::node::files::Prepared;

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
        for (key, value) in changed(old.map(|it| &it.grants), &new.grants) {
            maps.put("GRANTS", *key, *value)?;
        }
        for (key, value) in changed(old.map(|it| &it.ports), &new.ports) {
            maps.put_prefix("PORTS", key.prefix_bits(), key.data(), *value)?;
        }
        for (key, value) in changed(old.map(|it| &it.scopes), &new.scopes) {
            maps.put_prefix("SCOPES", key.prefix_bits(), key.data(), value.0)?;
        }
        let current = self.generation;
        let endpoints = old.map(|it| &it.endpoints);
        let table = "ENDPOINTS";
        write_versioned(&mut maps, table, endpoints, &new.endpoints, current, next)?;
        let sockets = old.map(|it| &it.sockets);
        let table = "SOCKET_NAMES";
        write_versioned(&mut maps, table, sockets, &new.sockets, current, next)?;
        for (name, id) in &new.variables {
            if let Some(key) = Variable::new(next, name) {
                maps.put_prefix("VARIABLES", key.bits, key.data(), id.0)?;
            }
        }
        self.write_watch_tree(old, new)?;
        let prepared = self
            .files
            .prepare(&mut self.loaded.ebpf, new, self.generation, next)?;
        self.canaries.protect(&mut self.loaded.ebpf, new)?;
        self.mark_canaries(new);
        let places = self.places(new, Some(&prepared));

        let mut maps = Maps(&mut self.loaded.ebpf);
        let mut description = new.bundle;
        description.generation = next;
        description.degraded = u8::from(self.degraded);
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

        if let Err(error) = self.clear_up(old, previous, new, prepared) {
            tracing::error!(
                "the bundle is in force, and something of the previous one stays in the tables: {}",
                crate::chain(&error)
            );
        }
        Ok(())
    }

    /// The new bundle is in force and no program can see the previous one any more.
    fn clear_up(
        &mut self,
        old: Option<&Policy>,
        previous: Generation,
        new: &Arc<Policy>,
        prepared: Prepared,
    ) -> Result<(), Error> {
        self.files.finish(&mut self.loaded.ebpf, prepared)?;
        self.canaries.protect(&mut self.loaded.ebpf, new)?;
        self.unmark(new);
        match old {
            Some(old) => self.forget(old, previous, Some(new)),
            None => Ok(()),
        }
    }

    /// Takes out what the policy `gone` had in `generation`, and the one that `stays` does not need: the previous one
    /// after a swap, or the new one if it could not be written whole.
    pub(super) fn forget(
        &mut self,
        gone: &Policy,
        generation: Generation,
        stays: Option<&Policy>,
    ) -> Result<(), Error> {
        let mut maps = Maps(&mut self.loaded.ebpf);
        for id in gone.credentials.keys() {
            maps.remove::<_, Credential>("CREDENTIALS", &CredentialKey::new(generation, *id))?;
        }
        for selector in gone.subjects.keys() {
            maps.remove::<SubjectKey, Subject>("SUBJECTS", &selector.key(generation))?;
        }
        for name in gone.variables.keys() {
            if let Some(key) = Variable::new(generation, name) {
                maps.remove_prefix("VARIABLES", key.bits, key.data())?;
            }
        }
        for key in absent(&gone.endpoints, stays.map(|it| &it.endpoints)) {
            maps.remove::<EndpointKey, Versioned<CredentialId>>("ENDPOINTS", key)?;
        }
        for key in absent(&gone.sockets, stays.map(|it| &it.sockets)) {
            maps.remove::<SocketName, Versioned<CredentialId>>("SOCKET_NAMES", key)?;
        }
        for key in absent(&gone.cgroup_names, stays.map(|it| &it.cgroup_names)) {
            maps.remove::<CgroupName, Versioned<IdentityId>>("CGROUP_NAMES", key)?;
        }
        for key in absent(&gone.grants, stays.map(|it| &it.grants)) {
            maps.remove::<GrantKey, Grants>("GRANTS", key)?;
        }
        for key in absent(&gone.scopes, stays.map(|it| &it.scopes)) {
            maps.remove_prefix("SCOPES", key.prefix_bits(), key.data())?;
        }
        for key in absent(&gone.ports, stays.map(|it| &it.ports)) {
            maps.remove_prefix("PORTS", key.prefix_bits(), key.data())?;
        }
        for key in absent(&gone.watch.children, stays.map(|it| &it.watch.children)) {
            maps.remove::<ChildKey, WatchNode>("CHILDREN", key)?;
        }
        for key in absent(&gone.watch.patterns, stays.map(|it| &it.watch.patterns)) {
            maps.remove::<PatternKey, Pattern>("PATTERNS", key)?;
        }
        for key in absent(&gone.watch.nodes, stays.map(|it| &it.watch.nodes)) {
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
        let names = old.map(|it| &it.cgroup_names);
        let current = self.generation;
        let table = "CGROUP_NAMES";
        write_versioned(&mut maps, table, names, &new.cgroup_names, current, next)?;
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

    /// Adds to the watch tree.
    fn write_watch_tree(&mut self, old: Option<&Policy>, new: &Policy) -> Result<(), Error> {
        let mut maps = Maps(&mut self.loaded.ebpf);
        let (new, old) = (&new.watch, old.map(|it| &it.watch));
        for (key, value) in changed(old.map(|it| &it.nodes), &new.nodes) {
            maps.put("NODES", *key, *value)?;
        }
        for (key, value) in changed(old.map(|it| &it.patterns), &new.patterns) {
            maps.put("PATTERNS", *key, *value)?;
        }
        for (key, value) in changed(old.map(|it| &it.children), &new.children) {
            maps.put("CHILDREN", *key, *value)?;
        }
        Ok(())
    }
}

/// Writes a table whose values hold both sides of a swap.
fn write_versioned<K, V>(
    maps: &mut Maps<'_>,
    table: &'static str,
    old: Option<&BTreeMap<K, V>>,
    new: &BTreeMap<K, V>,
    current: Generation,
    next: Generation,
) -> Result<(), maps::Error>
where
    K: aya::Pod + Ord,
    V: Copy + Default + PartialEq,
    Versioned<V>: aya::Pod,
{
    let gone = old.into_iter().flat_map(|old| absent(old, Some(new)));
    for key in gone.chain(new.keys()) {
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
