//! Credentials and their sources.

use std::path::Path;

use crate::decode::{At, Fields, Shape};
use crate::mistake::{Place, Report};
use crate::model::{Credential, KubernetesSecret, Source};
use crate::values;

use super::{label, nodes};

pub(crate) const CREDENTIAL: Shape = Shape {
    what: "a credential",
    fields: &["id", "owner", "exclusive", "follow", "sources", "nodes"],
    later: &[],
};
const SOURCE: Shape = Shape {
    what: "a source",
    fields: &[
        "file",
        "directory",
        "endpoint",
        "socket",
        "environment",
        "catalogue",
        "systemdCredential",
        "kubernetesSecret",
        "serviceAccountToken",
    ],
    later: &[],
};
const SYSTEMD_CREDENTIAL: Shape = Shape {
    what: "`systemdCredential`",
    fields: &["unit", "name"],
    later: &[],
};
const KUBERNETES_SECRET: Shape = Shape {
    what: "`kubernetesSecret`",
    fields: &["namespace", "name", "keys"],
    later: &[],
};
const SERVICE_ACCOUNT_TOKEN: Shape = Shape {
    what: "`serviceAccountToken`",
    fields: &["audience"],
    later: &[],
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
    let source = match name {
        "file" => at.parsed(report, values::file),
        "directory" => at.parsed(report, values::directory),
        "endpoint" => at.parsed(report, values::endpoint),
        "socket" => at.parsed(report, values::socket),
        "environment" => at.parsed(report, values::variable),
        "catalogue" => at.parsed(report, values::catalogue),
        "systemdCredential" => systemd_credential(at, report),
        "kubernetesSecret" => kubernetes_secret(at, report),
        _ => service_account_token(at, report),
    };
    Some((source?, at.place()))
}

/// The directory of a unit's credentials, or one file in it.
fn systemd_credential(at: At<'_>, report: &mut Report) -> Option<Source> {
    let fields = at.fields(report, &SYSTEMD_CREDENTIAL)?;
    let unit = fields.required(report, "unit", |at, report| at.parsed(report, values::unit));
    let name = fields.optional(report, "name", |at, report| {
        at.parsed(report, values::file_name)
    });
    let directory = Path::new("/run/credentials").join(unit?);
    Some(match name? {
        Some(name) => Source::File(directory.join(name)),
        None => Source::Directory(directory),
    })
}

fn kubernetes_secret(at: At<'_>, report: &mut Report) -> Option<Source> {
    let fields = at.fields(report, &KUBERNETES_SECRET)?;
    let name = |at: At<'_>, report: &mut Report| at.parsed(report, values::kubernetes_name);
    let namespace = fields.required(report, "namespace", name);
    let secret = fields.required(report, "name", name);
    let keys = fields.optional(report, "keys", |at, report| {
        let keys = at.list(report, "keys", |at, report| {
            at.parsed(report, values::kubernetes_key)
        })?;
        if keys.is_empty() {
            let message =
                "got an empty list, expected at least one key; for all of them leave `keys` out";
            return at.refuse(report, message);
        }
        Some(keys.into_iter().collect())
    });
    Some(Source::KubernetesSecret(KubernetesSecret {
        namespace: namespace?,
        name: secret?,
        keys: keys?.unwrap_or_default(),
    }))
}

fn service_account_token(at: At<'_>, report: &mut Report) -> Option<Source> {
    let fields = at.fields(report, &SERVICE_ACCOUNT_TOKEN)?;
    let audience = fields.optional(report, "audience", label)?;
    Some(Source::ServiceAccountToken(audience))
}
