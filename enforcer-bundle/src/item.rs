//! One part of a bundle: what has an id, as it travels.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::parts::Digest;

/// What has an id, in canonical form (RFC 8785): equal if its text is. A large bundle has hundreds of thousands, of which
/// one version shares nearly all with the next, so they are kept as text, and copies are the same text.
#[derive(Clone, Debug)]
pub struct Item(Arc<RawValue>);

impl Item {
    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// As JSON.
    #[must_use]
    pub fn value(&self) -> Value {
        // The text comes from a value.
        serde_json::from_str(self.text()).unwrap_or_default()
    }

    /// The `id` in it, if that is text.
    #[must_use]
    pub fn id(&self) -> Option<Cow<'_, str>> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            id: Cow<'a, str>,
        }
        let named: Option<Named<'_>> = serde_json::from_str(self.text()).ok();
        named.map(|it| it.id)
    }

    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_bytes(self.text().as_bytes())
    }
}

impl From<&Value> for Item {
    fn from(value: &Value) -> Self {
        let text = serde_json_canonicalizer::to_string(value);
        // A JSON value always has a canonical form, which is JSON.
        let raw = text.and_then(RawValue::from_string);
        Self(raw.unwrap_or_else(|_| RawValue::NULL.to_owned()).into())
    }
}

impl From<Value> for Item {
    fn from(value: Value) -> Self {
        Self::from(&value)
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.text() == other.text()
    }
}

impl Eq for Item {}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whatever_the_order_it_is_the_same() {
        let read = |text: &str| -> Item { serde_json::from_str(text).expect("an item") };
        let one = read(r#"{"id": "a", "ports": [1, 2.0], "é": "\u00e9"}"#);
        let other = read(r#"{ "é":"é", "ports":[1,2], "id":"\u0061" }"#);
        assert_eq!(one, other);
        assert_eq!(one.text(), r#"{"id":"a","ports":[1,2],"é":"é"}"#);
        assert_eq!(one.id().as_deref(), Some("a"));
        assert_eq!(one.digest(), Digest::of(&one.value()));
        assert_eq!(json!({"it": one}), json!({"it": one.value()}));
        assert_ne!(one, read(r#"{"id": "b"}"#));
        for none in ["{}", r#"{"id": 1}"#, "7"] {
            assert_eq!(read(none).id(), None);
        }
    }
}
