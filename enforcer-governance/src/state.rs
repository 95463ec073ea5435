//! What a node keeps of governance over restarts.
//!
//! Two files: `bundle.json`, the envelopes that the bundle comes from, and `state.json`, what must not be forgotten
//! whatever becomes of the bundle: the highest version, the last revocation. Nothing in them is believed that is not
//! signed, but the numbers, which can only make the node refuse more.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use enforcer_bundle::{Digest, Labels};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::envelope::Envelope;
use crate::files;
use crate::held::{Held, Numbers, Refusal, RootMark};
use crate::trust::TrustRoot;

/// Why what was kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configured trust root is none.
    #[error("{} is not a trust root: {reason}; `enforcer governance serve` writes one", path.display())]
    Anchor {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The trust root trusts nobody.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What must not be forgotten.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Saved {
    /// Of the configured trust root: with another one everything begins anew.
    anchor: Digest,
    version: u64,
    sequence: u64,
    roots: Vec<Arc<Envelope>>,
    /// Revocations since the bundle, and the freshness statement.
    rest: Vec<Arc<Envelope>>,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
    anchor: Digest,
    /// The chain that is in the file of the bundle, if that is known.
    kept: Option<Vec<Arc<Envelope>>>,
}

impl State {
    /// Opens the directory, which is made if it is not there, and holds again what is kept in it. The last is what of
    /// it could not be used, and why.
    ///
    /// # Errors
    /// If the trust root in `anchor` cannot be read, or the directory not be made.
    pub fn open(
        directory: &Path,
        anchor: &Path,
        labels: Labels,
    ) -> Result<(Self, Held, Option<String>), Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            |source| Error::Io { path, source }
        };
        let bytes = std::fs::read(anchor).map_err(io(anchor))?;
        let root: TrustRoot = serde_json::from_slice(&bytes).map_err(|error| Error::Anchor {
            path: anchor.to_owned(),
            reason: error.to_string(),
        })?;
        std::fs::create_dir_all(directory).map_err(io(directory))?;
        let state = Self {
            directory: directory.to_owned(),
            anchor: Digest::of(&json!(root)),
            kept: None,
        };
        let held = Held::new(root, labels)?;
        let (held, unused) = state.restore(held)?;
        Ok((state, held, unused))
    }

    fn saved(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    fn bundle(&self) -> PathBuf {
        self.directory.join("bundle.json")
    }

    /// A file of it; `Ok(Err)` if it is not what it should be.
    fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Result<Option<T>, String>, Error> {
        let bytes = files::read(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        let Some(bytes) = bytes else {
            return Ok(Ok(None));
        };
        let read = serde_json::from_slice(&bytes);
        Ok(read
            .map(Some)
            .map_err(|error| format!("{}: {error}", path.display())))
    }

    fn restore(&self, new: Held) -> Result<(Held, Option<String>), Error> {
        let saved: Saved = match Self::read(&self.saved())? {
            Ok(Some(saved)) => saved,
            Ok(None) => return Ok((new, None)),
            Err(reason) => return Ok((new, Some(reason))),
        };
        if saved.anchor != self.anchor {
            return Ok((new, None));
        }
        let numbers = Numbers {
            version: saved.version,
            sequence: saved.sequence,
            // They come with it.
            root: RootMark::default(),
        };
        let mut new = new;
        for root in &saved.roots {
            match new.take_again(root) {
                Ok(held) => new = held,
                Err(refusal) => return Ok((seen(new, numbers), Some(not_used(&refusal)))),
            }
        }
        let chain: Vec<Arc<Envelope>> = match Self::read(&self.bundle())? {
            Ok(chain) => chain.unwrap_or_default(),
            Err(reason) => return Ok((seen(new, numbers), Some(not_used(&reason)))),
        };
        let mut held = new.clone();
        for envelope in chain.iter().chain(&saved.rest) {
            match held.take_again(envelope) {
                Ok(next) => held = next,
                Err(refusal) => return Ok((seen(new, numbers), Some(not_used(&refusal)))),
            }
        }
        let have = held.numbers();
        if have.version < numbers.version || have.sequence < numbers.sequence {
            let reason = format!(
                "it has version {} and revocation {}, and version {} and revocation {} were in force here; an older copy of {} was put there",
                have.version,
                have.sequence,
                numbers.version,
                numbers.sequence,
                self.bundle().display()
            );
            return Ok((seen(new, numbers), Some(not_used(&reason))));
        }
        Ok((held, None))
    }

    /// Keeps it; once this returns, it is on disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&mut self, held: &Held) -> Result<(), Error> {
        let [roots, chain, rest] = held.envelopes();
        let saved = Saved {
            anchor: self.anchor.clone(),
            version: held.seen().version,
            sequence: held.seen().sequence,
            roots,
            rest,
        };
        // First the bundle: a newer one than was noted is good, an older one is not. Freshness comes all the time, and a
        // large bundle is not written for that.
        let is_kept = self.kept.as_ref().is_some_and(|kept| {
            let same = chain.iter().zip(kept).all(|(a, b)| Arc::ptr_eq(a, b));
            same && chain.len() == kept.len() && self.bundle().exists()
        });
        if !is_kept {
            self.kept = None;
            write(&self.bundle(), &chain)?;
            self.kept = Some(chain);
        }
        write(&self.saved(), &saved)
    }

    /// Of the configured trust root.
    #[must_use]
    pub fn anchor(&self) -> &Digest {
        &self.anchor
    }
}

/// Once this returns, it is on disk.
fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    serde_json::to_vec(value)
        .map_err(io::Error::from)
        .and_then(|bytes| files::replace(path, &bytes))
        .map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })
}

fn not_used(reason: &dyn std::fmt::Display) -> String {
    format!("what was kept of governance is not used: {reason}")
}

fn seen(mut held: Held, numbers: Numbers) -> Held {
    held.has_seen(numbers);
    held
}
