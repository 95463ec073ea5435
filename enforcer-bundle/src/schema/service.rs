//! Whom a workload serves.

use ipnet::IpNet;

use crate::decode::{At, Shape};
use crate::mistake::Report;
use crate::model::Service;
use crate::values;

use super::destination::ports;

const SERVICE: Shape = Shape {
    what: "an item of `serves`",
    fields: &["ports", "from"],
    later: &[],
};

pub(crate) fn services(at: At<'_>, report: &mut Report) -> Option<Vec<Service>> {
    if at.as_text() == Some("none") {
        return Some(Vec::new());
    }
    if !at.is_list() {
        return at.wrong_type(report, "a list of whom the workload serves, or `none`");
    }
    let services = at.list(report, "whom the workload serves", service)?;
    if services.is_empty() {
        let message = "got an empty list, expected whom the workload serves; for nobody write `serves: none`, \
                       for everybody `serves: [{}]`";
        return at.refuse(report, message);
    }
    Some(services)
}

fn service(at: At<'_>, report: &mut Report) -> Option<Service> {
    let fields = at.fields(report, &SERVICE)?;
    let ports = fields.optional(report, "ports", ports);
    let from = fields.optional(report, "from", from);
    Some(Service {
        ports: ports?.unwrap_or_default(),
        from: from?.unwrap_or_default(),
    })
}

fn from(at: At<'_>, report: &mut Report) -> Option<Vec<IpNet>> {
    let networks = at.list(report, "addresses and networks", |at, report| {
        at.parsed(report, values::client)
    })?;
    if networks.is_empty() {
        let message =
            "got an empty list, expected an address or network; for all clients remove `from`";
        return at.refuse(report, message);
    }
    Some(networks)
}
