//! The nodes: who may become one, and what is known of each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enforcer_bundle::{Digest, Labels};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Error;
use super::ledger::{read_json, write_json};
use crate::contract;
use crate::time::to_wire;

/// A token that was given out.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Token {
    node: String,
    labels: Labels,
    until: Timestamp,
}

/// What is kept.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Saved {
    /// By the digest of the token.
    tokens: BTreeMap<Digest, Token>,
    /// The labels of the nodes that enrolled.
    nodes: BTreeMap<String, Labels>,
}

/// The nodes.
pub struct Registry {
    path: PathBuf,
    saved: Mutex<Saved>,
    seen: Mutex<BTreeMap<String, contract::Node>>,
}

impl Registry {
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("nodes.json");
        Ok(Self {
            saved: Mutex::new(read_json(&path)?.unwrap_or_default()),
            path,
            seen: Mutex::default(),
        })
    }

    fn saved(&self) -> MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<String, contract::Node>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new token for a node.
    pub fn token(&self, node: &str, labels: Labels, valid: Duration) -> Result<String, Error> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if node.is_empty() || node.len() > 253 || !node.chars().all(good) {
            return Err(Error::Refused(format!(
                "got the node name {node:?}, expected letters, digits, `-`, `.` and `_`, at most 253"
            )));
        }
        let token = format!("{:x}", Wide(rand::random()));
        let now = Timestamp::now();
        let mut saved = self.saved();
        saved.tokens.retain(|_, it| it.until > now);
        saved.tokens.insert(
            Digest::of_bytes(token.as_bytes()),
            Token {
                node: node.to_owned(),
                labels,
                until: now + valid,
            },
        );
        write_json(&self.path, &*saved)?;
        Ok(token)
    }

    /// The node that a token is for; the token is gone then.
    pub fn redeem(&self, token: &str) -> Result<(String, Labels), Error> {
        let mut saved = self.saved();
        let found = saved.tokens.remove(&Digest::of_bytes(token.as_bytes()));
        let Some(found) = found.filter(|it| it.until > Timestamp::now()) else {
            return Err(Error::Refused(
                "this token is not good: it was used, has expired, or is of another server; `enforcer governance token` makes one".to_owned(),
            ));
        };
        saved.nodes.insert(found.node.clone(), found.labels.clone());
        write_json(&self.path, &*saved)?;
        Ok((found.node, found.labels))
    }

    /// The labels a node enrolled with, if it did here.
    pub fn labels(&self, node: &str) -> Option<Labels> {
        self.saved().nodes.get(node).cloned()
    }

    /// A node has said who it is.
    pub fn hello(&self, hello: &contract::Hello) {
        let mut seen = self.seen();
        let node = seen.entry(hello.node.clone()).or_default();
        node.name.clone_from(&hello.node);
        node.labels.clone_from(&hello.labels);
        node.agent_version.clone_from(&hello.agent_version);
        node.held.clone_from(&hello.held);
        node.status.clone_from(&hello.status);
        if !hello.last_refusal.is_empty() {
            node.refusal.clone_from(&hello.last_refusal);
        }
        node.connected = true;
        node.last_seen = Some(to_wire(Timestamp::now()));
    }

    /// Something else is known of a node.
    pub fn note(&self, node: &str, note: impl FnOnce(&mut contract::Node)) {
        if let Some(node) = self.seen().get_mut(node) {
            node.last_seen = Some(to_wire(Timestamp::now()));
            note(node);
        }
    }

    /// All that were seen since the start.
    pub fn nodes(&self) -> Vec<contract::Node> {
        self.seen().values().cloned().collect()
    }
}

/// 32 bytes, as hex.
struct Wide([u8; 32]);

impl std::fmt::LowerHex for Wide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
