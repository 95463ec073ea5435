//! What changes what is issued: documents, grants, revocations.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use enforcer_bundle::{Bundle, Parts};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{Committed, Documents, Ledger, Next, Request, TRIES};
use crate::envelope::Envelope;
use crate::server::Error;
use crate::server::content::{Content, Source};
use crate::server::grants::{compose, may_grant};
use crate::server::issued::{Issued, Record};
use crate::server::store::{Granted, Head, Log};
use crate::statement::{Revocation, Snapshot, Statement as _, Target};
use crate::trust::{Role, TrustRoot};

/// After so many revocations there is a version that includes them: nodes need not keep more.
const MOST_REVOCATIONS: u64 = 256;

impl Ledger {
    /// The documents are others, perhaps: issues a new version if anything is.
    pub async fn set_documents(&self, documents: Documents) -> Result<Committed, Error> {
        match documents {
            Documents::Plain(bundle, parts) => {
                let root = self.signer.roots.borrow().last().clone();
                self.signer.can_sign(Role::Bundle, &root)?;
                self.commit(|content| self.with_documents(content, &bundle, &parts))
                    .await?;
            }
            Documents::Signed(snapshot, envelope) => {
                if snapshot.head.issuer != self.signer.issuer {
                    return Err(Error::Refused(format!(
                        "the bundle is issued by {:?}, and the trust root by {:?}",
                        snapshot.head.issuer, self.signer.issuer
                    )));
                }
                self.commit(|content| with_signed(content, &snapshot, &envelope))
                    .await?;
            }
        }
        self.freshen().await?;
        Ok(self.committed())
    }

    fn with_documents(
        &self,
        content: &Content,
        bundle: &Bundle,
        parts: &Parts,
    ) -> Result<Option<Next>, Error> {
        if bundle.metadata.issuer != self.signer.issuer {
            return Err(Error::Refused(format!(
                "the documents are of the issuer {:?}, and the trust root says {:?}",
                bundle.metadata.issuer, self.signer.issuer
            )));
        }
        let known = content.documents.as_deref();
        let version = bundle.metadata.version;
        if let Some(known) = known
            && version < known.reference.version
        {
            return Err(Error::Refused(format!(
                "the documents have version {version}, and some of version {} were given already; raise \
                 `metadata.version`, if they are not just an older copy",
                known.reference.version
            )));
        }
        let same =
            known.is_some_and(|it| it.parts == *parts && it.bundle.metadata == bundle.metadata);
        let next = self.issue(content, content.head.clone(), bundle, parts, false)?;
        if same && next.issued.is_none() {
            return Ok(None);
        }
        Ok(Some(Next {
            documents: (!same).then(|| (bundle.clone(), parts.clone())),
            ..next
        }))
    }

    /// What the documents and the grants of `head` make, if it differs from what is in force, or `anyway`.
    fn issue(
        &self,
        content: &Content,
        head: Head,
        bundle: &Bundle,
        parts: &Parts,
        anyway: bool,
    ) -> Result<Next, Error> {
        let now = Timestamp::now();
        let parts = compose(bundle, parts, &head.grants, now);
        let last = content.last();
        let expires_at = bundle.metadata.expires_at;
        let same = last.is_some_and(|last| {
            last.digest == parts.digest() && last.record.expires_at == expires_at
        });
        let before = last.map_or(0, |last| last.record.version);
        let issued = if same && !anyway {
            None
        } else {
            Some(Issued::new(Record {
                issuer: self.signer.issuer.clone(),
                version: bundle.metadata.version.max(before + 1),
                issued_at: now,
                expires_at,
                includes_revocations: head.revoked_as_of.max(content.included()),
                revoked: head.revoked.iter().cloned().collect(),
                parts: Arc::new(parts),
            })?)
        };
        Ok(Next {
            head,
            documents: None,
            issued,
        })
    }

    /// A version for a head that is otherwise as `change` makes it, with all that was taken back.
    async fn reissue(
        &self,
        anyway: bool,
        change: impl Fn(&mut Head, Option<&Source>) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        self.commit(|content| {
            let mut head = content.head.clone();
            (head.revoked, head.revoked_as_of) = content.revoked();
            let documents = content.documents.as_deref();
            if !change(&mut head, documents)? {
                return Ok(None);
            }
            match documents {
                Some(Source { bundle, parts, .. }) => {
                    self.issue(content, head, bundle, parts, anyway).map(Some)
                }
                None => Ok(Some(Next {
                    head,
                    documents: None,
                    issued: None,
                })),
            }
        })
        .await
    }

    /// Makes an entitlement one in force for `duration`.
    pub async fn grant(
        &self,
        id: &str,
        duration: Duration,
        request: &Request,
    ) -> Result<Committed, Error> {
        let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        let from = Timestamp::now();
        let granted = Mutex::new(None);
        self.reissue(true, |head, documents| {
            let grant = may_grant(documents, id, from, duration, request)?;
            head.grants.insert(id.to_owned(), grant.clone());
            *granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(grant);
            Ok(true)
        })
        .await?;
        let committed = self.committed();
        let granted = granted.into_inner().unwrap_or_else(PoisonError::into_inner);
        let what = match &granted {
            Some(it) if it.break_glass => {
                tracing::warn!(entitlement = id, by = it.by, ticket = it.ticket, until = %it.until, "BREAK-GLASS: granted for an emergency");
                "break-glass"
            }
            _ => "grant",
        };
        self.audit(what, &json!(granted)).await?;
        self.freshen_if_possible().await;
        Ok(committed)
    }

    /// Whether there is such a thing to take back.
    ///
    /// # Errors
    /// If there is not.
    pub fn knows(&self, target: &Target) -> Result<(), Error> {
        self.content().check(target)
    }

    /// Takes back, at once: all of these, or none if there is no such thing as one of them.
    pub async fn revoke(&self, targets: &[Target], request: &Request) -> Result<Committed, Error> {
        let (revocation, committed) = self.commit_revocation(targets, request).await?;
        let what = json!({"by": request.by, "revocation": revocation});
        self.audit("revoke", &what).await?;
        let included = self.content().included();
        if revocation.sequence.saturating_sub(included) >= MOST_REVOCATIONS {
            self.reissue(true, |_, documents| Ok(documents.is_some()))
                .await?;
        }
        self.freshen_if_possible().await;
        Ok(committed)
    }

    /// Has nodes with this trust root believe all that is in force: revocations that they would not are in a version then.
    ///
    /// # Errors
    /// If this server has too few keys, or the bundle is signed elsewhere and does not include those revocations.
    pub async fn stand_under(&self, root: &TrustRoot) -> Result<(), Error> {
        self.can_sign_under(root)?;
        let content = self.content();
        let mut taken = content.revocations.iter();
        let included = content.included();
        let strange = taken.find(|it| {
            let envelope = it.envelope.clone().into();
            it.number > included && root.verify(Role::Revocation, &envelope).is_err()
        });
        let Some(strange) = strange else {
            return Ok(());
        };
        let has_documents = |_: &mut Head, documents: Option<&Source>| Ok(documents.is_some());
        if self.reissue(true, has_documents).await? {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "the keys that signed revocation {} are none of trust root {}; serve a bundle first that includes it",
            strange.number, root.version
        )))
    }

    async fn commit_revocation(
        &self,
        targets: &[Target],
        request: &Request,
    ) -> Result<(Revocation, Committed), Error> {
        for _ in 0..TRIES {
            let turn = self.revoking.lock().await;
            let number = {
                let content = self.content();
                for target in targets {
                    content.check(target)?;
                }
                content.committed().sequence + 1
            };
            let revocation = Revocation {
                issuer: self.signer.issuer.clone(),
                sequence: number,
                issued_at: Timestamp::now(),
                targets: targets.to_vec(),
                reason: request.reason.clone(),
                ticket: request.ticket.clone(),
            };
            let envelope = revocation.sign(&self.signer.keys);
            if !self.store.revoke(number, &envelope).await? {
                self.read_revocations().await?;
                continue;
            }
            self.change(|content| content.take(envelope))?;
            let committed = self.committed();
            self.announce();
            drop(turn);
            // A version may have come from another server that says it includes this number, and did not know of it.
            let _turn = self.heading.lock().await;
            self.read_head(None).await?;
            if self.content().included() < number {
                return Ok((revocation, committed));
            }
        }
        Err(Error::Refused(
            "other servers change things all the time; try again".to_owned(),
        ))
    }

    /// Lets a revocation go, by a bundle that includes it and does not take back any more.
    pub async fn restore(&self, target: &Target, request: &Request) -> Result<Committed, Error> {
        self.reissue(true, |head, documents| {
            if documents.is_none() {
                return Err(Error::Refused(
                    "the bundle is signed elsewhere: a bundle that includes the revocation has to come from there".to_owned(),
                ));
            }
            if !head.revoked.remove(target) {
                return Err(Error::Refused(format!("{} is not revoked", json!(target))));
            }
            Ok(true)
        })
        .await?;
        let committed = self.committed();
        self.audit(
            "restore",
            &json!({"by": request.by, "reason": request.reason, "ticket": request.ticket, "target": target}),
        )
        .await?;
        self.freshen_if_possible().await;
        Ok(committed)
    }

    /// Ends the grants whose time has come. The nodes have ended them by themselves.
    pub async fn end_grants(&self) -> Result<(), Error> {
        let now = Timestamp::now();
        let over = |head: &Head| -> Vec<Granted> {
            let grants = head.grants.values();
            grants.filter(|it| it.until <= now).cloned().collect()
        };
        let ended = Mutex::new(Vec::new());
        let changed = self
            .reissue(false, |head, _| {
                let over = over(head);
                head.grants.retain(|_, it| it.until > now);
                let any = !over.is_empty();
                *ended.lock().unwrap_or_else(PoisonError::into_inner) = over;
                Ok(any)
            })
            .await?;
        if !changed {
            return Ok(());
        }
        let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        for granted in ended {
            if granted.break_glass {
                tracing::warn!(
                    entitlement = granted.entitlement,
                    ticket = granted.ticket,
                    "BREAK-GLASS: ended; its use has to be reviewed"
                );
                self.note(Log::Findings, "break-glass-ended", &json!(granted))
                    .await?;
            }
            self.audit("grant-ended", &json!(granted)).await?;
        }
        self.freshen_if_possible().await;
        Ok(())
    }
}

/// A bundle that was signed elsewhere, if it is not the one in force.
fn with_signed(
    content: &Content,
    snapshot: &Snapshot,
    envelope: &Envelope,
) -> Result<Option<Next>, Error> {
    let issued = Issued::signed(snapshot.clone(), envelope.clone())?;
    let (version, last) = (issued.record.version, content.committed().version);
    if version < last {
        return Err(Error::Refused(format!(
            "the signed bundle has version {version}, and {last} was issued already"
        )));
    }
    if let Some(last) = content.last()
        && last.record.version == version
    {
        if last.digest == issued.digest {
            return Ok(None);
        }
        return Err(Error::Refused(format!(
            "another bundle was issued as version {version} already; raise its version"
        )));
    }
    Ok(Some(Next {
        head: Head {
            documents: None,
            ..content.head.clone()
        },
        documents: None,
        issued: Some(issued),
    }))
}
