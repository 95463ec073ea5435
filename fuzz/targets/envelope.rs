//! No bytes are an envelope that a node takes, unless they are signed.

#![no_main]

use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::Held;
use enforcer_governance::keys::SigningKey;
use enforcer_governance::trust::TrustRoot;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(envelope) = serde_json::from_slice::<Envelope>(bytes) else {
        return;
    };
    let key = SigningKey::from_seed([1; 32]).public();
    let Ok(held) = Held::new(TrustRoot::of_one_key("fuzz", key), Default::default()) else {
        return;
    };
    assert!(held.take(&envelope, Timestamp::UNIX_EPOCH).is_err());
});
