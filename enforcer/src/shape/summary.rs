//! A record in one sentence.

use super::Record;

/// What happened, for people: who did what with which credential, and what came of it.
#[must_use]
pub fn sentence(record: Record<'_>) -> String {
    if !record.is_decision() {
        return told(record);
    }
    let mut words = vec![
        outcome(record).to_owned(),
        record.act().to_owned(),
        "by".to_owned(),
        who(record),
    ];
    if let Some(credential) = record.text("credential") {
        words.extend(["of".to_owned(), credential.to_owned()]);
    }
    if let Some(file) = record.text("file") {
        words.extend(["at".to_owned(), file.to_owned()]);
    }
    if let Some(to) = destination(record) {
        words.extend(["to".to_owned(), to]);
    }
    if let Some(what) = record.text("what") {
        words.push(format!("({what})"));
    }
    if let Some(count) = record.number("count") {
        words.push(format!("{count} times"));
    }
    let mut text = words.join(" ");
    if let Some(reason) = record.text("reason") {
        text.push_str(": ");
        text.push_str(reason);
        if let Some(misfit) = record.text("misfit") {
            text.push_str(&format!(" ({misfit})"));
        }
    } else if let Some(entitlement) = record.text("entitlement") {
        text.push_str(&format!(" by {entitlement}"));
    }
    text
}

/// What came of it, in a word.
#[must_use]
pub fn outcome(record: Record<'_>) -> &'static str {
    match (record.is_denied(), record.text("action.taken")) {
        (false, _) => "allowed",
        (true, Some("kill" | "kill-workload")) => "killed",
        (true, Some("freeze")) => "frozen",
        (true, Some("none") | None) => "monitored",
        (true, Some(_)) => "denied",
    }
}

/// The process, by its executable, and the container it is in.
#[must_use]
pub fn who(record: Record<'_>) -> String {
    let mut who = record
        .text("process.exe")
        .unwrap_or("an unknown program")
        .to_owned();
    if let Some(pid) = record.number("process.pid") {
        who.push_str(&format!("[{pid}]"));
    }
    if let Some(workload) = record.text("workload") {
        who.push_str(&format!(" as {workload}"));
    }
    if let Some(container) = container(record) {
        who.push_str(&format!(" in {container}"));
    }
    who
}

/// The container, with its pod.
#[must_use]
pub fn container(record: Record<'_>) -> Option<String> {
    let name = record.text("instance.container.name");
    let namespace = record.text("instance.pod.namespace");
    match (namespace.zip(record.text("instance.pod.name")), name) {
        (Some((namespace, pod)), Some(name)) => Some(format!("{namespace}/{pod}/{name}")),
        (Some((namespace, pod)), None) => Some(format!("{namespace}/{pod}")),
        (None, Some(name)) => Some(format!("container {name}")),
        (None, None) => None,
    }
}

/// The destination, by its name where it has one.
#[must_use]
pub fn destination(record: Record<'_>) -> Option<String> {
    let address = record.text("destination.address")?;
    let port = record.port("destination.port").unwrap_or(0);
    let at = if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    };
    Some(match record.text("destination.host") {
        Some(host) => format!("{host} ({at})"),
        None => at,
    })
}

/// What the daemon has to tell: its kind, and whatever is short.
fn told(record: Record<'_>) -> String {
    /// They are on every record.
    const COMMON: &[&str] = &[
        "time", "node", "boot", "epoch", "sequence", "previous", "hash", "kind",
    ];
    let fields = record.0.as_object().into_iter().flatten();
    let said: Vec<String> = fields
        .filter(|(name, value)| {
            !COMMON.contains(&name.as_str())
                && (value.is_string() || value.is_number() || value.is_boolean())
        })
        .map(|(name, value)| match value.as_str() {
            Some(text) => format!("{name} {text}"),
            None => format!("{name} {value}"),
        })
        .collect();
    if said.is_empty() {
        return record.kind().to_owned();
    }
    format!("{}: {}", record.kind(), said.join(", "))
}
