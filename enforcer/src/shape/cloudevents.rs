//! CloudEvents 1.0, JSON format: `source` and `id` together are what a record is known by.

use serde_json::{Value, json};

use super::Record;

/// The record in its envelope.
pub fn event(record: Record<'_>) -> Value {
    let key = record.key();
    let mut event = json!({
        "specversion": "1.0",
        "source": format!("//enforcer/{}/{}", uri(&key.node), uri(&key.epoch)),
        "id": key.sequence.to_string(),
        "type": kind(record),
        "time": record.time().to_string(),
        "datacontenttype": "application/json",
        // Compared as text by those who order by it.
        "sequence": format!("{:020}", key.sequence),
        "partitionkey": key.node,
        "severitytext": record.severity().name().to_uppercase(),
        "data": record.0,
    });
    if let Some(subject) = record.text("credential") {
        event["subject"] = json!(subject);
    }
    event
}

/// `dev.enforcer.reach.denied.v1`, `dev.enforcer.bundle-applied.v1`.
pub fn kind(record: Record<'_>) -> String {
    let verdict = match record.text("verdict") {
        Some("deny") => ".denied",
        Some(_) => ".allowed",
        None => "",
    };
    format!("dev.enforcer.{}{verdict}.v1", record.kind())
}

/// A part of a URI reference.
fn uri(text: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if kept(byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
