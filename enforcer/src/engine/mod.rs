//! The engine: keeps the kernel's tables true to the bundle and to the node.

mod governed;
mod inherit;
mod losses;
mod numbers;
mod proof;
mod status;
mod swap;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::Ebpf;
use enforcer_common::decide;
use enforcer_common::event::{Gate, Kind, Notice, NoticeKind, Use, taken};
use enforcer_common::ids::{CgroupId, ExecutableKey, Generation, IdentityId, InodeKey, Tgid, Tid};
use enforcer_common::iterate::HolderRecord;
use enforcer_common::tables::{Cgroup, Credential, Holder, Versioned};
use enforcer_common::verdict::Action;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::bundle::{Bundle, Labels, LoadError};
use crate::canary::{self, Canaries};
use crate::compile::{CompileError, Facts, HostTables, Policy, compile};
use crate::fanotify::{self, Places, ReadGate};
use crate::kernel::at_root;
use crate::kernel::clock::Keeper;
use crate::kernel::holders::Holders;
use crate::kernel::iterate;
use crate::kernel::legacy;
use crate::kernel::load::{self, Loaded};
use crate::kernel::maps::{self, Maps};
use crate::kernel::own::{self, Own};
use crate::kernel::passed_over::PassedOver;
use crate::kernel::pins::{self, Set};
use crate::kernel::rings::Records;
use crate::kernel::tier::Tier;
use crate::node::files::{Files, Prepared};
use crate::node::mounts::{self, Mount};
use crate::node::names::Names;
use crate::node::{dumps, environment, executables, mapped, users};
use crate::record::{Context, Log};
use inherit::Inheritance;
use losses::Unaccounted;
use numbers::Numbers;

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
    /// The daemon's executable is not known.
    #[error("the daemon's own executable cannot be found")]
    Executable(#[source] std::io::Error),
    /// The root of the cgroups is not there.
    #[error(transparent)]
    Root(#[from] at_root::Error),
    /// What another daemon left cannot be listed.
    #[error(transparent)]
    Pins(#[from] pins::Error),
    /// Or not be read.
    #[error(transparent)]
    Legacy(#[from] legacy::Error),
    /// The programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// It is not known what in the kernel is ours.
    #[error(transparent)]
    Own(#[from] own::Error),
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
    own: Own,
    /// Answers permission events, where those gate the reads.
    gate: Option<ReadGate>,
    /// Where the bundle is read from, unless governance brings it.
    source: Option<PathBuf>,
    /// The node's, which say what of a bundle in a file concerns it.
    labels: Labels,
    /// Until when it is known that nothing newer has been issued. `None`: nobody says.
    fresh_until: Option<Timestamp>,
    numbers: Numbers,
    clock: Keeper,
    names: Names,
    files: Files,
    canaries: Canaries,
    in_force: Option<InForce>,
    /// What stands in for a bundle where one is required.
    known: Option<Arc<Bundle>>,
    generation: Generation,
    /// What a daemon of another build left, as long as there is no bundle in force.
    left: Option<Set>,
    /// The daemon's own.
    executable: PathBuf,
    refused: Option<String>,
    proven: Result<(), String>,
    /// Whether holders are kept from everything, because a gate does not hold.
    degraded: bool,
    lost: [u64; 3],
    passed_over: PassedOver,
    /// Records for which a table had no room, since this was last told.
    table_full: u64,
    /// Uses that could not be told, since this was last said.
    nameless: usize,
    /// For whom something held could not be recorded.
    unaccounted: Unaccounted,
    early_holders: usize,
    mounts: BTreeSet<Mount>,
    log: Log,
}

impl Engine {
    /// Loads and attaches the programs. Nothing is protected yet.
    pub fn new(
        options: &load::Options,
        source: Option<PathBuf>,
        labels: Labels,
        directory: &Path,
        log: Log,
    ) -> Result<Self, Error> {
        let mut loaded = load::start(options, Tgid(std::process::id()))?;
        let own = Own::find(&mut loaded)?;
        let executable = std::env::current_exe().map_err(Error::Executable)?;
        Own::name_heir(&mut loaded.ebpf, Path::new("/proc/self/exe"))?;
        let inheritance = Inheritance::find(&mut loaded)?;
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
        let mut engine = Self {
            loaded,
            own,
            gate,
            source,
            labels,
            fresh_until: None,
            numbers: inheritance.numbers,
            clock: Keeper::new(),
            names: Names::default(),
            files,
            canaries,
            in_force: None,
            known: None,
            generation: inheritance.generation,
            left: inheritance.left,
            executable,
            refused: None,
            proven: Err("not tried yet".to_owned()),
            degraded: inheritance.degraded,
            lost: [0; 3],
            passed_over: PassedOver::default(),
            table_full: 0,
            nameless: 0,
            unaccounted: Unaccounted::default(),
            early_holders: 0,
            mounts: BTreeSet::new(),
            log,
        };
        if engine.loaded.taken_over() {
            engine.take_over()?;
        }
        Ok(engine)
    }

    /// The loaded object, for reading its rings.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.loaded.ebpf
    }

    /// Has what the read gate tells put among the records, where there is one. Once.
    pub fn follow_gate(&mut self, records: &Records) {
        if let Some(gate) = &mut self.gate {
            gate.follow(records);
        }
    }

    /// Where the bundle is read from, unless governance brings it.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// The executables the bundle in force selects by, and the daemon's own.
    pub fn executables(&self) -> Vec<PathBuf> {
        let selected = self
            .in_force
            .iter()
            .flat_map(|it| executables::selected(&it.bundle));
        let selected = selected.map(|(path, _)| path);
        selected.chain([self.executable.clone()]).collect()
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

    /// Whether a bundle is in force, be it one that another daemon has put there.
    fn has_bundle(&self) -> bool {
        self.generation != Generation(0)
    }

    /// Whether that is one that somebody issued, and not what stands in for one.
    fn has_issued(&self) -> bool {
        match &self.in_force {
            Some(in_force) => !self.is_known(&in_force.bundle),
            None => self.has_bundle(),
        }
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
        // One may have come in the place, and with the number, of one that went: its directory is another.
        let files = &self.files;
        let mut places = self.mounts.iter().map(|(_, place)| place);
        changed || places.any(|place| !files.is_watched(&mut self.loaded.ebpf, place))
    }

    /// Reads the bundle again and applies it, whole or not at all.
    pub async fn reload(&mut self) {
        let Some(source) = self.source.clone() else {
            self.reapply().await;
            return self.stand_in().await;
        };
        let result = match crate::bundle::load(&source) {
            Ok(mut bundle) => {
                bundle.keep_for(&self.labels);
                self.apply(Arc::new(bundle)).await
            }
            Err(error) => Err(Error::Bundle(error)),
        };
        match result {
            Ok(()) => self.refused = None,
            Err(error) => {
                let reason = crate::chain(&error);
                tracing::error!(bundle = %source.display(), "the bundle is refused, what was in force stays: {reason}");
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
        if self.generation != Generation(0) {
            // What another daemon put in force holds.
            return;
        }
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
        // The addresses of the names in the bundle in force are looked up each second anyway.
        if self
            .in_force
            .as_ref()
            .is_none_or(|it| it.bundle.digest != bundle.digest)
        {
            self.names.refresh(&bundle).await;
        }
        if let Err(error) = Own::name_heir(&mut self.loaded.ebpf, &self.executable) {
            // It is being replaced, perhaps.
            tracing::debug!(error = %crate::chain(&error), "the daemon's executable may not take over");
        }
        let facts = Facts {
            forwarding: self.loaded.tier != Tier::Fanotify,
            executables: executables::look(&mut self.loaded.ebpf, &bundle),
            users: users::users(),
            hosts: self.names.hosts(),
            clock: self.clock.clock(),
        };
        let policy = Arc::new(compile(
            &bundle,
            &facts,
            &mut self.numbers.numbering,
            &self.canaries.reserved(),
        )?);
        let next = self.numbers.next(self.generation);
        self.numbers.keep(&mut self.loaded.ebpf)?;
        let old = self.in_force.take();
        let swapped = self.swap(old.as_ref().map(|it| &*it.policy), &policy, next);
        if let Err(error) = swapped {
            // Without an old policy nobody knows what of the tables is in force.
            let swept = old.as_ref().map_or(Ok(()), |it| self.sweep(&it.policy));
            if let Err(error) = swept {
                tracing::error!(
                    "what was written of a bundle that does not fit stays in the tables: {}",
                    crate::chain(&error)
                );
            }
            self.in_force = old;
            return Err(error);
        }
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
        self.succeed();
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
            if !Path::new(&format!("/proc/{}", task.tgid.0)).exists() {
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
            // It was decided by what an earlier daemon put in force, and nobody knows the names.
            self.nameless += 1;
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
        let context = Context {
            policy: &in_force.policy,
            version: in_force.bundle.metadata.version,
            path_of: &|key: &InodeKey| self.files.path_of(key).map(PathBuf::from),
            executables: &in_force.executables,
            host_of: &|address| self.names.host_of(address),
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
                self.table_full += 1;
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

    /// Looks after what time changes: names, the clock, and losses to report.
    pub async fn tick(&mut self) {
        self.log.settle();
        self.report_losses();
        self.report_passed_over();
        self.report_full_tables();
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

    /// What the decision would be for a task, see [`crate::control::Question`].
    pub fn explain(&self, question: &crate::control::Question) -> Value {
        let Some(in_force) = &self.in_force else {
            return json!({"error": "no bundle is in force"});
        };
        let mut tables = HostTables::new(&in_force.policy, in_force.generation);
        tables.set_fresh_until(self.fresh_until());
        crate::control::explain(question, &in_force.policy, &in_force.bundle, tables)
    }

    /// Captures the executable that a question is about.
    pub fn executable_key(
        &mut self,
        path: &Path,
    ) -> Result<enforcer_common::ids::ExecutableKey, crate::kernel::capture::Error> {
        crate::kernel::capture::capture(&mut self.loaded.ebpf, path).map(|(keys, _)| keys[0])
    }

    /// What a cgroup of this path means in the bundle in force.
    pub fn identity_of(&self, path: &str) -> IdentityId {
        self.in_force
            .as_ref()
            .map_or(IdentityId(0), |it| it.policy.identity_of(path))
    }

    /// Leaves the programs to the next daemon, and says goodbye in the event log.
    pub fn stopping(&mut self) {
        if let Err(error) = Maps(&mut self.loaded.ebpf).set("HANDED_OVER", 0, 1_u32) {
            tracing::error!(
                "only this executable can take over: {}",
                crate::chain(&error)
            );
        }
        self.report_losses();
        let stays = self.loaded.pinned.is_some();
        if stays {
            tracing::info!(
                "the programs go on without a daemon, until the next one or `enforcer cleanup`"
            );
        }
        self.log.write("stopped", json!({"stillEnforced": stays}));
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
