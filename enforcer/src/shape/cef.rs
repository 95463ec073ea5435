//! ArcSight Common Event Format, version 0.

use std::fmt::Write as _;

use super::{PRODUCT, Record, Severity, VERSION, summary};

/// The record as one line.
pub fn line(record: Record<'_>) -> String {
    let severity = match record.severity() {
        Severity::Informational => 1,
        Severity::Low => 3,
        Severity::Medium => 5,
        Severity::High => 8,
        Severity::Critical => 10,
    };
    let mut line = format!(
        "CEF:0|{PRODUCT}|{PRODUCT}|{VERSION}|{}|{}|{severity}|",
        header(&signature(record)),
        header(&name(record)),
    );
    let mut extension = Extension(&mut line);
    extension.put("rt", Some(record.time().as_millisecond().to_string()));
    extension.put("externalId", Some(record.key().to_string()));
    extension.put("dvchost", text(record, "node"));
    extension.put("cat", text(record, "kind"));
    extension.put(
        "act",
        Some(summary::outcome(record).into()).filter(|_| record.is_decision()),
    );
    extension.put("reason", text(record, "reason"));
    extension.put("sproc", text(record, "process.exe"));
    extension.put("spid", number(record, "process.pid"));
    extension.put("suid", number(record, "process.uid"));
    extension.put("filePath", text(record, "file"));
    extension.put(
        "dst",
        record
            .address("destination.address")
            .map(|it| it.to_string()),
    );
    extension.put(
        "dpt",
        record.port("destination.port").map(|it| it.to_string()),
    );
    extension.put("dhost", text(record, "destination.host"));
    extension.put("proto", text(record, "destination.protocol"));
    extension.put("cnt", number(record, "count"));
    let custom = [
        ("credential", "credential"),
        ("workload", "workload"),
        ("entitlement", "entitlement"),
        ("approver", "approver"),
        ("ticket", "ticket"),
        ("mode", "mode.effective"),
    ];
    for (index, (label, path)) in custom.into_iter().enumerate() {
        if let Some(value) = text(record, path) {
            let number = index + 1;
            extension.put(&format!("cs{number}Label"), Some(label.into()));
            extension.put(&format!("cs{number}"), Some(value));
        }
    }
    if let Some(version) = number(record, "bundle") {
        extension.put("cn1Label", Some("bundle".into()));
        extension.put("cn1", Some(version));
    }
    extension.put("msg", Some(summary::sentence(record)));
    line.truncate(line.trim_end().len());
    line
}

fn text(record: Record<'_>, path: &str) -> Option<String> {
    record.text(path).map(str::to_owned)
}

fn number(record: Record<'_>, path: &str) -> Option<String> {
    record.number(path).map(|it| it.to_string())
}

/// What correlation rules key on.
fn signature(record: Record<'_>) -> String {
    match record.text("reason") {
        Some(reason) if record.is_denied() => format!("{}:{reason}", record.kind()),
        _ => record.kind().to_owned(),
    }
}

/// For people.
fn name(record: Record<'_>) -> String {
    match record.is_decision() {
        true => format!("{} {}", record.kind(), summary::outcome(record)),
        false => record.kind().to_owned(),
    }
}

/// A field of the header: it ends at a bar, and the line at its end.
fn header(text: &str) -> String {
    let text = text.replace('\\', r"\\").replace('|', r"\|");
    text.replace(|it: char| it.is_control(), " ")
}

/// The pairs after the header.
struct Extension<'a>(&'a mut String);

impl Extension<'_> {
    fn put(&mut self, name: &str, value: Option<String>) {
        let Some(value) = value else { return };
        let value = value
            .replace('\\', r"\\")
            .replace('=', r"\=")
            .replace('\n', r"\n")
            .replace('\r', r"\r")
            .replace(|it: char| it.is_control(), " ");
        // Writing to a string does not fail.
        let _ = write!(self.0, "{name}={} ", value.trim());
    }
}
