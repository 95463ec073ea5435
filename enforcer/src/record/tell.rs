//! The kernel's record of a use, in the terms of people.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use enforcer_common::address::Protocol;
use enforcer_common::event::{Gate, Kind, Use, taken};
use enforcer_common::ids::{BootNs, CgroupId, ExecutableKey, InodeKey};
use enforcer_common::verdict;
use jiff::Timestamp;

use super::misfit::misfit;
use super::model::{
    Action, Destination, Hop, Instance, Mode, Process, Socket, Used, Verdict, Word,
};
use super::processes::Description;
use super::{tamper, text};
use crate::bundle::Bundle;
use crate::compile::Policy;
use crate::kernel::tier::Tier;

/// What is needed to speak of a record.
pub struct Context<'a> {
    /// The policy in force.
    pub policy: &'a Policy,
    /// The bundle that it was made of.
    pub bundle: &'a Bundle,
    /// What that asks for where an operator has set another mode.
    pub asked: Option<verdict::Mode>,
    /// Paths of protected files.
    pub path_of: &'a dyn Fn(&InodeKey) -> Option<PathBuf>,
    /// Paths of the executables that the bundle selects by.
    pub executables: &'a BTreeMap<ExecutableKey, PathBuf>,
    /// The host name that an address was resolved from.
    pub host_of: &'a dyn Fn(IpAddr) -> Option<String>,
    /// Where a process in this cgroup belongs.
    pub instance_of: &'a dyn Fn(CgroupId) -> Option<Instance>,
    /// Wall-clock time of a boot-clock moment.
    pub wall: &'a dyn Fn(BootNs) -> Timestamp,
    /// By what means the kernel refuses.
    pub tier: Tier,
}

/// The kind of a record.
pub(super) fn kind(record: &Use) -> &'static str {
    name(Kind::from_u8(record.kind), Kind::name)
}

pub(super) fn used(
    record: &Use,
    context: &Context<'_>,
    description: Description,
    file: Option<String>,
    path: Vec<Hop>,
) -> Used {
    let credential = context.policy.credential_info.get(&record.credential);
    let entitlement = context.policy.entitlement_info.get(&record.entitlement);
    let workloads = context.policy.workloads_of(&record.task);
    let workload = context.policy.workload_of(&record.task, entitlement);
    let reason = verdict::Reason::from_u8(record.reason);
    let destination = destination(record, context);
    let exe = description.exe.clone();
    let misfit = reason.map(|reason| {
        let entitlement = entitlement.map(|it| it.id.as_str());
        let credential = credential.map(|it| it.id.as_str());
        misfit(
            context.bundle,
            reason,
            credential,
            entitlement,
            &workloads,
            &exe,
            destination.as_ref(),
        )
    });
    // Where no entitlement was weighed, the one that is told is the nearest by the bundle.
    let nearest = misfit.as_ref().and_then(|it| it.entitlement);
    let approval = match (entitlement, nearest) {
        (Some(it), _) => it.approval.as_ref(),
        (None, Some(it)) => it.approval.as_ref(),
        (None, None) => None,
    };
    Used {
        verdict: match reason {
            Some(_) => Verdict::Deny,
            None => Verdict::Allow,
        },
        reason: reason.map(|it| it.name().into()),
        mode: mode(record, context),
        action: Action {
            requested: name(
                verdict::Action::from_u8(record.action),
                verdict::Action::name,
            )
            .into(),
            taken: taken::name(record.taken).into(),
        },
        credential: credential.map(|it| it.id.clone()),
        workload: workload.map(str::to_owned),
        entitlement: entitlement
            .map(|it| it.id.clone())
            .or_else(|| nearest.map(|it| it.id.clone())),
        approver: approval.and_then(|it| it.approver.clone()),
        ticket: approval.and_then(|it| it.ticket.clone()),
        misfit: misfit.map(|it| it.what),
        bundle: context.bundle.metadata.version,
        process: process(record, context, description),
        instance: (context.instance_of)(record.task.cgroup),
        file,
        destination,
        socket: (record.kind == Kind::Reach as u8)
            .then(|| record.destination.as_socket())
            .flatten()
            .map(|(family, kind, protocol)| Socket {
                family,
                kind,
                protocol,
            }),
        target: (record.target.0 != 0).then_some(record.target.0),
        handed: handed(record),
        path: match record.kind == Kind::Read as u8 {
            true => Vec::new(),
            false => path,
        },
        what: tamper::what(record),
        trusted: record.trusted != 0,
        gate: name(Gate::from_u8(record.gate), Gate::name).into(),
        tier: context.tier.name().into(),
    }
}

/// What was asked for, and what came of it: a gate that can only tell has refused nothing.
fn mode(record: &Use, context: &Context<'_>) -> Mode {
    let decided = verdict::Mode::from_u8(record.mode);
    let only_told = record.reason != 0 && record.taken == taken::NOTHING;
    let effective = match decided {
        Some(verdict::Mode::Enforce) if only_told => Some(verdict::Mode::Monitor),
        other => other,
    };
    Mode {
        requested: name(context.asked.or(decided), verdict::Mode::name).into(),
        effective: name(effective, verdict::Mode::name).into(),
    }
}

/// The name of a code, or `unknown` for one that this version does not have.
fn name<T>(code: Option<T>, name: fn(T) -> &'static str) -> &'static str {
    code.map_or("unknown", name)
}

fn process(record: &Use, context: &Context<'_>, description: Description) -> Process {
    let Description {
        key,
        exe,
        args,
        ancestors,
    } = description;
    Process {
        key,
        pid: record.task.tgid.0,
        tid: record.tid.0,
        parent: record.parent.0,
        uid: record.task.uid.0,
        exe,
        comm: text(&record.comm),
        args,
        start: (context.wall)(record.task.start),
        cgroup: record.task.cgroup.0,
        ancestors,
    }
}

fn destination(record: &Use, context: &Context<'_>) -> Option<Destination> {
    let to = &record.destination;
    let is_none = to.protocol().0 == 0 && to.port() == 0;
    let is_use = [Kind::Read as u8, Kind::Reach as u8].contains(&record.kind);
    if is_none || !is_use {
        return None;
    }
    let address = Ipv6Addr::from(to.address.octets()).to_canonical();
    let answers = to.protocol() == Protocol::TCP.answering();
    let protocol = protocol_name(to.protocol());
    Some(Destination {
        address: address.to_string(),
        port: to.port(),
        protocol,
        host: (context.host_of)(address),
        answers,
    })
}

/// The name of a protocol, or its number; of answers, that of what is answered.
pub(crate) fn protocol_name(protocol: Protocol) -> Word {
    match protocol {
        Protocol::ICMP => "icmp".into(),
        Protocol::TCP => "tcp".into(),
        Protocol::UDP => "udp".into(),
        answering if answering == Protocol::TCP.answering() => "tcp".into(),
        Protocol(other) => other.to_string().into(),
    }
}

/// Whether something was given away or taken, where it was handed on.
fn handed(record: &Use) -> Option<Word> {
    let [_, taken, _] = record.destination.as_detail();
    let word = if taken == 0 { "given" } else { "taken" };
    (record.kind == Kind::Forward as u8).then_some(word.into())
}
