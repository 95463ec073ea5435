//! Open Cybersecurity Schema Framework 1.8: which class a record is one of, and what that class wants.
//!
//! A use is an activity with the Security Control profile, also where it was denied: as the schema advises for what is
//! told once. Findings are for what has a life cycle.

mod objects;

use serde_json::{Value, json};

use super::{Record, summary};
use objects::Object;

/// The version of the schema.
const SCHEMA: &str = "1.8.0";

/// A class and what was done in its terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    uid: u32,
    name: &'static str,
    activity: u32,
    activity_name: &'static str,
}

const fn class(uid: u32, name: &'static str, activity: u32, activity_name: &'static str) -> Class {
    Class {
        uid,
        name,
        activity,
        activity_name,
    }
}

const FILE_OPEN: Class = class(1001, "File System Activity", 14, "Open");
const FILE_READ: Class = class(1001, "File System Activity", 2, "Read");
const FILE_UPDATE: Class = class(1001, "File System Activity", 3, "Update");
const PROCESS_OPEN: Class = class(1007, "Process Activity", 3, "Open");
const FINDING: Class = class(2004, "Detection Finding", 1, "Create");
const IDENTITY_FINDING: Class = class(2008, "IAM Analysis Finding", 1, "Create");
const ACTIVATE: Class = class(3004, "Entity Management", 10, "Activate");
const DEACTIVATE: Class = class(3004, "Entity Management", 11, "Deactivate");
const CONNECT: Class = class(4001, "Network Activity", 1, "Open");
const TRAFFIC: Class = class(4001, "Network Activity", 6, "Traffic");
const START: Class = class(6002, "Application Lifecycle", 3, "Start");
const STOP: Class = class(6002, "Application Lifecycle", 4, "Stop");
const ENABLE: Class = class(6002, "Application Lifecycle", 6, "Enable");
const DISABLE: Class = class(6002, "Application Lifecycle", 7, "Disable");
/// What has no word in the schema keeps its own.
const OTHER: Class = class(6002, "Application Lifecycle", 99, "Other");

fn class_of(record: Record<'_>) -> Class {
    match record.act() {
        "read" if record.get("destination").is_some() => CONNECT,
        "read" | "forward" if record.get("target").is_some() => PROCESS_OPEN,
        "read" => match record.text("gate") {
            Some("file_permission" | "mmap_file") => FILE_READ,
            _ => FILE_OPEN,
        },
        "forward" if record.text("handed") == Some("given") => FILE_UPDATE,
        "forward" => FILE_READ,
        "reach" => match record.text("gate") {
            Some("socket_sendmsg" | "cgroup_sendmsg" | "packet") => TRAFFIC,
            _ => CONNECT,
        },
        "tamper" => FINDING,
        "finding" => IDENTITY_FINDING,
        "bundle-applied" | "bundle-refused" => ACTIVATE,
        "no-bundle" | "revocations" => DEACTIVATE,
        "started" => START,
        "stopped" => STOP,
        "state" => match record.text("state") {
            Some("degraded" | "no-bundle") => DISABLE,
            _ => ENABLE,
        },
        _ => OTHER,
    }
}

/// The record as an event.
pub fn event(record: Record<'_>) -> Value {
    let class = class_of(record);
    let severity = record.severity();
    let activity_name = match class {
        OTHER => record.kind(),
        _ => class.activity_name,
    };
    let mut event = Object::default();
    event.put("class_uid", class.uid);
    event.put("class_name", class.name);
    event.put("category_uid", class.uid / 1000);
    event.put("activity_id", class.activity);
    event.put("activity_name", activity_name);
    event.put(
        "type_uid",
        u64::from(class.uid) * 100 + u64::from(class.activity),
    );
    event.put("type_name", format!("{}: {activity_name}", class.name));
    event.put("severity_id", severity as u8);
    event.put("severity", severity.name());
    event.put("time", record.time().as_millisecond());
    event.put("message", summary::sentence(record));
    event.put("metadata", objects::metadata(record, class.uid));
    event.put("device", objects::device(record));
    if record.get("process").is_some() && class.uid != 6002 {
        event.put("actor", objects::actor(record));
    }
    if let Some(count) = record.small("count") {
        event.put("count", count);
    }
    for (name, path) in [("start_time", "first"), ("end_time", "last")] {
        event.maybe(name, record.moment(path).map(|it| it.as_millisecond()));
    }
    if record.is_decision() {
        control(&mut event, record, class);
    }
    match class.uid {
        1001 => {
            // Required here, whoever it was.
            event.put("actor", objects::actor(record));
            event.put("file", objects::file(record));
        }
        1007 => {
            event.put("actor", objects::actor(record));
            event.put("process", objects::target(record));
        }
        2004 => {
            event.put("finding_info", objects::finding(record));
            event.put(
                "evidences",
                json!([{"actor": objects::actor(record), "device": objects::device(record)}]),
            );
        }
        2008 => identity(&mut event, record),
        3004 => {
            event.put("entity", objects::entity(record));
            status(&mut event, record.kind() != "bundle-refused");
            event.maybe("comment", record.text("reason"));
        }
        4001 => network(&mut event, record),
        _ => event.put("app", objects::product()),
    }
    event.put("enrichments", objects::enrichments(record));
    event.put("unmapped", objects::unmapped(record));
    event.into()
}

fn status(event: &mut Object, success: bool) {
    event.put("status_id", if success { 1 } else { 2 });
    event.put("status", if success { "Success" } else { "Failure" });
}

/// The Security Control profile.
fn control(event: &mut Object, record: Record<'_>, class: Class) {
    let (action, action_name, disposition, disposition_name) =
        match (record.is_denied(), record.is_refused()) {
            (true, true) => (2, "Denied", 2, "Blocked"),
            (true, false) => (3, "Observed", 15, "Detected"),
            (false, _) => (1, "Allowed", 1, "Allowed"),
        };
    event.put("action_id", action);
    event.put("action", action_name);
    event.put("disposition_id", disposition);
    event.put("disposition", disposition_name);
    event.put("is_alert", record.is_denied());
    if class.uid / 1000 != 2 {
        status(event, !record.is_refused());
        event.maybe("status_code", record.text("reason"));
    }
    if let Some(policy) = objects::policy(record) {
        let decision = record.text("verdict").unwrap_or("unknown");
        event.put(
            "authorizations",
            json!([{"decision": decision, "policy": policy}]),
        );
        event.put("policy", policy);
    }
    if record.is_denied() {
        event.maybe("attacks", objects::attacks(record));
    }
}

fn network(event: &mut Object, record: Record<'_>) {
    event.put("src_endpoint", json!({"hostname": record.node()}));
    if record.text("destination.address").is_some() {
        event.put("dst_endpoint", objects::destination(record));
    }
    event.put("connection_info", objects::connection(record));
}

/// What a review is about: whose credential it is, and when it was used.
fn identity(event: &mut Object, record: Record<'_>) {
    event.put("finding_info", objects::finding(record));
    event.put("identity_activity_metrics", objects::activity(record));
    event.put("user", objects::identity(record));
    if let Some(advice) = record.text("advice").or(record.text("remediation")) {
        event.put("remediation", json!({"desc": advice}));
    }
}
