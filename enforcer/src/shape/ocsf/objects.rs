//! The schema's objects, from what a record has.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::SCHEMA;
use crate::shape::{PRODUCT, Record, VERSION, summary};

/// An object as it is put together.
#[derive(Default)]
pub struct Object(Map<String, Value>);

impl Object {
    /// Sets an attribute.
    pub fn put(&mut self, name: &str, value: impl Serialize) {
        self.0.insert(name.to_owned(), json!(value));
    }

    /// Sets an attribute that is known.
    pub fn maybe(&mut self, name: &str, value: Option<impl Serialize>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object.0)
    }
}

/// The enforcer.
pub fn product() -> Value {
    json!({"name": PRODUCT, "vendor_name": PRODUCT, "version": VERSION})
}

pub fn metadata(record: Record<'_>, class: u32) -> Value {
    let key = record.key();
    let mut metadata = Object::default();
    metadata.put("version", SCHEMA);
    metadata.put("product", product());
    metadata.put("uid", key.to_string());
    // A number of 31 bits here; the whole one is in `uid`.
    metadata.maybe("sequence", i32::try_from(key.sequence).ok());
    metadata.put("log_name", "events");
    metadata.put("log_provider", PRODUCT);
    metadata.put("original_time", record.time().to_string());
    metadata.put("event_code", record.kind());
    // One holder's uses belong together.
    metadata.maybe("correlation_uid", record.text("process.key"));
    let mut profiles = vec![];
    if record.is_decision() {
        profiles.push("security_control");
    }
    if class != 6002 {
        profiles.push("host");
    }
    if record.get("instance.container").is_some() {
        profiles.push("container");
    }
    metadata.put("profiles", profiles);
    metadata.into()
}

/// The node.
pub fn device(record: Record<'_>) -> Value {
    let mut device = Object::default();
    device.put("type_id", 0);
    device.put("type", "Unknown");
    device.put("hostname", record.node());
    device.put("name", record.node());
    device.put(
        "os",
        json!({"name": "Linux", "type_id": 200, "type": "Linux"}),
    );
    device.maybe("boot_uid", record.text("boot"));
    device.into()
}

pub fn actor(record: Record<'_>) -> Value {
    let mut actor = Object::default();
    actor.put("process", process(record));
    actor.put("user", user(record));
    actor.maybe(
        "app_name",
        record.text("workload").or(record.text("instance.unit")),
    );
    actor.into()
}

fn user(record: Record<'_>) -> Value {
    let uid = record.number("process.uid");
    match uid {
        Some(uid) => json!({"uid": uid.to_string()}),
        None => json!({"name": "unknown"}),
    }
}

fn process(record: Record<'_>) -> Value {
    let mut process = Object::default();
    // One of `pid` and `uid` there must be.
    process.put("pid", record.small("process.pid").unwrap_or(0));
    process.maybe("uid", record.text("process.key"));
    process.maybe("ptid", record.number("process.tid"));
    process.maybe("name", record.text("process.comm"));
    let args: Vec<&str> = record.texts("process.args").collect();
    if !args.is_empty() {
        process.put("cmd_line", args.join(" "));
    }
    let start = record.moment("process.start");
    process.maybe("created_time", start.map(|it| it.as_millisecond()));
    process.put("user", user(record));
    if let Some(path) = record.text("process.exe") {
        process.put("path", path);
        process.put("file", regular(path));
    }
    if let Some(parent) = record.small("process.parent") {
        process.put("parent_process", json!({"pid": parent}));
    }
    let ancestry: Vec<Value> = record
        .list("process.ancestors")
        .filter_map(ancestor)
        .collect();
    if !ancestry.is_empty() {
        process.put("ancestry", ancestry);
    }
    if let Some(container) = container(record) {
        process.put("container", container);
    }
    process.into()
}

fn ancestor(record: Record<'_>) -> Option<Value> {
    let mut entity = Object::default();
    entity.put("pid", record.small("pid")?);
    entity.maybe("name", record.text("comm"));
    entity.maybe("path", record.text("exe"));
    Some(entity.into())
}

fn container(record: Record<'_>) -> Option<Value> {
    let id = record
        .text("instance.container.id")
        .or(record.text("instance.container.name"))?;
    let mut container = Object::default();
    container.put("uid", id);
    container.maybe("name", record.text("instance.container.name"));
    if record.get("instance.pod").is_some() {
        container.put("orchestrator", "kubernetes");
    }
    Some(container.into())
}

/// The process whose memory it is.
pub fn target(record: Record<'_>) -> Value {
    json!({"pid": record.small("target").unwrap_or(0)})
}

/// The file of a use; where there is none, what it was handed through.
pub fn file(record: Record<'_>) -> Value {
    let kind = match record.text("gate") {
        Some("unix" | "unix_stream_connect" | "unix_may_send") => (5, "Local Socket"),
        Some("pipe") => (6, "Named Pipe"),
        _ => (1, "Regular File"),
    };
    let mut file = Object::default();
    match record.text("file") {
        Some(path) => {
            file.put("path", path);
            file.put("name", name_of(path));
        }
        None => file.put("name", "unknown"),
    }
    file.put("type_id", kind.0);
    file.put("type", kind.1);
    file.into()
}

fn regular(path: &str) -> Value {
    json!({"path": path, "name": name_of(path), "type_id": 1, "type": "Regular File"})
}

/// The last part of a path.
fn name_of(path: &str) -> &str {
    let name = path.rsplit('/').find(|part| !part.is_empty());
    name.unwrap_or(path)
}

pub fn destination(record: Record<'_>) -> Value {
    let mut endpoint = Object::default();
    match record.address("destination.address") {
        Some(address) => endpoint.put("ip", address.to_string()),
        None => endpoint.maybe("name", record.text("destination.address")),
    }
    endpoint.maybe("port", record.port("destination.port"));
    endpoint.maybe("hostname", record.text("destination.host"));
    if record.is_metadata_service() {
        endpoint.put("svc_name", "cloud-metadata");
    }
    endpoint.into()
}

pub fn connection(record: Record<'_>) -> Value {
    let protocol = record.text("destination.protocol");
    let number = match protocol {
        Some("tcp") => Some(6),
        Some("udp") => Some(17),
        Some("icmp") => Some(1),
        other => other.and_then(|it| it.parse::<u8>().ok()),
    };
    let mut info = Object::default();
    info.put("direction_id", 2);
    info.put("direction", "Outbound");
    info.maybe("protocol_name", protocol);
    info.maybe("protocol_num", number);
    if let Some(address) = record.address("destination.address") {
        let (id, name) = if address.is_ipv4() {
            (4, "Internet Protocol version 4 (IPv4)")
        } else {
            (6, "Internet Protocol version 6 (IPv6)")
        };
        info.put("protocol_ver_id", id);
        info.put("protocol_ver", name);
    }
    info.into()
}

/// The entitlement that decided, or the nearest.
pub fn policy(record: Record<'_>) -> Option<Value> {
    let entitlement = record.text("entitlement")?;
    let mut policy = Object::default();
    policy.put("uid", entitlement);
    policy.put("name", entitlement);
    policy.put("type", "entitlement");
    policy.put(
        "is_applied",
        record.text("mode.effective") == Some("enforce"),
    );
    let version = record.number("bundle");
    policy.maybe("version", version.map(|it| it.to_string()));
    Some(policy.into())
}

/// Who approved what decided.
pub fn enrichments(record: Record<'_>) -> Value {
    let Some(entitlement) = record.text("entitlement") else {
        return json!([]);
    };
    let approval = ["approver", "ticket", "reviewBy"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), json!(record.text(name)?))));
    let approval: Map<String, Value> = approval.collect();
    json!([{"name": "entitlement", "value": entitlement, "type": "approval", "data": approval}])
}

/// What a denied act would have been a step of.
pub fn attacks(record: Record<'_>) -> Option<Value> {
    /// Tactic, technique and sub-technique, each with its name.
    type Attack = [(&'static str, &'static str); 3];
    const ACCESS: (&str, &str) = ("TA0006", "Credential Access");
    const UNSECURED: (&str, &str) = ("T1552", "Unsecured Credentials");
    let [tactic, technique, sub]: Attack = match record.kind() {
        "tamper" => [
            ("TA0005", "Defense Evasion"),
            ("T1562", "Impair Defenses"),
            ("T1562.001", "Disable or Modify Tools"),
        ],
        "reach" => [
            ("TA0010", "Exfiltration"),
            ("T1048", "Exfiltration Over Alternative Protocol"),
            ("", ""),
        ],
        _ if record.is_metadata_service() => [
            ACCESS,
            UNSECURED,
            ("T1552.005", "Cloud Instance Metadata API"),
        ],
        _ if record.get("target").is_some() => [
            ACCESS,
            ("T1003", "OS Credential Dumping"),
            ("T1003.007", "Proc Filesystem"),
        ],
        "read" => [ACCESS, UNSECURED, ("T1552.001", "Credentials In Files")],
        _ => return None,
    };
    let named = |(uid, name): (&str, &str)| json!({"uid": uid, "name": name});
    let mut attack = Object::default();
    attack.put("tactic", named(tactic));
    attack.put("technique", named(technique));
    if !sub.0.is_empty() {
        attack.put("sub_technique", named(sub));
    }
    Some(json!([Value::from(attack)]))
}

pub fn finding(record: Record<'_>) -> Value {
    let what = record.text("finding").unwrap_or(record.kind());
    let time = record.time().as_millisecond();
    let mut info = Object::default();
    // The same finding about the same things keeps its id.
    let parts = [record.node(), what].into_iter().chain(
        ["credential", "entitlement", "workload"]
            .into_iter()
            .filter_map(|path| record.text(path)),
    );
    let uid = match record.kind() {
        "finding" => parts.collect::<Vec<_>>().join("/"),
        _ => record.key().to_string(),
    };
    info.put("uid", record.text("id").map_or(uid, str::to_owned));
    info.put(
        "title",
        record
            .text("title")
            .map_or_else(|| summary::sentence(record), str::to_owned),
    );
    let types: Vec<&str> = std::iter::once(what).chain(record.texts("owasp")).collect();
    info.put("types", types);
    info.put("created_time", time);
    info.put("product", product());
    info.maybe("attacks", attacks(record).filter(|_| record.is_denied()));
    info.into()
}

/// When a credential was used: what a review weighs.
pub fn activity(record: Record<'_>) -> Value {
    let millisecond = |path| record.moment(path).map(|it| it.as_millisecond());
    let last = millisecond("last").or(millisecond("lastUsed"));
    let mut activity = Object::default();
    activity.maybe("first_seen_time", millisecond("first"));
    activity.maybe("last_seen_time", last);
    let mut credential = Object::default();
    credential.put("uid", record.text("credential").unwrap_or("unknown"));
    credential.maybe("last_used_time", last);
    activity.put("programmatic_credentials", json!([Value::from(credential)]));
    activity.into()
}

/// The non-human identity that a finding is about.
pub fn identity(record: Record<'_>) -> Value {
    let name = ["workload", "credential"]
        .into_iter()
        .find_map(|path| record.text(path));
    json!({"name": name.unwrap_or("unknown"), "type_id": 4, "type": "Service"})
}

/// What was put in force or taken out.
pub fn entity(record: Record<'_>) -> Value {
    let mut entity = Object::default();
    let kind = match record.kind() {
        "revocations" => "revocations",
        _ => "bundle",
    };
    entity.put("name", record.text("issuer").unwrap_or(kind));
    entity.put("type", kind);
    let version = record.number("bundle").or(record.number("revocations"));
    entity.maybe("version", version.map(|it| it.to_string()));
    entity.into()
}

/// What the schema has no attribute for, as the record has it.
pub fn unmapped(record: Record<'_>) -> Value {
    /// They have one.
    const TOLD: &[&str] = &["time", "node", "process", "file", "destination"];
    let fields = record.0.as_object().into_iter().flatten();
    let rest: Map<String, Value> = fields
        .filter(|(name, value)| !TOLD.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    Value::Object(rest)
}
