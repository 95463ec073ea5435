//! The nodes: who may become one, and what is known of each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use enforcer_bundle::{Digest, Labels};
use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;
use super::store::{Store, Table};
use crate::contract;
use crate::time::to_wire;

/// Of a node that another server has said is connected, this is believed so long after it was heard of.
const BELIEVED: SignedDuration = SignedDuration::from_mins(15);

/// A token that was given out.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Token {
    node: String,
    labels: Labels,
    until: Timestamp,
}

/// The nodes.
pub struct Registry {
    store: Arc<dyn Store>,
    seen: Mutex<Seen>,
}

/// What this server knows of nodes that were here.
#[derive(Default)]
struct Seen {
    nodes: BTreeMap<String, contract::Node>,
    /// What others do not know yet.
    untold: BTreeSet<String>,
}

/// Whether it is good as a node's name.
pub fn is_name(node: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (1..=253).contains(&node.len()) && !node.starts_with('.') && node.chars().all(good)
}

impl Registry {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new token for a node.
    pub async fn token(
        &self,
        node: &str,
        labels: Labels,
        valid: Duration,
    ) -> Result<String, Error> {
        if !is_name(node) {
            return Err(Error::Refused(format!(
                "got the node name {node:?}, expected letters, digits, `-`, `.` and `_`, at most 253, and no `.` first"
            )));
        }
        let token = crate::random_hex();
        let given = Token {
            node: node.to_owned(),
            labels,
            until: Timestamp::now() + valid,
        };
        let name = Digest::of_bytes(token.as_bytes()).0;
        self.forget_expired().await?;
        let values = BTreeMap::from([(name, json!(given))]);
        self.store.put(Table::Tokens, values).await?;
        Ok(token)
    }

    async fn forget_expired(&self) -> Result<(), Error> {
        let now = Timestamp::now();
        for (name, token) in self.store.all(Table::Tokens).await? {
            let token: Option<Token> = serde_json::from_value(token).ok();
            if token.is_none_or(|token| token.until <= now) {
                self.store.take(Table::Tokens, &name).await?;
            }
        }
        Ok(())
    }

    /// The node that a token is for; the token is gone then.
    pub async fn redeem(&self, token: &str) -> Result<(String, Labels), Error> {
        let name = Digest::of_bytes(token.as_bytes()).0;
        let found = self.store.take(Table::Tokens, &name).await?;
        let found = found.and_then(|it| serde_json::from_value::<Token>(it).ok());
        let Some(found) = found.filter(|it| it.until > Timestamp::now()) else {
            return Err(Error::Refused(
                "this token is not good: it was used, has expired, or is of another server; `enforcer governance token` makes one".to_owned(),
            ));
        };
        let values = BTreeMap::from([(found.node.clone(), json!(found.labels))]);
        self.store.put(Table::Labels, values).await?;
        Ok((found.node, found.labels))
    }

    /// The labels a node enrolled with, if it did with these servers.
    pub async fn labels(&self, node: &str) -> Result<Option<Labels>, Error> {
        let labels = self.store.get(Table::Labels, node).await?;
        Ok(labels.and_then(|it| serde_json::from_value(it).ok()))
    }

    /// A node has said who it is.
    pub fn hello(&self, hello: &contract::Hello) {
        let mut seen = self.seen();
        let node = seen.nodes.entry(hello.node.clone()).or_default();
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
        seen.untold.insert(hello.node.clone());
    }

    /// Something else is known of a node.
    pub fn note(&self, node: &str, note: impl FnOnce(&mut contract::Node)) {
        let mut seen = self.seen();
        if let Some(known) = seen.nodes.get_mut(node) {
            known.last_seen = Some(to_wire(Timestamp::now()));
            note(known);
            seen.untold.insert(node.to_owned());
        }
    }

    /// How many nodes are connected to this server.
    pub fn connected(&self) -> usize {
        let seen = self.seen();
        seen.nodes.values().filter(|node| node.connected).count()
    }

    /// Stores what has become known since.
    pub async fn tell(&self) -> Result<(), Error> {
        let mut told = BTreeMap::new();
        let untold = {
            let mut seen = self.seen();
            let untold = std::mem::take(&mut seen.untold);
            let nodes = untold.iter().filter_map(|name| seen.nodes.get(name));
            told.extend(nodes.map(|node| (node.name.clone(), encoded(node))));
            untold
        };
        if told.is_empty() {
            return Ok(());
        }
        let stored = self.store.put(Table::Seen, told).await;
        if stored.is_err() {
            self.seen().untold.extend(untold);
        }
        stored
    }

    /// All that were ever seen.
    pub async fn nodes(&self) -> Result<Vec<contract::Node>, Error> {
        let stored = self.store.all(Table::Seen).await?;
        let now = Timestamp::now();
        let mut nodes: BTreeMap<String, contract::Node> = (stored.into_iter())
            .filter_map(|(name, it)| Some((name, decoded(&it)?)))
            .collect();
        for node in nodes.values_mut() {
            node.connected &= last_seen(node) > now - BELIEVED;
        }
        let here = self.seen().nodes.clone();
        for (name, node) in here {
            // Of one that went, another server may know more.
            let elsewhere = nodes.get(&name);
            let elsewhere = elsewhere.is_some_and(|it| last_seen(it) > last_seen(&node));
            if node.connected || !elsewhere {
                nodes.insert(name, node);
            }
        }
        Ok(nodes.into_values().collect())
    }
}

fn last_seen(node: &contract::Node) -> Timestamp {
    let seen = node.last_seen.unwrap_or_default();
    Timestamp::new(seen.seconds, seen.nanos).unwrap_or_default()
}

/// For the table.
fn encoded(node: &contract::Node) -> Value {
    Value::String(BASE64.encode(node.encode_to_vec()))
}

fn decoded(value: &Value) -> Option<contract::Node> {
    let bytes = BASE64.decode(value.as_str()?).ok()?;
    contract::Node::decode(bytes.as_slice()).ok()
}
