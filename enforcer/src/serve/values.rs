//! JSON as protobuf's `Struct`, and back.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::{Map, Number, Value};

/// An object; anything else is one without fields.
pub(super) fn structure(value: Value) -> Struct {
    let fields = match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    Struct {
        fields: fields
            .into_iter()
            .map(|(name, it)| (name, wire(it)))
            .collect(),
    }
}

fn wire(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(it) => Kind::BoolValue(it),
        Value::Number(it) => Kind::NumberValue(it.as_f64().unwrap_or(f64::NAN)),
        Value::String(it) => Kind::StringValue(it),
        Value::Array(it) => Kind::ListValue(ListValue {
            values: it.into_iter().map(wire).collect(),
        }),
        Value::Object(_) => Kind::StructValue(structure(value)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// What it says.
#[must_use]
pub fn value(from: Struct) -> Value {
    let fields = from.fields.into_iter().map(|(name, it)| (name, json(it)));
    Value::Object(fields.collect())
}

fn json(from: prost_types::Value) -> Value {
    /// Up to here numbers are whole and exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match from.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(it)) => Value::Bool(it),
        Some(Kind::NumberValue(it)) if it.fract() == 0.0 && it.abs() <= EXACT => {
            Value::Number((it as i64).into())
        }
        Some(Kind::NumberValue(it)) => Number::from_f64(it).map_or(Value::Null, Value::Number),
        Some(Kind::StringValue(it)) => Value::String(it),
        Some(Kind::ListValue(it)) => it.values.into_iter().map(json).collect(),
        Some(Kind::StructValue(it)) => value(it),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let before =
            json!({"a": [1, -2, 2.5, null, true], "b": {"c": "d"}, "n": 9_007_199_254_740_991_u64});
        assert_eq!(value(structure(before.clone())), before);
    }
}
