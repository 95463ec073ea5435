//! A bundle is put in force, whole or not at all.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use enforcer_common::decide;
use enforcer_common::ids::{Generation, Tgid, Tid};
use enforcer_common::iterate::HolderRecord;
use enforcer_common::tables::{Credential, Holder};
use serde_json::json;

use super::{Engine, Error, InForce};
use crate::bundle::Bundle;
use crate::compile::{Facts, HostTables, Policy, compile};
use crate::kernel::clock::boot_now;
use crate::kernel::holders::Holders;
use crate::kernel::iterate;
use crate::kernel::own::Own;
use crate::kernel::tier::Tier;
use crate::node::{environment, executables, mapped, users};

impl Engine {
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
            // It is not refused: it waits for larger tables.
            Err(_) if self.outgrown.is_some() => {}
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
    pub(super) async fn stand_in(&mut self) {
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
        if let Err(error) = self.apply(bundle).await
            && self.outgrown.is_none()
        {
            tracing::error!(
                "the tables could not be brought up to date: {}",
                crate::chain(&error)
            );
        }
    }

    pub(super) async fn apply(&mut self, bundle: Arc<Bundle>) -> Result<(), Error> {
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
            contained: self
                .containers
                .look_at_programs(&mut self.loaded.ebpf, &bundle),
            users: users::users(),
            homes: crate::bundle::home_patterns(&users::homes()),
            pods: self.containers.pods().cloned(),
            containers: self.containers.known().clone(),
            labels: self.labels.clone(),
            hosts: self.names.hosts(),
            clock: self.clock.clock(),
        };
        let effective = match self.only_monitored {
            true => Arc::new(bundle.monitored()),
            false => bundle.clone(),
        };
        let policy = Arc::new(compile(
            &effective,
            &facts,
            &mut self.numbers.numbering,
            &self.canaries.reserved(),
        )?);
        let next = self.numbers.next(self.generation);
        let fits = policy.fits(self.loaded.room).map_err(Error::from);
        let kept = fits.and_then(|()| Ok(self.numbers.keep(&mut self.loaded.ebpf)?));
        kept.map_err(|error| self.outgrows(error))?;
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
            return Err(self.outgrows(error));
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
        let starting = self.containers.starting();
        starting.matter(policy.asks_for_containers() || !policy.catalogue.is_empty());
        self.in_force = Some(InForce {
            bundle,
            policy,
            generation: next,
            executables: (facts.executables.into_iter())
                .chain(
                    facts
                        .contained
                        .into_iter()
                        .map(|(it, keys)| (it.program, keys)),
                )
                .flat_map(|(it, keys)| keys.into_iter().map(move |key| (key, it.path.clone())))
                .collect(),
            monitored: self.only_monitored,
        });
        self.usage_numbered();
        if new_bundle {
            self.replaced = Some(Instant::now());
        }
        Ok(())
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
            let now = boot_now();
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
}
