//! Any bytes are a message, or none; a node takes nothing of it that is not signed, and a server no evidence that is not
//! lines with numbers.

#![no_main]

use enforcer_governance::contract::{
    EnrollRequest, EvidenceBatch, EvidenceReceipt, FetchRequest, FetchResponse, NodeMessage,
    ServerMessage, server_message,
};
use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::Held;
use enforcer_governance::keys::SigningKey;
use enforcer_governance::server::fuzzing;
use enforcer_governance::trust::TrustRoot;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

/// What is stored of it after nothing, after all that is before it, and after its first record too.
fn stored(batch: &EvidenceBatch) {
    let before = batch.first.saturating_sub(1);
    for last in [0, before, before + u64::from(!batch.records.is_empty())] {
        let new = fuzzing::stored_of(batch, last);
        assert!(batch.records.ends_with(new));
        assert!(last.checked_add(new.len() as u64).is_some());
        assert!(new.iter().all(|it| !it.contains(&b'\n')));
    }
}

fuzz_target!(|input: (u64, Vec<&[u8]>, &[u8])| {
    let (first, records, bytes) = input;
    stored(&EvidenceBatch {
        epoch: "0".repeat(32),
        first,
        records: records.iter().map(|it| it.to_vec()).collect(),
    });
    if let Ok(batch) = EvidenceBatch::decode(bytes) {
        stored(&batch);
    }
    let _ = NodeMessage::decode(bytes);
    let _ = EnrollRequest::decode(bytes);
    let _ = FetchRequest::decode(bytes);
    let _ = EvidenceReceipt::decode(bytes);
    let mut messages = match FetchResponse::decode(bytes) {
        Ok(response) => response.messages,
        Err(_) => Vec::new(),
    };
    messages.extend(ServerMessage::decode(bytes));
    let key = SigningKey::from_seed([1; 32]).public();
    let held = Held::new(TrustRoot::of_one_key("fuzz", key), Default::default()).expect("sound");
    for message in messages.into_iter().filter_map(|it| it.message) {
        let envelope: Envelope = match message {
            server_message::Message::TrustRoot(it)
            | server_message::Message::Snapshot(it)
            | server_message::Message::Delta(it)
            | server_message::Message::Revocation(it)
            | server_message::Message::Freshness(it) => it.into(),
        };
        assert!(held.take(&envelope, Timestamp::UNIX_EPOCH).is_err());
    }
});
