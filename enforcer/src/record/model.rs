//! What a record is: the names of its fields are those of the JSON that everybody gets.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A word of a closed list, see `docs/events.md`.
pub type Word = Cow<'static, str>;

/// One record of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When it happened: UTC, by the kernel's boot-time clock.
    pub time: Timestamp,
    /// The node's name.
    pub node: String,
    /// The kernel's boot id.
    pub boot: String,
    /// `read`, `reach`, `tamper` or `forward` for a use; else what the daemon tells.
    pub kind: Word,
    /// The rest.
    #[serde(flatten)]
    pub told: Told,
    /// Where it stands; the journal adds it.
    #[serde(flatten)]
    pub place: Option<Place>,
}

/// Where a record stands among those of its node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Under which the sequence counts; changes when the log was lost.
    pub epoch: String,
    /// From 1 on, without a gap within the epoch.
    pub sequence: u64,
    /// The hash of the record before, in hex; empty for the first.
    pub previous: String,
    /// SHA-256 of the record's canonical form without this field.
    pub hash: String,
}

/// What a record tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Told {
    /// A use, or something that is decided and told like one.
    Use(Box<Used>),
    /// Something else, by the names of its fields.
    Node(Map<String, Value>),
}

/// Whether something was in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was.
    Allow,
    /// It was not; `mode` and `action` say what came of that.
    Deny,
}

/// A use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Used {
    /// What was decided.
    pub verdict: Verdict,
    /// Why it was denied.
    pub reason: Option<Word>,
    /// Whether denials take effect.
    pub mode: Mode,
    /// What follows a denial.
    pub action: Action,
    /// The credential's id.
    pub credential: Option<String>,
    /// The workload's id.
    pub workload: Option<String>,
    /// The entitlement that decided; of a denial the nearest one.
    pub entitlement: Option<String>,
    /// Who approved that.
    pub approver: Option<String>,
    /// Where the approval is written down.
    pub ticket: Option<String>,
    /// Of a denial, what did not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfit: Option<String>,
    /// Version of the bundle in force.
    pub bundle: u64,
    /// Who did it.
    pub process: Process,
    /// Where that process belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The path of the file that was read.
    pub file: Option<String>,
    /// Where something was sent, or a credential read.
    pub destination: Option<Destination>,
    /// The kind of socket, where that is what was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<Socket>,
    /// The process whose memory was read, or that something was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u32>,
    /// Whether something was `given` away or `taken`, where it was handed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed: Option<Word>,
    /// How the secret came here, where it was handed on or a reach is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<Hop>,
    /// What was done to the enforcer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// Whether it is one of the bundle's trusted workloads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trusted: bool,
    /// Where in the kernel it was decided.
    pub gate: Word,
    /// By what means the node is gated.
    pub tier: Word,
}

/// `monitor` or `enforce`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// What the bundle asks for.
    pub requested: Word,
    /// What came of it here.
    pub effective: Word,
}

/// `none`, `block`, `kill`, `kill-workload` or `freeze`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// What the bundle asks for.
    pub requested: Word,
    /// What was done.
    pub taken: Word,
}

/// Who did it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// The same for all records of a process, also as somebody's ancestor, and for no other process ever.
    #[serde(default)]
    pub key: String,
    /// Process id on the host.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Its parent's process id.
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// The executable's path, or as much of it as is known.
    pub exe: String,
    /// The thread's name, which it chooses itself.
    pub comm: String,
    /// The command line; what looks like a secret is replaced.
    pub args: Vec<String>,
    /// When it started.
    pub start: Timestamp,
    /// The id of its cgroup.
    pub cgroup: u64,
    /// The parents, nearest first, as far as they still exist.
    pub ancestors: Vec<Ancestor>,
}

/// A parent, or a parent's parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ancestor {
    /// As [`Process::key`].
    #[serde(default)]
    pub key: String,
    /// Process id on the host.
    pub pid: i32,
    /// The name that it chose.
    pub comm: String,
    /// The executable's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
}

/// The workload instance of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The process's cgroup, from the cgroup root.
    pub cgroup: String,
    /// The systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its uid.
    #[serde(default)]
    pub uid: String,
    /// Its service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Its name in the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its image, with the digest if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its labels, if it is of no pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A kind of socket, by the kernel's numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Socket {
    /// `AF_*`.
    pub family: u32,
    /// `SOCK_*`.
    #[serde(rename = "type")]
    pub kind: u32,
    /// `IPPROTO_*`.
    pub protocol: u32,
}

/// Where something was sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Destination {
    /// IPv4 or IPv6, in canonical text.
    pub address: String,
    /// 0 where the protocol has none.
    pub port: u16,
    /// `tcp`, `udp`, `icmp`, or the protocol's number.
    pub protocol: Word,
    /// The host name of the bundle that the address was resolved from.
    pub host: Option<String>,
    /// It is a client, who was to be answered; the port is the one it had connected to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answers: bool,
}

/// One step on a secret's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Whose step.
    pub pid: u32,
    /// Its executable.
    pub exe: String,
    /// `read`, or through what it came: `pipe`, `unix`, `file_write`.
    pub how: Word,
    /// What was read or written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl Record {
    /// The use that it is about, if it is about one.
    #[must_use]
    pub fn used(&self) -> Option<&Used> {
        match &self.told {
            Told::Use(used) => Some(used),
            Told::Node(_) => None,
        }
    }

    /// Whether it tells of a denial, be it that it was only monitored.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        self.used().is_some_and(|it| it.verdict == Verdict::Deny)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        for line in [
            r#"{"time":"2026-11-26T01:02:03.000000004Z","node":"n1","boot":"b","kind":"lost","stage":"denials","count":3,"epoch":"e","sequence":7,"previous":"","hash":"h"}"#,
            r#"{"time":"2026-11-26T01:02:03Z","node":"n1","boot":"b","kind":"reach","verdict":"deny","reason":"outside-destination","mode":{"requested":"enforce","effective":"enforce"},"action":{"requested":"kill","taken":"kill"},"credential":"c","workload":null,"entitlement":"E","approver":null,"ticket":null,"misfit":"m","bundle":42,"process":{"key":"k","pid":1,"tid":1,"parent":0,"uid":0,"exe":"/x","comm":"x","args":["x"],"start":"2026-11-26T01:02:03Z","cgroup":5,"ancestors":[{"key":"k","pid":1,"comm":"x"}]},"instance":{"cgroup":"/a.service","unit":"a.service"},"file":null,"destination":{"address":"203.0.113.9","port":443,"protocol":"tcp","host":null},"gate":"packet","tier":"lsm","epoch":"e","sequence":8,"previous":"h","hash":"i"}"#,
        ] {
            let record: Record = serde_json::from_str(line).expect(line);
            let before: Value = serde_json::from_str(line).expect(line);
            let after = serde_json::to_value(&record).expect("JSON");
            assert_eq!(after, before);
            assert_eq!(record.is_denial(), line.contains("deny"));
            assert!(record.place.is_some_and(|it| it.sequence > 6));
        }
    }
}
