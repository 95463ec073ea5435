//! Where reads are gated by marks: which files have one, and what the gate knows of them.

use enforcer_common::ids::InodeKey;

use super::Engine;
use crate::compile::Policy;
use crate::fanotify::Places;
use crate::node::files::Prepared;

impl Engine {
    /// The canaries' files are marked like any other.
    pub(super) fn mark_canaries(&mut self, policy: &Policy) {
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
    pub(super) fn places(&self, policy: &Policy, prepared: Option<&Prepared>) -> Places {
        let mut places = self.files.places(prepared);
        let canaries = self.canaries.files(policy);
        places.files.extend(canaries.map(|(key, id, _)| (key, id)));
        places
    }

    pub(super) fn unmark(&mut self, policy: &Policy) {
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

    pub(super) fn publish_places(&self, policy: &Policy) {
        if let Some(gate) = &self.gate {
            gate.publish_places(self.places(policy, None));
        }
    }
}
