//! From one bundle to the next, without a decision that sees two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use enforcer_common::ids::{CgroupId, CredentialId, Generation, IdentityId, WatchNode};
use enforcer_common::tables::{
    Cgroup, CgroupName, Credential, CredentialKey, EndpointKey, GrantKey, Grants, Holder,
    SocketName, Subject, SubjectKey, Variable, Versioned,
};
use enforcer_common::watch::{ChildKey, Node, Pattern, PatternKey};

use super::{Engine, Error};
use crate::compile::{Policy, changed};
use crate::fanotify::{Rules, Snapshot};
use crate::kernel::at_root;
use crate::kernel::clock::boot_now;
use crate::kernel::maps::{self, Maps};
use crate::kernel::presence::Counters;
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
        self.write_origins(new, next)?;
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
        write_versioned(&mut maps, "ENDPOINTS", &new.endpoints, current, next)?;
        write_versioned(&mut maps, "SOCKET_NAMES", &new.sockets, current, next)?;
        for (name, id) in &new.variables {
            if let Some(key) = Variable::new(next, name) {
                maps.put_prefix("VARIABLES", key.bits, key.data(), id.0)?;
            }
        }
        self.write_watch_tree(old, new)?;
        let inside = self.look_into_containers(new)?;
        let prepared =
            self.files
                .prepare(&mut self.loaded.ebpf, new, self.generation, next, inside)?;
        self.canaries.protect(&mut self.loaded.ebpf, new)?;
        self.mark_canaries(new);
        let places = self.places(new, Some(&prepared));

        let fresh_until = self.fresh_until();
        let mut maps = Maps(&mut self.loaded.ebpf);
        let mut description = new.bundle;
        description.fresh_until = fresh_until;
        description.steady_until = new.steady_until(boot_now(), fresh_until);
        description.secret = rand::random();
        description.generation = next;
        description.degraded = u8::from(self.degraded);
        maps.set("BUNDLES", next.0 & 1, description)?;
        maps.set("GENERATION", 0, next)?;
        self.generation = next;
        self.steady_until = description.steady_until;
        if let Some(gate) = &self.gate {
            gate.publish(Snapshot {
                rules: Some(Arc::new(Rules::new(new.clone(), next, fresh_until))),
                places: Arc::new(places),
            });
        }
        grace();

        if let Err(error) = self.clear_up(new, prepared) {
            tracing::error!(
                "the bundle is in force, and something of the previous one stays in the tables: {}",
                crate::chain(&error)
            );
        }
        Ok(())
    }

    /// The new bundle is in force and no program can see the previous one any more.
    fn clear_up(&mut self, new: &Arc<Policy>, prepared: Prepared) -> Result<(), Error> {
        self.files.finish(&mut self.loaded.ebpf, prepared)?;
        self.canaries.protect(&mut self.loaded.ebpf, new)?;
        self.unmark(new);
        self.sweep(new)?;
        self.settle_origins(new)
    }

    /// Takes out of the tables what `stays`, the policy in force, does not need: what only an earlier one used, or a
    /// daemon before this one, or one that could not be written whole.
    pub(super) fn sweep(&mut self, stays: &Policy) -> Result<(), Error> {
        let generation = self.generation;
        let credential = |id: &CredentialId| CredentialKey::new(generation, *id);
        let credentials: BTreeSet<_> = stays.credentials.keys().map(credential).collect();
        let subjects = stays
            .subjects
            .keys()
            .map(|selector| selector.key(generation));
        let subjects: BTreeSet<_> = subjects.collect();
        let variables = stays.variables.keys();
        let variables = variables.filter_map(|name| Variable::new(generation, name));
        let variables: BTreeSet<_> = variables.map(|key| (key.bits, key.data())).collect();
        let scopes = stays.scopes.keys();
        let scopes: BTreeSet<_> = scopes.map(|key| (key.prefix_bits(), key.data())).collect();
        let ports = stays.ports.keys();
        let ports: BTreeSet<_> = ports.map(|key| (key.prefix_bits(), key.data())).collect();
        let watch = &stays.watch;

        let mut maps = Maps(&mut self.loaded.ebpf);
        maps.retain::<_, Credential>("CREDENTIALS", |key| credentials.contains(key))?;
        maps.retain::<SubjectKey, Subject>("SUBJECTS", |key| subjects.contains(key))?;
        maps.retain_prefixes("VARIABLES", &variables)?;
        maps.retain::<EndpointKey, Versioned<CredentialId>>("ENDPOINTS", |key| {
            stays.endpoints.contains_key(key)
        })?;
        maps.retain::<SocketName, Versioned<CredentialId>>("SOCKET_NAMES", |key| {
            stays.sockets.contains_key(key)
        })?;
        maps.retain::<CgroupName, Versioned<IdentityId>>("CGROUP_NAMES", |key| {
            stays.cgroup_names.contains_key(key)
        })?;
        maps.retain::<GrantKey, Grants>("GRANTS", |key| stays.grants.contains_key(key))?;
        maps.retain_prefixes("SCOPES", &scopes)?;
        maps.retain_prefixes("PORTS", &ports)?;
        maps.retain::<ChildKey, WatchNode>("CHILDREN", |key| watch.children.contains_key(key))?;
        maps.retain::<PatternKey, Pattern>("PATTERNS", |key| watch.patterns.contains_key(key))?;
        maps.retain::<WatchNode, Node>("NODES", |key| watch.nodes.contains_key(key))?;
        self.sweep_origins(stays)
    }

    /// What each cgroup means, of those there are and those to come.
    fn write_cgroups(
        &mut self,
        old: Option<&Policy>,
        new: &Policy,
        next: Generation,
    ) -> Result<(), Error> {
        let mut maps = Maps(&mut self.loaded.ebpf);
        let current = self.generation;
        let names = &new.cgroup_names;
        write_versioned(&mut maps, "CGROUP_NAMES", names, current, next)?;
        let root = at_root::path()?;
        let found = cgroups::scan(&root).map_err(Error::Cgroups)?;
        let held = Counters::open(maps.0, "HELD_PRESENT")?;
        for cgroup in found {
            let known = maps.get::<CgroupId, Cgroup>("CGROUPS", &cgroup.id)?;
            let mut record = Cgroup {
                identity: Versioned {
                    from: next,
                    before: match (old, known) {
                        (Some(old), _) => self.containers.meaning(old, &cgroup.path),
                        (None, Some(known)) => known.identity.at(current),
                        (None, None) => IdentityId(0),
                    },
                    after: self.containers.meaning(new, &cgroup.path),
                },
                unaccounted: known.map_or(0, |it| it.unaccounted),
                ..cgroup.record
            };
            if let Some(known) = known
                && known.identity.at(current) == record.identity.before
                && known.identity.at(next) == record.identity.after
            {
                record.identity = known.identity;
            }
            let was_part = known.is_some_and(|it| it.is_part(cgroup.id));
            let is_more = record.is_part(cgroup.id) && !was_part;
            if is_more {
                held.add(Holder::cgroup_word(cgroup.id));
            }
            // The kernel takes out the entry of a cgroup that goes. Written after that, nobody would.
            let is_less = match known {
                Some(known) if known == record => false,
                Some(_) => !maps.put_known("CGROUPS", &cgroup.id, &record)?,
                None => {
                    maps.put("CGROUPS", cgroup.id, record)?;
                    !cgroup.is_below(&root)
                        && maps.remove::<CgroupId, Cgroup>("CGROUPS", &cgroup.id)?
                }
            };
            if is_more && is_less {
                held.take(Holder::cgroup_word(cgroup.id));
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

/// Writes a table whose values hold both sides of a swap: for what is in it, whoever wrote it, and for what is to be.
fn write_versioned<K, V>(
    maps: &mut Maps<'_>,
    table: &'static str,
    new: &BTreeMap<K, V>,
    current: Generation,
    next: Generation,
) -> Result<(), maps::Error>
where
    K: aya::Pod + Ord,
    V: Copy + Default + PartialEq,
    Versioned<V>: aya::Pod,
{
    let known = maps.keys::<K, Versioned<V>>(table)?;
    let gone = known.iter().filter(|key| !new.contains_key(key));
    for key in gone.chain(new.keys()) {
        let after = new.get(key).copied().unwrap_or_default();
        maps.put_from(table, *key, after, current, next)?;
    }
    Ok(())
}

/// Waits until no program that runs can still see the previous generation: the kernel does so in
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` (synchronize_rcu, since 4.3), but does nothing on one processor and
/// refuses with nohz_full. A decision takes microseconds; then a pause stands in.
pub(super) fn grace() {
    // SAFETY: a system call on numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if result != 0 || processors == 1 {
        std::thread::sleep(Duration::from_millis(20));
    }
}
