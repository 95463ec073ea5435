//! Elastic Common Schema; what it has no field for is below `enforcer`.

use serde_json::{Map, Value, json};

use super::{PRODUCT, Record, VERSION, summary};

/// The version of the schema.
const ECS: &str = "9.4.0";

/// The record as a document.
pub fn document(record: Record<'_>) -> Value {
    let mut document = Document(Map::new());
    document.put("@timestamp", Some(json!(record.time().to_string())));
    document.put("ecs.version", Some(json!(ECS)));
    document.put("message", Some(json!(summary::sentence(record))));
    event(&mut document, record);
    document.put("agent.type", Some(json!(PRODUCT)));
    document.put("agent.version", Some(json!(VERSION)));
    document.put("host.name", Some(json!(record.node())));
    document.put("host.boot.id", text(record, "boot"));
    process(&mut document, record);
    if let Some(path) = record.text("file") {
        document.put("file.path", Some(json!(path)));
        document.put("file.name", path.rsplit('/').next().map(Value::from));
    }
    destination(&mut document, record);
    document.put("container.id", text(record, "instance.container.id"));
    document.put("container.name", text(record, "instance.container.name"));
    document.put(
        "orchestrator.namespace",
        text(record, "instance.pod.namespace"),
    );
    if let Some(pod) = text(record, "instance.pod.name") {
        document.put("orchestrator.type", Some(json!("kubernetes")));
        document.put("orchestrator.resource.type", Some(json!("pod")));
        document.put("orchestrator.resource.name", Some(pod));
    }
    document.put("service.name", text(record, "instance.unit"));
    if let Some(entitlement) = text(record, "entitlement") {
        document.put("rule.id", Some(entitlement.clone()));
        document.put("rule.name", Some(entitlement));
        document.put(
            "rule.version",
            record.number("bundle").map(|it| json!(it.to_string())),
        );
    }
    document.put("enforcer", Some(rest(record)));
    Value::Object(document.0)
}

/// A document with nested objects.
struct Document(Map<String, Value>);

impl Document {
    /// Puts a value at a path, if there is one.
    fn put(&mut self, path: &str, value: Option<Value>) {
        let Some(value) = value else { return };
        let mut names: Vec<&str> = path.split('.').collect();
        let last = names.pop().unwrap_or_default();
        let mut place = &mut self.0;
        for name in names {
            let below = place.entry(name).or_insert_with(|| json!({}));
            let Value::Object(below) = below else { return };
            place = below;
        }
        place.insert(last.to_owned(), value);
    }
}

fn text(record: Record<'_>, path: &str) -> Option<Value> {
    record.text(path).map(Value::from)
}

fn number(record: Record<'_>, path: &str) -> Option<Value> {
    record.number(path).map(Value::from)
}

fn event(document: &mut Document, record: Record<'_>) {
    let key = record.key();
    let denied = record.is_denied();
    let (category, types): (&[&str], &[&str]) = match record.act() {
        "reach" if denied => (&["network"], &["connection", "denied"]),
        "reach" => (&["network"], &["connection", "allowed"]),
        "read" | "forward" if record.get("destination").is_some() => {
            (&["network"], &["connection"])
        }
        "read" | "forward" if record.get("target").is_some() => (&["process"], &["access"]),
        "read" | "forward" => (&["file"], &["access"]),
        "tamper" => (&["intrusion_detection"], &["info"]),
        "bundle-applied" | "no-bundle" | "bundle-refused" | "revocations" | "mode-changed" => {
            (&["configuration"], &["change"])
        }
        "started" => (&["process"], &["start"]),
        "stopped" => (&["process"], &["end"]),
        "finding" => (&["iam"], &["info"]),
        _ => (&["host"], &["info"]),
    };
    let kind = if denied || record.kind() == "finding" {
        "alert"
    } else {
        "event"
    };
    let outcome = match (record.is_decision(), record.is_refused(), record.kind()) {
        (true, true, _) | (_, _, "bundle-refused") => "failure",
        (true, false, _) | (_, _, "bundle-applied") => "success",
        _ => "unknown",
    };
    document.put("event.kind", Some(json!(kind)));
    document.put("event.category", Some(json!(category)));
    document.put("event.type", Some(json!(types)));
    document.put("event.outcome", Some(json!(outcome)));
    document.put("event.action", Some(json!(action(record))));
    document.put("event.reason", text(record, "reason"));
    document.put("event.provider", Some(json!(PRODUCT)));
    document.put("event.module", Some(json!(PRODUCT)));
    document.put("event.dataset", Some(json!("enforcer.events")));
    document.put("event.id", Some(json!(key.to_string())));
    document.put("event.sequence", Some(json!(key.sequence)));
    document.put("event.severity", Some(json!(record.severity() as u8)));
}

/// `credential-read-denied`, `bundle-applied`.
fn action(record: Record<'_>) -> String {
    match record.text("verdict") {
        Some(_) => format!("credential-{}-{}", record.act(), summary::outcome(record)),
        None => record.kind().to_owned(),
    }
}

fn process(document: &mut Document, record: Record<'_>) {
    if record.get("process").is_none() {
        return;
    }
    document.put("process.pid", number(record, "process.pid"));
    document.put("process.entity_id", text(record, "process.key"));
    document.put("process.thread.id", number(record, "process.tid"));
    document.put("process.executable", text(record, "process.exe"));
    document.put("process.name", text(record, "process.comm"));
    let start = record.moment("process.start");
    document.put("process.start", start.map(|it| json!(it.to_string())));
    let args: Vec<&str> = record.texts("process.args").collect();
    if !args.is_empty() {
        document.put("process.args_count", Some(json!(args.len())));
        document.put("process.command_line", Some(json!(args.join(" "))));
        document.put("process.args", Some(json!(args)));
    }
    document.put("process.parent.pid", number(record, "process.parent"));
    let parent = record.list("process.ancestors").next();
    let parent = parent.and_then(|it| it.text("comm")).map(Value::from);
    document.put("process.parent.name", parent);
    let user = record.number("process.uid").map(|it| json!(it.to_string()));
    document.put("user.id", user);
}

fn destination(document: &mut Document, record: Record<'_>) {
    let Some(address) = record.text("destination.address") else {
        return;
    };
    document.put("destination.address", Some(json!(address)));
    if let Some(ip) = record.address("destination.address") {
        document.put("destination.ip", Some(json!(ip.to_string())));
        let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
        document.put("network.type", Some(json!(family)));
    }
    document.put(
        "destination.port",
        record.port("destination.port").map(Value::from),
    );
    document.put("destination.domain", text(record, "destination.host"));
    document.put("network.transport", text(record, "destination.protocol"));
    document.put("network.direction", Some(json!("egress")));
}

/// What the schema has no field for, as the record has it.
fn rest(record: Record<'_>) -> Value {
    /// They have a field of the schema.
    const TOLD: &[&str] = &[
        "time",
        "node",
        "boot",
        "process",
        "file",
        "destination",
        "instance",
    ];
    let fields = record.0.as_object().into_iter().flatten();
    let mut rest: Map<String, Value> = fields
        .filter(|(name, value)| !TOLD.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(ancestors) = record.get("process.ancestors") {
        rest.insert("ancestors".into(), ancestors.clone());
    }
    Value::Object(rest)
}
