//! One record as a line: canonical, numbered, chained.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use enforcer_bundle::Digest;
use serde::Serialize;
use serde_json::{Map, Value};

use super::CHECKPOINT;
use crate::keys::{PublicKey, SigningKey};

/// Comes before what is signed, so that it is nothing else.
const SIGNED: &str = "enforcer-log-v1";

/// What a record has besides what it tells.
#[derive(Serialize)]
struct Linked<'a, T> {
    #[serde(flatten)]
    record: &'a T,
    epoch: &'a str,
    sequence: u64,
    previous: &'a str,
    #[serde(flatten)]
    seal: Option<Seal>,
}

/// Over everything up to the record before.
#[derive(Serialize)]
struct Seal {
    key: String,
    signature: String,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link<'a> {
    pub epoch: &'a str,
    pub sequence: u64,
    pub previous: &'a str,
}

impl Link<'_> {
    fn signed(&self) -> Vec<u8> {
        let Self {
            epoch,
            sequence,
            previous,
        } = self;
        format!("{SIGNED}\n{epoch}\n{sequence}\n{previous}").into_bytes()
    }

    /// The line of a record with its end, and its hash. With a key it is a checkpoint.
    pub fn line<T: Serialize>(
        &self,
        record: &T,
        key: Option<&SigningKey>,
    ) -> serde_json::Result<(Vec<u8>, String)> {
        let linked = Linked {
            record,
            epoch: self.epoch,
            sequence: self.sequence,
            previous: self.previous,
            seal: key.map(|key| Seal {
                key: key.public().to_string(),
                signature: STANDARD.encode(key.sign(&self.signed())),
            }),
        };
        let mut line = serde_json_canonicalizer::to_vec(&linked)?;
        let hash = Digest::of_bytes(&line).0;
        line.pop();
        line.extend_from_slice(format!(",\"hash\":\"{hash}\"}}\n").as_bytes());
        Ok((line, hash))
    }
}

/// A line that was read, and not believed.
pub(super) struct Read {
    pub epoch: String,
    pub sequence: u64,
    pub previous: String,
    pub hash: String,
    fields: Map<String, Value>,
}

impl Read {
    /// `None` if it is no record.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let Some(Value::String(hash)) = fields.remove("hash") else {
            return None;
        };
        let text = |name: &str| Some(fields.get(name)?.as_str()?.to_owned());
        Some(Self {
            epoch: text("epoch")?,
            sequence: fields.get("sequence")?.as_u64()?,
            previous: text("previous")?,
            hash,
            fields,
        })
    }

    /// Whether its hash is that of what it says.
    pub fn is_whole(&self) -> bool {
        serde_json_canonicalizer::to_vec(&self.fields)
            .is_ok_and(|bytes| Digest::of_bytes(&bytes).0 == self.hash)
    }

    pub fn kind(&self) -> &str {
        self.fields
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// A number that it tells.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name)?.as_u64()
    }

    /// Of a checkpoint, whether it is signed with this key; `None` for other records.
    pub fn is_signed(&self, key: &PublicKey) -> Option<bool> {
        if self.kind() != CHECKPOINT {
            return None;
        }
        let text = |name| self.fields.get(name).and_then(Value::as_str);
        let link = Link {
            epoch: &self.epoch,
            sequence: self.sequence,
            previous: &self.previous,
        };
        let signature = text("signature").and_then(|it| STANDARD.decode(it).ok());
        Some(signature.is_some_and(|it| key.has_signed(&link.signed(), &it)))
    }
}
