//! Who may sign what.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::keys::{PublicKey, SigningKey};

/// What a signature can be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The next trust root.
    Root,
    /// Snapshots and deltas.
    Bundle,
    /// Revocations.
    Revocation,
    /// That nothing is newer.
    Freshness,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Bundle => "bundle",
            Self::Revocation => "revocation",
            Self::Freshness => "freshness",
        })
    }
}

/// The keys of a role, and how many of them must sign.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Signers {
    /// How many; 1 or more.
    pub threshold: usize,
    /// Of these.
    pub keys: Vec<PublicKey>,
}

/// Who may sign what. The first one comes with the node's configuration; each next one is signed by the one before it,
/// and by itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustRoot {
    /// One more than that of the root before it.
    pub version: u64,
    /// The governance service whose statements count.
    pub issuer: String,
    /// After this no new statement counts; what is in force stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// For the next root.
    pub root: Signers,
    /// For snapshots and deltas.
    pub bundle: Signers,
    /// For revocations.
    pub revocation: Signers,
    /// For freshness statements.
    pub freshness: Signers,
}

/// Too few of those who may have signed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{got} of the keys for `{role}` have signed, expected {expected}")]
pub struct TooFew {
    role: Role,
    got: usize,
    expected: usize,
}

impl TrustRoot {
    /// A root with one key for everything.
    #[must_use]
    pub fn of_one_key(issuer: &str, key: PublicKey) -> Self {
        let signers = Signers {
            threshold: 1,
            keys: vec![key],
        };
        Self {
            version: 1,
            issuer: issuer.to_owned(),
            expires_at: None,
            root: signers.clone(),
            bundle: signers.clone(),
            revocation: signers.clone(),
            freshness: signers,
        }
    }

    /// Says what is wrong with it by itself.
    ///
    /// # Errors
    /// A sentence, if a role asks for no signature, or for more than it has keys.
    pub fn check(&self) -> Result<(), String> {
        for role in [Role::Root, Role::Bundle, Role::Revocation, Role::Freshness] {
            let signers = self.signers(role);
            let mut keys: Vec<String> = signers.keys.iter().map(ToString::to_string).collect();
            keys.sort();
            keys.dedup();
            if signers.threshold == 0 || signers.threshold > keys.len() {
                return Err(format!(
                    "`{role}` asks for {} signatures of {} different keys; expected 1 to {}",
                    signers.threshold,
                    keys.len(),
                    keys.len()
                ));
            }
        }
        Ok(())
    }

    fn signers(&self, role: Role) -> &Signers {
        match role {
            Role::Root => &self.root,
            Role::Bundle => &self.bundle,
            Role::Revocation => &self.revocation,
            Role::Freshness => &self.freshness,
        }
    }

    /// Whether enough of those who may sign for `role` have signed.
    ///
    /// # Errors
    /// [`TooFew`] otherwise.
    pub fn verify(&self, role: Role, envelope: &Envelope) -> Result<(), TooFew> {
        let signers = self.signers(role);
        let got = envelope.signers(&signers.keys).len();
        // A root without a threshold has been refused; if not, it trusts nobody.
        let expected = signers.threshold.max(1);
        if got < expected {
            return Err(TooFew {
                role,
                got,
                expected,
            });
        }
        Ok(())
    }

    /// Whether these keys are enough to sign for `role`.
    #[must_use]
    pub fn lets_sign(&self, role: Role, keys: &[SigningKey]) -> bool {
        let tried = Envelope::sign("", Vec::new(), keys);
        self.verify(role, &tried).is_ok()
    }
}
