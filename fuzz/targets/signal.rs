//! No text is a security event that is listened to, unless its transmitter has signed it for us; what it takes back is
//! then named in it.

#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use enforcer_governance::keys::SigningKey;
use enforcer_governance::server::{Transmitter, fuzzing};
use enforcer_governance::statement::Target;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const SEED: [u8; 32] = [1; 32];
/// What is before the seed in PKCS#8.
const BEFORE: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type";

static KEY: LazyLock<EncodingKey> =
    LazyLock::new(|| EncodingKey::from_ed_der(&[&BEFORE[..], &SEED].concat()));
static LISTENER: LazyLock<fuzzing::Listener> = LazyLock::new(|| {
    let public = STANDARD.decode(SigningKey::from_seed(SEED).public().to_string());
    let keys = json!({"keys": [{
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "k",
        "x": URL_SAFE_NO_PAD.encode(public.expect("base64")),
    }]});
    let transmitter = Transmitter {
        issuer: "idp".to_owned(),
        audience: "here".to_owned(),
        keys: "keys".into(),
    };
    fuzzing::Listener::new(transmitter, serde_json::from_value(keys).expect("keys"))
});

/// A token that is as it should be, but for these claims.
fn token(claims: Value) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some("secevent+jwt".to_owned());
    header.kid = Some("k".to_owned());
    let mut all = json!({"iss": "idp", "aud": "here", "iat": 0, "jti": "j", "events": {}});
    if let (Some(all), Value::Object(claims)) = (all.as_object_mut(), claims) {
        all.extend(claims);
    }
    jsonwebtoken::encode(&header, &all, &KEY).expect("signed")
}

const FORMATS: [&str; 4] = ["opaque", "iss_sub", "uri", "email"];
const CHANGES: [&str; 4] = ["revoke", "delete", "update", ""];

fuzz_target!(|input: (u8, u8, &str, &str)| {
    let (format, change, subject, text) = input;
    let format = FORMATS[usize::from(format) % FORMATS.len()];
    let change = CHANGES[usize::from(change) % CHANGES.len()];
    assert!(LISTENER.hear(text).is_err());
    if let Ok(Value::Object(claims)) = serde_json::from_str(text) {
        let heard = LISTENER.hear(&token(Value::Object(claims.clone())));
        let others = |name, own: &str| claims.get(name).is_some_and(|it| it != own);
        if others("iss", "idp") && claims["iss"].is_string() {
            assert!(heard.is_err());
        }
        if others("aud", "here") && claims["aud"].is_string() {
            assert!(heard.is_err());
        }
    }
    let events = json!({
        format!("{CAEP}/session-revoked"): {"subject": {"format": format, "uri": subject}},
        format!("{CAEP}/credential-change"): {"change_type": change},
    });
    let signed = token(json!({
        "sub_id": {"format": format, "id": subject, "sub": subject},
        "events": events,
    }));
    for target in LISTENER.hear(&signed).unwrap_or_default() {
        match target {
            Target::Workload(id) => assert_eq!(id, subject),
            Target::Credential(id) => {
                assert_eq!(id, subject);
                assert!(["revoke", "delete"].contains(&change));
            }
            Target::Entitlement(id) => panic!("no event takes back {id:?} alone"),
        }
    }
});
