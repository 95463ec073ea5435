//! What another bundle would have said to uses that have been recorded: the same decision, over tables in this process.
//!
//! A record says less than the kernel saw. Programs are told apart by their paths (a digest in the bundle counts as
//! fitting), cgroups by the path that a record has, or else by the workload it names; containers are what records say, of
//! their images one name and one digest; ancestors and interactivity are that workload's; names have the addresses that
//! records say; and who holds what follows from the reads before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use enforcer_common::address::{Destination, Protocol};
use enforcer_common::decide;
use enforcer_common::facts::Task;
use enforcer_common::ids::{
    BootNs, CgroupId, CredentialId, ExecutableKey, Generation, IdentityId, InodeKey, Tgid, Uid,
};
use enforcer_common::tables::Holder;
use enforcer_common::verdict::{Mode, Verdict};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, Executable, Match};
use crate::compile::{
    Clock, CompileError, Contained, Container, Facts, HostTables, Numbering, PodOfContainer,
    Policy, compile,
};
use crate::record::model::Instance;

/// As much of a record of a use as matters here; others fail to parse, or have another kind.
#[derive(Clone, Debug, Deserialize)]
pub struct Recorded {
    time: Timestamp,
    /// `read` or `reach`.
    kind: String,
    verdict: String,
    reason: Option<String>,
    #[serde(default)]
    mode: RecordedMode,
    credential: Option<String>,
    workload: Option<String>,
    process: RecordedProcess,
    destination: Option<RecordedDestination>,
    instance: Option<Instance>,
    /// Of a summary.
    #[serde(default = "one")]
    count: u64,
}

fn one() -> u64 {
    1
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RecordedMode {
    effective: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct RecordedProcess {
    #[serde(default)]
    pid: u32,
    uid: u32,
    exe: String,
    #[serde(default)]
    cgroup: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct RecordedDestination {
    address: IpAddr,
    port: u16,
    protocol: String,
    host: Option<String>,
    #[serde(default)]
    answers: bool,
}

impl Recorded {
    /// Reads a line of an event log; `None` if it is about something else.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let record: Self = serde_json::from_str(line).ok()?;
        let is_use = ["read", "reach"].contains(&record.kind.as_str());
        is_use.then_some(record)
    }

    fn before(&self) -> Answer {
        Answer {
            verdict: self.verdict.clone(),
            reason: self.reason.clone(),
            monitored: self.mode.effective.as_deref() == Some("monitor") && self.verdict == "deny",
        }
    }
}

/// What was decided, or would be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Answer {
    /// `allow` or `deny`.
    pub verdict: String,
    /// Why it is denied.
    pub reason: Option<String>,
    /// Whether a denial is only recorded.
    pub monitored: bool,
}

impl Answer {
    fn of(verdict: Verdict) -> Self {
        let denied = verdict.denied();
        Self {
            verdict: if denied.is_some() { "deny" } else { "allow" }.to_owned(),
            reason: denied.map(|it| it.name().to_owned()),
            monitored: denied.is_some() && verdict.mode() == Mode::Monitor,
        }
    }

    fn not_governed() -> Self {
        Self {
            verdict: "allow".to_owned(),
            reason: None,
            monitored: false,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let reason = self.reason.as_ref().map(|it| format!(" ({it})"));
        let monitored = if self.monitored {
            ", only recorded"
        } else {
            ""
        };
        format!("{}{}{monitored}", self.verdict, reason.unwrap_or_default())
    }
}

/// Uses that would have been answered otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// `read` or `reach`.
    pub verb: String,
    /// The credential.
    pub credential: String,
    /// The program.
    pub executable: String,
    /// The user.
    pub uid: u32,
    /// Where to.
    pub destination: Option<String>,
    /// What was answered.
    pub before: Answer,
    /// What would be.
    pub after: Answer,
}

/// What came of a replay.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Replayed {
    /// How many uses there were.
    pub uses: u64,
    /// How many of them would have been answered the same.
    pub same: u64,
    /// The others, each with how often.
    pub different: Vec<(Difference, u64)>,
}

/// All of a log of which only uses matter.
///
/// # Errors
/// If the bundle does not compile.
pub fn replay(bundle: &Bundle, records: &[Recorded]) -> Result<Replayed, CompileError> {
    let mut programs = Programs::default();
    let facts = facts(bundle, records, &mut programs);
    let policy = compile(bundle, &facts, &mut Numbering::default(), &[])?;
    let generation = Generation(1);
    let mut tables = HostTables::new(&policy, generation);
    let ids: HashMap<&str, CredentialId> = (policy.credential_info.iter())
        .map(|(id, info)| (info.id.as_str(), *id))
        .collect();
    let mut held: HashMap<Holder, Vec<CredentialId>> = HashMap::new();
    let mut replayed = Replayed::default();
    let mut different: BTreeMap<Difference, u64> = BTreeMap::new();
    for record in records {
        replayed.uses += record.count;
        let task = task(bundle, &policy, record, &mut programs);
        let now = facts.clock.boot_at(record.time);
        let credential = record.credential.as_deref().and_then(|id| ids.get(id));
        let holder = match task.instance {
            CgroupId(0) => Holder::process(task.tgid, task.start),
            instance => Holder::instance(instance),
        };
        let verdict = match (credential, &record.destination) {
            (None, _) => Verdict::PASS,
            (Some(credential), Some(to)) if record.kind == "reach" => {
                let all = held.entry(holder).or_default();
                if !all.contains(credential) {
                    all.push(*credential);
                }
                tables.set_held(holder, all);
                decide::reach(&tables, now, &task, &destination(to))
            }
            (Some(credential), _) => {
                let verdict = decide::read(&tables, now, &task, *credential);
                let all = held.entry(holder).or_default();
                if !verdict.refuses() && !verdict.trusted() && !all.contains(credential) {
                    all.push(*credential);
                }
                verdict
            }
        };
        let before = record.before();
        let after = match verdict.governed() {
            true => Answer::of(verdict),
            false => Answer::not_governed(),
        };
        if (&before.verdict, before.monitored) == (&after.verdict, after.monitored) {
            replayed.same += record.count;
            continue;
        }
        let difference = Difference {
            verb: record.kind.clone(),
            credential: record.credential.clone().unwrap_or_default(),
            executable: record.process.exe.clone(),
            uid: record.process.uid,
            destination: record.destination.as_ref().map(|to| match &to.host {
                Some(host) => format!("{host}:{}", to.port),
                None => std::net::SocketAddr::new(to.address, to.port).to_string(),
            }),
            before,
            after,
        };
        *different.entry(difference).or_default() += record.count;
    }
    replayed.different = different.into_iter().collect();
    Ok(replayed)
}

/// A number for each program's path.
#[derive(Default)]
struct Programs(HashMap<PathBuf, u64>);

impl Programs {
    fn key(&mut self, path: &Path) -> ExecutableKey {
        let next = self.0.len() as u64 + 1;
        ExecutableKey {
            inode: InodeKey {
                ino: *self.0.entry(path.to_owned()).or_insert(next),
                ..InodeKey::default()
            },
            changed_ns: 1,
        }
    }
}

fn facts(bundle: &Bundle, records: &[Recorded], programs: &mut Programs) -> Facts {
    let mut keys = |it: &Executable| vec![programs.key(&it.path)];
    let contained: BTreeMap<_, _> = (bundle.selectors().filter_map(Contained::of))
        .map(|it| {
            let keys = keys(&it.program);
            (it, keys)
        })
        .collect();
    let selected = bundle.selectors();
    let selected = selected.flat_map(|it| it.executable.iter().chain(&it.ancestor));
    let executables = selected.map(|it| (it.clone(), keys(it)));
    let mut hosts: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for to in records.iter().filter_map(|it| it.destination.as_ref()) {
        if let Some(host) = &to.host {
            hosts.entry(host.clone()).or_default().insert(to.address);
        }
    }
    let first = records.iter().map(|it| it.time).min();
    Facts {
        forwarding: false,
        executables: executables.collect(),
        contained,
        users: crate::node::users::users(),
        homes: Vec::new(),
        pods: None,
        containers: records.iter().filter_map(container).collect(),
        labels: Default::default(),
        hosts: (hosts.into_iter())
            .map(|(host, addresses)| (host, addresses.into_iter().collect()))
            .collect(),
        clock: Clock {
            // Far enough from the beginning for whatever the bundle says of the time before.
            boot: BootNs(1 << 62),
            wall: first.unwrap_or(Timestamp::UNIX_EPOCH),
        },
    }
}

fn task(bundle: &Bundle, policy: &Policy, record: &Recorded, programs: &mut Programs) -> Task {
    let process = &record.process;
    Task {
        executable: programs.key(Path::new(&process.exe)),
        start: BootNs(1),
        instance: CgroupId(process.cgroup),
        cgroup: CgroupId(process.cgroup.max(1)),
        tgid: Tgid(process.pid.max(1)),
        uid: Uid(process.uid),
        identity: identity(bundle, policy, record),
        classified: 1,
    }
}

/// What its cgroup means to the bundle. Records do not say what a process descends from nor who is behind it: that is
/// taken to be what the workload asks for that it was recorded as.
fn identity(bundle: &Bundle, policy: &Policy, record: &Recorded) -> IdentityId {
    let named = |selectors: &Match| {
        let unit = selectors.systemd_unit.as_ref();
        let unit = unit.filter(|it| it.user.is_none());
        let path = selectors.cgroup.clone();
        path.or_else(|| unit.map(|it| format!("/system.slice/{}", it.name)))
    };
    let mut workloads = bundle.workloads.iter();
    let workload = workloads.find(|it| Some(&it.id) == record.workload.as_ref());
    let selectors = workload.map(|it| &it.selectors);
    let recorded = record.instance.as_ref().map(|it| it.cgroup.clone());
    let path = recorded.or_else(|| selectors.and_then(named));
    let ancestor = selectors.and_then(|it| it.ancestor.as_ref());
    let ancestors: Vec<PathBuf> = ancestor.map(|it| it.path.clone()).into_iter().collect();
    let interactive = selectors.and_then(|it| it.interactive).unwrap_or_default();
    let contained = container(record);
    let contained = contained.and_then(|(path, it)| policy.identity_of_container(&path, &it));
    let cgroup = contained.or_else(|| path.map(|path| policy.identity_of(&path)));
    policy.with_origin(
        cgroup.unwrap_or_default(),
        policy.origin(&ancestors, interactive),
    )
}

/// The container that it was in, as far as the record says, with the path of its cgroup.
fn container(record: &Recorded) -> Option<(String, Container)> {
    let instance = record.instance.as_ref()?;
    let it = instance.container.as_ref()?;
    let image = it.image.as_deref().unwrap_or_default();
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest.to_owned())),
        None => (image, None),
    };
    let pod = instance.pod.as_ref().map(|pod| PodOfContainer {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        labels: pod.labels.clone(),
        service_account: pod.service_account.clone(),
    });
    let container = Container {
        id: it.id.clone(),
        name: it.name.clone().unwrap_or_default(),
        labels: it.labels.clone(),
        images: BTreeSet::from([name.to_owned(), image.to_owned()]),
        digests: digest.into_iter().collect(),
        pod,
    };
    Some((instance.cgroup.clone(), container))
}

fn destination(to: &RecordedDestination) -> Destination {
    let protocol = match to.protocol.as_str() {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "icmp" => Protocol::ICMP,
        other => Protocol(other.parse().unwrap_or(0)),
    };
    let address = crate::compile::address(to.address);
    match to.answers {
        true => Destination::answer(address, to.port, protocol),
        false => Destination::new(address, to.port, protocol),
    }
}
