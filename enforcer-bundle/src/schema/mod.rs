//! The fields of a bundle: from the trees of its documents to a draft whose parts are right each for itself.

mod credential;
mod destination;
mod entitlement;
mod service;
mod workload;

use jiff::Timestamp;

use credential::{CREDENTIAL, credential};
use destination::destination;
use entitlement::{ENTITLEMENT, entitlement};
use workload::{WORKLOAD, selectors, workload};

pub(super) use credential::CredentialDraft;
pub(super) use entitlement::{EntitlementDraft, Scope};

use super::decode::{At, Fields, Shape};
use super::mistake::{Place, Report};
use super::model::{
    Action, Declassify, Defaults, Destination, Inbound, Labels, Match, Metadata, Mode, OnExpiry,
    OnStale, Unclassified, Workload,
};
use super::values;

const DOCUMENT: Shape = Shape {
    what: "a bundle",
    fields: &[
        "apiVersion",
        "kind",
        "metadata",
        "defaults",
        "trusted",
        "maintenance",
        "declassify",
        "baseline",
        "credentials",
        "workloads",
        "entitlements",
    ],
    later: &[],
};
const METADATA: Shape = Shape {
    what: "`metadata`",
    fields: &["issuer", "version", "issuedAt", "expiresAt"],
    later: &[],
};
const DEFAULTS: Shape = Shape {
    what: "`defaults`",
    fields: &[
        "mode",
        "action",
        "inbound",
        "onExpiry",
        "onStale",
        "unclassified",
    ],
    later: &[],
};
const TRUSTED: Shape = Shape {
    what: "a trusted workload",
    fields: &["match"],
    later: &[],
};
const MAINTENANCE: Shape = Shape {
    what: "a maintenance tool",
    fields: &["match"],
    later: &[],
};
const DECLASSIFY: Shape = Shape {
    what: "an item of `declassify`",
    fields: &["match", "file", "directory"],
    later: &[],
};
const BASELINE: Shape = Shape {
    what: "`baseline`",
    fields: &["destinations"],
    later: &[],
};

const MODES: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("monitor", Mode::Monitor)];
const ACTIONS: [(&str, Action); 4] = [
    ("block", Action::Block),
    ("kill", Action::Kill),
    ("freeze", Action::Freeze),
    ("kill-workload", Action::KillWorkload),
];
const INBOUND: [(&str, Inbound); 2] = [("permit", Inbound::Permit), ("deny", Inbound::Deny)];
const ON_STALE: [(&str, OnStale); 3] = [
    ("keep", OnStale::Keep),
    ("monitor", OnStale::Monitor),
    ("deny", OnStale::Deny),
];
const UNCLASSIFIED: [(&str, Unclassified); 2] = [
    ("deny", Unclassified::Deny),
    ("monitor", Unclassified::Monitor),
];
const ON_EXPIRY: [(&str, OnExpiry); 2] = [("deny", OnExpiry::Deny), ("monitor", OnExpiry::Monitor)];

/// What the documents say, before they are held against each other.
#[derive(Default)]
pub(super) struct Draft {
    pub metadata: Vec<Placed<Option<Metadata>>>,
    pub defaults: Vec<Placed<Option<Defaults>>>,
    pub trusted: Vec<Match>,
    pub maintenance: Vec<Match>,
    pub declassify: Declassify,
    pub baseline: Vec<Destination>,
    pub credentials: Vec<Named<CredentialDraft>>,
    pub workloads: Vec<Named<Placed<Workload>>>,
    pub entitlements: Vec<Named<EntitlementDraft>>,
    /// Something could not be read, so that what seems to be missing may be there.
    pub incomplete: bool,
}

/// A value and where it stands.
pub(super) struct Placed<T> {
    pub value: T,
    pub place: Place,
}

/// Something with an id. The id is kept even if the rest has a mistake: references to it are right.
pub(super) struct Named<T> {
    pub id: Placed<String>,
    pub value: Option<T>,
}

/// Reads one document into the draft.
pub(super) fn document(at: At<'_>, report: &mut Report, draft: &mut Draft) {
    let before = draft.incomplete;
    draft.incomplete = true;
    for (name, word) in [("apiVersion", "enforcer.dev/v1"), ("kind", "Bundle")] {
        if let Some(at) = at.lookup(name) {
            let Some(()) = at.choice(report, &[(word, ())], &[]) else {
                return;
            };
        }
    }
    let Some(fields) = at.fields(report, &DOCUMENT) else {
        return;
    };
    draft.incomplete = before | fields.has_strangers();
    for name in ["apiVersion", "kind"] {
        fields.required(report, name, |_, _| Some(()));
    }
    if let Some(at) = fields.get("metadata") {
        draft.metadata.push(Placed {
            place: at.place(),
            value: metadata(at, report),
        });
    }
    if let Some(at) = fields.get("defaults") {
        draft.defaults.push(Placed {
            place: at.place(),
            value: defaults(at, report),
        });
    }
    if let Some(at) = fields.get("trusted") {
        draft.trusted.extend(
            at.list(report, "trusted workloads", |at, report| {
                program(at, report, &TRUSTED)
            })
            .unwrap_or_default(),
        );
    }
    if let Some(at) = fields.get("maintenance") {
        draft.maintenance.extend(
            at.list(report, "maintenance tools", |at, report| {
                program(at, report, &MAINTENANCE)
            })
            .unwrap_or_default(),
        );
    }
    if let Some(at) = fields.get("declassify") {
        at.list(report, "items", |at, report| {
            declassify(at, report, &mut draft.declassify)
        });
    }
    if let Some(at) = fields.get("baseline") {
        draft
            .baseline
            .extend(baseline(at, report).unwrap_or_default());
    }
    let read = [
        named(
            &fields,
            report,
            "credentials",
            &CREDENTIAL,
            &mut draft.credentials,
            credential,
        ),
        named(
            &fields,
            report,
            "workloads",
            &WORKLOAD,
            &mut draft.workloads,
            workload,
        ),
        named(
            &fields,
            report,
            "entitlements",
            &ENTITLEMENT,
            &mut draft.entitlements,
            entitlement,
        ),
    ];
    draft.incomplete |= read.contains(&None);
}

/// The list under `name`, whose items have ids. `None` if some id is not known.
fn named<T>(
    fields: &Fields<'_>,
    report: &mut Report,
    name: &'static str,
    shape: &Shape,
    into: &mut Vec<Named<T>>,
    decode: fn(&str, &Fields<'_>, &mut Report) -> Option<T>,
) -> Option<()> {
    let Some(at) = fields.get(name) else {
        return Some(());
    };
    at.list(report, name, |at, report| {
        let fields = at.fields(report, shape)?;
        let id = fields.required(report, "id", |at, report| {
            let value = at.text(report)?.to_owned();
            if let Err(message) = values::id(&value) {
                at.refuse::<()>(report, message);
            }
            Some(Placed {
                value,
                place: at.place(),
            })
        });
        let value = decode(id.as_ref().map_or("", |id| &id.value), &fields, report);
        into.push(Named { id: id?, value });
        Some(())
    })
    .map(|_| ())
}

fn metadata(at: At<'_>, report: &mut Report) -> Option<Metadata> {
    let fields = at.fields(report, &METADATA)?;
    let issuer = fields.required(report, "issuer", label);
    let version = fields.required(report, "version", |at, report| {
        at.number(report, "a version", 1, u64::MAX)
    });
    let issued_at = fields.optional(report, "issuedAt", time);
    let expires_at = fields.optional(report, "expiresAt", time);
    in_order(
        &fields,
        report,
        ("issuedAt", issued_at),
        ("expiresAt", expires_at),
    );
    Some(Metadata {
        issuer: issuer?,
        version: version?,
        issued_at: issued_at?,
        expires_at: expires_at?,
    })
}

fn defaults(at: At<'_>, report: &mut Report) -> Option<Defaults> {
    let fields = at.fields(report, &DEFAULTS)?;
    let mode = fields.optional(report, "mode", mode);
    let action = fields.optional(report, "action", action);
    let inbound = fields.optional(report, "inbound", |at, report| {
        at.choice(report, &INBOUND, &[])
    });
    let on_expiry = fields.optional(report, "onExpiry", |at, report| {
        at.choice(report, &ON_EXPIRY, &[])
    });
    let on_stale = fields.optional(report, "onStale", on_stale);
    let unclassified = fields.optional(report, "unclassified", |at, report| {
        at.choice(report, &UNCLASSIFIED, &[])
    });
    Some(Defaults {
        mode: mode?.unwrap_or_default(),
        action: action?.unwrap_or_default(),
        inbound: inbound?.unwrap_or_default(),
        on_expiry: on_expiry?.unwrap_or_default(),
        on_stale: on_stale?.unwrap_or_default(),
        unclassified: unclassified?.unwrap_or_default(),
    })
}

/// Selectors that must name a program.
fn program(at: At<'_>, report: &mut Report, shape: &Shape) -> Option<Match> {
    let fields = at.fields(report, shape)?;
    fields.required(report, "match", |at, report| {
        program_selectors(at, report, shape)
    })
}

fn program_selectors(at: At<'_>, report: &mut Report, shape: &Shape) -> Option<Match> {
    let selectors = selectors(at, report)?;
    if selectors.executable.is_none() {
        let message = format!(
            "{} must be known by its program; add `executable: {{path: ...}}`",
            shape.what
        );
        return at.refuse(report, message);
    }
    Some(selectors)
}

fn declassify(at: At<'_>, report: &mut Report, into: &mut Declassify) -> Option<()> {
    let fields = at.fields(report, &DECLASSIFY)?;
    let (name, at) = fields.exactly_one(report, DECLASSIFY.fields)?;
    match name {
        "match" => {
            let selectors = program_selectors(at, report, &DECLASSIFY)?;
            into.programs.push(selectors);
        }
        "file" => into.files.push(at.parsed(report, values::file)?),
        _ => into.files.push(at.parsed(report, values::directory)?),
    }
    Some(())
}

fn baseline(at: At<'_>, report: &mut Report) -> Option<Vec<Destination>> {
    let fields = at.fields(report, &BASELINE)?;
    fields.required(report, "destinations", |at, report| {
        at.list(report, "destinations", destination)
    })
}

/// Labels, as in `{zone: eu-1}`.
fn nodes(at: At<'_>, report: &mut Report) -> Option<Labels> {
    let pairs = at.pairs(report, "labels", values::label)?;
    Some(pairs.into_iter().collect())
}

fn label(at: At<'_>, report: &mut Report) -> Option<String> {
    at.parsed(report, values::label)
}

fn time(at: At<'_>, report: &mut Report) -> Option<Timestamp> {
    at.parsed(report, values::time)
}

fn mode(at: At<'_>, report: &mut Report) -> Option<Mode> {
    at.choice(report, &MODES, &[])
}

fn action(at: At<'_>, report: &mut Report) -> Option<Action> {
    at.choice(report, &ACTIONS, &[])
}

fn on_stale(at: At<'_>, report: &mut Report) -> Option<OnStale> {
    at.choice(report, &ON_STALE, &[])
}

/// A field and what was read from it.
type Time = (&'static str, Option<Option<Timestamp>>);

/// Reports a window that ends before it begins.
fn in_order(
    fields: &Fields<'_>,
    report: &mut Report,
    (from_name, from): Time,
    (until_name, until): Time,
) {
    let (Some(Some(from)), Some(Some(until)), Some(at)) = (from, until, fields.get(until_name))
    else {
        return;
    };
    if until <= from {
        at.refuse::<()>(
            report,
            format!("got {until}, expected a time after `{from_name}`, which is {from}"),
        );
    }
}
