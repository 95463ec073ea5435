//! DSSE envelopes: bytes, what they are, and who signed both.
//!
//! <https://github.com/secure-systems-lab/dsse>, protocol version 1: what is signed is the pre-authentication encoding
//! of type and payload, so that nothing has to be brought into a canonical form, and one thing cannot be taken for
//! another.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::contract;
use crate::keys::{PublicKey, SigningKey};

/// Most signatures that are looked at.
pub const MAX_SIGNATURES: usize = 32;

/// Signed bytes. Nothing is known of who signed until [`Envelope::signers`] has looked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// What the payload is, a media type.
    pub payload_type: String,
    /// The payload.
    #[serde(with = "in_base64")]
    pub payload: Bytes,
    /// By whom.
    pub signatures: Vec<Signature>,
}

/// One signature.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Says which key it may be; nothing depends on it.
    #[serde(default)]
    pub keyid: String,
    /// 64 bytes of ed25519.
    #[serde(with = "in_base64")]
    pub sig: Bytes,
}

impl Envelope {
    /// Signs.
    #[must_use]
    pub fn sign(payload_type: &str, payload: Vec<u8>, keys: &[SigningKey]) -> Self {
        let mut envelope = Self {
            payload_type: payload_type.to_owned(),
            payload: payload.into(),
            signatures: Vec::new(),
        };
        for key in keys {
            envelope.add_signature(key);
        }
        envelope
    }

    /// Adds one more signature.
    pub fn add_signature(&mut self, key: &SigningKey) {
        let sig = key.sign(&encoded(&self.payload_type, &self.payload));
        self.signatures.push(Signature {
            keyid: key.public().id(),
            sig: sig.into(),
        });
    }

    /// Those of `keys` that have signed it, each once.
    #[must_use]
    pub fn signers<'a>(&self, keys: &'a [PublicKey]) -> Vec<&'a PublicKey> {
        let message = encoded(&self.payload_type, &self.payload);
        let signatures = || self.signatures.iter().take(MAX_SIGNATURES);
        let mut signers: Vec<&PublicKey> = Vec::new();
        for key in keys {
            let has_signed = signatures().any(|it| key.has_signed(&message, &it.sig));
            if has_signed && !signers.contains(&key) {
                signers.push(key);
            }
        }
        signers
    }
}

/// The pre-authentication encoding.
fn encoded(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

impl From<Envelope> for contract::Envelope {
    fn from(envelope: Envelope) -> Self {
        Self {
            payload_type: envelope.payload_type,
            payload: envelope.payload,
            signatures: (envelope.signatures.into_iter())
                .map(|it| contract::Signature {
                    sig: it.sig.to_vec(),
                    keyid: it.keyid,
                })
                .collect(),
        }
    }
}

impl From<contract::Envelope> for Envelope {
    fn from(envelope: contract::Envelope) -> Self {
        Self {
            payload_type: envelope.payload_type,
            payload: envelope.payload,
            signatures: (envelope.signatures.into_iter())
                .map(|it| Signature {
                    sig: it.sig.into(),
                    keyid: it.keyid,
                })
                .collect(),
        }
    }
}

mod in_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    /// Standard or URL-safe, as the protocol asks of those who read.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(&text)
            .or_else(|_| URL_SAFE.decode(&text))
            .map(Bytes::from)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the protocol's description.
    #[test]
    fn the_encoding_is_that_of_the_protocol() {
        assert_eq!(
            encoded("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn who_signed_counts_once() {
        let [one, two, three] = [1, 2, 3].map(|seed| SigningKey::from_seed([seed; 32]));
        let mut envelope = Envelope::sign("text", b"hello".to_vec(), &[one.clone(), one.clone()]);
        envelope.add_signature(&two);
        let keys = [one.public(), two.public(), three.public(), one.public()];
        assert_eq!(envelope.signers(&keys), [&keys[0], &keys[1]]);
        assert_eq!(envelope.signers(&keys[2..3]), [] as [&PublicKey; 0]);

        let text = serde_json::to_string(&envelope).expect("JSON");
        let read: Envelope = serde_json::from_str(&text).expect("read");
        assert_eq!(read, envelope);
        assert_eq!(Envelope::from(contract::Envelope::from(read)), envelope);
    }

    #[test]
    fn what_was_signed_as_one_thing_is_no_other() {
        let key = SigningKey::from_seed([7; 32]);
        let keys = [key.public()];
        let good = Envelope::sign("a", b"b".to_vec(), &[key]);
        let mut retyped = good.clone();
        retyped.payload_type = "c".to_owned();
        let mut changed = good.clone();
        changed.payload = Bytes::from_static(b"c");
        let mut cut = good.clone();
        cut.signatures[0].sig.truncate(63);
        assert_eq!(good.signers(&keys).len(), 1);
        for bad in [retyped, changed, cut] {
            assert_eq!(bad.signers(&keys).len(), 0);
        }
    }
}
