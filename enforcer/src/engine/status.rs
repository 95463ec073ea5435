//! What the engine says of itself.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::event::Ring;
use enforcer_common::ids::{CgroupId, CredentialId, IdentityId, InodeKey, WatchNode};
use enforcer_common::tables::{
    Cgroup, CgroupName, CopyUp, Credential, CredentialKey, GrantKey, Grants, HolderKey,
    SocketRecord, Subject, SubjectKey, Versioned, Watch,
};
use enforcer_common::watch::Node;
use serde_json::{Value, json};

use super::Engine;
use crate::bundle::{Mode, Source};
use crate::compile::Policy;
use crate::kernel::maps::{self, Maps};
use crate::kernel::tier::Tier;

impl Engine {
    /// What `enforcer status` says.
    pub fn status(&mut self) -> Value {
        let monitoring = self
            .in_force
            .as_ref()
            .is_some_and(|it| it.bundle.defaults.mode == Mode::Monitor);
        let proven = &self.proven;
        json!({
            "state": state(proven, self.has_issued(), monitoring, self.loaded.tier),
            "knownLocations": match (&self.in_force, self.issued(), proven) {
                (Some(_), None, Ok(())) => Some("denied, until there is a bundle"),
                (Some(_), None, Err(_)) => Some("not proven to be denied"),
                _ => None,
            },
            "tier": self.loaded.tier,
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
            "notGated": self.in_force.as_ref().map(|it| self.not_gated(&it.policy)),
            "readGate": self.read_gate(),
        })
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
