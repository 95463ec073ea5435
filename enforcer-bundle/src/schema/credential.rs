//! Credentials and their sources.

use crate::decode::{At, Fields, Shape};
use crate::mistake::{Place, Report};
use crate::model::{Credential, Source};
use crate::values;

use super::{label, nodes};

pub(crate) const CREDENTIAL: Shape = Shape {
    what: "a credential",
    fields: &["id", "owner", "exclusive", "follow", "sources", "nodes"],
    later: &[],
};
const SOURCE: Shape = Shape {
    what: "a source",
    fields: &["file", "directory", "endpoint", "socket", "environment"],
    later: &[
        "kubernetesSecret",
        "serviceAccountToken",
        "systemdCredential",
        "catalogue",
    ],
};

pub(crate) struct CredentialDraft {
    pub credential: Credential,
    /// One for each source.
    pub places: Vec<Place>,
}

pub(crate) fn credential(
    id: &str,
    fields: &Fields<'_>,
    report: &mut Report,
) -> Option<CredentialDraft> {
    let owner = fields.optional(report, "owner", label);
    let exclusive = fields.optional(report, "exclusive", |at, report| at.flag(report));
    let follow = fields.optional(report, "follow", |at, report| at.flag(report));
    let sources = fields.required(report, "sources", |at, report| {
        let sources = at.list(report, "sources", source)?;
        if sources.is_empty() {
            return at.refuse(report, "got an empty list, expected at least one source");
        }
        Some(sources)
    });
    let nodes = fields.optional(report, "nodes", nodes);
    let (sources, places) = sources?.into_iter().unzip();
    let credential = Credential {
        id: id.to_owned(),
        owner: owner?,
        exclusive: exclusive?.unwrap_or(false),
        follow: follow?.unwrap_or(false),
        sources,
        nodes: nodes?.unwrap_or_default(),
    };
    Some(CredentialDraft { credential, places })
}

fn source(at: At<'_>, report: &mut Report) -> Option<(Source, Place)> {
    let fields = at.fields(report, &SOURCE)?;
    let (name, at) = fields.exactly_one(report, SOURCE.fields)?;
    let source = at.parsed(report, |text| match name {
        "file" => values::file(text),
        "directory" => values::directory(text),
        "endpoint" => values::endpoint(text),
        "socket" => values::socket(text),
        _ => values::variable(text),
    })?;
    Some((source, at.place()))
}
