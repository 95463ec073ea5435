//! The entitlement that a denied use came nearest to, and what in it did not fit.

use std::collections::BTreeSet;

use enforcer_common::verdict::Reason;

use super::model::Destination;
use crate::bundle::{Bundle, Entitlement, PortRange, Target, Workload};

/// So many destinations are named.
const NAMED: usize = 4;

/// What did not fit.
pub(crate) struct Misfit<'a> {
    /// In what; `None` if there is nothing that comes near.
    pub entitlement: Option<&'a Entitlement>,
    /// In words.
    pub what: String,
}

/// Of a use that was denied for `reason`: `weighed` is the entitlement that the kernel names, if it does.
pub(crate) fn misfit<'a>(
    bundle: &'a Bundle,
    reason: Reason,
    credential: Option<&str>,
    weighed: Option<&str>,
    workloads: &BTreeSet<&str>,
    exe: &str,
    destination: Option<&Destination>,
) -> Misfit<'a> {
    let all = &bundle.entitlements;
    let entitlement = match weighed {
        Some(id) => all.iter().find(|it| it.id == id),
        None => {
            let of_credential = || {
                all.iter()
                    .filter(|it| Some(it.credential.as_str()) == credential)
            };
            let ours = of_credential().find(|it| workloads.contains(it.workload.as_str()));
            ours.or_else(|| of_credential().next())
        }
    };
    let what = match entitlement {
        Some(it) => in_entitlement(bundle, it, reason, workloads, exe, destination),
        None => without_entitlement(reason, credential),
    };
    Misfit { entitlement, what }
}

fn without_entitlement(reason: Reason, credential: Option<&str>) -> String {
    match (reason, credential) {
        (Reason::NoEntitlement | Reason::WrongWorkload | Reason::WrongExecutable, Some(id)) => {
            format!("nobody is entitled to {id}")
        }
        _ => plain(reason).to_owned(),
    }
}

fn in_entitlement(
    bundle: &Bundle,
    it: &Entitlement,
    reason: Reason,
    workloads: &BTreeSet<&str>,
    exe: &str,
    destination: Option<&Destination>,
) -> String {
    let id = &it.id;
    let belongs = || match workloads.is_empty() {
        true => "no workload of the bundle".to_owned(),
        false => workloads.iter().copied().collect::<Vec<_>>().join(", "),
    };
    match reason {
        Reason::Revoked => format!("{id} was revoked"),
        Reason::Expired => match it.valid_until {
            Some(until) => format!("{id} ended at {until}"),
            None => format!("{id} has ended"),
        },
        Reason::NotYetValid => match it.valid_from {
            Some(from) => format!("{id} begins at {from}"),
            None => format!("{id} has not begun"),
        },
        Reason::OutsideDestination => {
            let to = destination.map_or_else(|| "this destination".to_owned(), shown);
            format!("{id} covers {}, not {to}", covered(it))
        }
        Reason::WrongExecutable => {
            let wanted = bundle
                .workloads
                .iter()
                .find(|workload| workload.id == it.workload);
            let wanted = wanted
                .and_then(executable)
                .unwrap_or_else(|| "another program".to_owned());
            format!(
                "{id} is for {} running {wanted}, and this is {exe}",
                it.workload
            )
        }
        Reason::WrongWorkload | Reason::NoEntitlement => {
            format!("{id} is for {}, and this is {}", it.workload, belongs())
        }
        other => format!("{id}: {}", plain(other)),
    }
}

/// What it says by itself.
fn plain(reason: Reason) -> &'static str {
    match reason {
        Reason::Revoked => "it was revoked",
        Reason::Expired => "it has ended",
        Reason::NotYetValid => "it has not begun",
        Reason::OutsideSchedule => "its schedule does not include this moment",
        Reason::OutsideDestination => "it does not cover this destination",
        Reason::SocketFamily => "a holder may not have this kind of socket",
        Reason::AlteredPacket => "the packet goes elsewhere than the call said",
        Reason::LocalPeer => {
            "the destination is another process on this node, which no entitlement lists"
        }
        Reason::FanOutExceeded => "too many destinations in a short time",
        Reason::WrongExecutable => "it is for another program",
        Reason::WrongWorkload => "it is for another workload",
        Reason::NoEntitlement => "there is no entitlement",
        Reason::UnclassifiedWorkload => "it is not known yet which workload this is",
        Reason::TooManyHeld => "the holder has read more credentials than can be tracked",
        Reason::BundleExpired => "the bundle has ended, or is stale",
        Reason::Degraded => "a canary of this node gets through: no holder may reach anything",
    }
}

fn executable(workload: &Workload) -> Option<String> {
    let executable = workload.selectors.executable.as_ref()?;
    Some(executable.path.display().to_string())
}

fn covered(it: &Entitlement) -> String {
    if it.destinations.is_empty() {
        return "no destination".to_owned();
    }
    let mut named: Vec<String> = it
        .destinations
        .iter()
        .take(NAMED)
        .map(destination)
        .collect();
    if it.destinations.len() > NAMED {
        named.push(format!("{} more", it.destinations.len() - NAMED));
    }
    named.join(", ")
}

/// Where an entitlement lets a holder go, in words.
#[must_use]
pub fn destination(it: &crate::bundle::Destination) -> String {
    let target = match &it.target {
        Target::Cidr(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
        Target::Cidr(net) => net.to_string(),
        Target::Host(name) => name.clone(),
    };
    let ports: Vec<String> = it.ports.iter().map(ports).collect();
    match ports.as_slice() {
        [] => target,
        ports => format!("{target} port {}", ports.join(" or ")),
    }
}

fn ports(range: &PortRange) -> String {
    match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}-{}", range.first, range.last),
    }
}

/// A destination, for a sentence.
fn shown(to: &Destination) -> String {
    let host = to.host.as_ref().map(|host| format!(" ({host})"));
    let host = host.unwrap_or_default();
    match to.port {
        0 => format!("{}{host} over {}", to.address, to.protocol),
        port => format!("{}{host} port {port} over {}", to.address, to.protocol),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUNDLE: &str = "
apiVersion: enforcer.dev/v1
kind: Bundle
metadata: {issuer: t, version: 1, issuedAt: 2026-01-01T00:00:00Z}
credentials:
  - {id: key, sources: [{file: /k}]}
  - {id: lone, sources: [{file: /l}]}
workloads:
  - {id: billing, match: {executable: {path: /usr/bin/billing}}}
entitlements:
  - id: E1
    workload: billing
    credential: key
    destinations: [{cidr: 10.0.0.0/8, ports: [443]}, {cidr: 192.0.2.1/32}]
    validUntil: 2026-02-01T00:00:00Z
";

    fn said(reason: Reason, credential: &str, weighed: Option<&str>) -> (Option<String>, String) {
        let bundle =
            crate::bundle::parse(&[("b.yaml".into(), BUNDLE.to_owned())]).expect("a bundle");
        let to = Destination {
            address: "203.0.113.9".to_owned(),
            port: 443,
            protocol: "tcp".into(),
            host: None,
            answers: false,
        };
        let none = BTreeSet::new();
        let it = misfit(
            &bundle,
            reason,
            Some(credential),
            weighed,
            &none,
            "/bin/cat",
            Some(&to),
        );
        (it.entitlement.map(|it| it.id.clone()), it.what)
    }

    #[test]
    fn the_nearest_is_named_with_what_did_not_fit() {
        for (reason, weighed, expected) in [
            (
                Reason::OutsideDestination,
                Some("E1"),
                "E1 covers 10.0.0.0/8 port 443, 192.0.2.1, not 203.0.113.9 port 443 over tcp",
            ),
            (
                Reason::Expired,
                Some("E1"),
                "E1 ended at 2026-02-01T00:00:00Z",
            ),
            (
                Reason::WrongExecutable,
                None,
                "E1 is for billing running /usr/bin/billing, and this is /bin/cat",
            ),
            (
                Reason::WrongWorkload,
                None,
                "E1 is for billing, and this is no workload of the bundle",
            ),
        ] {
            assert_eq!(
                said(reason, "key", weighed),
                (Some("E1".to_owned()), expected.to_owned())
            );
        }
        assert_eq!(
            said(Reason::NoEntitlement, "lone", None),
            (None, "nobody is entitled to lone".to_owned())
        );
    }
}
