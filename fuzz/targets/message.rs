//! Any bytes are a message from the server, or none; a node takes nothing of it that is not signed.

#![no_main]

use enforcer_governance::contract::{NodeMessage, ServerMessage, server_message};
use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::Held;
use enforcer_governance::keys::SigningKey;
use enforcer_governance::trust::TrustRoot;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let _ = NodeMessage::decode(bytes);
    let Ok(ServerMessage { message: Some(message), .. }) = ServerMessage::decode(bytes) else {
        return;
    };
    let envelope: Envelope = match message {
        server_message::Message::TrustRoot(it)
        | server_message::Message::Snapshot(it)
        | server_message::Message::Delta(it)
        | server_message::Message::Revocation(it)
        | server_message::Message::Freshness(it) => it.into(),
    };
    let key = SigningKey::from_seed([1; 32]).public();
    let Ok(held) = Held::new(TrustRoot::of_one_key("fuzz", key), Default::default()) else {
        return;
    };
    assert!(held.take(&envelope, Timestamp::UNIX_EPOCH).is_err());
});
