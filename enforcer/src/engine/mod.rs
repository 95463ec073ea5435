//! The engine: keeps the kernel's tables true to the bundle and to the node.

mod apply;
pub mod containers;
mod governed;
mod inherit;
mod lists;
mod located;
mod losses;
mod marks;
mod numbers;
mod origins;
mod programs;
mod proof;
mod room;
mod status;
mod swap;
mod times;
mod told;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::Ebpf;
use enforcer_common::event::Ring;
use enforcer_common::facts::Task;
use enforcer_common::ids::{BootNs, ExecutableKey, Generation, IdentityId, Tgid, Tid};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::bundle::{Bundle, Labels, LoadError};
use crate::canary::{self, Canaries};
use crate::compile::{CompileError, HostTables, Policy};
use crate::fanotify::{self, ReadGate};
use crate::kernel::at_root;
use crate::kernel::clock::Keeper;
use crate::kernel::fill::Fill;
use crate::kernel::iterate;
use crate::kernel::legacy;
use crate::kernel::load::{self, Loaded};
use crate::kernel::maps::{self, Maps};
use crate::kernel::own::{self, Own};
use crate::kernel::passed_over::PassedOver;
use crate::kernel::pins::{self, Set};
use crate::kernel::rings::Records;
use crate::kernel::settled::{Settled, Settles};
use crate::kernel::take_over;
use crate::kernel::tier::Tier;
use crate::memory;
use crate::node::cgroups::Known;
use crate::node::files::Files;
use crate::node::mounts::{self, Mount};
use crate::node::names::Names;
use crate::node::{executables, users};
use crate::record::Log;
use crate::respond::webhook::Webhook;
use crate::respond::{Limiter, Responder};
use containers::Containers;
use inherit::Inheritance;
use losses::{Unaccounted, Unsaid};
use numbers::Numbers;
use usage::Uses;

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
    /// The kernel does not show what runs.
    #[error("cannot look at the processes that run already")]
    Processes(#[from] iterate::Error),
    /// The cgroups cannot be listed.
    #[error("cannot list the cgroups")]
    Cgroups(#[source] std::io::Error),
}

impl Error {
    /// Whether larger tables would do.
    fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::Compile(CompileError::Capacity { .. }) => true,
            Self::Tables(error) => error.is_for_want_of_room(),
            _ => false,
        }
    }
}

/// A bundle in force.
struct InForce {
    bundle: Arc<Bundle>,
    policy: Arc<Policy>,
    generation: Generation,
    executables: BTreeMap<ExecutableKey, PathBuf>,
    /// Nothing is denied in it, because an operator wants so.
    monitored: bool,
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
    /// When that came in the place of something else, whose memory is not given back yet.
    replaced: Option<Instant>,
    /// What stands in for a bundle where one is required.
    known: Option<Arc<Bundle>>,
    generation: Generation,
    /// What daemons of other builds left, as long as there is no bundle in force.
    left: Vec<Set>,
    /// The daemon's own.
    executable: PathBuf,
    refused: Option<String>,
    /// Why the tables are too small for this node.
    outgrown: Option<String>,
    proven: Result<(), String>,
    /// Whether holders are kept from everything, because a gate does not hold.
    degraded: bool,
    /// As the bundle's description in the kernel says.
    steady_until: BootNs,
    lost: [u64; Ring::ALL.len()],
    unsaid: [Unsaid; Ring::ALL.len()],
    /// How many of those the programs have counted.
    lost_by_programs: [u64; Ring::ALL.len()],
    passed_over: PassedOver,
    /// Records for which a table had no room, since this was last told.
    table_full: u64,
    /// Uses that will not be told, since this was last said, and what saying so settles.
    untold_uses: (u64, Settles),
    /// For whom something held could not be recorded.
    unaccounted: Unaccounted,
    early_holders: usize,
    mounts: BTreeSet<Mount>,
    /// An operator wants nothing denied, whatever the bundle says.
    only_monitored: bool,
    /// Why that was changed, while the tables do not follow yet.
    mode_set_because: Option<String>,
    uses: Uses,
    responder: Responder,
    /// Processes killed where no program can.
    kills: Limiter<u64>,
    webhook: Option<Webhook>,
    /// Denials that the webhook did not take, as last told.
    untold: u64,
    rings: Vec<Fill>,
    /// What is known of the cgroups of events.
    cgroups: Known,
    containers: Containers,
    log: Log,
}

impl Engine {
    /// Loads and attaches the programs. Nothing is protected yet.
    pub fn new(
        options: &load::Options,
        source: Option<PathBuf>,
        labels: Labels,
        directory: &Path,
        containers: Containers,
        log: Log,
    ) -> Result<Self, Error> {
        let mut loaded = take_over::start(options, Tgid(std::process::id()))?;
        let own = Own::find(&mut loaded)?;
        let executable = std::env::current_exe().map_err(Error::Executable)?;
        Own::name_heir(&mut loaded.ebpf, Path::new("/proc/self/exe"))?;
        let inheritance = Inheritance::find(&mut loaded)?;
        let settled = Settled::open(&loaded.ebpf)?;
        // Taken out of the rings by a daemon that was killed.
        let records = settled.unsettled(&loaded.ebpf)?;
        let lost = settled.lost();
        log.settle_in(settled);
        let canaries = Canaries::new(&mut loaded.ebpf, directory)?;
        let limit = options.actions_per_minute;
        let kills = || Limiter::new(limit, limit);
        let (gate, files) = match loaded.tier {
            Tier::Fanotify => {
                let abilities = fanotify::trial()?;
                if !abilities.open {
                    return Err(Error::NotGated);
                }
                let (gate, marks) = ReadGate::start(&loaded.ebpf, abilities, kills())?;
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
            replaced: None,
            known: None,
            generation: inheritance.generation,
            left: inheritance.left,
            executable,
            refused: None,
            outgrown: None,
            proven: Err("not tried yet".to_owned()),
            degraded: inheritance.degraded,
            steady_until: BootNs(0),
            lost,
            unsaid: Default::default(),
            lost_by_programs: lost,
            passed_over: PassedOver::default(),
            table_full: 0,
            untold_uses: (
                records,
                Settles {
                    records,
                    ..Settles::default()
                },
            ),
            unaccounted: Unaccounted::default(),
            early_holders: 0,
            mounts: BTreeSet::new(),
            only_monitored: false,
            mode_set_because: None,
            uses: Uses::default(),
            responder: Responder::new(limit),
            kills: kills(),
            webhook: None,
            untold: 0,
            rings: Vec::new(),
            cgroups: Known::default(),
            containers,
            log,
        };
        engine.log.write(
            "started",
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "tier": engine.loaded.tier,
                "takenOver": engine.loaded.taken_over(),
            }),
        );
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

    /// Tells this one of each denial from now on.
    pub fn tell_denials_to(&mut self, webhook: Webhook) {
        self.webhook = Some(webhook);
    }

    /// Tells from now on how full these are.
    pub fn watch_rings(&mut self, rings: Vec<Fill>) {
        self.rings = rings;
    }

    /// Where the bundle is read from, unless governance brings it.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// Reads the bundle from there, the next time it is read.
    pub fn read_bundle_from(&mut self, source: PathBuf) {
        self.source = Some(source);
    }

    /// Where records go.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The executables the bundle in force selects by, and the daemon's own.
    pub fn executables(&self) -> Vec<PathBuf> {
        let selected = self
            .in_force
            .iter()
            .flat_map(|it| executables::selected(&it.bundle));
        let selected = selected.map(|program| program.path);
        selected.chain([self.executable.clone()]).collect()
    }

    /// From now on the known locations of credentials are denied as long as there is no bundle.
    pub fn require_bundle(&mut self) {
        let homes = crate::bundle::home_patterns(&users::homes());
        self.known = Some(Arc::new(crate::bundle::known(&homes)));
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

    /// Looks after what time changes: names, the clock, and losses to report.
    pub async fn tick(&mut self) {
        self.report_losses();
        self.report_passed_over();
        self.report_full_tables();
        self.look_at_room();
        self.look_after_usage();
        self.keep_steady();
        // Whoever else had it, such as governance's client, has let it go by then.
        if (self.replaced).is_some_and(|it| it.elapsed() > Duration::from_secs(1)) {
            self.replaced = None;
            memory::give_back();
        }
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

    /// What the decision would be for a task.
    pub fn explain(&self, question: &crate::explain::Question) -> Value {
        let Some(in_force) = &self.in_force else {
            return json!({"error": "no bundle is in force"});
        };
        let mut tables = HostTables::new(&in_force.policy, in_force.generation);
        tables.set_fresh_until(self.fresh_until());
        crate::explain::explain(question, &in_force.policy, &in_force.bundle, tables)
    }

    /// Captures the executable that a question is about.
    pub fn executable_key(
        &mut self,
        path: &Path,
    ) -> Result<enforcer_common::ids::ExecutableKey, crate::kernel::capture::Error> {
        crate::kernel::capture::capture(&mut self.loaded.ebpf, path).map(|(keys, _)| keys[0])
    }

    /// What a task in a cgroup of this path is in the bundle in force, if it descends from these programs and is
    /// interactive or not.
    pub fn identity_of(&self, path: &str, ancestors: &[PathBuf], interactive: bool) -> IdentityId {
        self.in_force.as_ref().map_or(IdentityId(0), |it| {
            let origin = it.policy.origin(ancestors, interactive);
            let (identity, _) = self.containers.meaning(&it.policy, path).classified();
            it.policy.with_origin(identity, origin)
        })
    }

    /// The facts of a process, as the kernel has them; `None` if there is no such process.
    pub fn task_of(&mut self, pid: u32) -> Result<Option<Task>, iterate::Error> {
        let record = iterate::thread(&mut self.loaded.ebpf, Tid(pid))?;
        Ok(record.map(|it| it.task))
    }

    /// Leaves the programs to the next daemon, and says goodbye in the event log.
    pub fn stopping(&mut self) {
        if self.outgrown.is_none()
            && let Err(error) = Maps(&mut self.loaded.ebpf).set("HANDED_OVER", 0, 1_u32)
        {
            tracing::error!(
                "only this executable can take over: {}",
                crate::chain(&error)
            );
        }
        self.report_losses();
        self.report_usage();
        let stays = self.loaded.pinned.is_some();
        if stays {
            tracing::info!(
                "the programs go on without a daemon, until the next one or `enforcer cleanup`"
            );
        }
        self.log.write("stopped", json!({"stillEnforced": stays}));
        self.log.close();
    }
}
