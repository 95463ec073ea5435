//! What servers have in common is signed by them: who can write to the bus between them must not be believed.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::envelope::Envelope;
use crate::keys::SigningKey;
use crate::server::roots::Roots;
use crate::trust::Role;

/// The media type, which is signed too.
const TYPE: &str = "application/vnd.enforcer.shared.v1+json";

/// The keys of a server. Every server has those for revocations; those for bundles can be elsewhere.
pub struct Seal {
    pub keys: Vec<SigningKey>,
    /// All of them: what was signed before the keys changed counts all the same.
    pub roots: watch::Receiver<Roots>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sealed<T> {
    /// Where it was put: it counts nowhere else.
    place: String,
    value: T,
}

impl Seal {
    /// The value in a signed envelope, for one place.
    pub fn close(&self, place: &str, value: &impl Serialize) -> Vec<u8> {
        let sealed = Sealed {
            place: place.to_owned(),
            value,
        };
        // Plain structures of strings and numbers always have a JSON form.
        let payload = serde_json::to_vec(&sealed).unwrap_or_default();
        let envelope = Envelope::sign(TYPE, payload, &self.keys);
        serde_json::to_vec(&envelope).unwrap_or_default()
    }

    /// Whether a server has signed it.
    ///
    /// # Errors
    /// Why not.
    pub fn verify(&self, envelope: &Envelope) -> Result<(), String> {
        let mut refusal = "there is no trust root".to_owned();
        for root in self.roots.borrow().newest_first() {
            match root.verify(Role::Revocation, envelope) {
                Ok(()) => return Ok(()),
                Err(error) => refusal = error.to_string(),
            }
        }
        Err(refusal)
    }

    /// The value that a server put in this place.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn open<T: DeserializeOwned>(&self, place: &str, bytes: &[u8]) -> Result<T, String> {
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|it| it.to_string())?;
        if envelope.payload_type != TYPE {
            return Err(format!(
                "got {:?}, expected {TYPE:?}",
                envelope.payload_type
            ));
        }
        self.verify(&envelope)?;
        let sealed: Sealed<T> =
            serde_json::from_slice(&envelope.payload).map_err(|it| it.to_string())?;
        if sealed.place != place {
            return Err(format!(
                "it was put in {:?}, and is in {place:?}",
                sealed.place
            ));
        }
        Ok(sealed.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::TrustRoot;

    fn seal(key: u8) -> Seal {
        let key = SigningKey::from_seed([key; 32]);
        let root = TrustRoot::of_one_key("tests", key.public());
        Seal {
            roots: watch::Sender::new(Roots::new(root)).subscribe(),
            keys: vec![key],
        }
    }

    #[test]
    fn a_value_counts_where_a_server_put_it() {
        let closed = seal(1).close("labels.n1", &"zone a");
        let opened: Result<String, _> = seal(1).open("labels.n1", &closed);
        assert_eq!(opened.as_deref(), Ok("zone a"));
        let moved: Result<String, _> = seal(1).open("labels.n2", &closed);
        assert!(moved.is_err_and(|reason| reason.contains("it was put in \"labels.n1\"")));
        let foreign: Result<String, _> = seal(2).open("labels.n1", &closed);
        assert!(foreign.is_err_and(|reason| reason.contains("have signed")));
        let nothing: Result<String, _> = seal(1).open("labels.n1", b"{}");
        assert!(nothing.is_err());
    }
}
