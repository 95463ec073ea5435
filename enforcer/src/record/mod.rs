//! Events, as JSON lines.

mod processes;
mod tamper;
mod trail;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use enforcer_common::address::Protocol;
use enforcer_common::event::{Gate, Kind, Use, taken};
use enforcer_common::ids::{BootNs, ExecutableKey, InodeKey};
use enforcer_common::verdict::{Action, Mode, Reason};
use enforcer_governance::spool::Spool;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::compile::Policy;
use crate::kernel::tier::Tier;

use processes::{Ancestor, Description, Processes};
use trail::{Hop, Trails};

/// Where events go.
pub struct Log {
    node: String,
    sequence: u64,
    file: Option<std::fs::File>,
    /// For governance.
    evidence: Option<Spool>,
    processes: Processes,
    trails: Trails,
}

/// The use a record tells of, in the terms of people.
#[derive(Debug, Serialize)]
struct Event<'a> {
    time: String,
    node: &'a str,
    sequence: u64,
    kind: &'static str,
    verdict: &'static str,
    reason: Option<&'static str>,
    mode: Pair<&'static str>,
    action: Pair<&'static str>,
    credential: Option<&'a str>,
    workload: Option<String>,
    entitlement: Option<&'a str>,
    approver: Option<&'a str>,
    ticket: Option<&'a str>,
    bundle: u64,
    process: Process,
    file: Option<String>,
    destination: Option<Destination>,
    /// The kind of socket, where that is what was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<Socket>,
    /// The process whose memory was read, or that something was done to.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<u32>,
    /// Whether something was `given` away or `taken`, where it was handed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    handed: Option<&'static str>,
    /// How the secret came here, where it was handed on or a reach is denied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    path: Vec<Hop>,
    /// What was done to the enforcer.
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<String>,
    gate: &'static str,
    tier: Tier,
}

#[derive(Debug, Serialize)]
struct Pair<T> {
    requested: T,
    #[serde(rename = "effective", skip_serializing_if = "Option::is_none")]
    effective: Option<T>,
    #[serde(rename = "taken", skip_serializing_if = "Option::is_none")]
    taken: Option<T>,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    tid: u32,
    parent: u32,
    uid: u32,
    exe: String,
    comm: String,
    args: Vec<String>,
    start: String,
    cgroup: u64,
    ancestors: Vec<Ancestor>,
}

/// A kind of socket, by the kernel's numbers.
#[derive(Debug, Serialize)]
struct Socket {
    family: u32,
    #[serde(rename = "type")]
    kind: u32,
    protocol: u32,
}

#[derive(Debug, Serialize)]
struct Destination {
    address: String,
    port: u16,
    protocol: String,
    host: Option<String>,
    /// It is a client, who was to be answered; the port is the one it had connected to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    answers: bool,
}

/// What is needed to speak of a record.
pub struct Context<'a> {
    /// The policy in force.
    pub policy: &'a Policy,
    /// Version of the bundle in force.
    pub version: u64,
    /// Paths of protected files.
    pub path_of: &'a dyn Fn(&InodeKey) -> Option<PathBuf>,
    /// Paths of the executables that the bundle selects by.
    pub executables: &'a BTreeMap<ExecutableKey, PathBuf>,
    /// The host name that an address was resolved from.
    pub host_of: &'a dyn Fn(IpAddr) -> Option<String>,
    /// Wall-clock time of a boot-clock moment.
    pub wall: &'a dyn Fn(BootNs) -> Timestamp,
    /// By what means the kernel refuses.
    pub tier: Tier,
}

impl Log {
    /// Events of `node` to standard output, to `path` if given (created with mode 0600), and to what is kept for
    /// governance.
    pub fn new(node: String, path: Option<&Path>, evidence: Option<Spool>) -> io::Result<Self> {
        let file = path
            .map(|path| {
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(path)
            })
            .transpose()?;
        Ok(Self {
            node,
            sequence: 0,
            file,
            evidence,
            processes: Processes::default(),
            trails: Trails::default(),
        })
    }

    /// Writes one use.
    pub fn write_use(&mut self, record: &Use, context: &Context<'_>) {
        self.sequence += 1;
        let description = self.processes.describe(record, context.executables);
        let file = (context.path_of)(&record.file).map(|path| path.display().to_string());
        let path = self
            .trails
            .follow(record, &description.exe, file.as_deref());
        let mut event = self.event(record, context, description);
        event.file = file;
        if record.kind != Kind::Read as u8 {
            event.path = path;
        }
        match serde_json::to_string(&event) {
            Ok(line) => self.line(&line),
            Err(error) => tracing::error!(%error, "an event cannot be written"),
        }
    }

    /// Writes something the daemon itself has to tell: kind and fields.
    pub fn write(&mut self, kind: &str, fields: Value) {
        self.sequence += 1;
        let mut event = json!({
            "time": Timestamp::now().to_string(),
            "node": self.node,
            "sequence": self.sequence,
            "kind": kind,
        });
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
            event.extend(fields);
        }
        self.line(&event.to_string());
    }

    /// Has what is kept for governance put on disk, and tells what found no room.
    pub fn settle(&mut self) {
        let Some(evidence) = &mut self.evidence else {
            return;
        };
        if let Err(error) = evidence.sync() {
            tracing::error!(%error, "what is kept for governance is not on disk");
        }
        let dropped = evidence.take_dropped();
        if dropped > 0 {
            self.write("lost", json!({"ring": "evidence", "count": dropped}));
        }
    }

    fn line(&mut self, line: &str) {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{line}").and_then(|()| out.flush());
        if let Err(error) = written {
            tracing::error!(%error, "cannot write an event to standard output");
        }
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(format!("{line}\n").as_bytes())
        {
            tracing::error!(%error, "cannot write an event to the event log");
        }
        if let Some(evidence) = &mut self.evidence
            && let Err(error) = evidence.append(line)
        {
            tracing::error!(%error, "cannot keep an event for governance");
        }
    }

    fn event<'a>(
        &'a self,
        record: &Use,
        context: &Context<'a>,
        description: Description,
    ) -> Event<'a> {
        let credential = context.policy.credential_info.get(&record.credential);
        let entitlement = context.policy.entitlement_info.get(&record.entitlement);
        let approval = entitlement.and_then(|it| it.approval.as_ref());
        let workloads = context.policy.workloads_of(&record.task);
        let workload = entitlement
            .map(|it| it.workload.as_str())
            .filter(|id| workloads.contains(id))
            .or_else(|| workloads.iter().copied().next());
        let reason = Reason::from_u8(record.reason);
        let mode = name(Mode::from_u8(record.mode), Mode::name);
        let denied = reason.is_some();
        Event {
            time: (context.wall)(record.time).to_string(),
            node: &self.node,
            sequence: self.sequence,
            kind: name(Kind::from_u8(record.kind), Kind::name),
            verdict: if denied { "deny" } else { "allow" },
            reason: reason.map(Reason::name),
            mode: Pair {
                requested: mode,
                effective: Some(mode),
                taken: None,
            },
            action: Pair {
                requested: name(Action::from_u8(record.action), Action::name),
                effective: None,
                taken: Some(match record.taken {
                    taken::REFUSED => "block",
                    taken::KILLED => "kill",
                    _ => "none",
                }),
            },
            credential: credential.map(|it| it.id.as_str()),
            workload: workload.map(str::to_owned),
            entitlement: entitlement.map(|it| it.id.as_str()),
            approver: approval.and_then(|it| it.approver.as_deref()),
            ticket: approval.and_then(|it| it.ticket.as_deref()),
            bundle: context.version,
            process: process(record, context, description),
            file: None,
            destination: destination(record, context),
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
            path: Vec::new(),
            what: tamper::what(record),
            gate: name(Gate::from_u8(record.gate), Gate::name),
            tier: context.tier,
        }
    }
}

/// The name of a code, or `unknown` for one that this version does not have.
fn name<T>(code: Option<T>, name: fn(T) -> &'static str) -> &'static str {
    code.map_or("unknown", name)
}

fn process(record: &Use, context: &Context<'_>, description: Description) -> Process {
    let Description {
        exe,
        args,
        ancestors,
    } = description;
    Process {
        pid: record.task.tgid.0,
        tid: record.tid.0,
        parent: record.parent.0,
        uid: record.task.uid.0,
        exe,
        comm: text(&record.comm),
        args,
        start: (context.wall)(record.task.start).to_string(),
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
    let protocol = match to.protocol().0 {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        _ if answers => "tcp".to_owned(),
        other => other.to_string(),
    };
    Some(Destination {
        address: address.to_string(),
        port: to.port(),
        protocol,
        host: (context.host_of)(address),
        answers,
    })
}

/// Whether something was given away or taken, where it was handed on.
fn handed(record: &Use) -> Option<&'static str> {
    let [_, taken, _] = record.destination.as_detail();
    (record.kind == Kind::Forward as u8).then_some(if taken == 0 { "given" } else { "taken" })
}

/// NUL-padded bytes from the kernel as text.
fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
