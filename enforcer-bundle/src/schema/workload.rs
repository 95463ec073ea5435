//! Workloads and what they are selected by.

use crate::decode::{At, Fields, Shape};
use crate::mistake::Report;
use crate::model::{Executable, Match, User, Workload};
use crate::values;

use super::{Placed, nodes};

pub(crate) const WORKLOAD: Shape = Shape {
    what: "a workload",
    fields: &["id", "match", "nodes"],
    later: &[],
};
const MATCH: Shape = Shape {
    what: "`match`",
    fields: &["executable", "user", "cgroup", "systemdUnit"],
    later: &["kubernetes", "container", "ancestor", "interactive"],
};
const EXECUTABLE: Shape = Shape {
    what: "`executable`",
    fields: &["path", "sha256"],
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
    let executable = fields.optional(report, "executable", executable);
    let user = fields.optional(report, "user", user);
    let cgroup = fields.optional(report, "cgroup", |at, report| {
        at.parsed(report, values::cgroup)
    });
    let systemd_unit = fields.optional(report, "systemdUnit", |at, report| {
        at.parsed(report, values::unit)
    });
    let selectors = Match {
        executable: executable?,
        user: user?,
        cgroup: cgroup?,
        systemd_unit: systemd_unit?,
    };
    let identity = "`executable`, `cgroup` or `systemdUnit`";
    match &selectors {
        _ if fields.has_strangers() => None,
        Match {
            executable: None,
            cgroup: None,
            systemd_unit: None,
            user,
        } => match user {
            Some(_) => at.refuse(
                report,
                format!("a user alone is no identity; add {identity}"),
            ),
            None => at.refuse(report, format!("nothing is selected here; add {identity}")),
        },
        _ => Some(selectors),
    }
}

fn executable(at: At<'_>, report: &mut Report) -> Option<Executable> {
    let fields = at.fields(report, &EXECUTABLE)?;
    let path = fields.required(report, "path", |at, report| {
        at.parsed(report, values::executable)
    });
    let sha256 = fields.optional(report, "sha256", |at, report| {
        at.parsed(report, values::sha256)
    });
    Some(Executable {
        path: path?,
        sha256: sha256?,
    })
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
