//! Whatever a trusted key has signed: what is taken has the version it says, and what is refused changes nothing.

#![no_main]

use enforcer_bundle::Labels;
use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::{Changed, Held};
use enforcer_governance::keys::SigningKey;
use enforcer_governance::trust::TrustRoot;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;

const KINDS: [&str; 5] = ["snapshot", "delta", "revocation", "freshness", "trust-root"];

fuzz_target!(|input: (Vec<(u8, &[u8])>,)| {
    let key = SigningKey::from_seed([1; 32]);
    let root = TrustRoot::of_one_key("fuzz", key.public());
    let Ok(mut held) = Held::new(root, Labels::new()) else {
        return;
    };
    for (kind, payload) in input.0 {
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let kind = format!("application/vnd.enforcer.{kind}.v1+json");
        let envelope = Envelope::sign(&kind, payload.to_vec(), std::slice::from_ref(&key));
        let before = held.numbers();
        if let Ok((next, changed)) = held.take(&envelope, Timestamp::UNIX_EPOCH) {
            let after = next.numbers();
            assert!(after.version >= before.version && after.sequence >= before.sequence);
            assert!(changed != Changed::Nothing || after == before);
            held = next;
        }
    }
});
