//! What the engine says of itself.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::capacity;
use enforcer_common::event::Ring;
use enforcer_common::ids::{CgroupId, CredentialId, IdentityId, InodeKey, WatchNode};
use enforcer_common::tables::{
    Cgroup, CgroupName, CopyUp, Credential, CredentialKey, GrantKey, Grants, HolderKey,
    SocketRecord, Subject, SubjectKey, Usage, UsageKey, Versioned, Watch,
};
use enforcer_common::watch::Node;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Engine;
use crate::bundle::{Mode, Source};
use crate::compile::Policy;
use crate::kernel::clock::boot_now;
use crate::kernel::maps::{self, Maps};
use crate::kernel::tier::Tier;
use crate::serve::metrics::Measured;

impl Engine {
    /// The word for how things are.
    pub(super) fn state(&self) -> String {
        let monitoring = self
            .in_force
            .as_ref()
            .is_some_and(|it| it.bundle.defaults.mode == Mode::Monitor || it.monitored);
        state(
            &self.proven,
            self.has_issued(),
            monitoring,
            self.loaded.tier,
        )
    }

    /// The same with the bundle's version and what is wrong, in one line.
    pub fn state_line(&self) -> String {
        let mut line = self.state();
        if let Some(bundle) = self.issued() {
            line.push_str(&format!(", bundle version {}", bundle.metadata.version));
        }
        for wrong in self.proven.as_ref().err().into_iter().chain(&self.refused) {
            line.push_str(&format!("; {}", wrong.replace('\n', " ")));
        }
        line
    }

    /// Whether the bundle has ended, or the time for which governance said that there is nothing newer.
    fn is_stale(&self) -> bool {
        let expires_at = self.issued().and_then(|it| it.metadata.expires_at);
        let ends = self.clock.clock().until(expires_at);
        boot_now() >= ends.min(self.fresh_until())
    }

    /// What `enforcer status` says.
    pub fn status(&mut self) -> Value {
        let proven = &self.proven;
        json!({
            "state": self.state(),
            "stale": self.is_stale(),
            "knownLocations": match (&self.in_force, self.issued(), proven) {
                (Some(_), None, Ok(())) => Some("denied, until there is a bundle"),
                (Some(_), None, Err(_)) => Some("not proven to be denied"),
                _ => None,
            },
            "tier": self.loaded.tier,
            "room": self.loaded.room.name(),
            "reason": proven.as_ref().err(),
            "generation": self.generation.0,
            "pins": self.loaded.pinned.as_ref().map(|it| it.set.path()),
            "takenOver": self.loaded.taken_over(),
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
            "unaccounted": self.unaccounted,
            "passedOver": self.passed_over.totals(),
            "notCovered": self.not_covered(),
            "uncoveredSources": self.in_force.as_ref().map(|it| uncovered(&it.policy)),
            "notGated": self.in_force.as_ref().map(|it| self.not_gated(&it.policy)),
            "readGate": self.read_gate(),
            "containers": self.containers.status(),
        })
    }

    /// Whether a bundle is in force that is not stale, and the canaries are refused.
    pub fn is_ready(&self) -> bool {
        let state = self.state();
        (state.starts_with("enforcing/") || state == "monitoring") && !self.is_stale()
    }

    /// What there is to measure now.
    pub fn measured(&mut self) -> Measured {
        let seconds = |at: Timestamp| at.as_second();
        let metadata = self.issued().map(|it| it.metadata.clone());
        let (issued, expires) = match &metadata {
            Some(it) => (
                it.issued_at.map_or(0, seconds),
                it.expires_at.map_or(0, seconds),
            ),
            None => (0, 0),
        };
        let counts = self.count_tables().unwrap_or_default();
        let tables = counts.into_iter().filter_map(|(table, entries)| {
            let room = match table {
                "holders" => self.loaded.ebpf.map("HOLDERS").and_then(room_of)?,
                "cgroups" => self.loaded.ebpf.map("CGROUPS").and_then(room_of)?,
                "files" => self.loaded.ebpf.map("FILES").and_then(room_of)?,
                "watches" => self.loaded.ebpf.map("WATCHES").and_then(room_of)?,
                "credentials" => i64::from(self.loaded.room.of(capacity::CREDENTIALS)),
                "subjects" => i64::from(self.loaded.room.of(capacity::SUBJECTS)),
                "grants" => i64::from(self.loaded.room.of(capacity::GRANTS)),
                _ => return None,
            };
            Some((table, entries as i64, room))
        });
        let tables = tables.collect();
        Measured {
            state: self.state(),
            version: metadata.map_or(0, |it| it.version as i64),
            issued,
            expires,
            stale: self.is_stale(),
            gates: self.own.count() as i64,
            files: self.files.count() as i64,
            sequence: self.log.reader().head().sequence as i64,
            tables,
            rings: (self.rings.iter())
                .map(|it| (it.name, it.bytes() as i64, it.capacity as i64))
                .collect(),
            uses: self.uses_of_entitlements(),
            told: self.webhook.as_ref().map(|it| it.counts()),
        }
    }

    /// How many entries each table of the kernel has; those that change with the node's life, and those that only
    /// change with the bundle.
    pub fn tables(&mut self) -> Value {
        match self.count_tables() {
            Ok(counts) => json!(counts),
            Err(error) => json!({"error": crate::chain(&error)}),
        }
    }

    fn count_tables(&mut self) -> Result<BTreeMap<&'static str, usize>, maps::Error> {
        let mut maps = Maps(&mut self.loaded.ebpf);
        Ok(BTreeMap::from([
            (
                "holders",
                maps.keys::<HolderKey, CredentialId>("HOLDERS")?.len(),
            ),
            (
                "labels",
                maps.keys::<HolderKey, CredentialId>("LABELS")?.len(),
            ),
            ("cgroups", maps.keys::<CgroupId, Cgroup>("CGROUPS")?.len()),
            (
                "files",
                maps.keys::<InodeKey, Versioned<CredentialId>>("FILES")?
                    .len(),
            ),
            ("watches", maps.keys::<InodeKey, Watch>("WATCHES")?.len()),
            (
                "socketRecords",
                maps.keys::<u64, SocketRecord>("SOCKET_RECORDS")?.len(),
            ),
            ("copyUps", maps.keys::<u64, CopyUp>("COPY_UPS")?.len()),
            (
                "credentials",
                maps.keys::<CredentialKey, Credential>("CREDENTIALS")?.len(),
            ),
            (
                "subjects",
                maps.keys::<SubjectKey, Subject>("SUBJECTS")?.len(),
            ),
            ("grants", maps.keys::<GrantKey, Grants>("GRANTS")?.len()),
            (
                "cgroupNames",
                maps.keys::<CgroupName, Versioned<IdentityId>>("CGROUP_NAMES")?
                    .len(),
            ),
            ("watchNodes", maps.keys::<WatchNode, Node>("NODES")?.len()),
            ("usages", maps.keys::<UsageKey, Usage>("USAGE")?.len()),
        ]))
    }

    /// The credentials whose reads are not gated on this tier, or not all: requested, and not effective.
    pub(super) fn not_gated<'a>(&self, policy: &'a Policy) -> BTreeSet<&'a str> {
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

    /// What this tier does not cover here.
    pub(super) fn not_covered(&self) -> Vec<&'static str> {
        match &self.gate {
            Some(gate) => gate.not_covered(),
            None => not_covered(self.loaded.tier),
        }
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
}

/// The most entries that a table of the kernel can have.
fn room_of(map: &aya::maps::Map) -> Option<i64> {
    let aya::maps::Map::HashMap(map) = map else {
        return None;
    };
    Some(map.info().ok()?.max_entries().into())
}

/// The sources of which something is not protected here, a line for each.
fn uncovered(policy: &Policy) -> Vec<String> {
    let all = policy.uncovered.iter();
    all.map(|it| format!("{}: {}: {}", it.credential, it.source, it.reason))
        .collect()
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
    "what a holder hands on to another workload through shared memory, queues, keyrings and vmsplice, and for credentials without `follow` through pipes, unix sockets and files too",
    "answers on accepted connections, where the bundle's defaults.inbound is permit",
    "core dumps of a holder into a program (core_pattern), for the moment until the daemon has turned them off",
    "changes that only a daemon can follow (names, bundles), while none runs",
    "code in the kernel that is not ours",
];

/// The word for how things are.
pub(super) fn state(
    proven: &Result<(), String>,
    bundle: bool,
    monitoring: bool,
    tier: Tier,
) -> String {
    match (bundle, proven) {
        (false, _) => "no-bundle".to_owned(),
        (true, Err(_)) => "degraded".to_owned(),
        (true, Ok(())) if monitoring => "monitoring".to_owned(),
        (true, Ok(())) => format!("enforcing/{}", tier.name()),
    }
}
