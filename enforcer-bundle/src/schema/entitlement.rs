//! Entitlements.

use crate::decode::{At, Fields, Shape};
use crate::mistake::{Place, Report};
use crate::model::{Activation, Approval, Destination, Entitlement};
use crate::values;

use super::destination::destination;
use super::service::services;
use super::{Placed, action, in_order, label, mode, nodes, on_stale, time};

pub(crate) const ENTITLEMENT: Shape = Shape {
    what: "an entitlement",
    fields: &[
        "id",
        "workload",
        "credential",
        "destinations",
        "serves",
        "validFrom",
        "validUntil",
        "mode",
        "action",
        "activation",
        "onStale",
        "nodes",
        "approval",
    ],
    later: &["schedule"],
};
const ACTIVATION: [(&str, Activation); 3] = [
    ("always", Activation::Always),
    ("on-request", Activation::OnRequest),
    ("break-glass", Activation::BreakGlass),
];
const APPROVAL: Shape = Shape {
    what: "`approval`",
    fields: &["approver", "ticket", "reviewBy"],
    later: &[],
};

pub(crate) struct EntitlementDraft {
    pub entitlement: Entitlement,
    pub workload: Place,
    pub credential: Place,
    pub scope: Placed<Scope>,
}

/// How an entitlement says where its holder may go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Not at all, or with an empty list.
    Unsaid,
    /// `destinations: none`
    Nowhere,
    Listed,
}

pub(crate) fn entitlement(
    id: &str,
    fields: &Fields<'_>,
    report: &mut Report,
) -> Option<EntitlementDraft> {
    let workload = fields.required(report, "workload", reference);
    let credential = fields.required(report, "credential", reference);
    let scope = scope(fields, report);
    let serves = fields.optional(report, "serves", services);
    let valid_from = fields.optional(report, "validFrom", time);
    let valid_until = fields.optional(report, "validUntil", time);
    in_order(
        fields,
        report,
        ("validFrom", valid_from),
        ("validUntil", valid_until),
    );
    let mode = fields.optional(report, "mode", mode);
    let action = fields.optional(report, "action", action);
    let activation = fields.optional(report, "activation", |at, report| {
        at.choice(report, &ACTIVATION, &[])
    });
    let on_stale = fields.optional(report, "onStale", on_stale);
    let nodes = fields.optional(report, "nodes", nodes);
    let approval = fields.optional(report, "approval", approval);
    let (workload, credential, (scope, destinations)) = (workload?, credential?, scope?);
    let entitlement = Entitlement {
        id: id.to_owned(),
        workload: workload.value,
        credential: credential.value,
        destinations,
        serves: serves?,
        valid_from: valid_from?,
        valid_until: valid_until?,
        mode: mode?,
        action: action?,
        activation: activation?.unwrap_or_default(),
        on_stale: on_stale?,
        nodes: nodes?.unwrap_or_default(),
        revoked: false,
        approval: approval?,
    };
    Some(EntitlementDraft {
        entitlement,
        workload: workload.place,
        credential: credential.place,
        scope,
    })
}

/// Where the holder may go, and how that was said.
fn scope(fields: &Fields<'_>, report: &mut Report) -> Option<(Placed<Scope>, Vec<Destination>)> {
    let Some(at) = fields.get("destinations") else {
        return Some((
            Placed {
                value: Scope::Unsaid,
                place: fields.place(),
            },
            Vec::new(),
        ));
    };
    let (value, destinations) = if at.is_list() {
        let destinations = at.list(report, "destinations", destination)?;
        (
            if destinations.is_empty() {
                Scope::Unsaid
            } else {
                Scope::Listed
            },
            destinations,
        )
    } else if at.as_text() == Some("none") {
        (Scope::Nowhere, Vec::new())
    } else {
        return at.wrong_type(report, "a list of destinations, or `none`");
    };
    Some((
        Placed {
            value,
            place: at.place(),
        },
        destinations,
    ))
}

fn approval(at: At<'_>, report: &mut Report) -> Option<Approval> {
    let fields = at.fields(report, &APPROVAL)?;
    let approver = fields.optional(report, "approver", label);
    let ticket = fields.optional(report, "ticket", label);
    let review_by = fields.optional(report, "reviewBy", |at, report| {
        at.parsed(report, values::date)
    });
    Some(Approval {
        approver: approver?,
        ticket: ticket?,
        review_by: review_by?,
    })
}

fn reference(at: At<'_>, report: &mut Report) -> Option<Placed<String>> {
    let value = at.text(report)?.to_owned();
    Some(Placed {
        value,
        place: at.place(),
    })
}
