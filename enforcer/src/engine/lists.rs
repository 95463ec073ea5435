//! What is in force and who holds what, for those who ask.

use std::collections::BTreeMap;

use enforcer_common::capacity;
use enforcer_common::ids::{CgroupId, CredentialId};
use enforcer_common::tables::HolderKey;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Engine, InForce};
use crate::bundle::{Action, Container, Kubernetes, Labels, Match, Mode, User};
use crate::explain::{Ask, question};
use crate::kernel::maps::Maps;
use crate::record::destination_words;
use crate::serve::contract::{Credential, Entitlement, Holder, Workload};

fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Monitor => "monitor",
    }
}

impl Engine {
    fn lists(&self) -> Result<&InForce, String> {
        let in_force = self.in_force.as_ref();
        in_force.ok_or_else(|| "no bundle is in force".to_owned())
    }

    /// The credentials of the bundle in force.
    pub fn credentials(&self) -> Result<Vec<Credential>, String> {
        let bundle = &self.lists()?.bundle;
        let all = bundle.credentials.iter().map(|it| Credential {
            id: it.id.clone(),
            owner: it.owner.clone().unwrap_or_default(),
            sources: it.sources.iter().map(ToString::to_string).collect(),
            entitlements: (bundle.entitlements.iter())
                .filter(|entitlement| entitlement.credential == it.id)
                .map(|entitlement| entitlement.id.clone())
                .collect(),
        });
        Ok(all.collect())
    }

    /// The workloads of the bundle in force.
    pub fn workloads(&self) -> Result<Vec<Workload>, String> {
        let bundle = &self.lists()?.bundle;
        let all = bundle.workloads.iter().map(|it| Workload {
            id: it.id.clone(),
            r#match: selectors(&it.selectors),
            entitlements: (bundle.entitlements.iter())
                .filter(|entitlement| entitlement.workload == it.id)
                .map(|entitlement| entitlement.id.clone())
                .collect(),
        });
        Ok(all.collect())
    }

    /// The entitlements of the bundle in force.
    pub fn entitlements(&self) -> Result<Vec<Entitlement>, String> {
        let bundle = &self.lists()?.bundle;
        let now = Timestamp::now();
        let time = |at: Option<Timestamp>| at.map(|it| it.to_string()).unwrap_or_default();
        let all = bundle.entitlements.iter().map(|it| {
            let approval = it.approval.clone().unwrap_or_default();
            Entitlement {
                id: it.id.clone(),
                workload: it.workload.clone(),
                credential: it.credential.clone(),
                destinations: it.destinations.iter().map(destination_words).collect(),
                state: match () {
                    () if it.revoked => "revoked",
                    () if it.valid_until.is_some_and(|until| until <= now) => "expired",
                    () if it.valid_from.is_some_and(|from| from > now) => "not-yet-valid",
                    () => "in-force",
                }
                .to_owned(),
                valid_from: time(it.valid_from),
                valid_until: time(it.valid_until),
                mode: mode_word(it.mode.unwrap_or(bundle.defaults.mode)).to_owned(),
                action: match it.action.unwrap_or(bundle.defaults.action) {
                    Action::Block => "block",
                    Action::Kill => "kill",
                    Action::Freeze => "freeze",
                    Action::KillWorkload => "kill-workload",
                }
                .to_owned(),
                approver: approval.approver.unwrap_or_default(),
                ticket: approval.ticket.unwrap_or_default(),
                review_by: approval
                    .review_by
                    .map(|it| it.to_string())
                    .unwrap_or_default(),
            }
        });
        Ok(all.collect())
    }

    /// Who holds what.
    pub fn holders(&mut self) -> Result<Vec<Holder>, String> {
        let policy = self.lists()?.policy.clone();
        let entries = Maps(&mut self.loaded.ebpf)
            .entries::<HolderKey, CredentialId>("HOLDERS")
            .map_err(|error| crate::chain(&error))?;
        let mut found: BTreeMap<(u64, u64), Holder> = BTreeMap::new();
        for (HolderKey { holder, slot }, credential) in entries {
            let it = found.entry((holder.id, holder.start.0)).or_default();
            match holder.start.0 {
                0 => {
                    let instance = self.instance_of(CgroupId(holder.id));
                    it.cgroup = instance.map_or_else(|| holder.id.to_string(), |it| it.cgroup);
                }
                2 => continue,
                _ => {
                    it.pid = holder.id as u32;
                    let exe = std::fs::read_link(format!("/proc/{}/exe", it.pid));
                    it.executable = exe.map(|it| it.display().to_string()).unwrap_or_default();
                }
            }
            if slot == capacity::HELD_PER_HOLDER {
                it.overflowed = true;
            } else if let Some(info) = policy.credential_info.get(&credential) {
                it.credentials.push(info.id.clone());
            }
        }
        Ok(found
            .into_values()
            .filter(|it| {
                it.overflowed
                    || it
                        .credentials
                        .iter()
                        .any(|id| !crate::canary::is_canary(id))
            })
            .collect())
    }

    /// What the decision would be for somebody.
    pub fn explain_to(&mut self, ask: &Ask) -> Value {
        match question(ask, self) {
            Ok(question) => self.explain(&question),
            Err(error) => json!({"error": error}),
        }
    }

    /// From now on, until the daemon ends, denials are only told, or take effect where the bundle says so. The tables
    /// follow with the next [`Engine::follow_mode`], before anything else is asked.
    pub fn set_mode(&mut self, mode: Mode, reason: String) -> Result<(), String> {
        self.lists()?;
        self.only_monitored = mode == Mode::Monitor;
        self.mode_set_because = Some(reason);
        Ok(())
    }

    /// What the bundle asks for, and what the tables say.
    pub fn mode(&self) -> Result<(&'static str, &'static str), String> {
        let in_force = self.lists()?;
        let requested = in_force.bundle.defaults.mode;
        let effective = match in_force.monitored {
            true => Mode::Monitor,
            false => requested,
        };
        Ok((mode_word(requested), mode_word(effective)))
    }

    /// Has the tables say what was last set, and tells what came of it.
    pub async fn follow_mode(&mut self) {
        let Some(because) = self.mode_set_because.take() else {
            return;
        };
        self.reapply().await;
        if let Ok((requested, effective)) = self.mode() {
            self.log.write(
                "mode",
                json!({"requested": requested, "effective": effective, "because": because}),
            );
        }
    }
}

fn selectors(it: &Match) -> Vec<String> {
    let user = |user: &User| match user {
        User::Name(name) => name.clone(),
        User::Id(id) => id.to_string(),
    };
    let mut all = Vec::new();
    for (role, program) in [("executable", &it.executable), ("ancestor", &it.ancestor)] {
        all.extend(
            program
                .iter()
                .map(|it| format!("{role} {}", it.path.display())),
        );
    }
    all.extend(it.user.iter().map(|it| format!("user {}", user(it))));
    all.extend(it.cgroup.iter().map(|it| format!("cgroup {it}")));
    all.extend(it.systemd_unit.iter().map(|it| match &it.user {
        Some(of) => format!("unit {} of {}", it.name, user(of)),
        None => format!("unit {}", it.name),
    }));
    all.extend(it.kubernetes.iter().flat_map(of_pod));
    all.extend(it.container.iter().flat_map(of_container));
    all.extend(it.interactive.iter().map(|it| format!("interactive {it}")));
    all
}

fn of_pod(it: &Kubernetes) -> Vec<String> {
    let mut all = vec![format!("namespace {}", it.namespace)];
    for (name, value) in [
        ("service account", &it.service_account),
        ("container", &it.container),
        ("image", &it.image),
        ("image digest", &it.image_digest),
    ] {
        all.extend(value.iter().map(|value| format!("{name} {value}")));
    }
    all.extend(labels("pod label", &it.pod_labels));
    all.extend(labels("node label", &it.node_labels));
    all
}

fn of_container(it: &Container) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(it.name.iter().map(|it| format!("container {it}")));
    all.extend(labels("container label", &it.labels));
    all.extend(
        it.image_digest
            .iter()
            .map(|it| format!("image digest {it}")),
    );
    all
}

fn labels(what: &str, all: &Labels) -> impl Iterator<Item = String> {
    all.iter()
        .map(move |(name, value)| format!("{what} {name}={value}"))
}
