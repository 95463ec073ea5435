//! What has been issued, granted and taken back: in the store first, then for everybody to see.

mod acts;
mod lacking;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enforcer_bundle::{Bundle, Digest, Parts};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Error;
pub use super::content::Committed;
use super::content::{Content, Source, Stated};
use super::issued::Issued;
use super::roots::Roots;
use super::store::{self, Head, Log, Reference, Store, Version};
use crate::envelope::Envelope;
use crate::keys::SigningKey;
use crate::statement::{Freshness, Snapshot, Statement as _};
use crate::trust::{Role, TrustRoot};
pub use lacking::Sent;

/// How many versions are kept for deltas.
const HISTORY: usize = 32;
/// How often something is tried that another server was faster with.
const TRIES: usize = 16;

/// Where the bundle comes from.
pub enum Documents {
    /// To be signed here.
    Plain(Box<Bundle>, Parts),
    /// Signed elsewhere.
    Signed(Box<Snapshot>, Envelope),
}

/// Who asks for something, and why.
#[derive(Clone, Debug)]
pub struct Request {
    /// As the audit trail names it.
    pub by: String,
    pub reason: String,
    pub ticket: Option<String>,
}

/// Something in a blob of its own: no other blob has the same digest, whatever is in it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Kept<T> {
    id: String,
    content: T,
}

/// What a server refers to in the head it puts in place.
#[derive(Default)]
struct Own {
    documents: Option<Arc<Source>>,
    version: Option<(Reference, Arc<Issued>)>,
}

/// A head that is to follow, and what it refers to that is not kept yet.
struct Next {
    head: Head,
    documents: Option<(Bundle, Parts)>,
    issued: Option<Issued>,
}

/// What this server signs with.
pub struct Signer {
    pub keys: Vec<SigningKey>,
    pub issuer: String,
    /// The digest of the first trust root.
    pub trust: Digest,
    pub roots: watch::Receiver<Roots>,
    /// How long a freshness statement is good.
    pub freshness: Duration,
}

impl Signer {
    fn can_sign(&self, role: Role, root: &TrustRoot) -> Result<(), Error> {
        if root.lets_sign(role, &self.keys) {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "trust root {} wants other or more keys for `{role}` than this server has; start it with `--key` for each \
             that is needed",
            root.version
        )))
    }
}

/// Everything that is issued.
pub struct Ledger {
    store: Arc<dyn Store>,
    signer: Signer,
    content: Mutex<Arc<Content>>,
    /// Held by whoever replaces the head, or reads it.
    heading: tokio::sync::Mutex<()>,
    /// Held by whoever adds revocations, or reads them. They wait for nothing else.
    revoking: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
}

impl Ledger {
    /// With what is in the store.
    pub async fn open(store: Arc<dyn Store>, signer: Signer) -> Result<Self, Error> {
        let ledger = Self {
            store,
            content: Mutex::new(Arc::new(Content {
                head: Head {
                    trust: signer.trust.clone(),
                    ..Head::default()
                },
                ..Content::default()
            })),
            signer,
            heading: tokio::sync::Mutex::default(),
            revoking: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(0),
        };
        ledger.refresh().await?;
        Ok(ledger)
    }

    fn guard(&self) -> MutexGuard<'_, Arc<Content>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self) -> Arc<Content> {
        self.guard().clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(Arc::make_mut(&mut self.guard()))
    }

    /// Tells when there is something new.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Has everybody look whether there is something new for them.
    pub fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Whether nodes with this trust root would believe this server.
    ///
    /// # Errors
    /// For what it has too few keys.
    fn can_sign_under(&self, root: &TrustRoot) -> Result<(), Error> {
        self.signer.can_sign(Role::Revocation, root)?;
        self.signer.can_sign(Role::Freshness, root)?;
        match self.content().head.documents {
            Some(_) => self.signer.can_sign(Role::Bundle, root),
            None => Ok(()),
        }
    }

    /// What is in force.
    pub fn committed(&self) -> Committed {
        self.content().committed()
    }

    /// Takes what other servers have committed.
    pub async fn refresh(&self) -> Result<(), Error> {
        self.refresh_revocations().await?;
        self.refresh_head(self.heading.lock().await).await
    }

    /// The same, but does not wait for the head while this server makes another one, which takes long if it is large.
    pub async fn refresh_meanwhile(&self) -> Result<(), Error> {
        self.refresh_revocations().await?;
        match self.heading.try_lock() {
            Ok(turn) => self.refresh_head(turn).await,
            Err(_) => Ok(()),
        }
    }

    async fn refresh_revocations(&self) -> Result<(), Error> {
        let revoked = {
            let _turn = self.revoking.lock().await;
            self.read_revocations().await?
        };
        if revoked {
            self.announce();
        }
        Ok(())
    }

    async fn refresh_head(&self, turn: tokio::sync::MutexGuard<'_, ()>) -> Result<(), Error> {
        let headed = self.read_head(None).await?;
        drop(turn);
        if headed {
            self.announce();
        }
        Ok(())
    }

    /// With `revoking` held.
    async fn read_revocations(&self) -> Result<bool, Error> {
        let last = self.content().last_revocation();
        let new = self.store.revocations(last).await?;
        let any = !new.is_empty();
        for envelope in new {
            self.change(|content| content.take(envelope))?;
        }
        Ok(any)
    }

    /// With `heading` held. `own` is what this server has put there itself.
    async fn read_head(&self, own: Option<Own>) -> Result<bool, Error> {
        let Some((head, revision)) = self.store.head().await? else {
            return Ok(false);
        };
        let known = self.content();
        if revision == known.revision {
            return Ok(false);
        }
        if head.trust != self.signer.trust {
            return Err(Error::Refused(
                "what is in the store was issued under another trust root; give this server the trust.json, ca.pem, \
                 ca.key and keys of the one that made it"
                    .to_owned(),
            ));
        }
        if head.version() < known.head.version() {
            return Err(Error::Refused(format!(
                "the store says that version {} is in force, and {} was: it has been set back",
                head.version(),
                known.head.version()
            )));
        }
        let own = own.unwrap_or_default();
        let documents = match &head.documents {
            None => None,
            Some(reference) => {
                let mut known = [own.documents, known.documents.clone()]
                    .into_iter()
                    .flatten();
                match known.find(|it| it.reference == *reference) {
                    Some(known) => Some(known),
                    None => Some(Arc::new(self.read_documents(reference).await?)),
                }
            }
        };
        let mut versions = Vec::new();
        for reference in &head.versions {
            let mut known = own.version.iter().chain(&known.versions);
            versions.push(match known.find(|it| it.0 == *reference) {
                Some(known) => known.clone(),
                None => {
                    let kept: Kept<Version> = self.read_blob(&reference.blob).await?;
                    let issued = Issued::kept(kept.content)?;
                    (reference.clone(), Arc::new(issued))
                }
            });
        }
        self.change(|content| {
            content.head = head;
            content.revision = revision;
            content.documents = documents;
            content.versions = versions;
        });
        Ok(true)
    }

    async fn read_blob<T: DeserializeOwned>(&self, digest: &Digest) -> Result<T, Error> {
        let bytes = self.store.blob(digest).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::Refused(format!("the blob {digest} is something else: {error}"))
        })
    }

    async fn read_documents(&self, reference: &Reference) -> Result<Source, Error> {
        let kept: Kept<store::Source> = self.read_blob(&reference.blob).await?;
        let store::Source { metadata, parts } = kept.content;
        let bundle = parts.bundle("the documents in the store", &metadata)?;
        Ok(Source {
            reference: reference.clone(),
            bundle,
            parts,
        })
    }

    async fn keep<T: Serialize>(&self, version: u64, content: T) -> Result<Reference, Error> {
        let id = crate::random_hex();
        let kept = Kept { id, content };
        let bytes = serde_json::to_vec(&kept).map_err(|it| Error::Refused(it.to_string()))?;
        let blob = self.store.keep(&bytes).await?;
        Ok(Reference { version, blob })
    }

    /// Commits what `plan` makes of what is there; `false` if it makes nothing of it.
    async fn commit(
        &self,
        plan: impl Fn(&Content) -> Result<Option<Next>, Error>,
    ) -> Result<bool, Error> {
        let _turn = self.heading.lock().await;
        for _ in 0..TRIES {
            let content = self.content();
            let Some(Next {
                mut head,
                documents,
                issued,
            }) = tokio::task::block_in_place(|| plan(&content))?
            else {
                return Ok(false);
            };
            let mut own = Own::default();
            let mut added = Vec::new();
            let mut dropped = Vec::new();
            if let Some((bundle, parts)) = documents {
                let source = store::Source {
                    metadata: metadata(&bundle),
                    parts,
                };
                let reference = self.keep(bundle.metadata.version, &source).await?;
                added.push(reference.blob.clone());
                dropped.extend(head.documents.replace(reference.clone()));
                let parts = source.parts;
                own.documents = Some(Arc::new(Source {
                    reference,
                    bundle,
                    parts,
                }));
            }
            if let Some(issued) = issued {
                let version = issued.record.version;
                let reference = self.keep(version, issued.keep()).await?;
                added.push(reference.blob.clone());
                head.versions.push(reference.clone());
                if head.versions.len() > HISTORY {
                    dropped.push(head.versions.remove(0));
                }
                own.version = Some((reference, Arc::new(issued)));
            }
            head.change = crate::random_hex();
            if self.store.replace_head(&head, content.revision).await? {
                if let Some((reference, _)) = &own.version {
                    tracing::info!(version = reference.version, "issued");
                }
                self.read_head(Some(own)).await?;
                self.announce();
                for reference in dropped {
                    self.store.forget(&reference.blob).await;
                }
                return Ok(true);
            }
            for blob in added {
                self.store.forget(&blob).await;
            }
            self.read_head(None).await?;
        }
        Err(Error::Refused(
            "other servers change things all the time; try again".to_owned(),
        ))
    }

    /// States anew that nothing is newer, once that is certain.
    pub async fn freshen(&self) -> Result<(), Error> {
        let now = Timestamp::now();
        self.store.confirm().await?;
        self.refresh().await?;
        let committed = self.committed();
        if committed.version == 0 {
            return Ok(());
        }
        let freshness = Freshness {
            issuer: self.signer.issuer.clone(),
            version: committed.version,
            revocation_sequence: committed.sequence,
            as_of: now,
            valid_until: now + self.signer.freshness,
        };
        let stated = Stated {
            at: now,
            than: (committed.version, committed.sequence),
            envelope: freshness.sign(&self.signer.keys).into(),
        };
        self.change(|content| content.freshness = Some(stated));
        self.announce();
        Ok(())
    }

    /// After a change that is committed: what fails here is made up for by the next statement.
    async fn freshen_if_possible(&self) {
        if let Err(error) = self.freshen().await {
            tracing::warn!("cannot tell nodes that nothing is newer: {}", error.chain());
        }
    }

    /// When the next grant ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        let content = self.content();
        content.head.grants.values().map(|it| it.until).min()
    }

    /// Notes who did what.
    pub async fn audit(&self, action: &str, what: &Value) -> Result<(), Error> {
        self.note(Log::Audit, action, what).await
    }

    async fn note(&self, log: Log, action: &str, what: &Value) -> Result<(), Error> {
        let line = json!({"time": Timestamp::now(), "action": action, "what": what});
        self.store.note(log, &line).await
    }
}

/// What of a bundle's metadata counts here, as a document says it.
fn metadata(bundle: &Bundle) -> Value {
    let metadata = &bundle.metadata;
    let mut value = json!({"issuer": metadata.issuer, "version": metadata.version});
    if let Some(expires_at) = metadata.expires_at {
        value["expiresAt"] = json!(expires_at);
    }
    value
}
