//! What governance puts in force: bundles, what it takes back, and until when it is known that nothing is newer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use enforcer_bundle::{Bundle, Digest};
use enforcer_common::ids::Generation;
use enforcer_common::tables::{self, Governed, GrantKey, Grants};
use enforcer_governance::contract::NodeStatus;
use enforcer_governance::held::{Numbers, RootMark};
use jiff::Timestamp;
use serde_json::json;

use super::swap::grace;
use super::{Engine, Error};
use crate::bundle::Mode;
use crate::fanotify::{Rules, Snapshot};
use crate::kernel::maps::{self, Maps};

/// The beginning of what anchors the numbers: with another trust root others count.
fn anchor_of(anchor: &Digest) -> u64 {
    u64::from_str_radix(&anchor.0[..16], 16).unwrap_or(u64::MAX)
}

/// For the kernel.
fn noted(numbers: Numbers, anchor: &Digest) -> Governed {
    let Numbers {
        version,
        sequence,
        root,
    } = numbers;
    Governed {
        anchor: anchor_of(anchor),
        version,
        sequence,
        root_version: root.version,
        root_digest: [(root.digest >> 64) as u64, root.digest as u64],
    }
}

/// What the kernel has of it.
fn numbers(governed: &Governed, anchor: &Digest) -> Numbers {
    if governed.anchor != anchor_of(anchor) {
        return Numbers::default();
    }
    let [high, low] = governed.root_digest.map(u128::from);
    Numbers {
        version: governed.version,
        sequence: governed.sequence,
        root: RootMark {
            version: governed.root_version,
            digest: high << 64 | low,
        },
    }
}

/// So many grants at most are changed in place: each waits for the programs that run, some ten milliseconds.
const MOST_IN_PLACE: usize = 16;

/// The ids of what `new` takes back of `old`, if it is the same bundle otherwise.
fn only_taken_back<'a>(old: &Bundle, new: &'a Bundle) -> Option<HashSet<&'a str>> {
    let same = old.digest == new.digest
        && old.metadata == new.metadata
        && old.entitlements.len() == new.entitlements.len();
    if !same {
        return None;
    }
    let mut ids = HashSet::new();
    for (old, new) in old.entitlements.iter().zip(&new.entitlements) {
        match (old.revoked, new.revoked) {
            _ if old.id != new.id => return None,
            (true, false) => return None,
            (false, true) => {
                ids.insert(new.id.as_str());
            }
            _ => {}
        }
    }
    Some(ids)
}

/// Writes these grants in the place of those that the generation in force has; no permission that was given before is
/// remembered.
fn write_taken_back(
    maps: &mut Maps<'_>,
    changed: &[(GrantKey, Grants)],
    generation: Generation,
) -> Result<(), maps::Error> {
    let index = generation.0 & 1;
    for (key, grants) in changed {
        maps.put("GRANTS", *key, *grants)?;
        let known: tables::Bundle = maps.at("BUNDLES", index)?;
        let secret = rand::random();
        maps.set("BUNDLES", index, tables::Bundle { secret, ..known })?;
        // The memory of what was there becomes the next entry's, and a program may still read it.
        grace();
    }
    Ok(())
}

impl Engine {
    /// What was in force here under this trust root since the programs were loaded, whatever became of the files that
    /// say so.
    pub fn governed_before(&mut self, anchor: &Digest) -> Result<Numbers, Error> {
        let governed = Maps(&mut self.loaded.ebpf).at("GOVERNED", 0)?;
        Ok(numbers(&governed, anchor))
    }

    /// Puts in force what governance says: nothing of it, or all.
    ///
    /// # Errors
    /// What was in force stays.
    pub async fn activate(
        &mut self,
        bundle: Option<Arc<Bundle>>,
        fresh_until: Timestamp,
        numbers: Numbers,
        anchor: &Digest,
    ) -> Result<(), Error> {
        let before = self.fresh_until.replace(fresh_until);
        let in_force = self.in_force.as_ref().map(|it| &it.bundle);
        let new = bundle.filter(|new| !in_force.is_some_and(|it| Arc::ptr_eq(it, new)));
        let result = match new {
            Some(new) if !self.take_back(&new) => self.apply(new).await,
            _ => self.freshen().map_err(Error::Tables),
        };
        if let Err(error) = result {
            self.fresh_until = before;
            return Err(error);
        }
        self.refused = None;
        let mut maps = Maps(&mut self.loaded.ebpf);
        let before: Governed = maps.at("GOVERNED", 0)?;
        let now = noted(numbers, anchor);
        maps.set("GOVERNED", 0, now)?;
        if (before.anchor, before.sequence) != (now.anchor, now.sequence) {
            self.log
                .write("revocations", json!({"sequence": now.sequence}));
        }
        Ok(())
    }

    /// Something from governance was refused; what was in force stays.
    pub async fn governance_refused(&mut self, reason: String) {
        tracing::error!("what governance sent is refused, what was in force stays: {reason}");
        self.log.write("bundle-refused", json!({"reason": reason}));
        self.refused = Some(reason);
        self.stand_in().await;
    }

    /// Takes back what `new` takes back of the bundle in force, in the tables as they are, so that it takes the same time in a
    /// bundle of any size. `false` if anything else is another, if it is much, or if the tables could not be written: then
    /// `new` has to be applied as a whole.
    fn take_back(&mut self, new: &Arc<Bundle>) -> bool {
        let Some(in_force) = &mut self.in_force else {
            return false;
        };
        let Some(ids) = only_taken_back(&in_force.bundle, new) else {
            return false;
        };
        let policy = &mut in_force.policy;
        let changed = policy.taken_back(&ids);
        if changed.len() > MOST_IN_PLACE {
            return false;
        }
        let subjects = changed.keys().map(|key| key.subject()).collect();
        self.numbers.numbering.forget_subjects(&subjects);
        Arc::make_mut(policy).grants.extend(changed.clone());
        // First what permits; of those who are only near it, it is said why they are denied.
        let matched: HashSet<_> = policy.subjects.values().map(|it| it.matched).collect();
        let mut changed: Vec<_> = changed.into_iter().collect();
        changed.sort_by_key(|(key, _)| !matched.contains(&key.subject()));
        self.publish();
        let mut maps = Maps(&mut self.loaded.ebpf);
        if let Err(error) = write_taken_back(&mut maps, &changed, self.generation) {
            tracing::warn!(
                "a revocation could not be written in place, and is put in force like another bundle, which takes longer: {}",
                crate::chain(&error)
            );
            return false;
        }
        if let Some(in_force) = &mut self.in_force {
            in_force.bundle = new.clone();
        }
        self.replaced = Some(Instant::now());
        true
    }

    /// Moves only the time until which it is known that nothing is newer.
    fn freshen(&mut self) -> Result<(), maps::Error> {
        self.set_times()?;
        self.publish();
        Ok(())
    }

    /// Tells the gate of reads, where there is one, what is in force.
    fn publish(&self) {
        let fresh_until = self.fresh_until();
        if let (Some(gate), Some(in_force)) = (&self.gate, &self.in_force) {
            let rules = Rules::new(in_force.policy.clone(), in_force.generation, fresh_until);
            gate.publish(Snapshot {
                rules: Some(Arc::new(rules)),
                places: Arc::new(self.places(&in_force.policy, None)),
            });
        }
    }

    /// What governance is told of this node.
    pub fn node_status(&self) -> NodeStatus {
        let requested = self.issued().map(|it| it.defaults.mode);
        let word = |mode| match mode {
            Mode::Enforce => "enforce",
            Mode::Monitor => "monitor",
        };
        NodeStatus {
            state: self.state(),
            tier: self.loaded.tier.name().to_owned(),
            requested_mode: requested.map_or("", word).to_owned(),
            effective_mode: match (&self.proven, requested) {
                (Ok(()), Some(mode)) => word(mode).to_owned(),
                _ => "unproven".to_owned(),
            },
            not_covered: (self.not_covered().into_iter())
                .map(ToString::to_string)
                .collect(),
            reason: self.proven.as_ref().err().cloned().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(entitlements: &str) -> Bundle {
        let text = format!(
            "apiVersion: enforcer.dev/v1
kind: Bundle
metadata: {{issuer: test, version: 1}}
credentials: [{{id: key, sources: [{{file: /key}}]}}]
workloads: [{{id: w, match: {{systemdUnit: w.service}}}}]
entitlements: [{entitlements}]"
        );
        let parsed = crate::bundle::parse(&[("bundle.yaml".into(), text)]);
        parsed.expect("a bundle")
    }

    #[test]
    fn only_what_is_taken_back_of_the_same_bundle_is_that() {
        const A: &str = "{id: a, workload: w, credential: key, destinations: none}";
        const B: &str = "{id: b, workload: w, credential: key, destinations: none}";
        let old = bundle(&format!("{A}, {B}"));
        let mut new = old.clone();
        assert_eq!(only_taken_back(&old, &new), Some(HashSet::new()));
        new.entitlements[1].revoked = true;
        assert_eq!(only_taken_back(&old, &new), Some(HashSet::from(["b"])));
        // It is given back.
        assert_eq!(only_taken_back(&new, &old), None);
        for mut other in [bundle(A), bundle(&format!("{B}, {A}")), old.clone()] {
            other.metadata.version += u64::from(other == old);
            other.entitlements[0].revoked = true;
            assert_eq!(only_taken_back(&old, &other), None);
        }
    }

    #[test]
    fn what_is_noted_counts_under_its_anchor() {
        let [anchor, other] = ["a", "b"].map(|it| Digest::of_bytes(it.as_bytes()));
        let known = Numbers {
            version: 7,
            sequence: 5,
            root: RootMark {
                version: 3,
                digest: (7 << 64) | 9,
            },
        };
        let governed = noted(known, &anchor);
        assert_eq!(numbers(&governed, &anchor), known);
        assert_eq!(numbers(&governed, &other), Numbers::default());
        assert_eq!(numbers(&Governed::default(), &anchor), Numbers::default());
    }
}
