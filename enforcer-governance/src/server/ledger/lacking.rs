//! What a node lacks of what is issued.

use enforcer_bundle::Labels;
use jiff::Timestamp;

use super::Ledger;
use crate::contract;

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
    /// What a node with these labels lacks, in the order in which it can take it.
    pub fn lacking(
        &self,
        labels: &Labels,
        sent: &mut Sent,
    ) -> Vec<contract::server_message::Message> {
        use contract::server_message::Message;
        let mut messages = Vec::new();
        for (version, root) in self.signer.roots.borrow().after(sent.root) {
            messages.push(Message::TrustRoot(root.clone()));
            sent.root = version;
        }
        let content = self.content();
        let Some(issued) = content.last() else {
            return messages;
        };
        let keys = &self.signer.keys;
        let refused = sent.refused == Some(issued.record.version);
        if (issued.record.version != sent.version && !refused) || sent.wants_snapshot {
            let edition = issued.edition(labels);
            let mut versions = content.versions.iter().map(|(_, issued)| issued);
            let base = versions
                .find(|it| it.record.version == sent.version && !sent.wants_snapshot)
                .map(|it| it.edition(labels))
                .filter(|it| it.digest().0 == sent.digest);
            let newest = base.filter(|_| !issued.is_signed());
            messages.push(match newest {
                Some(base) => Message::Delta(edition.delta(&base, keys)),
                None => Message::Snapshot(edition.snapshot(keys)),
            });
            sent.version = issued.record.version;
            sent.digest.clone_from(&edition.digest().0);
            sent.sequence = sent.sequence.max(issued.record.includes_revocations);
            sent.wants_snapshot = false;
        }
        for taken in content.revocations.iter() {
            if taken.number > sent.sequence {
                messages.push(Message::Revocation(taken.envelope.clone()));
                sent.sequence = taken.number;
            }
        }
        // That nothing is newer than what it has.
        let committed = content.committed();
        if let Some(stated) = &content.freshness
            && sent.fresh != Some(stated.at)
            && sent.has == stated.than
            && sent.has == (committed.version, committed.sequence)
        {
            messages.push(Message::Freshness(stated.envelope.clone()));
            sent.fresh = Some(stated.at);
        }
        messages
    }
}
