//! Against the published fields.

use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::Value;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../data/ecs-9.4.0.json")).expect("the schema")
});

/// These have values of their own.
const KEYWORDS: [&str; 2] = ["event.kind", "event.outcome"];

pub fn check(document: &Value) -> Result<(), String> {
    for name in ["@timestamp", "ecs"] {
        if document[name].is_null() {
            return Err(format!("{name} is required"));
        }
    }
    if document["ecs"]["version"] != SCHEMA["version"] {
        return Err("ecs.version is another".to_owned());
    }
    fields(document, "")?;
    for name in KEYWORDS {
        let value = document.pointer(&format!("/{}", name.replace('.', "/")));
        let allowed = SCHEMA[name].as_array().expect("values");
        if !value.is_some_and(|it| allowed.contains(it)) {
            return Err(format!("{name}: {value:?} is none of {allowed:?}"));
        }
    }
    let list = |name: &str| {
        document["event"][name]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    for category in list("category") {
        let name = category.as_str().unwrap_or_default();
        let types = SCHEMA["event.category"][name]
            .as_array()
            .ok_or(format!("event.category: no {name}"))?;
        let strange = list("type").into_iter().find(|it| !types.contains(it));
        if let Some(strange) = strange {
            return Err(format!("event.type: {strange} is not expected with {name}"));
        }
    }
    Ok(())
}

fn fields(value: &Value, at: &str) -> Result<(), String> {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{at}{name}");
        // What the schema leaves to whoever tells.
        if path == "enforcer" {
            continue;
        }
        match SCHEMA["fields"][&path].as_str() {
            Some(kind) => field(value, kind, &path)?,
            None if value.is_object() => fields(value, &format!("{path}."))?,
            None => return Err(format!("{path}: the schema has no such field")),
        }
    }
    Ok(())
}

fn field(value: &Value, kind: &str, path: &str) -> Result<(), String> {
    if let Some(kind) = kind.strip_suffix("[]") {
        let list = value.as_array().ok_or(format!("{path}: not a list"))?;
        return list.iter().try_for_each(|it| field(it, kind, path));
    }
    let good = match kind {
        "date" => value
            .as_str()
            .is_some_and(|it| it.parse::<Timestamp>().is_ok()),
        "ip" => value
            .as_str()
            .is_some_and(|it| it.parse::<std::net::IpAddr>().is_ok()),
        "long" => value.is_i64() || value.is_u64(),
        "keyword" | "wildcard" | "match_only_text" => value.is_string(),
        _ => false,
    };
    good.then_some(())
        .ok_or(format!("{path}: {value} is no {kind}"))
}
