//! Against the specification of CloudEvents 1.0.2, sections 3.1 to 3.3, and its JSON format.

use jiff::Timestamp;
use serde_json::Value;

pub fn check(event: &Value, record: &Value) -> Result<(), String> {
    for name in ["id", "source", "specversion", "type"] {
        if event[name].as_str().is_none_or(str::is_empty) {
            return Err(format!("{name} must be a text that is not empty"));
        }
    }
    if event["specversion"] != "1.0" {
        return Err("specversion must be 1.0".to_owned());
    }
    let source = event["source"].as_str().unwrap_or_default();
    let is_uri = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%/".contains(&byte);
    if !source.bytes().all(is_uri) {
        return Err(format!("source: {source} is no URI reference"));
    }
    let time = event["time"].as_str().unwrap_or_default();
    if time.parse::<Timestamp>().is_err() {
        return Err(format!("time: {time} is not RFC 3339"));
    }
    for (name, value) in event.as_object().into_iter().flatten() {
        let is_lower = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
        if !name.chars().all(is_lower) || name.len() > 20 {
            return Err(format!("{name}: no name of an attribute"));
        }
        if name != "data" && !value.is_string() {
            return Err(format!("{name}: attributes are texts here"));
        }
    }
    (event["data"] == *record)
        .then_some(())
        .ok_or_else(|| "data is not the record".to_owned())
}
