//! Against what Falco's `json_output` writes and falcosidekick's payload reads.

use jiff::Timestamp;
use serde_json::Value;

const PRIORITIES: [&str; 8] = [
    "Emergency",
    "Alert",
    "Critical",
    "Error",
    "Warning",
    "Notice",
    "Informational",
    "Debug",
];

pub fn check(alert: &Value) -> Result<(), String> {
    for name in [
        "output", "priority", "rule", "time", "source", "hostname", "uuid",
    ] {
        if alert[name].as_str().is_none_or(str::is_empty) {
            return Err(format!("{name} must be a text"));
        }
    }
    let priority = alert["priority"].as_str().unwrap_or_default();
    if !PRIORITIES.contains(&priority) {
        return Err(format!("priority: {priority}"));
    }
    if alert["time"]
        .as_str()
        .unwrap_or_default()
        .parse::<Timestamp>()
        .is_err()
    {
        return Err("time is not RFC 3339".to_owned());
    }
    let tags = alert["tags"].as_array().ok_or("tags must be a list")?;
    if !tags.iter().all(Value::is_string) {
        return Err("tags must be texts".to_owned());
    }
    let fields = alert["output_fields"]
        .as_object()
        .ok_or("output_fields must be an object")?;
    match fields
        .iter()
        .find(|(_, it)| !it.is_string() && !it.is_number())
    {
        Some((name, _)) => Err(format!("output_fields: {name} is neither text nor number")),
        None => Ok(()),
    }
}
