//! What lets nobody but us into a nats-server: a certificate for it, and an account with a user.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair as TlsKey};
use serde_json::{Value, json};

/// The files.
pub struct Guard {
    /// Of the server.
    pub config: PathBuf,
    /// What clients know its certificate by.
    pub authority: PathBuf,
    /// What clients show.
    pub credentials: PathBuf,
}

/// A token as NATS has them: `what` of `subject`, signed by `issuer`.
fn token(issuer: &KeyPair, subject: &KeyPair, kind: &str, mut what: Value) -> String {
    what["type"] = json!(kind);
    what["version"] = json!(2);
    let claims = json!({
        "iss": issuer.public_key(), "sub": subject.public_key(), "name": kind,
        "iat": 0, "jti": kind, "nats": what,
    });
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let [header, claims] = [header, claims].map(|it| URL_SAFE_NO_PAD.encode(it.to_string()));
    let signed = format!("{header}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).expect("signed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A file with the credentials of a new user of an account.
pub fn credentials(path: &Path, account: &KeyPair) {
    let user = KeyPair::new_user();
    let limits = json!({"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
    let token = token(account, &user, "user", limits);
    let seed = user.seed().expect("a seed");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(path, text).expect("written");
}

impl Guard {
    /// For a server at this address.
    pub fn new(directory: &Path, address: Ipv4Addr) -> Self {
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let key = TlsKey::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).expect("an authority");
        let authority = write("authority.pem", authority.pem());
        let issuer = Issuer::new(params, key);
        let key = TlsKey::generate().expect("a key");
        let certificate = CertificateParams::new([address.to_string()]).expect("a name");
        let certificate = certificate.signed_by(&key, &issuer).expect("signed");
        let certificate = write("server.pem", certificate.pem());
        let key = write("server.key", key.serialize_pem());

        let operator = KeyPair::new_operator();
        let [system, ours] = [(); 2].map(|()| KeyPair::new_account());
        let limits = json!({"limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        }});
        let system_token = token(
            &operator,
            &system,
            "account",
            json!({"limits": {
                "subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1,
            }}),
        );
        let our_token = token(&operator, &ours, "account", limits);
        let config = format!(
            "tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\n\
             operator: {}\n\
             system_account: {}\n\
             resolver: MEMORY\n\
             resolver_preload: {{ {}: {system_token}, {}: {our_token} }}\n",
            token(&operator, &operator, "operator", json!({})),
            system.public_key(),
            system.public_key(),
            ours.public_key(),
        );
        let path = directory.join("user.creds");
        credentials(&path, &ours);
        Self {
            config: write("nats.conf", config),
            authority,
            credentials: path,
        }
    }
}
