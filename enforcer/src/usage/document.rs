//! Parts of a bundle, written as one writes them.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::bundle::{
    Action, Activation, Destination, Entitlement, Mode, OnStale, PortRange, Protocols, Service,
    Target,
};

/// An entitlement, with every field that it has.
#[must_use]
pub fn entitlement(of: &Entitlement) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    let time = |time: Option<Timestamp>| time.map(|it| json!(it.to_string()));
    put("id", Some(json!(of.id)));
    put("workload", Some(json!(of.workload)));
    put("credential", Some(json!(of.credential)));
    put("destinations", Some(destinations(&of.destinations)));
    put("serves", of.serves.as_deref().map(services));
    put("validFrom", time(of.valid_from));
    put("validUntil", time(of.valid_until));
    put(
        "mode",
        of.mode.map(|it| match it {
            Mode::Enforce => json!("enforce"),
            Mode::Monitor => json!("monitor"),
        }),
    );
    put(
        "action",
        of.action.map(|it| match it {
            Action::Block => json!("block"),
            Action::Kill => json!("kill"),
            Action::Freeze => json!("freeze"),
            Action::KillWorkload => json!("kill-workload"),
        }),
    );
    put(
        "activation",
        match of.activation {
            Activation::Always => None,
            Activation::OnRequest => Some(json!("on-request")),
            Activation::BreakGlass => Some(json!("break-glass")),
        },
    );
    put(
        "onStale",
        of.on_stale.map(|it| match it {
            OnStale::Keep => json!("keep"),
            OnStale::Monitor => json!("monitor"),
            OnStale::Deny => json!("deny"),
        }),
    );
    put("nodes", (!of.nodes.is_empty()).then(|| json!(of.nodes)));
    put(
        "approval",
        of.approval.as_ref().map(|it| {
            let all = [
                ("approver", it.approver.clone()),
                ("ticket", it.ticket.clone()),
                ("reviewBy", it.review_by.map(|date| date.to_string())),
            ];
            let given = all
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), json!(value?))));
            Value::Object(given.collect())
        }),
    );
    Value::Object(fields)
}

/// Destinations; `none` if there are none.
#[must_use]
pub fn destinations(all: &[Destination]) -> Value {
    if all.is_empty() {
        return json!("none");
    }
    all.iter().map(destination).collect()
}

/// One destination.
#[must_use]
pub fn destination(of: &Destination) -> Value {
    let mut fields = Map::new();
    match &of.target {
        Target::Cidr(net) => fields.insert("cidr".to_owned(), json!(net)),
        Target::Host(host) => fields.insert("host".to_owned(), json!(host)),
    };
    if !of.ports.is_empty() {
        fields.insert("ports".to_owned(), ports(&of.ports));
    }
    if let Some(name) = protocol(of.protocols) {
        fields.insert("protocol".to_owned(), json!(name));
    }
    Value::Object(fields)
}

fn services(all: &[Service]) -> Value {
    if all.is_empty() {
        return json!("none");
    }
    let one = |of: &Service| {
        let mut fields = Map::new();
        if !of.ports.is_empty() {
            fields.insert("ports".to_owned(), ports(&of.ports));
        }
        if !of.from.is_empty() {
            fields.insert("from".to_owned(), json!(of.from));
        }
        Value::Object(fields)
    };
    all.iter().map(one).collect()
}

fn ports(ranges: &[PortRange]) -> Value {
    let one = |range: &PortRange| match range.first == range.last {
        true => json!(range.first),
        false => json!(format!("{}-{}", range.first, range.last)),
    };
    ranges.iter().map(one).collect()
}

/// `None` if that is what is meant without a word.
fn protocol(protocols: Protocols) -> Option<&'static str> {
    if protocols == Protocols::default() {
        return None;
    }
    Some(match protocols {
        Protocols::TCP => "tcp",
        Protocols::UDP => "udp",
        Protocols::ICMP => "icmp",
        _ => "any",
    })
}

/// As YAML.
#[must_use]
pub fn yaml(value: &Value) -> String {
    // JSON is YAML.
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string())
}
