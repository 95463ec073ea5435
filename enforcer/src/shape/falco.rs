//! Falco's JSON, as its program output writes it and falcosidekick takes it.

use serde_json::{Map, Value, json};

use super::{Record, Severity, summary};

/// The record as an alert.
pub fn alert(record: Record<'_>) -> Value {
    let priority = priority(record.severity());
    let sentence = summary::sentence(record);
    let time = record.time();
    json!({
        "uuid": record.key().to_string(),
        "output": format!("{time}: {priority} {sentence}"),
        "priority": priority,
        "rule": rule(record),
        "time": time.to_string(),
        "source": "enforcer",
        "hostname": record.node(),
        "tags": tags(record),
        "output_fields": fields(record),
    })
}

fn priority(severity: Severity) -> &'static str {
    match severity {
        Severity::Informational => "Informational",
        Severity::Low => "Notice",
        Severity::Medium => "Warning",
        Severity::High => "Error",
        Severity::Critical => "Critical",
    }
}

/// One for each kind and reason: what people route and silence by.
fn rule(record: Record<'_>) -> String {
    match record.text("reason") {
        Some(reason) if record.is_denied() => format!("enforcer {} {reason}", record.kind()),
        _ => format!("enforcer {}", record.kind()),
    }
}

fn tags(record: Record<'_>) -> Vec<&str> {
    let mut tags = vec!["enforcer", "credentials"];
    tags.extend(record.text("verdict"));
    if record.is_denied() && record.kind() == "read" {
        tags.extend(["mitre_credential_access", "T1552"]);
    }
    if record.is_denied() && record.kind() == "reach" {
        tags.push("mitre_exfiltration");
    }
    tags
}

/// Falco's own names where it has one for the same thing, `enforcer.` for the rest. Texts and numbers only.
fn fields(record: Record<'_>) -> Value {
    let mut fields = Map::new();
    // Nanoseconds since 1970, which fit until 2262.
    let nanoseconds = i64::try_from(record.time().as_nanosecond()).unwrap_or(0);
    fields.insert("evt.time".into(), json!(nanoseconds));
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.into(), value);
        }
    };
    let text = |path: &str| record.text(path).map(Value::from);
    let number = |path: &str| record.number(path).map(Value::from);
    put("evt.type", text("gate"));
    put("proc.pid", number("process.pid"));
    put("proc.ppid", number("process.parent"));
    put("proc.name", text("process.comm"));
    put("proc.exepath", text("process.exe"));
    let args: Vec<&str> = record.texts("process.args").collect();
    put(
        "proc.cmdline",
        (!args.is_empty()).then(|| args.join(" ").into()),
    );
    let parent = record.list("process.ancestors").next();
    put(
        "proc.pname",
        parent.and_then(|it| it.text("comm")).map(Value::from),
    );
    put("user.uid", number("process.uid"));
    put(
        "fd.name",
        text("file").or_else(|| summary::destination(record).map(Value::from)),
    );
    put("fd.rip", text("destination.address"));
    put("fd.rport", number("destination.port"));
    put("fd.l4proto", text("destination.protocol"));
    put("container.id", text("instance.container.id"));
    put("k8s.ns.name", text("instance.pod.namespace"));
    put("k8s.pod.name", text("instance.pod.name"));
    for name in [
        "verdict",
        "reason",
        "credential",
        "workload",
        "entitlement",
        "approver",
        "ticket",
        "tier",
        "misfit",
        "epoch",
    ] {
        put(&format!("enforcer.{name}"), text(name));
    }
    for name in ["bundle", "sequence", "count"] {
        put(&format!("enforcer.{name}"), number(name));
    }
    put("enforcer.unit", text("instance.unit"));
    put("enforcer.action", text("action.taken"));
    put("enforcer.mode", text("mode.effective"));
    Value::Object(fields)
}
