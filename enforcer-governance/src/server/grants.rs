//! Entitlements that are granted for a time.

use std::collections::BTreeMap;

use enforcer_bundle::{Activation, Bundle, Kind, Parts};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Error;
use super::content::Source;
use super::ledger::Request;
use super::store::Granted;

/// The longest time that an entitlement can be granted for.
const LONGEST_GRANT: SignedDuration = SignedDuration::from_hours(24);
/// The grant that is asked for.
pub fn may_grant(
    documents: Option<&Source>,
    id: &str,
    from: Timestamp,
    duration: SignedDuration,
    request: &Request,
) -> Result<Granted, Error> {
    let refused = |reason: String| Err(Error::Refused(reason));
    let Some(Source { bundle, .. }) = documents else {
        return refused(
            "the bundle is signed elsewhere, or there is none: nothing can be granted here"
                .to_owned(),
        );
    };
    let Some(entitlement) = bundle.entitlements.iter().find(|it| it.id == id) else {
        return refused(format!("there is no entitlement {id:?}"));
    };
    let break_glass = match entitlement.activation {
        Activation::Always => {
            return refused(format!(
                "{id} is in force by itself; `activation: on-request` would make it one to be granted"
            ));
        }
        Activation::OnRequest => false,
        Activation::BreakGlass => true,
    };
    if request.reason.trim().is_empty() {
        return refused("a grant needs a reason".to_owned());
    }
    if break_glass && request.ticket.is_none() {
        return refused(format!(
            "{id} is for emergencies (break-glass): a ticket is needed"
        ));
    }
    if duration.is_zero() || duration > LONGEST_GRANT {
        return refused(format!(
            "got {duration:#}, expected more than nothing and at most {LONGEST_GRANT:#}"
        ));
    }
    Ok(Granted {
        entitlement: id.to_owned(),
        from,
        until: from + duration,
        by: request.by.clone(),
        reason: request.reason.clone(),
        ticket: request.ticket.clone(),
        break_glass,
    })
}

/// The parts with what is granted now, and without what is not.
pub fn compose(
    bundle: &Bundle,
    parts: &Parts,
    grants: &BTreeMap<String, Granted>,
    now: Timestamp,
) -> Parts {
    let mut parts = parts.clone();
    let Some(items) = parts.items.get_mut(&Kind::Entitlements) else {
        return parts;
    };
    for entitlement in &bundle.entitlements {
        if entitlement.activation == Activation::Always {
            continue;
        }
        let granted = grants.get(&entitlement.id).filter(|it| now < it.until);
        let known = items.remove(&entitlement.id).map(|it| it.value());
        let (Some(granted), Some(Value::Object(mut item))) = (granted, known) else {
            continue;
        };
        item.remove("activation");
        let until = entitlement
            .valid_until
            .map_or(granted.until, |end| end.min(granted.until));
        item.insert("validFrom".to_owned(), json!(granted.from));
        item.insert("validUntil".to_owned(), json!(until));
        item.entry("onStale").or_insert_with(|| json!("deny"));
        let approval = item.entry("approval").or_insert_with(|| json!({}));
        approval["approver"] = json!(granted.by);
        if let Some(ticket) = &granted.ticket {
            approval["ticket"] = json!(ticket);
        }
        items.insert(entitlement.id.clone(), Value::Object(item).into());
    }
    parts.items.retain(|_, items| !items.is_empty());
    parts
}
