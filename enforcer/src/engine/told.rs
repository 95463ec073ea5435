//! What the kernel tells: uses, and notices of what changes on the node.

use std::path::PathBuf;

use enforcer_common::event::{Gate, Kind, Notice, NoticeKind, Use, taken};
use enforcer_common::ids::{EntitlementId, InodeKey, Tid};
use enforcer_common::verdict::{self, Action};
use serde_json::json;

use super::{Engine, Error};
use crate::bundle::{Bundle, Mode};
use crate::canary;
use crate::compile::Policy;
use crate::fanotify;
use crate::kernel::clock::boot_now;
use crate::kernel::iterate;
use crate::kernel::settled::Settles;
use crate::node::cgroups;
use crate::node::containers::place_of;
use crate::node::dumps;
use crate::record::{Context, text};
use crate::respond::Leave;

impl Engine {
    /// Writes the event of a use.
    pub fn used(&mut self, record: &Use) {
        let Some(in_force) = &self.in_force else {
            // It was decided by what an earlier daemon put in force, and nobody knows the names.
            self.not_told(record);
            return;
        };
        let credential = in_force.policy.credential_info.get(&record.credential);
        if credential.is_some_and(|it| canary::is_canary(&it.id)) {
            self.log.settle(Settles::of(record));
            return;
        }
        match self.is_news(record) {
            Ok(true) => {}
            // Of the read gate alone, whose records come out of no ring.
            Ok(false) => return,
            Err(error) => tracing::error!("a use cannot be counted: {}", crate::chain(&error)),
        }
        let Some(in_force) = &self.in_force else {
            return;
        };
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
            match self.kills.ask(record.task.workload_number(), record.time) {
                Leave::Refused => record.taken = taken::LIMITED,
                Leave::Granted => match fanotify::kill(&record.task, look) {
                    Ok(()) => record.taken = taken::KILLED,
                    Err(error) => {
                        tracing::warn!(pid = record.task.tgid.0, %error, "a process that was to be killed was only refused");
                    }
                },
            }
        }
        let entitlement = in_force.policy.entitlement_info.get(&record.entitlement);
        let workload = in_force.policy.workload_of(&record.task, entitlement);
        let workload = workload.map_or_else(|| text(&record.executable_name), str::to_owned);
        let ebpf = &mut self.loaded.ebpf;
        // As the kernel sees them: paths differ between cgroup namespaces.
        let spared = || {
            let both = [Tid(std::process::id()), Tid(1)].into_iter();
            let found = both.filter_map(|tid| iterate::thread(ebpf, tid).ok().flatten());
            found.map(|it| it.task.instance).collect()
        };
        let response = self.responder.respond(&record, &workload, spared);
        if let Some(response) = &response {
            record.taken = response.taken;
        }
        let context = Context {
            policy: &in_force.policy,
            bundle: &in_force.bundle,
            asked: (in_force.monitored)
                .then(|| requested(&in_force.bundle, &in_force.policy, record.entitlement)),
            path_of: &|key: &InodeKey| self.files.path_of(key).map(PathBuf::from),
            executables: &in_force.executables,
            host_of: &|address| self.names.host_of(address),
            instance_of: &|cgroup| {
                self.cgroups
                    .instance_of(cgroup, |path| self.containers.at(path))
            },
            wall: &|boot| self.clock.wall(boot),
            tier: self.loaded.tier,
        };
        let told = self.log.write_use(&record, &context);
        let reason = verdict::Reason::from_u8(record.reason);
        self.log.metrics().decided(
            Kind::from_u8(record.kind).map_or("unknown", Kind::name),
            if reason.is_some() { "deny" } else { "allow" },
            reason.map_or("", verdict::Reason::name),
            verdict::Mode::from_u8(record.mode).map_or("unknown", verdict::Mode::name),
        );
        if let (Some(denial), Some(webhook)) = (&told.denial, &self.webhook) {
            let id = format!("{}-{}-{}", denial.boot, record.time.0, record.tid.0);
            webhook.tell(id, json!(denial).to_string());
        }
        if let Some(reason) = response.and_then(|it| it.withheld) {
            let action = Action::from_u8(record.action).map(Action::name);
            tracing::warn!(workload, action, "not done: {reason}");
            self.log.write(
                "action-withheld",
                json!({"action": action, "workload": workload, "pid": record.task.tgid.0, "reason": reason}),
            );
        }
        if let Err(error) = self.keep_told(&record, told.exe) {
            tracing::error!("a use cannot be counted: {}", crate::chain(&error));
        }
    }

    /// Acts on a notice.
    pub fn noticed(&mut self, notice: &Notice) {
        let name = notice.name();
        let result = match NoticeKind::from_u8(notice.kind as u8) {
            Some(NoticeKind::Appeared) => self.appeared(notice, name),
            Some(NoticeKind::CgroupCreated) => {
                let path = cgroups::path_seen(notice.cgroup, name);
                let done = self.cgroup_created(notice.cgroup, &path);
                if place_of(&path).is_none() {
                    let took = boot_now().0.saturating_sub(notice.time.0);
                    self.log.metrics().classified(took as f64 / 1e9);
                }
                done
            }
            Some(NoticeKind::TableFull) => {
                self.table_full += 1;
                Ok(())
            }
            Some(NoticeKind::CgroupRemoved) => {
                self.cgroup_removed(notice.cgroup);
                Ok(())
            }
            None => Ok(()),
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
}

/// The mode that a bundle asks for where this entitlement was weighed.
fn requested(bundle: &Bundle, policy: &Policy, entitlement: EntitlementId) -> verdict::Mode {
    let id = policy.entitlement_info.get(&entitlement).map(|it| &it.id);
    let entitlement = bundle.entitlements.iter().find(|it| Some(&it.id) == id);
    match entitlement
        .and_then(|it| it.mode)
        .unwrap_or(bundle.defaults.mode)
    {
        Mode::Enforce => verdict::Mode::Enforce,
        Mode::Monitor => verdict::Mode::Monitor,
    }
}

/// Whether a cgroup program refused a call of a process that should be killed for it.
fn refused_without_signal(record: &Use) -> bool {
    let gate = Gate::from_u8(record.gate);
    let kills = matches!(
        Action::from_u8(record.action),
        Some(Action::Kill | Action::KillWorkload)
    );
    record.taken == taken::REFUSED
        && kills
        && matches!(
            gate,
            Some(Gate::CgroupConnect | Gate::CgroupSendmsg | Gate::SocketCreate)
        )
}
