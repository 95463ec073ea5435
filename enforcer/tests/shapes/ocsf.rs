//! Against the published schema.

use std::sync::LazyLock;

use serde_json::{Map, Value};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../data/ocsf-1.8.0.json")).expect("the schema")
});

pub fn check(event: &Value) -> Result<(), String> {
    let number = |name: &str| event[name].as_u64().ok_or(format!("no {name}"));
    let class = &SCHEMA["classes"][number("class_uid")?.to_string()];
    if class.is_null() {
        return Err(format!("class_uid: {} is none", event["class_uid"]));
    }
    if event["category_uid"] != class["category_uid"] {
        return Err("category_uid is not the class's".to_owned());
    }
    if number("type_uid")? != number("class_uid")? * 100 + number("activity_id")? {
        return Err("type_uid is not class_uid * 100 + activity_id".to_owned());
    }
    if event["metadata"]["version"] != SCHEMA["version"] {
        return Err("metadata.version is another".to_owned());
    }
    object(event, class, "")
}

fn object(value: &Value, kind: &Value, at: &str) -> Result<(), String> {
    let fields = value.as_object().ok_or(format!("{at}: not an object"))?;
    let attributes = kind["attributes"].as_object().expect("attributes");
    for (name, attribute) in attributes {
        if attribute.as_str().expect("text").contains('!') && !fields.contains_key(name) {
            return Err(format!("{at}{name} is required"));
        }
    }
    at_least_one(fields, kind, at)?;
    for (name, value) in fields {
        let path = format!("{at}{name}");
        let attribute = attributes
            .get(name)
            .ok_or(format!("{path}: the schema has no such attribute"))?;
        self::attribute(value, attribute.as_str().expect("text"), &path)?;
    }
    Ok(())
}

fn at_least_one(fields: &Map<String, Value>, kind: &Value, at: &str) -> Result<(), String> {
    let Some(names) = kind["constraints"]["at_least_one"].as_array() else {
        return Ok(());
    };
    let is_there = |name: &Value| fields.contains_key(name.as_str().expect("name"));
    if names.iter().any(is_there) {
        return Ok(());
    }
    Err(format!("{at} has none of {names:?}"))
}

/// `type`, `[]`, `!` and the numbers of an enumeration.
fn attribute(value: &Value, attribute: &str, path: &str) -> Result<(), String> {
    let mut words = attribute.split(' ');
    let kind = words.next().expect("a type").trim_end_matches('!');
    if let Some(kind) = kind.strip_suffix("[]") {
        let list = value.as_array().ok_or(format!("{path}: not a list"))?;
        return list.iter().try_for_each(|it| one(it, kind, path));
    }
    one(value, kind, path)?;
    let allowed: Vec<&str> = words.collect();
    if !allowed.is_empty() && !allowed.contains(&value.to_string().as_str()) {
        return Err(format!("{path}: {value} is none of {allowed:?}"));
    }
    Ok(())
}

fn one(value: &Value, kind: &str, path: &str) -> Result<(), String> {
    let base = SCHEMA["types"][kind].as_str().unwrap_or(kind);
    let good = match (base, kind) {
        (_, "ip_t") => value
            .as_str()
            .is_some_and(|it| it.parse::<std::net::IpAddr>().is_ok()),
        (_, "port_t") => value.as_u64().is_some_and(|it| it <= 65535),
        ("string_t", _) => value.is_string(),
        ("integer_t", _) => value.as_i64().is_some_and(|it| i32::try_from(it).is_ok()),
        ("long_t", _) => value.is_i64() || value.is_u64(),
        ("boolean_t", _) => value.is_boolean(),
        ("json_t", _) => true,
        ("object", _) => value.is_object(),
        _ => {
            let object = &SCHEMA["objects"][kind];
            if object.is_null() {
                return Err(format!("{path}: the data file has no object {kind}"));
            }
            return self::object(value, object, &format!("{path}."));
        }
    };
    good.then_some(())
        .ok_or(format!("{path}: {value} is no {kind}"))
}
