//! ed25519 keys, in the files that OpenSSL reads and writes too.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use enforcer_bundle::Digest;

use crate::files;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("cannot read or write the key {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is not an ed25519 private key in PEM (PKCS#8): {reason}; `enforcer bundle keygen` makes one", path.display())]
    Format {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is one already.
    #[error("{} exists already; choose another name, or take it away first", .0.display())]
    Exists(PathBuf),
}

/// Signs.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the private key of {}", self.public())
    }
}

impl SigningKey {
    /// A new one.
    #[must_use]
    pub fn generate() -> Self {
        Self::from_seed(rand::random())
    }

    /// The one that belongs to 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    /// Reads one from a file.
    ///
    /// # Errors
    /// If it cannot be read, or is something else.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        ed25519_dalek::SigningKey::from_pkcs8_pem(&text)
            .map(Self)
            .map_err(|error| Error::Format {
                path: path.to_owned(),
                reason: error.to_string(),
            })
    }

    /// Writes it to a new file with mode 0600.
    ///
    /// # Errors
    /// If there is such a file, or it cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), Error> {
        if path.exists() {
            return Err(Error::Exists(path.to_owned()));
        }
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let text = self
            .0
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| io(io::Error::other(error)))?;
        files::replace(path, text.as_bytes()).map_err(io)
    }

    /// The one in the file; a new one if there is none.
    ///
    /// # Errors
    /// As [`SigningKey::load`] and [`SigningKey::store`].
    pub fn load_or_make(path: &Path) -> Result<Self, Error> {
        if path.exists() {
            return Self::load(path);
        }
        let key = Self::generate();
        key.store(path)?;
        Ok(key)
    }

    /// Its other half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).to_bytes().to_vec()
    }
}

/// Says whether something was signed. As text: its 32 bytes in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// A short name: the beginning of its digest.
    #[must_use]
    pub fn id(&self) -> String {
        Digest::of_bytes(self.0.as_bytes()).0[..16].to_owned()
    }

    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is no public key; expected 32 bytes in base64");
        let bytes = STANDARD.decode(text).map_err(|_| expected())?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| expected())?;
        ed25519_dalek::VerifyingKey::from_bytes(&bytes)
            .map(Self)
            .map_err(|_| expected())
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}
