//! Security events of another system become revocations; what is forged, for others, or comes again does not.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use enforcer_bundle::Digest;
use enforcer_governance::keys::SigningKey;
use enforcer_governance::server::Transmitter;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::node::Node;
use super::server::Server;

const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type";
const ISSUER: &str = "https://idp.example.com";
const SET: &str = "application/secevent+jwt";
const AUDIENCE: &str = "https://governance.example.com/ssf";

/// The private half, as it is signed with, and the public one as a JSON Web Key.
fn key(directory: &Path, id: &str) -> (EncodingKey, Value) {
    let key = SigningKey::generate();
    let path = directory.join(format!("{id}.key"));
    key.store(&path).expect("stored");
    let pem = std::fs::read_to_string(path).expect("there");
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let private = EncodingKey::from_ed_der(&STANDARD.decode(body).expect("base64"));
    let public = STANDARD.decode(key.public().to_string()).expect("base64");
    let jwk = json!({
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": id,
        "x": URL_SAFE_NO_PAD.encode(public),
    });
    (private, jwk)
}

fn claims(id: &str, event: &str, fields: Value, subject: &str) -> Value {
    json!({
        "iss": ISSUER, "aud": [AUDIENCE], "iat": Timestamp::now().as_second(), "jti": id,
        "sub_id": {"format": "opaque", "id": subject},
        "events": {(format!("{CAEP}/{event}")): fields},
    })
}

fn token(key: &EncodingKey, id: &str, claims: &Value) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some("secevent+jwt".to_owned());
    header.kid = Some(id.to_owned());
    encode(&header, claims, key).expect("signed")
}

struct Transmits {
    agent: Agent,
    url: String,
}

impl Transmits {
    fn to(server: &Server) -> Self {
        let authority = std::fs::read(server.place().authority).expect("there");
        let authority = Certificate::from_pem(&authority).expect("a certificate");
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[authority]))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false);
        Self {
            agent: agent
                .timeout_global(Some(Duration::from_secs(10)))
                .build()
                .into(),
            url: format!("{}/ssf/events", server.place().url),
        }
    }

    /// The status of a push as it should be.
    fn status(&self, token: &str) -> u16 {
        tokio::task::block_in_place(|| self.push(SET, token)).0
    }

    /// The status, and which error if any.
    fn push(&self, kind: &str, token: &str) -> (u16, String) {
        let mut response = (self.agent.post(&self.url))
            .header("Content-Type", kind)
            .send(token)
            .expect("answered");
        let body = response.body_mut().read_to_string().expect("read");
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let error = body["err"].as_str().unwrap_or_default().to_owned();
        (response.status().as_u16(), error)
    }
}

/// A server that listens to who has these keys, with two entitlements.
async fn start(place: &Path, keys: &Path) -> Server {
    let transmitter = Transmitter {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        keys: keys.to_owned(),
    };
    let entitlements: &[&str] = &["E1", "E2"];
    let server = Server::start_from(
        place,
        "127.0.0.1:0",
        Some(entitlements),
        None,
        Some(transmitter),
    );
    server.await.expect("started")
}

fn revoked(id: &str) -> Value {
    claims(id, "session-revoked", json!({}), "app")
}

#[tokio::test(flavor = "multi_thread")]
async fn events_become_revocations() {
    let place = tempfile::tempdir().expect("directory");
    let ((private, public), (strange, _)) = (key(place.path(), "k1"), key(place.path(), "k2"));
    let keys = place.path().join("jwks.json");
    std::fs::write(&keys, json!({"keys": [public]}).to_string()).expect("written");
    let start = || start(place.path(), &keys);
    let server = start().await;
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1 E2").await;

    let pushing = Transmits::to(&server);
    let with = |id: &str, name: &str, value: Value| {
        let mut claims = revoked(id);
        claims[name] = value;
        claims
    };
    let now = Timestamp::now().as_second();
    let mut forged = token(&private, "k1", &revoked("j"));
    forged.replace_range(forged.len() - 4.., "AAAA");
    let refused = tokio::task::block_in_place(|| {
        [
            pushing.push(SET, &forged),
            pushing.push(SET, &token(&strange, "k1", &revoked("j"))),
            pushing.push(SET, &token(&strange, "k2", &revoked("j"))),
            pushing.push(
                SET,
                &token(&private, "k1", &with("j", "aud", json!("other"))),
            ),
            pushing.push(
                SET,
                &token(&private, "k1", &with("j", "iss", json!("other"))),
            ),
            pushing.push(
                SET,
                &token(&private, "k1", &with("j", "iat", json!(now - 90_000))),
            ),
            pushing.push(
                SET,
                &token(&private, "k1", &with("j", "exp", json!(now + 60))),
            ),
            pushing.push(
                SET,
                &token(&private, "k1", &with("j", "sub_id", json!("app"))),
            ),
            pushing.push("application/json", &token(&private, "k1", &revoked("j"))),
            pushing.push(SET, "nonsense"),
        ]
    });
    let errors = refused.map(|(status, error)| {
        assert_eq!(status, 400, "{error}");
        error
    });
    assert_eq!(
        errors,
        [
            "authentication_failed",
            "authentication_failed",
            "invalid_key",
            "invalid_audience",
            "invalid_issuer",
            "invalid_request",
            "invalid_request",
            "invalid_request",
            "invalid_request",
            "invalid_request",
        ]
    );
    assert_eq!(node.in_force(), "E1 E2");

    // What is about something else, or nothing of ours, is taken and changes nothing.
    let change = |id: &str, kind: &str, subject: &str| {
        let fields = json!({"change_type": kind, "credential_type": "api-key"});
        token(
            &private,
            "k1",
            &claims(id, "credential-change", fields, subject),
        )
    };
    assert_eq!(pushing.status(&change("j1", "update", "key")), 202);
    assert_eq!(pushing.status(&change("j2", "revoke", "unknown")), 202);
    let other = claims("j3", "device-compliance-change", json!({}), "app");
    assert_eq!(pushing.status(&token(&private, "k1", &other)), 202);
    assert_eq!(node.in_force(), "E1 E2");

    let gone = change("j4", "revoke", "key");
    assert_eq!(pushing.status(&gone), 202);
    node.until_in_force("E1! E2!").await;
    let audit = server.lines("audit.jsonl");
    let revocation = audit
        .iter()
        .find(|it| it["action"] == "revoke")
        .expect("noted");
    assert_eq!(revocation["what"]["by"], ISSUER);
    assert_eq!(revocation["what"]["revocation"]["ticket"], "j4");

    // Once more, when it has been let go: that was then. Also after a restart.
    let mut desk = server.desk().await;
    let restored = enforcer_governance::contract::RevokeRequest {
        target: Some(
            enforcer_governance::contract::revoke_request::Target::Credential("key".to_owned()),
        ),
        reason: "a test".to_owned(),
        ticket: String::new(),
    };
    desk.restore(restored).await.expect("restored");
    node.until_in_force("E1 E2").await;
    assert_eq!(pushing.status(&gone), 202);
    drop(node);
    server.stop().await;
    let server = start().await;
    let pushing = Transmits::to(&server);
    assert_eq!(pushing.status(&gone), 202);
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1 E2").await;
    let session = token(&private, "k1", &revoked("j5"));
    assert_eq!(pushing.status(&session), 202);
    node.until_in_force("E1! E2!").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_as_a_whole_or_not_at_all() {
    let place = tempfile::tempdir().expect("directory");
    let (private, public) = key(place.path(), "k1");
    let keys = place.path().join("jwks.json");
    std::fs::write(&keys, json!({"keys": [public]}).to_string()).expect("written");
    let server = start(place.path(), &keys).await;
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1 E2").await;
    let pushing = Transmits::to(&server);

    let good = |id: &str| json!({"format": "opaque", "id": id});
    let bad = json!({"format": "email", "email": "app@example.com"});
    let both = |id: &str, credential: &Value, workload: &Value| {
        let change = json!({"subject": credential, "change_type": "revoke"});
        let mut claims = claims(id, "credential-change", change, "");
        let session = format!("{CAEP}/session-revoked");
        claims["events"][session] = json!({"subject": workload});
        claims.as_object_mut().expect("an object").remove("sub_id");
        token(&private, "k1", &claims)
    };
    // Whichever of the two comes first.
    for (id, credential, workload) in [("j1", &good("key"), &bad), ("j2", &bad, &good("app"))] {
        let token = both(id, credential, workload);
        let refused = tokio::task::block_in_place(|| pushing.push(SET, &token));
        assert_eq!(refused, (400, "invalid_request".to_owned()));
    }
    assert_eq!(pushing.status(&both("j3", &good("key"), &good("app"))), 202);
    node.until_in_force("E1! E2!").await;
    let audit = server.lines("audit.jsonl");
    let revocations: Vec<&Value> = audit.iter().filter(|it| it["action"] == "revoke").collect();
    let [only] = revocations[..] else {
        panic!("expected one revocation, got {revocations:?}");
    };
    assert_eq!(only["what"]["revocation"]["sequence"], 1);
    assert_eq!(only["what"]["revocation"]["ticket"], "j3");
    let targets = &only["what"]["revocation"]["targets"];
    assert_eq!(targets.as_array().map(Vec::len), Some(2), "{targets}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_to_come_again() {
    let place = tempfile::tempdir().expect("directory");
    let (private, public) = key(place.path(), "k1");
    let keys = place.path().join("jwks.json");
    std::fs::write(&keys, json!({"keys": [public]}).to_string()).expect("written");
    let server = start(place.path(), &keys).await;
    let pushing = Transmits::to(&server);
    let session = token(&private, "k1", &revoked("j1"));

    // No file can take the place of a directory.
    let kept = place.path().join("server/signals.json");
    std::fs::create_dir(&kept).expect("made");
    assert_eq!(pushing.status(&session), 503);
    assert_eq!(pushing.status(&session), 503);
    std::fs::remove_dir(&kept).expect("removed");
    assert_eq!(pushing.status(&session), 202);
    let text = std::fs::read_to_string(&kept).expect("kept");
    let noted = Digest::of_bytes(b"j1").0;
    assert!(text.contains(&noted), "{text}");
    server.stop().await;
}
