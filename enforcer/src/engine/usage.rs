//! Uses on their way into the ledger: each kind at once when it is first seen, then what the kernel has counted, once
//! a minute.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enforcer_common::capacity::USAGES;
use enforcer_common::event::{Gate, Kind, Use};
use enforcer_common::facts::Task;
use enforcer_common::ids::{BootNs, CgroupId};
use enforcer_common::tables::{Cgroup, Usage, UsageKey};
use enforcer_common::verdict::{Mode, Verdict};
use enforcer_governance::files;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Engine;
use crate::canary;
use crate::kernel::clock::boot_now;
use crate::kernel::maps::{self, Maps};
use crate::kernel::tier::Tier;
use crate::record::model::Instance;
use crate::record::protocol_name;
use crate::usage::findings::Facts;
use crate::usage::summary::Of;
use crate::usage::{Destination, Ledger, Place, Row, Seen, Thresholds, findings, summary};

/// How often what was counted is summarised.
const EVERY: Duration = Duration::from_secs(60);
/// The record of a first use may still be on its way for so long.
const ON_ITS_WAY: Duration = Duration::from_secs(10);
/// A kind of use that was not seen for so long is told anew when it is; while there is room, and its instance or process.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// How often governance is told of usage, coverage and findings.
const REPORTED_EVERY: Duration = Duration::from_secs(60 * 60);
/// As many numbers of entitlements are remembered.
const NUMBERS: usize = 131_072;
/// As many users and destinations of an entitlement are told; `enforcer usage` has all.
const LISTED: usize = 100;
/// As many unused entitlements are told in one record, of which there are as many as it takes.
const UNUSED_AT_ONCE: usize = 1_000;
/// As many findings are told; `enforcer findings` has all.
const FINDINGS: usize = 1_000;

/// The ledger, and what is needed to keep it.
#[derive(Debug)]
pub(super) struct Uses {
    pub ledger: Ledger,
    file: Option<PathBuf>,
    /// What the keys of the kernel's table mean, where the first use told.
    names: HashMap<UsageKey, Row>,
    drained: BootNs,
    reported: BootNs,
    /// How often each entitlement was used, as last reported.
    counts: BTreeMap<String, u64>,
    /// Findings that have been told.
    told: BTreeSet<String>,
    looked: Timestamp,
    uncounted: u64,
    /// Whether what an earlier daemon knew the names of has been taken out.
    is_ours: bool,
}

impl Default for Uses {
    fn default() -> Self {
        let now = Timestamp::now();
        Self {
            ledger: Ledger::new(now),
            file: None,
            names: HashMap::new(),
            drained: boot_now(),
            reported: boot_now(),
            counts: BTreeMap::new(),
            told: BTreeSet::new(),
            looked: now,
            uncounted: 0,
            is_ours: false,
        }
    }
}

/// What was used, as far as the kernel's numbers say it.
struct What {
    task: Task,
    verdict: Verdict,
    kind: u8,
    destination: Option<enforcer_common::address::Destination>,
}

/// Entitlements whose use is among the metrics; of more, the others are left out.
const SHOWN: usize = 1000;

impl Engine {
    /// Keeps the ledger in this directory from now on.
    pub fn keep_usage_in(&mut self, state: &Path) {
        let file = state.join("usage.json");
        let now = Timestamp::now();
        match Ledger::load(&file) {
            Ok(None) => {}
            Ok(Some(mut ledger)) => {
                let until = ledger.coverage.until;
                if self.loaded.tier == Tier::Fanotify {
                    ledger.missed(
                        until,
                        now,
                        "no daemon, which on the fanotify tier sees reads",
                    );
                } else if !self.loaded.taken_over() {
                    ledger.missed(until, now, "no programs in the kernel");
                }
                if !self.loaded.taken_over() {
                    // They are another's numbers now.
                    ledger.numbers.clear();
                }
                self.uses.ledger = ledger;
            }
            Err(error) => {
                let aside = file.with_extension("json.bad");
                tracing::error!(
                    "the usage ledger {} cannot be read: {error}; it is moved to {}, and what was used is kept anew",
                    file.display(),
                    aside.display()
                );
                let _ = std::fs::rename(&file, &aside);
            }
        }
        self.uses.file = Some(file);
    }

    /// Takes note of a use. `false` if it need not be told, because its kind has been.
    pub(super) fn is_news(&mut self, record: &Use) -> Result<bool, maps::Error> {
        if record.gate != Gate::Fanotify as u8 || !is_counted(record) {
            return Ok(true);
        }
        // What the kernel's programs do on the other tiers.
        let key = key(record);
        let mut maps = Maps(&mut self.loaded.ebpf);
        let known = maps.get::<UsageKey, Usage>("USAGE", &key)?;
        let usage = Usage {
            count: known.map_or(0, |it| it.count) + 1,
            first: known.map_or(record.time, |it| it.first),
            last: record.time,
        };
        let kept = maps.put("USAGE", key, usage).is_ok();
        Ok(known.is_none() || !kept)
    }

    /// Keeps what has been told: by a process of the executable `exe`.
    pub(super) fn keep_told(&mut self, record: &Use, exe: String) -> Result<(), maps::Error> {
        let what = What {
            task: record.task,
            verdict: verdict(record),
            kind: record.kind,
            destination: (record.file.ino == 0).then_some(record.destination),
        };
        let Some(row) = self.row(&what, Some(exe)) else {
            return Ok(());
        };
        let when = self.clock.wall(record.time);
        let once = Seen::times(1, when, when);
        let key = key(record);
        let mut maps = Maps(&mut self.loaded.ebpf);
        let counted = match is_counted(record) {
            true => maps.get::<UsageKey, Usage>("USAGE", &key)?,
            false => None,
        };
        let Some(usage) = counted else {
            self.uses.ledger.add(&row, once);
            return Ok(());
        };
        // A summary has it, if this record took that long.
        let told = maps.get("USAGE_TOLD", &key)?.unwrap_or(0);
        if told < usage.count {
            maps.put("USAGE_TOLD", key, told + 1)?;
            self.uses.ledger.add(&row, once);
        }
        self.uses.names.insert(key, row);
        Ok(())
    }

    /// What people call it; `None` for the daemon's own canaries, and for what the bundle in force does not have.
    fn row(&self, what: &What, exe: Option<String>) -> Option<Row> {
        let in_force = self.in_force.as_ref()?;
        let policy = &in_force.policy;
        let credential = &policy.credential_info.get(&what.verdict.credential())?.id;
        let kind = Kind::from_u8(what.kind)?;
        if canary::is_canary(credential) || !matches!(kind, Kind::Read | Kind::Reach) {
            return None;
        }
        let number = what.verdict.entitlement();
        let id = self.uses.ledger.numbers.get(&number.0);
        let entitlement = policy.entitlement_info.get(&number).or_else(|| {
            let mut all = policy.entitlement_info.values();
            all.find(|it| Some(&it.id) == id)
        });
        let known = || in_force.executables.get(&what.task.executable);
        let path = || known().map_or("unknown".to_owned(), |it| it.display().to_string());
        let destination = what.destination.filter(|to| to.as_socket().is_none());
        let destination = destination.filter(|to| to.transport() != 0).map(|to| {
            let address = Ipv6Addr::from(to.address.octets()).to_canonical();
            Destination {
                address,
                port: to.port(),
                protocol: protocol_name(to.protocol()).into_owned(),
                host: self.names.host_of(address),
            }
        });
        let denied = what.verdict.denied();
        Some(Row {
            credential: credential.clone(),
            entitlement: entitlement.map(|it| it.id.clone()).or_else(|| id.cloned()),
            workload: policy
                .workload_of(&what.task, entitlement)
                .map(str::to_owned),
            executable: exe.unwrap_or_else(path),
            uid: what.task.uid.0,
            place: self.place(what.task.instance),
            verb: kind.name().to_owned(),
            destination,
            reason: denied.map(|it| it.name().to_owned()),
            monitored: denied.is_some() && what.verdict.mode() == Mode::Monitor,
            trusted: what.verdict.trusted(),
        })
    }

    /// Another bundle is in force: keeps what its numbers mean, on disk before anything is counted under them for long.
    pub(super) fn usage_numbered(&mut self) {
        let Some(in_force) = &self.in_force else {
            return;
        };
        let numbers = &mut self.uses.ledger.numbers;
        let before = numbers.len();
        let new = in_force.policy.entitlement_info.iter();
        numbers.extend(new.map(|(number, info)| (number.0, info.id.clone())));
        while numbers.len() > NUMBERS {
            numbers.pop_first();
        }
        if numbers.len() != before
            && let Err(error) = self.store_usage()
        {
            tracing::error!(%error, "the usage ledger cannot be written");
        }
    }

    fn instance(&self, id: CgroupId) -> Option<Instance> {
        (id != CgroupId(0)).then(|| self.instance_of(id)).flatten()
    }

    /// What it is for people. One that has ended was no session: those outlive what is done in them.
    fn place(&self, id: CgroupId) -> Place {
        match self.instance(id) {
            Some(instance) => Place::of(&instance),
            None if id == CgroupId(0) => Place::Nowhere,
            None => Place::Container,
        }
    }

    /// Looks after the ledger, each second.
    pub(super) fn look_after_usage(&mut self) {
        let now = Timestamp::now();
        let before = std::mem::replace(&mut self.uses.looked, now);
        let reason = match (&self.proven, self.has_bundle()) {
            (_, false) => Some("no bundle in force"),
            (Err(_), _) => Some("a canary was not refused"),
            (Ok(()), true) => None,
        };
        if let Some(reason) = reason {
            self.uses.ledger.missed(before, now, reason);
        }
        let passed = boot_now().0 - self.uses.drained.0;
        if passed >= EVERY.as_nanos() as u64 || !self.uses.is_ours {
            self.summarise_usage(false);
        }
        if boot_now().0 - self.uses.reported.0 >= REPORTED_EVERY.as_nanos() as u64 {
            self.report_usage();
            self.report_findings();
        }
    }

    /// Tells what entitlements were used for since the last time, and for which times that is known: records like all
    /// others, so that governance gets them too.
    pub(super) fn report_usage(&mut self) {
        self.summarise_usage(true);
        self.uses.reported = boot_now();
        let Some(bundle) = self.issued().cloned() else {
            return;
        };
        let summary = summary(Some(&bundle), &self.uses.ledger);
        let unused = |it: &&Of| it.in_force && it.used.is_none();
        let unused: Vec<&str> = summary
            .entitlements
            .iter()
            .filter(unused)
            .map(|it| it.id.as_str())
            .collect();
        let none = unused.is_empty().then_some(&unused[..]);
        for unused in unused.chunks(UNUSED_AT_ONCE).chain(none) {
            self.log.write(
                "coverage",
                json!({"bundle": bundle.metadata.version, "coverage": summary.coverage, "unusedEntitlements": unused}),
            );
        }
        for it in summary.entitlements {
            let count = |seen: Option<Seen>| seen.map_or(0, |seen| seen.count);
            let count = count(it.used) + count(it.denied);
            if self.uses.counts.insert(it.id.clone(), count) != Some(count) && count > 0 {
                self.log
                    .write("entitlement-usage", json!(it.shortened(LISTED)));
            }
        }
    }

    /// Tells what is new for somebody to look at.
    fn report_findings(&mut self) {
        let Value::Object(found) = self.findings(&Thresholds::default()) else {
            return;
        };
        for finding in found["findings"].as_array().into_iter().flatten() {
            let about = [
                &finding["kind"],
                &finding["credential"],
                &finding["entitlement"],
            ];
            if self.uses.told.len() >= FINDINGS || !self.uses.told.insert(json!(about).to_string())
            {
                continue;
            }
            let mut fields = finding.clone();
            fields["finding"] = fields["kind"].take();
            if let Value::Object(fields) = &mut fields {
                fields.remove("kind");
            }
            self.log.write("finding", fields);
        }
    }

    /// Records of uses were lost.
    pub(super) fn usage_lost(&mut self, denials: u64, uses: u64) {
        let ledger = &mut self.uses.ledger;
        ledger.coverage.lost += denials;
        if uses > 0 {
            ledger.missed(
                self.uses.looked,
                Timestamp::now(),
                "records of uses were lost",
            );
        }
    }

    /// Tells what the kernel has counted since the last time, and keeps it. `all` includes kinds of use of which the first
    /// may not have been told yet.
    pub(super) fn summarise_usage(&mut self, all: bool) {
        if self.in_force.is_none() {
            return;
        }
        self.uses.drained = boot_now();
        if let Err(error) = self.drain(all) {
            tracing::error!(
                "what the kernel has counted cannot be read: {}",
                crate::chain(&error)
            );
        }
        let coverage = &mut self.uses.ledger.coverage;
        coverage.until = coverage.until.max(Timestamp::now());
        if let Err(error) = self.store_usage() {
            tracing::error!(%error, "the usage ledger cannot be written: what was used is not kept over a restart");
        }
    }

    fn drain(&mut self, all: bool) -> Result<(), maps::Error> {
        let counted = Maps(&mut self.loaded.ebpf).entries::<UsageKey, Usage>("USAGE")?;
        let full = counted.len() > USAGES as usize * 3 / 4;
        let now = boot_now();
        let age = |moment: BootNs| Duration::from_nanos(now.0.saturating_sub(moment.0));
        for (key, usage) in counted {
            let told: Option<u64> = Maps(&mut self.loaded.ebpf).get("USAGE_TOLD", &key)?;
            let is_coming = told.is_none() && age(usage.first) < ON_ITS_WAY;
            if is_coming && !all {
                continue;
            }
            // What is on its way is counted when it is there.
            let told = told.unwrap_or(0);
            let new = usage.count.saturating_sub(told + u64::from(is_coming));
            if new > 0 {
                self.summarise(&key, &usage, new);
                Maps(&mut self.loaded.ebpf).put("USAGE_TOLD", key, told + new)?;
            }
            let kept = match (self.has_ended(&key)?, full) {
                (true, _) => ON_ITS_WAY,
                (false, true) => EVERY,
                (false, false) => REMEMBERED,
            };
            if !self.uses.is_ours || age(usage.last) > kept {
                let mut maps = Maps(&mut self.loaded.ebpf);
                maps.remove::<UsageKey, Usage>("USAGE", &key)?;
                maps.remove::<UsageKey, u64>("USAGE_TOLD", &key)?;
                self.uses.names.remove(&key);
            }
        }
        self.uses.is_ours = true;
        let uncounted = Maps(&mut self.loaded.ebpf).sum("UNCOUNTED", 0)?;
        let new = uncounted - std::mem::replace(&mut self.uses.uncounted, uncounted);
        if new > 0 {
            let message = "the table of usage is full: these uses were told one by one";
            self.log
                .write("usage-full", json!({"count": new, "message": message}));
        }
        Ok(())
    }

    /// Whether there will be no such use any more: its instance or process has gone.
    fn has_ended(&mut self, key: &UsageKey) -> Result<bool, maps::Error> {
        let (instance, tgid) = (key.instance(), key.tgid());
        if instance == CgroupId(0) {
            return Ok(!Path::new(&format!("/proc/{}", tgid.0)).exists());
        }
        let known: Option<Cgroup> = Maps(&mut self.loaded.ebpf).get("CGROUPS", &instance)?;
        Ok(known.is_none())
    }

    fn summarise(&mut self, key: &UsageKey, usage: &Usage, new: u64) {
        let what = What {
            task: Task {
                executable: key.executable(),
                instance: key.instance(),
                tgid: key.tgid(),
                uid: key.uid(),
                identity: key.identity(),
                classified: 1,
                ..Task::default()
            },
            verdict: key.verdict(),
            kind: key.kind(),
            destination: key.destination(),
        };
        let known = self.uses.names.get(key).cloned();
        let Some(row) = known.or_else(|| self.row(&what, None)) else {
            return;
        };
        let seen = Seen::times(
            new,
            self.clock.wall(usage.first),
            self.clock.wall(usage.last),
        );
        self.uses.ledger.add(&row, seen);
        let file = key.file().and_then(|file| self.files.path_of(&file));
        let file = file.map(|path| path.display().to_string());
        let version = self.issued().map(|it| it.metadata.version);
        let instance = self.instance(key.instance());
        self.log.write(
            &row.verb,
            json!({
                "verdict": "allow",
                "count": seen.count,
                "first": seen.first.to_string(),
                "last": seen.last.to_string(),
                "credential": row.credential,
                "workload": row.workload,
                "entitlement": row.entitlement,
                "bundle": version,
                "process": {
                    "pid": key.tgid().0,
                    "uid": row.uid,
                    "exe": row.executable,
                    "cgroup": key.instance().0,
                },
                "instance": instance,
                "file": file,
                "destination": row.destination,
                "trusted": row.trusted,
                "tier": self.loaded.tier,
            }),
        );
    }

    /// What `enforcer usage` says.
    pub fn usage(&mut self) -> Value {
        self.summarise_usage(true);
        let bundle = self.issued().map(|it| &**it);
        json!(summary(bundle, &self.uses.ledger))
    }

    /// How often each entitlement in force was used, as of the last summary: who asks often must not have one written
    /// each time.
    pub(super) fn uses_of_entitlements(&self) -> Vec<(String, u64)> {
        let Some(bundle) = self.issued() else {
            return Vec::new();
        };
        let in_force = bundle.entitlements.iter().map(|it| (it.id.clone(), 0));
        let mut counts: BTreeMap<String, u64> = in_force.collect();
        for (row, seen) in &self.uses.ledger.rows {
            let of = row.entitlement.as_ref().filter(|_| row.reason.is_none());
            if let Some(count) = of.and_then(|it| counts.get_mut(it)) {
                *count += seen.count;
            }
        }
        counts.into_iter().take(SHOWN).collect()
    }

    /// The ledger itself.
    pub fn ledger(&mut self) -> Value {
        self.summarise_usage(true);
        let bytes = self.uses.ledger.bytes();
        let value = bytes.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        value.unwrap_or_else(|error| json!({"error": error.to_string()}))
    }

    /// What `enforcer findings` says.
    pub fn findings(&mut self, thresholds: &Thresholds) -> Value {
        self.summarise_usage(true);
        let changed = self.secrets_changed();
        let Some(bundle) = self.issued() else {
            return json!({"error": "no bundle is in force"});
        };
        json!(findings(&Facts {
            bundle,
            ledger: &self.uses.ledger,
            changed: &changed,
            now: Timestamp::now(),
            thresholds,
        }))
    }

    /// When the oldest file of each credential was last written to.
    fn secrets_changed(&self) -> BTreeMap<String, Timestamp> {
        let mut changed = BTreeMap::new();
        let Some(in_force) = &self.in_force else {
            return changed;
        };
        for (key, credential) in self.files.protected() {
            let info = in_force.policy.credential_info.get(&credential);
            let path = self.files.path_of(&key);
            let (Some(info), Some(path)) = (info, path) else {
                continue;
            };
            let modified = std::fs::metadata(path).and_then(|it| it.modified());
            if let Some(modified) = modified.ok().and_then(|it| Timestamp::try_from(it).ok()) {
                let oldest = changed.entry(info.id.clone()).or_insert(modified);
                *oldest = modified.min(*oldest);
            }
        }
        changed
    }

    fn store_usage(&self) -> io::Result<()> {
        let Some(file) = &self.uses.file else {
            return Ok(());
        };
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)?;
        }
        files::replace(file, &self.uses.ledger.bytes()?)
    }
}

/// Whether the kernel counts such uses, see `enforcer-ebpf/src/usage.rs`.
fn is_counted(record: &Use) -> bool {
    let is_use = [Kind::Read as u8, Kind::Reach as u8].contains(&record.kind);
    is_use && record.reason == 0 && record.target.0 == 0
}

/// What it is counted under.
fn key(record: &Use) -> UsageKey {
    let file = record.file;
    if file.ino == 0 {
        let words = record.destination.as_detail();
        return UsageKey::new(&record.task, verdict(record), u64::from(record.kind), words);
    }
    let kind = u64::from(record.kind) | UsageKey::IS_FILE;
    let words = [
        file.ino,
        u64::from(file.generation) << 32 | u64::from(file.dev),
        0,
    ];
    UsageKey::new(&record.task, verdict(record), kind, words)
}

fn verdict(record: &Use) -> Verdict {
    Verdict::new(
        u64::from(record.reason),
        record.trusted != 0,
        u64::from(record.mode),
        u64::from(record.action),
        record.credential,
        record.entitlement,
    )
}
