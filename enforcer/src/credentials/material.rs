//! What the material of a credential tells without being secret: ids, and until when it is good.
//!
//! Only what has the exact form of such an id leaves this file. The material was written by whoever could, so that
//! nothing in it is believed, and what is shown of it is printable and short.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rcgen::PublicKeyData as _;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

/// As deep as documents are followed.
const MOST_DEPTH: usize = 16;
/// As many things of one file are told.
const MOST_ITEMS: usize = 32;
/// As long may anything be that is shown.
const MOST_CHARS: usize = 200;

/// Something that a credential's material tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// What it is.
    pub what: &'static str,
    /// Its id, which is no secret.
    pub id: Option<String>,
    /// When it ends.
    pub expires: Option<Timestamp>,
}

impl Item {
    fn id(what: &'static str, id: impl Into<String>) -> Self {
        Self {
            what,
            id: Some(id.into()),
            expires: None,
        }
    }
}

/// Everything that the material tells.
#[must_use]
pub fn inspect(material: &[u8]) -> Vec<Item> {
    let Ok(text) = std::str::from_utf8(material) else {
        return Vec::new();
    };
    let trimmed = text.trim();
    let mut items = Vec::new();
    if trimmed.contains("-----BEGIN ") {
        items.extend(pem(trimmed));
    }
    if trimmed.starts_with('{') {
        if let Ok(value) = serde_json::from_str::<Value>(trimmed) {
            document(&value, 0, &mut items);
        }
    } else if trimmed.contains("apiVersion:") {
        // A client's configuration for Kubernetes.
        if let Ok(value) = serde_saphyr::from_str::<Value>(trimmed) {
            document(&value, 0, &mut items);
        }
    } else if let Some(item) = jwt(trimmed) {
        items.push(item);
    } else {
        items.extend(trimmed.lines().filter_map(line));
    }
    items.truncate(MOST_ITEMS);
    items.dedup();
    items
}

/// What the name of a file tells.
pub(super) fn by_name(path: &Path) -> Option<Item> {
    let directory = path.parent()?.file_name()?;
    let stem = path.file_stem()?.to_str()?;
    let is_grip = directory == "private-keys-v1.d" && stem.len() == 40 && is_hex(stem);
    is_grip.then(|| Item::id("GnuPG keygrip", stem))
}

/// An id of AWS, which begins with what it is of.
pub(super) fn aws_key(text: &str) -> Option<Item> {
    const KINDS: [&str; 2] = ["AKIA", "ASIA"];
    let allowed = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit();
    let good = text.len() == 20
        && KINDS.iter().any(|kind| text.starts_with(kind))
        && text.bytes().all(allowed);
    good.then(|| Item::id("AWS access key", text))
}

/// Text on one line, of bounded length, without anything that a terminal obeys.
pub(super) fn printable(text: &str) -> String {
    let plain = |c: char| c == ' ' || c.is_alphanumeric() || c.is_ascii_graphic();
    let mut shown: String = text
        .chars()
        .take(MOST_CHARS)
        .map(|c| if plain(c) { c } else { '\u{fffd}' })
        .collect();
    if text.chars().nth(MOST_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// `name = value` or `# public key: ...`.
fn line(line: &str) -> Option<Item> {
    if let Some(key) = line.trim().strip_prefix("# public key: ") {
        let key = key.trim();
        let good = key.len() == 62
            && key.starts_with("age1")
            && key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        return good.then(|| Item::id("age recipient", key));
    }
    let (name, value) = line.split_once(['=', ':'])?;
    let value = value.trim().trim_matches(['"', '\'']);
    match name.trim() {
        "aws_access_key_id" | "access_key" | "access_key_id" => aws_key(value),
        _ => jwt(value),
    }
}

/// Blocks between `-----BEGIN` and `-----END`. Of certificates only the first: it is the credential's own.
fn pem(text: &str) -> Vec<Item> {
    let mut items = Vec::new();
    let mut certificates = 0;
    for block in Pem::iter_from_buffer(text.as_bytes()).map_while(Result::ok) {
        let Pem { label, contents } = block;
        let contents = Zeroizing::new(contents);
        match label.as_str() {
            "CERTIFICATE" => {
                certificates += 1;
                if certificates == 1 {
                    items.extend(certificate(&contents));
                }
            }
            "OPENSSH PRIVATE KEY" => items.extend(ssh_key(&contents)),
            "PRIVATE KEY" => items.extend(private_key(&contents)),
            _ => {}
        }
        if items.len() >= MOST_ITEMS {
            break;
        }
    }
    items
}

fn certificate(der: &[u8]) -> Option<Item> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    // By the standard a serial has at most 20 bytes.
    let serial = certificate.tbs_certificate.raw_serial();
    let serial = serial.get(..serial.len().min(20))?;
    let serial: Vec<String> = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Item {
        what: "certificate",
        id: Some(format!("serial {}", serial.join(":"))),
        expires: Timestamp::from_second(certificate.validity().not_after.timestamp()).ok(),
    })
}

/// OpenSSH's own format has the public key in the clear, even where the private one is encrypted.
fn ssh_key(contents: &[u8]) -> Option<Item> {
    let key = ssh_key::PrivateKey::from_bytes(contents).ok()?;
    let fingerprint = key.fingerprint(ssh_key::HashAlg::Sha256);
    Some(Item::id("SSH key", fingerprint.to_string()))
}

/// PKCS#8: the SHA-256 of its public key, as in pins of certificates.
fn private_key(der: &[u8]) -> Option<Item> {
    let key = rcgen::KeyPair::try_from(der).ok()?;
    let digest = Sha256::digest(key.subject_public_key_info());
    let id = format!("SHA256:{}", STANDARD_NO_PAD.encode(digest));
    Some(Item::id("public key", id))
}

/// A token in three parts that says who it is for. Who it says it is from is not checked.
fn jwt(text: &str) -> Option<Item> {
    let mut parts = text.split('.');
    let (header, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || text.len() > 64 * 1024 {
        return None;
    }
    let read = |part: &str| -> Option<Value> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(part).ok()?);
        serde_json::from_slice(&bytes).ok()
    };
    read(header)?.get("alg")?;
    let claims = read(claims)?;
    let word = |name: &str| claims.get(name).and_then(Value::as_str).map(printable);
    let id = match (word("iss"), word("sub")) {
        (Some(issuer), Some(subject)) => Some(format!("{issuer} {subject}")),
        (issuer, subject) => issuer.or(subject),
    };
    Some(Item {
        what: "JWT",
        id,
        expires: claims.get("exp").and_then(time),
    })
}

/// What is anywhere in a document.
fn document(value: &Value, depth: usize, items: &mut Vec<Item>) {
    if depth > MOST_DEPTH || items.len() >= MOST_ITEMS {
        return;
    }
    match value {
        Value::Array(values) => {
            for value in values {
                document(value, depth + 1, items);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Array(_) | Value::Object(_) => document(value, depth + 1, items),
                    _ => items.extend(field(name, value)),
                }
            }
        }
        _ => {}
    }
}

/// What a field of a document tells.
fn field(name: &str, value: &Value) -> Vec<Item> {
    if ENDS.contains(&name) {
        let expires = time(value);
        let ends = expires.map(|_| Item {
            what: "token",
            id: None,
            expires,
        });
        return ends.into_iter().collect();
    }
    let Some(text) = value.as_str() else {
        return Vec::new();
    };
    match name {
        "AccessKeyId" | "accessKeyId" | "access_key_id" | "accessKey" => {
            aws_key(text).into_iter().collect()
        }
        "private_key_id" if text.len() == 40 && is_hex(text) => {
            vec![Item::id("GCP service account key", text)]
        }
        "client-certificate-data" => decoded(&STANDARD, text).map_or(Vec::new(), |it| pem(&it)),
        _ if text.contains("-----BEGIN ") => pem(text),
        _ => jwt(text).into_iter().collect(),
    }
}

/// What fields with the end of a token are called.
const ENDS: [&str; 8] = [
    "expiresAt",
    "expires_at",
    "expires_on",
    "Expiration",
    "expiration",
    "expiry",
    "expiry_date",
    "token_expiry",
];

fn decoded(engine: &GeneralPurpose, text: &str) -> Option<Zeroizing<String>> {
    String::from_utf8(engine.decode(text).ok()?)
        .ok()
        .map(Zeroizing::new)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A time by RFC 3339, or in seconds or milliseconds since 1970.
fn time(value: &Value) -> Option<Timestamp> {
    /// More seconds than this are milliseconds.
    const YEAR_5000: i64 = 95_617_584_000;
    let number = match value {
        Value::Number(number) => number.as_i64().or(number.as_f64().map(|it| it as i64)),
        Value::String(text) => match text.parse::<i64>() {
            Ok(number) => Some(number),
            // AWS wrote `UTC` once.
            Err(_) => return text.replace("UTC", "Z").parse().ok(),
        },
        _ => None,
    }?;
    if number > YEAR_5000 {
        Timestamp::from_millisecond(number).ok()
    } else {
        Timestamp::from_second(number).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_every_way() {
        let expected = Some(Timestamp::from_second(1_700_000_000).expect("in range"));
        for value in [
            serde_json::json!(1_700_000_000),
            serde_json::json!(1_700_000_000_000_i64),
            serde_json::json!("1700000000"),
            serde_json::json!("2023-11-14T22:13:20Z"),
            serde_json::json!("2023-11-14T22:13:20UTC"),
        ] {
            assert_eq!(time(&value), expected, "{value}");
        }
        assert_eq!(time(&serde_json::json!("soon")), None);
        assert_eq!(time(&serde_json::json!(null)), None);
        assert_eq!(time(&serde_json::json!(1e300)), None);
    }

    #[test]
    fn what_has_not_the_form_of_an_id_is_not_told() {
        for secret in [
            "aws_access_key_id = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "aws_access_key_id = AKIAwJalrXUtnFEMIK7M",
            "{\"private_key_id\": \"not hex, but forty characters long as itis\"}",
            "# public key: AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ",
            "password: hunter2.hunter2.hunter2",
        ] {
            assert_eq!(inspect(secret.as_bytes()), [], "{secret}");
        }
    }

    #[test]
    fn what_is_shown_is_printable_and_short() {
        assert_eq!(
            printable("a b\u{1b}[31m\n\u{202e}"),
            "a b\u{fffd}[31m\u{fffd}\u{fffd}"
        );
        assert_eq!(printable(&"x".repeat(300)).len(), 203);
    }
}
