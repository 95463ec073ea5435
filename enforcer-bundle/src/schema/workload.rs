//! Workloads and what they are selected by.

use crate::decode::{At, Fields, Shape};
use crate::mistake::Report;
use crate::model::{Container, Executable, Kubernetes, Match, Unit, User, Workload};
use crate::values;

use super::{Placed, label, nodes};

pub(crate) const WORKLOAD: Shape = Shape {
    what: "a workload",
    fields: &["id", "match", "nodes"],
    later: &[],
};
const MATCH: Shape = Shape {
    what: "`match`",
    fields: &[
        "executable",
        "ancestor",
        "user",
        "cgroup",
        "systemdUnit",
        "interactive",
        "kubernetes",
        "container",
    ],
    later: &[],
};
const EXECUTABLE: Shape = Shape {
    what: "`executable`",
    fields: &["path", "sha256", "fsVerity"],
    later: &[],
};
const ANCESTOR: Shape = Shape {
    what: "`ancestor`",
    fields: EXECUTABLE.fields,
    later: &[],
};
const UNIT: Shape = Shape {
    what: "`systemdUnit`",
    fields: &["name", "user"],
    later: &[],
};

const KUBERNETES: Shape = Shape {
    what: "`kubernetes`",
    fields: &[
        "namespace",
        "serviceAccount",
        "podLabels",
        "container",
        "image",
        "imageDigest",
        "nodeLabels",
    ],
    later: &[],
};
const CONTAINER: Shape = Shape {
    what: "`container`",
    fields: &["name", "labels", "imageDigest"],
    later: &[],
};

pub(crate) fn workload(
    id: &str,
    fields: &Fields<'_>,
    report: &mut Report,
) -> Option<Placed<Workload>> {
    let nodes = fields.optional(report, "nodes", nodes);
    let selected = fields.required(report, "match", |at, report| {
        Some((selectors(at, report)?, at.place()))
    });
    let (selectors, place) = selected?;
    Some(Placed {
        value: Workload {
            id: id.to_owned(),
            selectors,
            nodes: nodes?.unwrap_or_default(),
        },
        place,
    })
}

pub(crate) fn selectors(at: At<'_>, report: &mut Report) -> Option<Match> {
    let fields = at.fields(report, &MATCH)?;
    let executable = fields.optional(report, "executable", |at, report| {
        program(at, report, &EXECUTABLE)
    });
    let ancestor = fields.optional(report, "ancestor", |at, report| {
        program(at, report, &ANCESTOR)
    });
    let user = fields.optional(report, "user", user);
    let cgroup = fields.optional(report, "cgroup", |at, report| {
        at.parsed(report, values::cgroup)
    });
    let systemd_unit = fields.optional(report, "systemdUnit", unit);
    let interactive = fields.optional(report, "interactive", |at, report| at.flag(report));
    let kubernetes = fields.optional(report, "kubernetes", kubernetes);
    let container = fields.optional(report, "container", container);
    let selectors = Match {
        executable: executable?,
        ancestor: ancestor?,
        user: user?,
        cgroup: cgroup?,
        systemd_unit: systemd_unit?,
        interactive: interactive?,
        kubernetes: kubernetes?,
        container: container?,
    };
    if fields.has_strangers() {
        return None;
    }
    if selectors.is_identity() {
        return Some(selectors);
    }
    let what = match (&selectors.user, selectors.interactive) {
        (None, None) => "nothing is selected here",
        (Some(_), None) => "a user alone is no identity",
        (None, Some(_)) => "whether it is interactive alone is no identity",
        (Some(_), Some(_)) => "a user, interactive or not, is no identity",
    };
    at.refuse(
        report,
        format!("{what}; add `executable`, `ancestor`, `cgroup`, `systemdUnit`, `kubernetes` or `container`"),
    )
}

fn program(at: At<'_>, report: &mut Report, shape: &Shape) -> Option<Executable> {
    let fields = at.fields(report, shape)?;
    let path = fields.required(report, "path", |at, report| {
        at.parsed(report, values::executable)
    });
    let sha256 = fields.optional(report, "sha256", |at, report| {
        at.parsed(report, values::sha256)
    });
    let fs_verity = fields.optional(report, "fsVerity", |at, report| {
        at.parsed(report, values::fs_verity)
    });
    Some(Executable {
        path: path?,
        sha256: sha256?,
        fs_verity: fs_verity?,
    })
}

/// A system unit by its name, or a mapping that may say of which user's manager it is.
fn unit(at: At<'_>, report: &mut Report) -> Option<Unit> {
    if at.as_text().is_some() {
        let name = at.parsed(report, values::unit)?;
        return Some(Unit { name, user: None });
    }
    let fields = at.fields(report, &UNIT)?;
    let of = fields.optional(report, "user", user);
    let name = fields.required(report, "name", |at, report| {
        let is_users = fields.get("user").is_some();
        at.parsed(report, |text| match is_users {
            true => values::user_unit(text),
            false => values::unit(text),
        })
    });
    Some(Unit {
        name: name?,
        user: of?,
    })
}

fn kubernetes(at: At<'_>, report: &mut Report) -> Option<Kubernetes> {
    let fields = at.fields(report, &KUBERNETES)?;
    let name = |at: At<'_>, report: &mut Report| at.parsed(report, values::kubernetes_name);
    // Whoever may make pods in some namespace chooses their labels and names.
    let namespace = fields.required(report, "namespace", name);
    let service_account = fields.optional(report, "serviceAccount", name);
    let pod_labels = fields.optional(report, "podLabels", nodes);
    let container = fields.optional(report, "container", name);
    let image = fields.optional(report, "image", label);
    let image_digest = fields.optional(report, "imageDigest", image_digest);
    let node_labels = fields.optional(report, "nodeLabels", nodes);
    if fields.has_strangers() {
        return None;
    }
    Some(Kubernetes {
        namespace: namespace?,
        service_account: service_account?,
        pod_labels: pod_labels?.unwrap_or_default(),
        container: container?,
        image: image?,
        image_digest: image_digest?,
        node_labels: node_labels?.unwrap_or_default(),
    })
}

fn container(at: At<'_>, report: &mut Report) -> Option<Container> {
    let fields = at.fields(report, &CONTAINER)?;
    let name = fields.optional(report, "name", label);
    let labels = fields.optional(report, "labels", nodes);
    let image_digest = fields.optional(report, "imageDigest", image_digest);
    let container = Container {
        name: name?,
        labels: labels?.unwrap_or_default(),
        image_digest: image_digest?,
    };
    if fields.has_strangers() {
        return None;
    }
    if container.name.is_none() && container.labels.is_empty() && container.image_digest.is_none() {
        return at.refuse(
            report,
            "nothing is selected here; add `name`, `labels` or `imageDigest`",
        );
    }
    Some(container)
}

fn image_digest(at: At<'_>, report: &mut Report) -> Option<String> {
    at.parsed(report, values::image_digest)
}

fn user(at: At<'_>, report: &mut Report) -> Option<User> {
    if at.as_text().is_some() {
        return at.parsed(report, values::user_name);
    }
    let uid = at.number(
        report,
        "a user's name, or a uid",
        0,
        u64::from(u32::MAX - 1),
    )?;
    u32::try_from(uid).ok().map(User::Id)
}
