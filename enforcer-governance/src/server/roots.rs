//! The trust roots: the configured one, and those that follow it in a directory, taken up as they come.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use enforcer_bundle::Labels;
use jiff::Timestamp;
use tokio::sync::watch;

use super::Error;
use super::changes::Changes;
use super::json::read_json;
use super::ledger::Ledger;
use crate::contract;
use crate::envelope::Envelope;
use crate::held::{Changed, Held};
use crate::statement::Statement as _;
use crate::trust::TrustRoot;

/// The trust roots, each followed by the next.
#[derive(Clone, Debug)]
pub struct Roots {
    first: TrustRoot,
    next: Vec<Next>,
}

/// One that follows another.
#[derive(Clone, Debug)]
struct Next {
    root: TrustRoot,
    envelope: contract::Envelope,
}

impl Roots {
    /// The one that nodes are configured with, and nothing after it.
    pub fn new(first: TrustRoot) -> Self {
        Self {
            first,
            next: Vec::new(),
        }
    }

    /// With what is in the directory instead of what came after the first one.
    ///
    /// # Errors
    /// If there is anything that a node would not take, or a root that was there is none any more.
    pub fn read(&self, directory: &Path) -> Result<Self, Error> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(Error::io(directory))? {
            let path = entry.map_err(Error::io(directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // What is still being written beside its place.
            if !name.starts_with('.') {
                found.push((signed(&path)?, path));
            }
        }
        found.sort_by_key(|(next, _)| next.root.version);
        // A node is the judge of what follows what.
        let mut node = Held::new(self.first.clone(), Labels::new())
            .map_err(|refusal| Error::Refused(refusal.to_string()))?;
        let mut roots = Self::new(self.first.clone());
        for (next, path) in found {
            let envelope: Envelope = next.envelope.clone().into();
            let (with, changed) = node
                .take(&envelope, Timestamp::now())
                .map_err(|refusal| Error::Refused(format!("{}: {refusal}", path.display())))?;
            node = with;
            if changed == Changed::Root {
                roots.next.push(next);
            }
        }
        let mut there = roots.next.iter().map(|it| &it.root);
        let mut known = self.next.iter().map(|it| &it.root);
        if let Some(lost) = known.find(|root| there.next() != Some(*root)) {
            return Err(Error::Refused(format!(
                "{}: trust root {} is gone or another, and nodes have it; put it back",
                directory.display(),
                lost.version
            )));
        }
        Ok(roots)
    }

    /// The one that nodes are configured with.
    pub fn first(&self) -> &TrustRoot {
        &self.first
    }

    /// The one that counts.
    pub fn last(&self) -> &TrustRoot {
        self.next.last().map_or(&self.first, |next| &next.root)
    }

    /// All, the last one first.
    pub fn newest_first(&self) -> impl Iterator<Item = &TrustRoot> {
        let next = self.next.iter().rev().map(|next| &next.root);
        next.chain([&self.first])
    }

    /// What a node with this version lacks, and the versions of that.
    pub fn after(&self, version: u64) -> impl Iterator<Item = (u64, &contract::Envelope)> {
        let next = self.next.iter().map(|it| (it.root.version, &it.envelope));
        next.filter(move |(it, _)| *it > version)
    }
}

/// The trust root in a file, whoever signed it.
fn signed(path: &Path) -> Result<Next, Error> {
    let refused = |got: String| {
        Error::Refused(format!(
            "{}: got {got}, expected a signed trust root; `enforcer bundle sign` makes one",
            path.display()
        ))
    };
    let envelope: Envelope = read_json(path)
        .map_err(|error| match error {
            Error::Content { reason, .. } => refused(format!("no envelope ({reason})")),
            other => other,
        })?
        .ok_or_else(|| Error::gone(path))?;
    if envelope.payload_type != TrustRoot::TYPE {
        return Err(refused(format!("{:?}", envelope.payload_type)));
    }
    let root = serde_json::from_slice(&envelope.payload)
        .map_err(|error| refused(format!("another payload ({error})")))?;
    Ok(Next {
        root,
        envelope: envelope.into(),
    })
}

/// Takes up what comes into the directory: all of it, or, if anything is wrong with it, nothing.
pub async fn follow(
    mut changes: Changes,
    directory: PathBuf,
    roots: watch::Sender<Roots>,
    ledger: Arc<Ledger>,
) {
    loop {
        changes.next().await;
        let known = roots.borrow().clone();
        let read = async {
            let new = known.read(&directory)?;
            ledger.stand_under(new.last()).await?;
            Ok::<_, Error>(new)
        };
        match read.await {
            Ok(new) if new.last() == known.last() => {}
            Ok(new) => {
                tracing::info!(version = new.last().version, "a new trust root");
                roots.send_replace(new);
                ledger.announce();
            }
            Err(error) => tracing::error!(
                "the trust roots are refused, those before stay: {}",
                error.chain()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;

    const KEY: u8 = 1;
    const STRANGER: u8 = 2;

    fn root(version: u64) -> TrustRoot {
        let key = SigningKey::from_seed([KEY; 32]).public();
        TrustRoot {
            version,
            ..TrustRoot::of_one_key("tests", key)
        }
    }

    fn file(kind: &str, payload: &[u8], key: u8) -> Vec<u8> {
        let keys = [SigningKey::from_seed([key; 32])];
        let envelope = Envelope::sign(kind, payload.to_vec(), &keys);
        serde_json::to_vec(&envelope).expect("JSON")
    }

    fn signed(version: u64, key: u8) -> Vec<u8> {
        let payload = serde_json::to_vec(&root(version)).expect("JSON");
        file(TrustRoot::TYPE, &payload, key)
    }

    /// What a server that has these roots makes of these files.
    fn read(known: &Roots, files: &[(&str, Vec<u8>)]) -> Result<Roots, String> {
        let directory = tempfile::tempdir().expect("directory");
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).expect("written");
        }
        known
            .read(directory.path())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn roots_follow_one_another() {
        let first = Roots::new(root(1));
        let files = [
            ("b", signed(2, KEY)),
            ("a", signed(3, KEY)),
            (".new", b"{".to_vec()),
        ];
        let roots = read(&first, &files).expect("good");
        assert_eq!(roots.last(), &root(3));
        let versions = |after| roots.after(after).map(|(it, _)| it).collect::<Vec<_>>();
        assert_eq!((versions(1), versions(2)), (vec![2, 3], vec![3]));
        let all: Vec<_> = roots.newest_first().map(|it| it.version).collect();
        assert_eq!(all, [3, 2, 1]);
        // None of them goes.
        let refused = read(&roots, &files[..1]).expect_err("refused");
        assert!(refused.contains("trust root 3 is gone"), "{refused}");
    }

    #[test]
    fn what_does_not_follow_is_named() {
        let first = Roots::new(root(1));
        for (text, words) in [
            (b"{".to_vec(), "got no envelope (EOF"),
            (file("text", b"{}", KEY), "got \"text\", expected a signed"),
            (file(TrustRoot::TYPE, b"{}", KEY), "got another payload ("),
            (signed(2, STRANGER), "0 of the keys for `root` have signed"),
            (signed(3, KEY), "it is trust root 3, expected 2"),
        ] {
            let refused = read(&first, &[("next.dsse.json", text)]).expect_err("refused");
            let named = refused.contains("next.dsse.json: ") && refused.contains(words);
            assert!(named, "{refused}");
        }
    }
}
