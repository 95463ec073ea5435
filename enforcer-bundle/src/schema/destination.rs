//! Destinations.

use crate::MAX_PORT_RANGES;
use crate::decode::{At, Shape};
use crate::mistake::Report;
use crate::model::{Destination, PortRange, Protocols, Target};
use crate::values;

const DESTINATION: Shape = Shape {
    what: "a destination",
    fields: &["cidr", "host", "ports", "protocol"],
    later: &[],
};

pub(crate) fn destination(at: At<'_>, report: &mut Report) -> Option<Destination> {
    let fields = at.fields(report, &DESTINATION)?;
    let target = fields
        .exactly_one(report, &["cidr", "host"])
        .and_then(|(name, at)| match name {
            "cidr" => at.parsed(report, values::cidr).map(Target::Cidr),
            _ => at.parsed(report, values::host).map(Target::Host),
        });
    let ports = fields.optional(report, "ports", ports);
    let protocols = fields.optional(report, "protocol", |at, report| {
        let words = [
            ("tcp", Protocols::TCP),
            ("udp", Protocols::UDP),
            ("icmp", Protocols::ICMP),
            ("any", Protocols::ANY),
        ];
        let protocols = at.choice(report, &words, &[])?;
        if protocols.contains(Protocols::ICMP) && fields.get("ports").is_some() {
            let message =
                "ICMP has no ports; remove `ports`, or write ICMP as a destination of its own";
            return at.refuse(report, message);
        }
        Some(protocols)
    });
    Some(Destination {
        target: target?,
        ports: ports?.unwrap_or_default(),
        protocols: protocols?.unwrap_or_default(),
    })
}

pub(super) fn ports(at: At<'_>, report: &mut Report) -> Option<Vec<PortRange>> {
    let ports = at.list(report, "ports", port)?;
    match ports.len() {
        0 => at.refuse(
            report,
            "got an empty list, expected a port; for all ports remove `ports`",
        ),
        1..=MAX_PORT_RANGES => Some(ports),
        count => {
            let advice = "join neighbours to ranges, or write a second item";
            at.refuse(
                report,
                format!(
                    "got {count} ports and ranges, expected at most {MAX_PORT_RANGES}; {advice}"
                ),
            )
        }
    }
}

fn port(at: At<'_>, report: &mut Report) -> Option<PortRange> {
    if at.as_text().is_some() {
        return at.parsed(report, values::port_range);
    }
    let port = at.number(report, "a port", 1, u64::from(u16::MAX))?;
    u16::try_from(port).ok().map(|port| PortRange {
        first: port,
        last: port,
    })
}
