//! The directory of documents: read as a whole, and again when something in it changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::Error;
use super::changes::Changes;
use super::json::read_json;
use super::ledger::{Documents, Ledger};
use super::roots::Roots;
use crate::envelope::Envelope;
use crate::statement::{Snapshot, Statement as _};
use crate::trust::TrustRoot;

/// What the directory, or the file, says.
pub fn load(path: &Path, root: &TrustRoot) -> Result<Documents, Error> {
    let signed = signed(path)?;
    if let [file] = signed.as_slice() {
        let envelope: Envelope = read_json(file)?.ok_or_else(|| Error::gone(file))?;
        let refused = |reason: String| Error::Refused(format!("{}: {reason}", file.display()));
        if envelope.payload_type != Snapshot::TYPE {
            return Err(refused(format!(
                "got {:?}, expected a signed bundle",
                envelope.payload_type
            )));
        }
        root.verify(Snapshot::ROLE, &envelope)
            .map_err(|error| refused(error.to_string()))?;
        let snapshot: Snapshot = serde_json::from_slice(&envelope.payload)
            .map_err(|error| Error::content(file, &error))?;
        return Ok(Documents::Signed(Box::new(snapshot), envelope));
    }
    if signed.len() > 1 {
        return Err(Error::Refused(format!(
            "there are {} signed bundles in {}; leave the one that is to be served",
            signed.len(),
            path.display()
        )));
    }
    let (bundle, parts) = enforcer_bundle::load_parts(path)?;
    Ok(Documents::Plain(Box::new(bundle), parts))
}

fn is_signed(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|name| name.ends_with(".dsse.json"))
}

fn signed(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(Some(path.to_owned())
            .into_iter()
            .filter(|it| is_signed(it))
            .collect());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        found.push(entry.map_err(Error::io(path))?.path());
    }
    found.retain(|it| is_signed(it));
    Ok(found)
}

/// Has every change issued. What is no bundle is told, and what was issued stays.
pub async fn follow(
    mut changes: Changes,
    path: PathBuf,
    mut roots: watch::Receiver<Roots>,
    ledger: Arc<Ledger>,
) {
    loop {
        tokio::select! {
            () = changes.next() => {}
            // What is signed elsewhere may be good now, or not any more.
            changed = roots.changed() => if changed.is_err() {
                return;
            },
        }
        let root = roots.borrow_and_update().last().clone();
        let issued = match load(&path, &root) {
            Ok(documents) => ledger.set_documents(documents).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = issued {
            tracing::error!(
                "the documents are refused, what was issued stays: {}",
                error.chain()
            );
        }
    }
}
