//! The engine: keeps the kernel's tables true to the bundle and to the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aya::Ebpf;
use enforcer_common::address::Address;
use enforcer_common::decide;
use enforcer_common::event::{Gate, Kind, Notice, NoticeKind, Ring, Use, taken};
use enforcer_common::ids::{
    CgroupId, CredentialId, ExecutableKey, Generation, IdentityId, InodeKey, Tgid, Tid, WatchNode,
};
use enforcer_common::iterate::HolderRecord;
use enforcer_common::tables::{
    Cgroup, CgroupName, Credential, CredentialKey, EndpointKey, GrantKey, Holder, SocketName,
    SubjectKey, Variable, Versioned,
};
use enforcer_common::verdict::Action;
use enforcer_common::watch::{ChildKey, Node, PatternKey};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::bundle::{Bundle, LoadError, Mode, Source};
use crate::canary::{self, Canaries};
use crate::compile::{CompileError, Facts, HostTables, Numbering, Policy, compile, difference};
use crate::fanotify::{self, Places, ReadGate, Rules, Snapshot};
use crate::kernel::clock::Keeper;
use crate::kernel::holders::Holders;
use crate::kernel::iterate;
use crate::kernel::load::{self, Loaded, cgroup_root};
use crate::kernel::maps::{self, Maps};
use crate::kernel::rings::Record;
use crate::kernel::tier::Tier;
use crate::node::files::{Files, Prepared};
use crate::node::mounts::{self, Mount};
use crate::node::names::Names;
use crate::node::{cgroups, dumps, environment, executables, mapped, users};
use crate::record::{Context, Log};

/// Why a bundle was not applied. What was in force stays in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or has mistakes.
    #[error(transparent)]
    Bundle(#[from] LoadError),
    /// It cannot be compiled for this node.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The kernel's tables cannot be written.
    #[error("the kernel's tables cannot be written")]
    Tables(#[from] maps::Error),
    /// It is older than the one in force.
    #[error(
        "the bundle has version {got}, and version {in_force} of the same issuer is in force; issue what should hold under a higher version"
    )]
    Older {
        /// The refused bundle's version.
        got: u64,
        /// The version in force.
        in_force: u64,
    },
    /// The canaries cannot be set up.
    #[error("the canaries cannot be set up")]
    Canary(#[from] canary::Error),
    /// The programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// The kernel's permission events cannot be tried.
    #[error("cannot try the kernel's permission events")]
    Trial(#[from] fanotify::TrialError),
    /// They do not refuse.
    #[error("the kernel let a read go on that was refused by a permission event; use another tier")]
    NotGated,
    /// The read gate cannot be put up.
    #[error("the read gate cannot be put up")]
    ReadGate(#[from] fanotify::Error),
    /// Who had a credential open cannot be found.
    #[error("cannot find who had a credential open before the start")]
    EarlyHolders(#[from] iterate::Error),
    /// The cgroups cannot be listed.
    #[error("cannot list the cgroups")]
    Cgroups(#[source] std::io::Error),
}

/// A bundle in force.
struct InForce {
    bundle: Arc<Bundle>,
    policy: Arc<Policy>,
    generation: Generation,
    executables: BTreeMap<ExecutableKey, PathBuf>,
}

/// Everything the daemon knows.
pub struct Engine {
    loaded: Loaded,
    /// Answers permission events, where those gate the reads.
    gate: Option<ReadGate>,
    source: PathBuf,
    numbering: Numbering,
    clock: Keeper,
    names: Names,
    files: Files,
    canaries: Canaries,
    in_force: Option<InForce>,
    /// What stands in for a bundle where one is required.
    known: Option<Arc<Bundle>>,
    generation: Generation,
    next: Generation,
    refused: Option<String>,
    proven: Result<(), String>,
    lost: [u64; 3],
    early_holders: usize,
    mounts: BTreeSet<Mount>,
    log: Log,
}

impl Engine {
    /// Loads and attaches the programs. Nothing is protected yet.
    pub fn new(
        options: &load::Options,
        source: PathBuf,
        directory: &std::path::Path,
        log: Log,
    ) -> Result<Self, Error> {
        let mut loaded = load::start(options, Tgid(std::process::id()))?;
        let canaries = Canaries::new(&mut loaded.ebpf, directory)?;
        let (gate, files) = match loaded.tier {
            Tier::Fanotify => {
                let abilities = fanotify::trial()?;
                if !abilities.open {
                    return Err(Error::NotGated);
                }
                let (gate, marks) = ReadGate::start(&loaded.ebpf, abilities)?;
                (Some(gate), Files::with_marks(marks))
            }
            Tier::Lsm | Tier::ModifyReturn => (None, Files::default()),
        };
        Ok(Self {
            loaded,
            gate,
            source,
            numbering: Numbering::default(),
            clock: Keeper::new(),
            names: Names::default(),
            files,
            canaries,
            in_force: None,
            known: None,
            generation: Generation(0),
            next: Generation(1),
            refused: None,
            proven: Err("not tried yet".to_owned()),
            lost: [0; 3],
            early_holders: 0,
            mounts: BTreeSet::new(),
            log,
        })
    }

    /// The loaded object, for reading its rings.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.loaded.ebpf
    }

    /// Has what the read gate tells put among the records, where there is one. Once.
    pub fn follow_gate(&mut self, records: &mpsc::Sender<Record>) {
        if let Some(gate) = &mut self.gate {
            gate.follow(records);
        }
    }

    /// Where the bundle is read from.
    pub fn source(&self) -> &std::path::Path {
        &self.source
    }

    /// The executables the bundle in force selects by.
    pub fn executables(&self) -> Vec<PathBuf> {
        let selected = self
            .in_force
            .iter()
            .flat_map(|it| executables::selected(&it.bundle));
        selected.map(|(path, _)| path).collect()
    }

    /// From now on the known locations of credentials are denied as long as there is no bundle.
    pub fn require_bundle(&mut self) -> Result<(), Error> {
        let known = crate::bundle::known().map_err(LoadError::Mistakes)?;
        self.known = Some(Arc::new(known));
        Ok(())
    }

    /// Whether this is what stands in for a bundle.
    fn is_known(&self, bundle: &Arc<Bundle>) -> bool {
        (self.known.as_ref()).is_some_and(|known| Arc::ptr_eq(known, bundle))
    }

    /// The bundle in force, unless that is what stands in for one.
    fn issued(&self) -> Option<&Arc<Bundle>> {
        let in_force = self.in_force.as_ref().map(|it| &it.bundle);
        in_force.filter(|bundle| !self.is_known(bundle))
    }

    /// Whether other file systems are mounted on the directories that credentials are looked for in.
    pub fn mounts_changed(&mut self) -> bool {
        let mounts = mounts::on(self.files.watched());
        let changed = mounts != self.mounts;
        self.mounts = mounts;
        changed
    }

    /// Reads the bundle again and applies it, whole or not at all.
    pub async fn reload(&mut self) {
        let result = match crate::bundle::load(&self.source) {
            Ok(bundle) => self.apply(Arc::new(bundle)).await,
            Err(error) => Err(Error::Bundle(error)),
        };
        match result {
            Ok(()) => self.refused = None,
            Err(error) => {
                let reason = crate::chain(&error);
                tracing::error!(bundle = %self.source.display(), "the bundle is refused, what was in force stays: {reason}");
                self.log.write("bundle-refused", json!({"reason": reason}));
                self.refused = Some(reason);
                self.stand_in().await;
            }
        }
    }

    /// Denies the known locations, if a bundle is required and there is none.
    async fn stand_in(&mut self) {
        let (None, Some(known)) = (&self.in_force, self.known.clone()) else {
            return;
        };
        match self.apply(known).await {
            Ok(()) => {
                tracing::warn!(
                    "there is no bundle: known locations of credentials are denied to everybody"
                );
            }
            Err(error) => {
                let reason = crate::chain(&error);
                tracing::error!(
                    "there is no bundle, and known locations of credentials cannot be denied: {reason}"
                );
            }
        }
    }

    /// Applies the bundle in force again, because something on the node changed.
    pub async fn reapply(&mut self) {
        let Some(bundle) = self.in_force.as_ref().map(|it| it.bundle.clone()) else {
            return;
        };
        if let Err(error) = self.apply(bundle).await {
            tracing::error!(
                "the tables could not be brought up to date: {}",
                crate::chain(&error)
            );
        }
    }

    async fn apply(&mut self, bundle: Arc<Bundle>) -> Result<(), Error> {
        if let Some(in_force) = &self.in_force {
            let (old, new) = (&in_force.bundle.metadata, &bundle.metadata);
            if new.issuer == old.issuer && new.version < old.version {
                return Err(Error::Older {
                    got: new.version,
                    in_force: old.version,
                });
            }
        }
        self.names.refresh(&bundle).await;
        let facts = Facts {
            executables: executables::look(&mut self.loaded.ebpf, &bundle),
            users: users::users(),
            hosts: self.names.hosts(),
            clock: self.clock.clock(),
        };
        let policy = Arc::new(compile(
            &bundle,
            &facts,
            &mut self.numbering,
            &self.canaries.reserved(),
        )?);
        let next = self.next;
        // Whatever becomes of it, the number is not used again: half-written tables may have it. The one
        // after next, because the description in force must keep its place, which is the number's last bit.
        self.next = Generation(next.0 + 2);
        let old = self.in_force.take();
        let swapped = self.swap(old.as_ref().map(|it| &*it.policy), &policy, next);
        if let Err(error) = swapped {
            self.in_force = old;
            return Err(error);
        }
        self.next = Generation(next.0 + 1);
        let known = self.is_known(&bundle);
        let first = old
            .as_ref()
            .is_none_or(|it| self.is_known(&it.bundle) && !known);
        let new_bundle = old.is_none_or(|it| it.bundle.digest != bundle.digest);
        if first {
            // The bundle is in force whatever comes of this.
            match self.find_early_holders(&policy) {
                Ok(count) => self.early_holders = count,
                Err(error) => tracing::error!(
                    "processes that had a credential open before the start are not all holders: {}",
                    crate::chain(&error)
                ),
            }
        }
        if new_bundle {
            self.log.write(
                if known { "no-bundle" } else { "bundle-applied" },
                json!({
                    "bundle": bundle.metadata.version,
                    "issuer": bundle.metadata.issuer,
                    "files": self.files.count(),
                    "earlyHolders": self.early_holders,
                    "notGated": self.not_gated(&policy),
                }),
            );
        }
        self.in_force = Some(InForce {
            bundle,
            policy,
            generation: next,
            executables: facts
                .executables
                .into_iter()
                .flat_map(|((path, _), keys)| keys.into_iter().map(move |key| (key, path.clone())))
                .collect(),
        });
        Ok(())
    }

    /// Writes everything for the next generation, makes it the one in force with a single store, and takes
    /// out what only the previous one used.
    fn swap(
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
                slices_only: u32::from(cgroup.slices_only),
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

    /// The canaries' files are marked like any other.
    fn mark_canaries(&mut self, policy: &Policy) {
        let Some(marks) = self.files.marks() else {
            return;
        };
        for (key, _, path) in self.canaries.files(policy) {
            match std::fs::File::open(path) {
                Ok(file) => marks.file(&file, key, path),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a canary is gone");
                }
            }
        }
    }

    /// What the read gate is to know of the files.
    fn places(&self, policy: &Policy, prepared: Option<&Prepared>) -> Places {
        let mut places = self.files.places(prepared);
        let canaries = self.canaries.files(policy);
        places.files.extend(canaries.map(|(key, id, _)| (key, id)));
        places
    }

    fn unmark(&mut self, policy: &Policy) {
        let canaries: Vec<InodeKey> = self.canaries.files(policy).map(|it| it.0).collect();
        self.files.unmark(&canaries);
    }

    /// Makes sure, where reads are gated by marks, that all are in place and the gate knows of them.
    pub fn reconcile(&mut self) {
        let Some(policy) = self.in_force.as_ref().map(|it| it.policy.clone()) else {
            return;
        };
        if self.gate.is_none() {
            return;
        }
        if let Err(error) = self.files.reconcile(&mut self.loaded.ebpf, &policy) {
            tracing::error!(
                "the marks could not be brought up to date: {}",
                crate::chain(&error)
            );
        }
        self.mark_canaries(&policy);
        self.unmark(&policy);
        self.publish_places(&policy);
    }

    fn publish_places(&self, policy: &Policy) {
        if let Some(gate) = &self.gate {
            gate.publish_places(self.places(policy, None));
        }
    }

    /// Makes holders of the processes that had a credential open, mapped or in their environment before the gates
    /// stood, and of their workload instances. Returns how many processes.
    fn find_early_holders(&mut self, policy: &Policy) -> Result<usize, Error> {
        let mut found: BTreeSet<Tgid> = BTreeSet::new();
        let tables = HostTables::new(policy, self.generation);
        let mut holders = Holders::new(&self.loaded.ebpf)?;
        let mut early = iterate::holders(&self.loaded.ebpf)?;
        let mapped = mapped::holding(self.files.protected()).into_iter();
        for (tgid, credential) in mapped.chain(environment::holding(&policy.variables)) {
            // The leader has the process's id.
            let leader = iterate::thread(&mut self.loaded.ebpf, Tid(tgid.0))?;
            early.extend(leader.map(|leader| HolderRecord {
                task: leader.task,
                credential,
                reserved: 0,
            }));
        }
        for HolderRecord {
            task, credential, ..
        } in early
        {
            let now = crate::kernel::clock::boot_now();
            if decide::read(&tables, now, &task, credential).trusted() {
                continue;
            }
            let flags = Credential::default();
            if holders.record(&task, credential, flags).is_err() {
                tracing::error!(
                    pid = task.tgid.0,
                    "a process that had a credential open before the start could not be recorded: the table of holders is full"
                );
            }
            if !std::path::Path::new(&format!("/proc/{}", task.tgid.0)).exists() {
                // It ended before it was recorded, so nothing else would take it out.
                holders.forget(Holder::process(task.tgid, task.start));
            }
            found.insert(task.tgid);
        }
        Ok(found.len())
    }

    /// Writes the event of a use.
    pub fn used(&mut self, record: &Use) {
        let Some(in_force) = &self.in_force else {
            return;
        };
        let credential = in_force.policy.credential_info.get(&record.credential);
        if credential.is_some_and(|it| canary::is_canary(&it.id)) {
            return;
        }
        let is_holder = record.kind == Kind::Read as u8 && record.reason == 0;
        if is_holder
            && record.trusted == 0
            && let Err(error) = dumps::forbid(record.task.tgid)
        {
            tracing::debug!(pid = record.task.tgid.0, %error, "core dumps of a holder stay as they are");
        }
        let mut record = *record;
        if self.gate.is_some() && refused_without_signal(&record) {
            // The programs of this tier cannot send signals: the call was refused, the process goes now.
            let ebpf = &mut self.loaded.ebpf;
            let look = || iterate::thread(ebpf, record.tid).ok().flatten();
            match fanotify::kill(&record.task, look) {
                Ok(()) => record.taken = taken::KILLED,
                Err(error) => {
                    tracing::warn!(pid = record.task.tgid.0, %error, "a process that was to be killed was only refused");
                }
            }
        }
        let hosts: BTreeMap<IpAddr, String> = self
            .names
            .hosts()
            .into_iter()
            .flat_map(|(name, addresses)| {
                addresses
                    .into_iter()
                    .map(move |address| (address, name.clone()))
            })
            .collect();
        let context = Context {
            policy: &in_force.policy,
            version: in_force.bundle.metadata.version,
            path_of: &|key: &InodeKey| self.files.path_of(key).map(PathBuf::from),
            executables: &in_force.executables,
            hosts: &hosts,
            wall: &|boot| self.clock.wall(boot),
            tier: self.loaded.tier,
        };
        self.log.write_use(&record, &context);
    }

    /// Acts on a notice.
    pub fn noticed(&mut self, notice: &Notice) {
        let end = notice.name.iter().position(|byte| *byte == 0);
        let name = &notice.name[..end.unwrap_or(notice.name.len())];
        let result = match NoticeKind::from_u8(notice.kind as u8) {
            Some(NoticeKind::Appeared) => self.appeared(notice, name),
            Some(NoticeKind::CgroupCreated) => {
                self.cgroup_created(notice.cgroup, &String::from_utf8_lossy(name))
            }
            Some(NoticeKind::TableFull) => {
                self.log.write(
                    "table-full",
                    json!({"message": "a table of the kernel is full: what could not be recorded is refused"}),
                );
                Ok(())
            }
            Some(NoticeKind::CgroupRemoved) | None => Ok(()),
        };
        if let Err(error) = result {
            tracing::error!(
                "a notice of the kernel could not be acted on: {}",
                crate::chain(&error)
            );
        }
    }

    fn appeared(&mut self, notice: &Notice, name: &[u8]) -> Result<(), Error> {
        let Some(in_force) = &self.in_force else {
            return Ok(());
        };
        let policy = in_force.policy.clone();
        let ebpf = &mut self.loaded.ebpf;
        if self.gate.is_none() {
            self.files
                .appeared(ebpf, &policy, &notice.directory, notice.file, name)?;
            return Ok(());
        }
        let changed = self
            .files
            .arrived(ebpf, &policy, &notice.directory, notice.file, name)?;
        if changed {
            self.publish_places(&policy);
        }
        Ok(())
    }

    /// The kernel classified the cgroup by its own name; this says exactly what it means where names nest.
    fn cgroup_created(&mut self, id: CgroupId, path: &str) -> Result<(), Error> {
        let Some(in_force) = &self.in_force else {
            return Ok(());
        };
        let exact = in_force.policy.identity_of(path);
        let mut maps = Maps(&mut self.loaded.ebpf);
        let known: Option<Cgroup> = maps.get("CGROUPS", &id)?;
        if let Some(mut cgroup) = known
            && cgroup.identity.at(in_force.generation) != exact
        {
            cgroup.identity = Versioned::constant(exact);
            maps.put("CGROUPS", id, cgroup)?;
        }
        Ok(())
    }

    /// Tries the canaries, and tells when what they prove has changed.
    pub async fn prove(&mut self) {
        if self.in_force.is_none() {
            return;
        }
        let result = self
            .canaries
            .fly()
            .await
            .map_err(|error| crate::chain(&error));
        if result != self.proven {
            self.log.write(
                "state",
                json!({"state": state(&result, self.issued().is_some(), false, self.loaded.tier), "reason": result.as_ref().err()}),
            );
        }
        self.proven = result;
    }

    /// Looks after what time changes: names, the clock, and losses to report.
    pub async fn tick(&mut self) {
        self.report_losses();
        let Some(bundle) = self.in_force.as_ref().map(|it| it.bundle.clone()) else {
            return;
        };
        let stepped = self.clock.stepped();
        if stepped {
            self.log
                .write("clock-stepped", json!({"direction": "forward"}));
        }
        if self.names.refresh(&bundle).await || stepped {
            self.reapply().await;
        }
    }

    fn report_losses(&mut self) {
        for ring in Ring::ALL {
            let index = *ring as usize;
            let lost = Maps(&mut self.loaded.ebpf).sum("LOST", index as u32);
            let Ok(lost) = lost else { continue };
            let lost = lost + self.gate.as_ref().map_or(0, |gate| gate.lost(*ring));
            let new = lost - self.lost[index];
            if new > 0 {
                self.lost[index] = lost;
                self.log.write(
                    "lost",
                    json!({"ring": ring.name(), "count": new, "total": lost}),
                );
            }
        }
    }

    /// What `enforcer status` says.
    pub fn status(&mut self) -> Value {
        let monitoring = self
            .in_force
            .as_ref()
            .is_some_and(|it| it.bundle.defaults.mode == Mode::Monitor);
        let proven = &self.proven;
        json!({
            "state": state(proven, self.issued().is_some(), monitoring, self.loaded.tier),
            "knownLocations": match (&self.in_force, self.issued(), proven) {
                (Some(_), None, Ok(())) => Some("denied, until there is a bundle"),
                (Some(_), None, Err(_)) => Some("not proven to be denied"),
                _ => None,
            },
            "tier": self.loaded.tier,
            "reason": proven.as_ref().err(),
            "generation": self.generation.0,
            "bundle": self.issued().map(|it| json!({
                "issuer": it.metadata.issuer,
                "version": it.metadata.version,
                "credentials": it.credentials.len(),
                "workloads": it.workloads.len(),
                "entitlements": it.entitlements.len(),
                "expiresAt": it.metadata.expires_at.map(|at| at.to_string()),
            })),
            "refused": self.refused,
            "files": self.files.count(),
            "unprotectedSockets": self.files.open_sockets().collect::<Vec<_>>(),
            "earlyHolders": self.early_holders,
            "lost": Ring::ALL.iter().map(|ring| (ring.name(), self.lost[*ring as usize])).collect::<BTreeMap<_, _>>(),
            "notCovered": match &self.gate {
                Some(gate) => gate.not_covered(),
                None => not_covered(self.loaded.tier),
            },
            "notGated": self.in_force.as_ref().map(|it| self.not_gated(&it.policy)),
            "readGate": self.read_gate(),
        })
    }

    /// The credentials whose reads are not gated on this tier, or not all: requested, and not effective.
    fn not_gated<'a>(&self, policy: &'a Policy) -> BTreeSet<&'a str> {
        if self.gate.is_none() {
            return BTreeSet::new();
        }
        let is_contacted = |source: &Source| {
            matches!(
                source,
                Source::Endpoint(_) | Source::Socket(_) | Source::AbstractSocket(_)
            )
        };
        let all = policy.credential_info.values();
        all.filter(|it| it.sources.iter().any(is_contacted))
            .map(|it| it.id.as_str())
            .collect()
    }

    /// What there is to say of the read gate of the `fanotify` tier.
    fn read_gate(&mut self) -> Option<Value> {
        let gate = self.gate.as_ref()?;
        let (answered, unclear) = gate.answered();
        let marks = self.files.marks().map(|marks| marks.count());
        Some(json!({
            "marks": marks,
            "kernel": gate.abilities(),
            "answered": answered,
            "unclear": unclear,
            "withoutDaemon": "reads go on",
        }))
    }

    /// What the decision would be for a task, see [`crate::control::Question`].
    pub fn explain(&self, question: &crate::control::Question) -> Value {
        let Some(in_force) = &self.in_force else {
            return json!({"error": "no bundle is in force"});
        };
        let tables = HostTables::new(&in_force.policy, in_force.generation);
        crate::control::explain(question, &in_force.policy, &in_force.bundle, tables)
    }

    /// Captures the executable that a question is about.
    pub fn executable_key(
        &mut self,
        path: &std::path::Path,
    ) -> Result<enforcer_common::ids::ExecutableKey, crate::kernel::capture::Error> {
        crate::kernel::capture::capture(&mut self.loaded.ebpf, path).map(|(keys, _)| keys[0])
    }

    /// What a cgroup of this path means in the bundle in force.
    pub fn identity_of(&self, path: &str) -> IdentityId {
        self.in_force
            .as_ref()
            .map_or(IdentityId(0), |it| it.policy.identity_of(path))
    }

    /// Tells of records that arrived and will not be written, because the daemon stops.
    pub fn unwritten(&mut self, count: usize) {
        if count > 0 {
            self.log.write(
                "lost",
                json!({"ring": "daemon", "count": count, "total": count}),
            );
        }
    }

    /// Says goodbye in the event log.
    pub fn stopping(&mut self) {
        self.report_losses();
        self.log.write("stopped", json!({}));
    }
}

/// Whether a cgroup program refused a call of a process that should be killed for it.
fn refused_without_signal(record: &Use) -> bool {
    let gate = Gate::from_u8(record.gate);
    record.taken == taken::REFUSED
        && Action::from_u8(record.action) == Some(Action::Kill)
        && matches!(
            gate,
            Some(Gate::CgroupConnect | Gate::CgroupSendmsg | Gate::SocketCreate)
        )
}

/// [`NOT_COVERED`], and what comes to it on the `modify-return` tier.
fn not_covered(tier: Tier) -> Vec<&'static str> {
    let mut list = NOT_COVERED.to_vec();
    if tier == Tier::ModifyReturn {
        list.push("on a preemptible kernel: calls that come while another task on the same processor is interrupted in the same program");
    }
    list
}

/// What this version leaves open on the tiers with hooks, told in `status`.
const NOT_COVERED: &[&str] = &[
    "mappings of a credential that are older than the gates or than a revocation: page faults have no hook",
    "what a holder hands on through unix sockets, pipes, shared memory and files to another workload",
    "answers on accepted connections, where the bundle's defaults.inbound is permit",
    "core dumps of a holder into a program (core_pattern), for the moment until the daemon has turned them off",
    "what root on the host does to the daemon or its programs",
];

/// The word for how things are.
fn state(proven: &Result<(), String>, bundle: bool, monitoring: bool, tier: Tier) -> String {
    match (bundle, proven) {
        (false, _) => "no-bundle".to_owned(),
        (true, Err(_)) => "degraded".to_owned(),
        (true, Ok(())) if monitoring => "monitoring".to_owned(),
        (true, Ok(())) => format!("enforcing/{}", tier.name()),
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

/// An address as the tables have it.
pub fn address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    Address::from_octets(octets)
}
