//! What has been issued, granted and taken back: on disk first, then for everybody to see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enforcer_bundle::{Activation, Bundle, Kind, Parts};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Error;
use super::issued::{Issued, Record};
use crate::contract;
use crate::envelope::Envelope;
use crate::files;
use crate::keys::SigningKey;
use crate::statement::{Freshness, Revocation, Snapshot, Statement as _, Target};
use crate::trust::TrustRoot;

/// After so many revocations there is a version that includes them: nodes need not keep more.
const MOST_REVOCATIONS: u64 = 256;
/// How many versions are kept for deltas.
const HISTORY: usize = 32;
/// The longest time that an entitlement can be granted for.
const LONGEST_GRANT: SignedDuration = SignedDuration::from_hours(24);

/// An entitlement that was granted for a time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Granted {
    entitlement: String,
    from: Timestamp,
    until: Timestamp,
    by: String,
    reason: String,
    ticket: Option<String>,
    break_glass: bool,
}

/// What there is besides the versions and the revocations.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Saved {
    grants: BTreeMap<String, Granted>,
    revoked: BTreeSet<Target>,
}

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

/// What is committed.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub version: u64,
    pub sequence: u64,
    pub at: Timestamp,
}

struct Content {
    documents: Option<(Bundle, Parts)>,
    /// The last is in force.
    versions: VecDeque<Arc<Issued>>,
    revocations: Vec<(u64, contract::Envelope)>,
    saved: Saved,
    freshness: Option<(Timestamp, contract::Envelope)>,
}

/// Everything that is issued.
pub struct Ledger {
    directory: PathBuf,
    keys: Vec<SigningKey>,
    issuer: String,
    roots: Vec<(u64, contract::Envelope)>,
    freshness: Duration,
    content: Mutex<Content>,
    changed: watch::Sender<u64>,
}

/// What a node was sent last.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    pub root: u64,
    pub version: u64,
    pub digest: String,
    pub sequence: u64,
    pub fresh: Option<Timestamp>,
    /// What it has in force: the version, the revocation.
    pub has: (u64, u64),
    /// It does not take this version.
    pub refused: Option<u64>,
    pub wants_snapshot: bool,
}

impl Ledger {
    /// Opens what is in the directory. Freshness statements are good for `freshness`.
    pub fn open(
        directory: &Path,
        keys: Vec<SigningKey>,
        root: &TrustRoot,
        freshness: Duration,
    ) -> Result<Self, Error> {
        let issued = directory.join("issued");
        fs::create_dir_all(&issued).map_err(Error::io(&issued))?;
        let mut versions: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&issued).map_err(Error::io(&issued))? {
            let path = entry.map_err(Error::io(&issued))?.path();
            let version = path.file_stem().and_then(|it| it.to_str()?.parse().ok());
            versions.extend(version.map(|version| (version, path)));
        }
        versions.sort();
        let mut loaded = VecDeque::new();
        for (_, path) in &versions[versions.len().saturating_sub(HISTORY)..] {
            let record: Record = read_json(path)?.ok_or_else(|| Error::gone(path))?;
            loaded.push_back(Arc::new(Issued::new(record)?));
        }
        let mut revocations = Vec::new();
        let mut taken_back = Vec::new();
        let path = directory.join("revocations.jsonl");
        let lines = files::read(&path).map_err(Error::io(&path))?;
        for line in lines.unwrap_or_default().split(|byte| *byte == b'\n') {
            // A line that was not written whole was not committed.
            if let Ok(envelope) = serde_json::from_slice::<Envelope>(line) {
                let revocation: Revocation = serde_json::from_slice(&envelope.payload)
                    .map_err(|error| Error::content(&path, &error))?;
                revocations.push((revocation.sequence, envelope.into()));
                taken_back.push(revocation);
            }
        }
        let mut saved: Saved = read_json(&directory.join("state.json"))?.unwrap_or_default();
        let included = loaded
            .back()
            .map_or(0, |it: &Arc<Issued>| it.record.includes_revocations);
        // The last server may have died before it noted them.
        let noted = taken_back.into_iter();
        let since = noted.filter(|it| it.sequence > included);
        saved.revoked.extend(since.flat_map(|it| it.targets));
        Ok(Self {
            directory: directory.to_owned(),
            keys,
            issuer: root.issuer.clone(),
            roots: roots(&directory.join("roots"))?,
            freshness,
            content: Mutex::new(Content {
                documents: None,
                versions: loaded,
                revocations,
                saved,
                freshness: None,
            }),
            changed: watch::Sender::new(0),
        })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when there is something new.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// What is in force.
    pub fn committed(&self) -> Committed {
        self.content().committed()
    }

    /// The documents are others, perhaps: issues a new version if anything is.
    pub fn set_documents(&self, documents: Documents) -> Result<Committed, Error> {
        let mut content = self.content();
        match documents {
            Documents::Plain(bundle, parts) => {
                content.documents = Some((*bundle, parts));
                self.issue(&mut content, false)?;
            }
            Documents::Signed(snapshot, envelope) => {
                if snapshot.head.issuer != self.issuer {
                    return Err(Error::Refused(format!(
                        "the bundle is issued by {:?}, and the trust root by {:?}",
                        snapshot.head.issuer, self.issuer
                    )));
                }
                let issued = Issued::signed(*snapshot, envelope.into())?;
                let last = content.committed().version;
                if issued.record.version < last {
                    return Err(Error::Refused(format!(
                        "the signed bundle has version {}, and {last} was issued already",
                        issued.record.version
                    )));
                }
                content.documents = None;
                self.add(&mut content, issued)?;
            }
        }
        let committed = content.committed();
        drop(content);
        self.announce();
        Ok(committed)
    }

    /// Issues what the documents and the grants make, if it differs from what is in force.
    fn issue(&self, content: &mut Content, anyway: bool) -> Result<(), Error> {
        let Some((bundle, parts)) = &content.documents else {
            return Ok(());
        };
        if bundle.metadata.issuer != self.issuer {
            return Err(Error::Refused(format!(
                "the documents are of the issuer {:?}, and the trust root says {:?}",
                bundle.metadata.issuer, self.issuer
            )));
        }
        let now = Timestamp::now();
        let parts = compose(bundle, parts, &content.saved.grants, now);
        let last = content.versions.back();
        let expires_at = bundle.metadata.expires_at;
        let same = last.is_some_and(|last| {
            last.digest == parts.digest() && last.record.expires_at == expires_at
        });
        if same && !anyway {
            return Ok(());
        }
        let before = last.map_or(0, |last| last.record.version);
        let issued = Issued::new(Record {
            issuer: self.issuer.clone(),
            version: bundle.metadata.version.max(before + 1),
            issued_at: now,
            expires_at,
            includes_revocations: content.committed().sequence,
            revoked: content.saved.revoked.iter().cloned().collect(),
            parts: Arc::new(parts),
        })?;
        self.add(content, issued)
    }

    fn add(&self, content: &mut Content, issued: Issued) -> Result<(), Error> {
        let path = |version| self.directory.join(format!("issued/{version:020}.json"));
        if !issued.is_signed() {
            write_json(&path(issued.record.version), &issued.record)?;
        }
        tracing::info!(version = issued.record.version, "issued");
        content.versions.push_back(Arc::new(issued));
        if content.versions.len() > HISTORY
            && let Some(old) = content.versions.pop_front()
        {
            // If it stays, it is only that.
            let _ = fs::remove_file(path(old.record.version));
        }
        self.sign_freshness(content);
        Ok(())
    }

    /// States anew that nothing is newer.
    pub fn freshen(&self) {
        let mut content = self.content();
        self.sign_freshness(&mut content);
        drop(content);
        self.announce();
    }

    fn sign_freshness(&self, content: &mut Content) {
        let committed = content.committed();
        if committed.version == 0 {
            return;
        }
        let now = Timestamp::now();
        let freshness = Freshness {
            issuer: self.issuer.clone(),
            version: committed.version,
            revocation_sequence: committed.sequence,
            as_of: now,
            valid_until: now + self.freshness,
        };
        content.freshness = Some((now, freshness.sign(&self.keys).into()));
    }

    /// Makes an entitlement one in force for `duration`.
    pub fn grant(
        &self,
        id: &str,
        duration: Duration,
        request: &Request,
    ) -> Result<Committed, Error> {
        let mut content = self.content();
        let refused = |reason: String| Err(Error::Refused(reason));
        let Some((bundle, _)) = &content.documents else {
            return refused(
                "the bundle is signed elsewhere, or there is none: nothing can be granted here"
                    .to_owned(),
            );
        };
        let Some(entitlement) = bundle.entitlements.iter().find(|it| it.id == id) else {
            return refused(format!("there is no entitlement {id:?}"));
        };
        let break_glass = match entitlement.activation {
            Activation::Always => {
                return refused(format!(
                    "{id} is in force by itself; `activation: on-request` would make it one to be granted"
                ));
            }
            Activation::OnRequest => false,
            Activation::BreakGlass => true,
        };
        if request.reason.trim().is_empty() {
            return refused("a grant needs a reason".to_owned());
        }
        if break_glass && request.ticket.is_none() {
            return refused(format!(
                "{id} is for emergencies (break-glass): a ticket is needed"
            ));
        }
        let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        if duration.is_zero() || duration > LONGEST_GRANT {
            return refused(format!(
                "got {duration:#}, expected more than nothing and at most {LONGEST_GRANT:#}"
            ));
        }
        let from = Timestamp::now();
        let granted = Granted {
            entitlement: id.to_owned(),
            from,
            until: from + duration,
            by: request.by.clone(),
            reason: request.reason.clone(),
            ticket: request.ticket.clone(),
            break_glass,
        };
        let before = content.saved.clone();
        content.saved.grants.insert(id.to_owned(), granted.clone());
        self.save(&content.saved)?;
        if let Err(error) = self.issue(&mut content, true) {
            content.saved = before;
            self.save(&content.saved)?;
            return Err(error);
        }
        let committed = content.committed();
        drop(content);
        let what = if break_glass {
            tracing::warn!(entitlement = id, by = granted.by, ticket = granted.ticket, until = %granted.until, "BREAK-GLASS: granted for an emergency");
            "break-glass"
        } else {
            "grant"
        };
        self.audit(what, &json!(granted))?;
        self.announce();
        Ok(committed)
    }

    /// Takes back, at once.
    pub fn revoke(&self, target: Target, request: &Request) -> Result<Committed, Error> {
        let mut content = self.content();
        content.check(&target)?;
        let revocation = Revocation {
            issuer: self.issuer.clone(),
            sequence: content.committed().sequence + 1,
            issued_at: Timestamp::now(),
            targets: vec![target.clone()],
            reason: request.reason.clone(),
            ticket: request.ticket.clone(),
        };
        let envelope = revocation.sign(&self.keys);
        let path = self.directory.join("revocations.jsonl");
        let line = serde_json::to_string(&envelope).map_err(io::Error::from);
        line.and_then(|line| files::append(&path, &line))
            .map_err(Error::io(&path))?;
        content
            .revocations
            .push((revocation.sequence, envelope.into()));
        content.saved.revoked.insert(target);
        let last = content.versions.back();
        let included = last.map_or(0, |it| it.record.includes_revocations);
        if revocation.sequence - included >= MOST_REVOCATIONS {
            self.issue(&mut content, true)?;
        }
        self.sign_freshness(&mut content);
        let committed = content.committed();
        let saved = content.saved.clone();
        drop(content);
        // Nodes need not wait for the rest.
        self.announce();
        self.save(&saved)?;
        self.audit(
            "revoke",
            &json!({"by": request.by, "revocation": revocation}),
        )?;
        Ok(committed)
    }

    /// Lets a revocation go, by a bundle that includes it and does not take back any more.
    pub fn restore(&self, target: &Target, request: &Request) -> Result<Committed, Error> {
        let mut content = self.content();
        if content.documents.is_none() {
            return Err(Error::Refused(
                "the bundle is signed elsewhere: a bundle that includes the revocation has to come from there".to_owned(),
            ));
        }
        if !content.saved.revoked.remove(target) {
            return Err(Error::Refused(format!("{} is not revoked", json!(target))));
        }
        self.save(&content.saved)?;
        self.issue(&mut content, true)?;
        let committed = content.committed();
        drop(content);
        self.audit(
            "restore",
            &json!({"by": request.by, "reason": request.reason, "ticket": request.ticket, "target": target}),
        )?;
        self.announce();
        Ok(committed)
    }

    /// Ends the grants whose time has come. The nodes have ended them by themselves.
    pub fn end_grants(&self) -> Result<(), Error> {
        let now = Timestamp::now();
        let mut content = self.content();
        let ended: Vec<Granted> = (content.saved.grants.values())
            .filter(|it| it.until <= now)
            .cloned()
            .collect();
        if ended.is_empty() {
            return Ok(());
        }
        content.saved.grants.retain(|_, it| it.until > now);
        self.save(&content.saved)?;
        self.issue(&mut content, false)?;
        drop(content);
        for granted in ended {
            if granted.break_glass {
                tracing::warn!(
                    entitlement = granted.entitlement,
                    ticket = granted.ticket,
                    "BREAK-GLASS: ended; its use has to be reviewed"
                );
                self.write("findings.jsonl", "break-glass-ended", &json!(granted))?;
            }
            self.audit("grant-ended", &json!(granted))?;
        }
        self.announce();
        Ok(())
    }

    /// When the next grant ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        let content = self.content();
        content.saved.grants.values().map(|it| it.until).min()
    }

    fn save(&self, saved: &Saved) -> Result<(), Error> {
        write_json(&self.directory.join("state.json"), saved)
    }

    /// Notes who did what.
    pub fn audit(&self, action: &str, what: &Value) -> Result<(), Error> {
        self.write("audit.jsonl", action, what)
    }

    fn write(&self, file: &str, action: &str, what: &Value) -> Result<(), Error> {
        let path = self.directory.join(file);
        let line = json!({"time": Timestamp::now(), "action": action, "what": what});
        files::append(&path, &line.to_string()).map_err(Error::io(&path))
    }

    /// What a node with these labels lacks, in the order in which it can take it.
    pub fn lacking(
        &self,
        labels: &enforcer_bundle::Labels,
        sent: &mut Sent,
    ) -> Vec<contract::server_message::Message> {
        use contract::server_message::Message;
        let mut messages = Vec::new();
        for (version, root) in &self.roots {
            if *version > sent.root {
                messages.push(Message::TrustRoot(root.clone()));
                sent.root = *version;
            }
        }
        let content = self.content();
        let Some(issued) = content.versions.back() else {
            return messages;
        };
        let refused = sent.refused == Some(issued.record.version);
        if (issued.record.version != sent.version && !refused) || sent.wants_snapshot {
            let edition = issued.edition(labels);
            let base = (content.versions.iter())
                .find(|it| it.record.version == sent.version && !sent.wants_snapshot)
                .map(|it| it.edition(labels))
                .filter(|it| it.digest().0 == sent.digest);
            let newest = base.filter(|_| !issued.is_signed());
            messages.push(match newest {
                Some(base) => Message::Delta(edition.delta(&base, &self.keys)),
                None => Message::Snapshot(edition.snapshot(&self.keys)),
            });
            sent.version = issued.record.version;
            sent.digest.clone_from(&edition.digest().0);
            sent.sequence = sent.sequence.max(issued.record.includes_revocations);
            sent.wants_snapshot = false;
        }
        for (sequence, revocation) in &content.revocations {
            if *sequence > sent.sequence {
                messages.push(Message::Revocation(revocation.clone()));
                sent.sequence = *sequence;
            }
        }
        // That nothing is newer than what it has.
        let committed = content.committed();
        if let Some((at, freshness)) = &content.freshness
            && sent.fresh != Some(*at)
            && sent.has == (committed.version, committed.sequence)
        {
            messages.push(Message::Freshness(freshness.clone()));
            sent.fresh = Some(*at);
        }
        messages
    }
}

impl Content {
    fn committed(&self) -> Committed {
        let last = self.versions.back().map(|it| &it.record);
        let included = last.map_or(0, |it| it.includes_revocations);
        let sequence = self.revocations.last().map_or(0, |(sequence, _)| *sequence);
        Committed {
            version: last.map_or(0, |it| it.version),
            sequence: sequence.max(included),
            at: Timestamp::now(),
        }
    }

    /// Whether there is such a thing.
    fn check(&self, target: &Target) -> Result<(), Error> {
        let issued = self.versions.back().map(|it| it.bundle());
        let documents = self.documents.as_ref().map(|(bundle, _)| bundle);
        let mut bundles = issued.into_iter().chain(documents);
        let known = bundles.any(|bundle| match target {
            Target::Entitlement(id) => bundle.entitlements.iter().any(|it| it.id == *id),
            Target::Credential(id) => bundle.credentials.iter().any(|it| it.id == *id),
            Target::Workload(id) => bundle.workloads.iter().any(|it| it.id == *id),
        });
        if known {
            return Ok(());
        }
        let target = json!(target);
        Err(Error::Refused(format!(
            "there is no such thing as {target}"
        )))
    }
}

/// The parts with what is granted now, and without what is not.
fn compose(
    bundle: &Bundle,
    parts: &Parts,
    grants: &BTreeMap<String, Granted>,
    now: Timestamp,
) -> Parts {
    let mut parts = parts.clone();
    let Some(items) = parts.items.get_mut(&Kind::Entitlements) else {
        return parts;
    };
    for entitlement in &bundle.entitlements {
        if entitlement.activation == Activation::Always {
            continue;
        }
        let granted = grants.get(&entitlement.id).filter(|it| now < it.until);
        let (Some(granted), Some(Value::Object(item))) = (granted, items.get_mut(&entitlement.id))
        else {
            items.remove(&entitlement.id);
            continue;
        };
        item.remove("activation");
        let until = entitlement
            .valid_until
            .map_or(granted.until, |end| end.min(granted.until));
        item.insert("validFrom".to_owned(), json!(granted.from));
        item.insert("validUntil".to_owned(), json!(until));
        item.entry("onStale").or_insert_with(|| json!("deny"));
        let approval = item.entry("approval").or_insert_with(|| json!({}));
        approval["approver"] = json!(granted.by);
        if let Some(ticket) = &granted.ticket {
            approval["ticket"] = json!(ticket);
        }
    }
    parts.items.retain(|_, items| !items.is_empty());
    parts
}

/// The trust roots after the first, by version.
pub(super) fn roots(directory: &Path) -> Result<Vec<(u64, contract::Envelope)>, Error> {
    let mut roots = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(roots);
    };
    for entry in entries {
        let path = entry.map_err(Error::io(directory))?.path();
        let envelope: Envelope = read_json(&path)?.ok_or_else(|| Error::gone(&path))?;
        let root: TrustRoot = serde_json::from_slice(&envelope.payload)
            .map_err(|error| Error::content(&path, &error))?;
        roots.push((root.version, envelope.into()));
    }
    roots.sort_by_key(|(version, _)| *version);
    Ok(roots)
}

/// What is in a file; `None` if there is none.
pub(super) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, Error> {
    let Some(bytes) = files::read(path).map_err(Error::io(path))? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::content(path, &error))
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    serde_json::to_vec(value)
        .map_err(io::Error::from)
        .and_then(|bytes| files::replace(path, &bytes))
        .map_err(Error::io(path))
}
