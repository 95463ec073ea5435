//! What a node has from governance, and what it takes next. Pure: time is an argument, and nothing is written.
//!
//! [`Held::take`] makes of what is held and an envelope what would be held after it. Only when the kernel has that in
//! force does it count (the caller keeps the one or the other), so a refusal never leaves anything half done.

use std::collections::BTreeMap;
use std::sync::Arc;

use enforcer_bundle::{Bundle, Digest, Entitlement, Labels, Mistakes, Parts};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::contract;
use crate::envelope::Envelope;
use crate::statement::{Delta, Freshness, Head, Revocation, Snapshot, Statement, Target};
use crate::trust::{TooFew, TrustRoot};

/// Most bytes of a payload: as many as a bundle may have, and half as many again for what is around it.
pub const MAX_PAYLOAD: usize = enforcer_bundle::MAX_BYTES as usize * 3 / 2;

/// Most deltas on one snapshot: what is kept has to be read again at a start.
pub const MAX_DELTAS: usize = 64;

/// Why something from governance is not taken. What was held stays.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is something that this version does not know.
    #[error("got {0:?}, expected a snapshot, delta, revocation, freshness statement or trust root")]
    Type(String),
    /// It is too large.
    #[error("got a payload of {got} bytes, expected at most {MAX_PAYLOAD}")]
    Size {
        /// Its bytes.
        got: usize,
    },
    /// Too few signatures.
    #[error(transparent)]
    Signatures(#[from] TooFew),
    /// It is signed, and no statement.
    #[error("what was signed as {kind} cannot be read: {reason}")]
    Malformed {
        /// What it is said to be.
        kind: &'static str,
        /// Where it goes wrong.
        reason: String,
    },
    /// It is about another governance service's bundles.
    #[error("it is issued by {got:?}, expected {expected:?}, as the trust root says")]
    Issuer {
        /// By whom.
        got: String,
        /// By whom it should be.
        expected: String,
    },
    /// It is for other nodes.
    #[error("it is for the audience {audience}, and this node has the labels {labels}")]
    Audience {
        /// For whom.
        audience: String,
        /// This node.
        labels: String,
    },
    /// It is older than what was seen here.
    #[error(
        "it has version {got}, and version {seen} was in force here: older ones do not come back"
    )]
    Older {
        /// Its version.
        got: u64,
        /// The highest seen.
        seen: u64,
    },
    /// There are two of one version.
    #[error("it has version {0} as what is in force, and another content")]
    Another(u64),
    /// It has ended.
    #[error("it expired at {0}")]
    Expired(Timestamp),
    /// A delta that starts from something else.
    #[error("it starts from {got}, and what is in force is {have}; a snapshot is needed")]
    Base {
        /// Where it starts.
        got: String,
        /// What is here.
        have: String,
    },
    /// Too many deltas.
    #[error("there are {MAX_DELTAS} deltas on the snapshot already; a snapshot is needed")]
    TooManyDeltas,
    /// The parts are others than the digest says.
    #[error("its parts have the digest {got}, and it says {expected}")]
    Digest {
        /// What they have.
        got: Digest,
        /// What was signed.
        expected: Digest,
    },
    /// The list of entitlements and the parts do not agree.
    #[error("the entitlement {0:?} is listed and not there, or there and not listed, or another")]
    Entitlement(String),
    /// A part is filed under another id than its own.
    #[error("the part {0:?} has another id in it")]
    Id(String),
    /// A bundle that knows less of what was taken back than the one before.
    #[error("it includes revocations up to {got}, and what is in force includes {have}")]
    Forgets {
        /// Up to where.
        got: u64,
        /// Up to where what is held does.
        have: u64,
    },
    /// One or more are missing before it.
    #[error(
        "it is revocation {got}, and the next one is {expected}; what is between was kept back"
    )]
    Gap {
        /// Its sequence.
        got: u64,
        /// The one that should come.
        expected: u64,
    },
    /// A statement about what this node does not have.
    #[error(
        "it is about version {version} and revocation {sequence}, and here are {have_version} and {have_sequence}"
    )]
    Behind {
        /// The last version there.
        version: u64,
        /// The last revocation there.
        sequence: u64,
        /// The version here.
        have_version: u64,
        /// The revocation here.
        have_sequence: u64,
    },
    /// A trust root that does not follow.
    #[error(
        "it is trust root {got}, expected {expected}, signed by the one before it and by itself"
    )]
    Root {
        /// Its version.
        got: u64,
        /// The one that should come.
        expected: u64,
    },
    /// There are two trust roots of one version.
    #[error("it is trust root {0} as the one that was in force here, and another content")]
    AnotherRoot(u64),
    /// Judged by a trust root that newer ones have taken the place of.
    #[error(
        "trust root {have} is held, and it is not the trust root {seen} that was in force here, nor follows it; that one has to come first"
    )]
    RootBehind {
        /// The version of the one that is held.
        have: u64,
        /// The version of the one that was in force.
        seen: u64,
    },
    /// A trust root that trusts nobody, or anybody.
    #[error("the trust root is no good: {0}")]
    RootUnsound(String),
    /// The trust root has ended.
    #[error("the trust root expired at {0}; a new one has to be signed by its keys")]
    RootExpired(Timestamp),
    /// It is no consistent bundle.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

impl Refusal {
    /// Whether a whole snapshot would help.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        matches!(
            self,
            Self::Base { .. } | Self::TooManyDeltas | Self::Digest { .. }
        )
    }
}

/// What became another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Nothing: it was known.
    Nothing,
    /// The bundle.
    Bundle,
    /// What is taken back.
    Revocations,
    /// Until when it is known that nothing is newer.
    Freshness,
    /// Who may sign.
    Root,
}

/// A bundle that was taken.
#[derive(Clone, Debug)]
struct Current {
    head: Head,
    parts: Arc<Parts>,
    /// Without what was taken back since.
    bundle: Arc<Bundle>,
    /// A snapshot, and deltas that lead from it here.
    chain: Vec<Arc<Envelope>>,
}

/// What a node has from governance.
#[derive(Clone, Debug)]
pub struct Held {
    labels: Labels,
    root: TrustRoot,
    /// The roots before that one.
    before: Vec<TrustRoot>,
    /// The roots after the first one.
    roots: Vec<Arc<Envelope>>,
    current: Option<Current>,
    /// What was in force here once. Nothing older comes back.
    seen: Numbers,
    revocations: BTreeMap<u64, (Revocation, Arc<Envelope>)>,
    sequence: u64,
    freshness: Option<(Freshness, Arc<Envelope>)>,
    /// What has to be in force of all this.
    effective: Option<Arc<Bundle>>,
}

/// The numbers that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Of the bundle.
    pub version: u64,
    /// Of the revocations.
    pub sequence: u64,
    /// The trust root.
    pub root: RootMark,
}

/// Which trust root it is. The version alone would not tell: who has the keys of an older root can sign another one of
/// that version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootMark {
    /// 0 for none.
    pub version: u64,
    /// The first half of its digest.
    pub digest: u128,
}

impl RootMark {
    fn of(root: &TrustRoot) -> Self {
        let Digest(digest) = Digest::of(&json!(root));
        Self {
            version: root.version,
            digest: u128::from_str_radix(&digest[..32], 16).unwrap_or(u128::MAX),
        }
    }
}

impl Held {
    /// Nothing but whom to trust. `labels` are the node's.
    ///
    /// # Errors
    /// [`Refusal::RootUnsound`].
    pub fn new(root: TrustRoot, labels: Labels) -> Result<Self, Refusal> {
        root.check().map_err(Refusal::RootUnsound)?;
        Ok(Self {
            labels,
            root,
            before: Vec::new(),
            roots: Vec::new(),
            current: None,
            seen: Numbers::default(),
            revocations: BTreeMap::new(),
            sequence: 0,
            freshness: None,
            effective: None,
        })
    }

    /// Nothing below these is taken any more, and no bundle is in force before all of it is there.
    pub fn has_seen(&mut self, numbers: Numbers) {
        self.seen.version = self.seen.version.max(numbers.version);
        self.seen.sequence = self.seen.sequence.max(numbers.sequence);
        if numbers.root.version > self.seen.root.version {
            self.seen.root = numbers.root;
        }
        self.settle();
    }

    /// Whether the trust root that was in force here once is the one that is held, or one before it.
    fn root_is_there(&self) -> bool {
        let seen = self.seen.root;
        let mut roots = self.before.iter().chain([&self.root]);
        seen.version == 0 || roots.any(|root| RootMark::of(root) == seen)
    }

    /// What would be held after this, and what is another then.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn take(&self, envelope: &Envelope, now: Timestamp) -> Result<(Self, Changed), Refusal> {
        self.next(envelope, Some(now))
    }

    /// The same for what was taken at an earlier time, so that it may have expired since.
    pub(crate) fn take_again(&self, envelope: &Envelope) -> Result<Self, Refusal> {
        self.next(envelope, None).map(|(held, _)| held)
    }

    fn next(
        &self,
        envelope: &Envelope,
        now: Option<Timestamp>,
    ) -> Result<(Self, Changed), Refusal> {
        if envelope.payload.len() > MAX_PAYLOAD {
            let got = envelope.payload.len();
            return Err(Refusal::Size { got });
        }
        match envelope.payload_type.as_str() {
            Snapshot::TYPE => self.snapshot(envelope, now),
            Delta::TYPE => self.delta(envelope, now),
            Revocation::TYPE => self.revocation(envelope, now),
            Freshness::TYPE => self.freshness(envelope, now),
            TrustRoot::TYPE => self.trust_root(envelope),
            other => Err(Refusal::Type(other.to_owned())),
        }
    }

    /// The statement, if those who may have signed it.
    fn open<S: Statement>(
        &self,
        envelope: &Envelope,
        kind: &'static str,
        now: Option<Timestamp>,
    ) -> Result<S, Refusal> {
        if !self.root_is_there() {
            return Err(Refusal::RootBehind {
                have: self.root.version,
                seen: self.seen.root.version,
            });
        }
        let verified = self.root.verify(S::ROLE, envelope);
        // What was taken before the keys changed was good then.
        let was_good = |root: &TrustRoot| root.verify(S::ROLE, envelope).is_ok();
        if now.is_some() || !self.before.iter().any(was_good) {
            verified?;
        }
        if let (Some(now), Some(end)) = (now, self.root.expires_at)
            && now >= end
        {
            return Err(Refusal::RootExpired(end));
        }
        read(envelope, kind)
    }

    fn issued_here(&self, issuer: &str) -> Result<(), Refusal> {
        if issuer == self.root.issuer {
            return Ok(());
        }
        Err(Refusal::Issuer {
            got: issuer.to_owned(),
            expected: self.root.issuer.clone(),
        })
    }

    /// Whether a bundle may be the next. `false` if it is the one that is in force.
    fn follows(&self, head: &Head, now: Option<Timestamp>) -> Result<bool, Refusal> {
        self.issued_here(&head.issuer)?;
        if !head.audience.includes(&self.labels) {
            return Err(Refusal::Audience {
                audience: json!(head.audience).to_string(),
                labels: json!(self.labels).to_string(),
            });
        }
        if head.version < self.seen.version {
            return Err(Refusal::Older {
                got: head.version,
                seen: self.seen.version,
            });
        }
        if let Some(current) = &self.current {
            if head.version == current.head.version {
                if *head != current.head {
                    return Err(Refusal::Another(head.version));
                }
                return Ok(false);
            }
            let (got, have) = (head.includes_revocations, current.head.includes_revocations);
            if got < have {
                return Err(Refusal::Forgets { got, have });
            }
        }
        if let (Some(now), Some(end)) = (now, head.expires_at)
            && now >= end
        {
            return Err(Refusal::Expired(end));
        }
        Ok(true)
    }

    fn snapshot(
        &self,
        envelope: &Envelope,
        now: Option<Timestamp>,
    ) -> Result<(Self, Changed), Refusal> {
        let Snapshot {
            head,
            entitlements,
            parts,
        } = self.open(envelope, "a snapshot", now)?;
        if !self.follows(&head, now)? {
            return Ok((self.clone(), Changed::Nothing));
        }
        let there = parts.entitlement_digests();
        let mut ids = entitlements.keys().chain(there.keys());
        if let Some(id) = ids.find(|id| entitlements.get(*id) != there.get(*id)) {
            return Err(Refusal::Entitlement(id.clone()));
        }
        self.with(head, parts, vec![Arc::new(envelope.clone())])
    }

    fn delta(
        &self,
        envelope: &Envelope,
        now: Option<Timestamp>,
    ) -> Result<(Self, Changed), Refusal> {
        let Delta { head, base, change } = self.open(envelope, "a delta", now)?;
        if !self.follows(&head, now)? {
            return Ok((self.clone(), Changed::Nothing));
        }
        let Some(current) = self.current.as_ref().filter(|it| it.head.digest == base) else {
            let have = self.current.as_ref().map(|it| it.head.digest.to_string());
            return Err(Refusal::Base {
                got: base.to_string(),
                have: have.unwrap_or_else(|| "nothing".to_owned()),
            });
        };
        if current.chain.len() > MAX_DELTAS {
            return Err(Refusal::TooManyDeltas);
        }
        let mut chain = current.chain.clone();
        chain.push(Arc::new(envelope.clone()));
        self.with(head, current.parts.changed(&change), chain)
    }

    /// With this bundle.
    fn with(
        &self,
        head: Head,
        parts: Parts,
        chain: Vec<Arc<Envelope>>,
    ) -> Result<(Self, Changed), Refusal> {
        for (id, item) in parts.items.values().flatten() {
            if item.id().as_deref() != Some(id) {
                return Err(Refusal::Id(id.clone()));
            }
        }
        let got = parts.digest();
        if got != head.digest {
            let expected = head.digest;
            return Err(Refusal::Digest { got, expected });
        }
        let bundle = parts.bundle("governance", &metadata(&head))?;
        let mut held = self.clone();
        held.sequence = held.sequence.max(head.includes_revocations);
        held.has_seen(Numbers {
            version: head.version,
            sequence: held.sequence,
            ..Numbers::default()
        });
        held.revocations = held.revocations.split_off(&(head.includes_revocations + 1));
        held.current = Some(Current {
            head,
            parts: Arc::new(parts),
            bundle: Arc::new(bundle),
            chain,
        });
        held.settle();
        Ok((held, Changed::Bundle))
    }

    fn revocation(
        &self,
        envelope: &Envelope,
        now: Option<Timestamp>,
    ) -> Result<(Self, Changed), Refusal> {
        let revocation: Revocation = self.open(envelope, "a revocation", now)?;
        self.issued_here(&revocation.issuer)?;
        let (got, expected) = (revocation.sequence, self.sequence + 1);
        if got < expected {
            return Ok((self.clone(), Changed::Nothing));
        }
        if got > expected {
            return Err(Refusal::Gap { got, expected });
        }
        let mut held = self.clone();
        held.sequence = got;
        held.seen.sequence = held.seen.sequence.max(got);
        held.revocations
            .insert(got, (revocation, Arc::new(envelope.clone())));
        held.settle();
        Ok((held, Changed::Revocations))
    }

    fn freshness(
        &self,
        envelope: &Envelope,
        now: Option<Timestamp>,
    ) -> Result<(Self, Changed), Refusal> {
        let freshness: Freshness = self.open(envelope, "a freshness statement", now)?;
        self.issued_here(&freshness.issuer)?;
        if now.is_some_and(|now| now >= freshness.valid_until) {
            return Err(Refusal::Expired(freshness.valid_until));
        }
        let known = self.freshness.as_ref();
        if known.is_some_and(|(it, _)| freshness.as_of <= it.as_of) {
            return Ok((self.clone(), Changed::Nothing));
        }
        let have = self.numbers();
        if freshness.version > have.version || freshness.revocation_sequence > have.sequence {
            return Err(Refusal::Behind {
                version: freshness.version,
                sequence: freshness.revocation_sequence,
                have_version: have.version,
                have_sequence: have.sequence,
            });
        }
        let mut held = self.clone();
        held.freshness = Some((freshness, Arc::new(envelope.clone())));
        Ok((held, Changed::Freshness))
    }

    fn trust_root(&self, envelope: &Envelope) -> Result<(Self, Changed), Refusal> {
        self.root.verify(TrustRoot::ROLE, envelope)?;
        let root: TrustRoot = read(envelope, "a trust root")?;
        if root == self.root {
            return Ok((self.clone(), Changed::Nothing));
        }
        let (got, expected) = (root.version, self.root.version + 1);
        if got != expected {
            return Err(Refusal::Root { got, expected });
        }
        self.issued_here(&root.issuer)?;
        root.check().map_err(Refusal::RootUnsound)?;
        root.verify(TrustRoot::ROLE, envelope)?;
        let (mark, seen) = (RootMark::of(&root), self.seen.root);
        if mark.version == seen.version && mark != seen {
            return Err(Refusal::AnotherRoot(mark.version));
        }
        let mut held = self.clone();
        held.before.push(std::mem::replace(&mut held.root, root));
        held.roots.push(Arc::new(envelope.clone()));
        if held.effective.is_none() {
            held.settle();
        }
        Ok((held, Changed::Root))
    }

    /// The bundle as it has to be in force, with what was taken back since it was issued. `None` if there is none, or if
    /// something newer was in force here once. The same as long as nothing of it changes.
    #[must_use]
    pub fn bundle(&self) -> Option<Arc<Bundle>> {
        self.effective.clone()
    }

    /// Brings together what has to be in force.
    fn settle(&mut self) {
        let root_is_there = self.root_is_there();
        self.effective = self.current.as_ref().and_then(|current| {
            let older = current.head.version < self.seen.version;
            if older || self.sequence < self.seen.sequence || !root_is_there {
                return None;
            }
            let since = self.revocations.values().flat_map(|(it, _)| &it.targets);
            let targets: Vec<&Target> = current.head.revoked.iter().chain(since).collect();
            if targets.is_empty() {
                return Some(current.bundle.clone());
            }
            let mut bundle = (*current.bundle).clone();
            for entitlement in &mut bundle.entitlements {
                entitlement.revoked = targets.iter().any(|target| takes_back(target, entitlement));
            }
            Some(Arc::new(bundle))
        });
    }

    /// Until when it is known that nothing is newer. Before the first statement nothing is known.
    #[must_use]
    pub fn fresh_until(&self) -> Timestamp {
        let known = self.freshness.as_ref();
        known.map_or(Timestamp::UNIX_EPOCH, |(it, _)| it.valid_until)
    }

    /// The numbers that only grow.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        Numbers {
            version: self.current.as_ref().map_or(0, |it| it.head.version),
            sequence: self.sequence,
            root: RootMark::of(&self.root),
        }
    }

    /// What was in force here once, be it held now or not.
    #[must_use]
    pub fn seen(&self) -> Numbers {
        self.seen
    }

    /// For the wire.
    #[must_use]
    pub fn summary(&self) -> contract::Held {
        let head = self.current.as_ref().map(|it| &it.head);
        contract::Held {
            bundle_version: head.map_or(0, |it| it.version),
            bundle_digest: head.map_or_else(String::new, |it| it.digest.to_string()),
            revocation_sequence: self.sequence,
            trust_root_version: self.root.version,
        }
    }

    /// Everything that has to be kept so that the same can be held again: the roots, the chain of the bundle, and the
    /// rest.
    pub(crate) fn envelopes(&self) -> [Vec<Arc<Envelope>>; 3] {
        let rest = self.revocations.values().map(|(_, envelope)| envelope);
        let rest = rest.chain(self.freshness.iter().map(|(_, envelope)| envelope));
        [
            self.roots.clone(),
            self.current
                .as_ref()
                .map(|it| it.chain.clone())
                .unwrap_or_default(),
            rest.cloned().collect(),
        ]
    }
}

fn takes_back(target: &Target, entitlement: &Entitlement) -> bool {
    match target {
        Target::Entitlement(id) => *id == entitlement.id,
        Target::Credential(id) => *id == entitlement.credential,
        Target::Workload(id) => *id == entitlement.workload,
    }
}

fn metadata(head: &Head) -> Value {
    let mut metadata = json!({
        "issuer": head.issuer,
        "version": head.version,
        "issuedAt": head.issued_at,
    });
    if let Some(end) = head.expires_at {
        metadata["expiresAt"] = json!(end);
    }
    metadata
}

/// A signed statement. A payload with fields that this version does not know, or with one twice, is none.
fn read<S: Statement>(envelope: &Envelope, kind: &'static str) -> Result<S, Refusal> {
    serde_json::from_slice(&envelope.payload).map_err(|error| Refusal::Malformed {
        kind,
        reason: error.to_string(),
    })
}
