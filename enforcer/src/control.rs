//! Questions to the running daemon over its unix socket: one JSON object a line each way. Only this
//! daemon's own command line speaks it.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enforcer_common::address::{Destination, Protocol};
use enforcer_common::decide;
use enforcer_common::facts::Task;
use enforcer_common::ids::{BootNs, CgroupId, ExecutableKey, IdentityId, Tgid, Uid};
use enforcer_common::tables::Holder;
use enforcer_common::verdict::Verdict;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::compile::{HostTables, Policy};
use crate::kernel::clock::boot_now;

/// Where the daemon listens unless told otherwise.
pub const SOCKET: &str = "/run/enforcer/enforcer.sock";

/// What can be asked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How things are.
    Status,
    /// How many entries each table of the kernel has.
    Tables,
    /// Would this be allowed?
    Explain(Ask),
}

/// A question of `enforcer explain`, in the terms of people.
#[derive(Debug, Deserialize, Serialize)]
pub struct Ask {
    /// A running process, instead of the next three.
    pub pid: Option<u32>,
    /// Path of the executable.
    pub executable: Option<PathBuf>,
    /// User id.
    pub uid: Option<u32>,
    /// cgroup path from the cgroup root.
    pub cgroup: Option<String>,
    /// The credential.
    pub credential: String,
    /// The destination.
    pub destination: Option<SocketAddr>,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// The same in the decision's terms.
#[derive(Debug)]
pub struct Question {
    /// Who.
    pub task: Task,
    /// The credential's id.
    pub credential: String,
    /// Where to, if at all.
    pub destination: Option<Destination>,
}

/// Asks the daemon. Errors name the socket.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Value> {
    let named = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("{}: {error}; is `enforcer run` running?", socket.display()),
        )
    };
    let mut stream = UnixStream::connect(socket).map_err(named)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(named)?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .map_err(named)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Turns a question into facts. The engine captures the executable and knows the cgroups' meaning.
pub fn question(
    ask: &Ask,
    executable: impl FnOnce(&Path) -> Result<ExecutableKey, String>,
    identity: impl FnOnce(&str) -> IdentityId,
) -> Result<Question, String> {
    let mut path = ask.executable.clone();
    let mut uid = ask.uid;
    let mut cgroup = ask.cgroup.clone();
    if let Some(pid) = ask.pid {
        let process = procfs::process::Process::new(pid as i32)
            .map_err(|error| format!("no process {pid}: {error}"))?;
        path = Some(PathBuf::from(format!("/proc/{pid}/exe")));
        let status = process.status().map_err(|error| error.to_string())?;
        uid = Some(status.ruid);
        let groups = process.cgroups().map_err(|error| error.to_string())?;
        cgroup = groups
            .0
            .into_iter()
            .find(|group| group.hierarchy == 0)
            .map(|group| group.pathname);
    }
    let mut task = Task {
        uid: Uid(uid.unwrap_or(0)),
        tgid: Tgid(ask.pid.unwrap_or(1)),
        start: BootNs(1),
        classified: 1,
        cgroup: CgroupId(1),
        ..Task::default()
    };
    if let Some(path) = path {
        task.executable = executable(&path)?;
    }
    task.identity = identity(cgroup.as_deref().unwrap_or("/"));
    let protocol = match ask.protocol.as_str() {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        other => return Err(format!("protocol `{other}`: expected tcp or udp")),
    };
    Ok(Question {
        task,
        credential: ask.credential.clone(),
        destination: ask
            .destination
            .map(|to| Destination::new(crate::compile::address(to.ip()), to.port(), protocol)),
    })
}

/// Answers with the same decision the kernel takes: the read, and if that is allowed, the reach of a task
/// that holds just this credential.
pub fn explain(
    question: &Question,
    policy: &Policy,
    bundle: &Bundle,
    mut tables: HostTables,
) -> Value {
    let known = policy
        .credential_info
        .iter()
        .find(|(_, info)| info.id == question.credential);
    let Some((credential, info)) = known else {
        let ids: Vec<&str> = bundle.credentials.iter().map(|it| it.id.as_str()).collect();
        return json!({"error": format!("no credential `{}` in the bundle in force; it has: {}", question.credential, ids.join(", "))});
    };
    let now = boot_now();
    let read = decide::read(&tables, now, &question.task, *credential);
    let mut decided = ("read", read);
    if let Some(destination) = &question.destination
        && read.denied().is_none()
        && !read.trusted()
    {
        tables.set_held(
            Holder::process(question.task.tgid, question.task.start),
            &[*credential],
        );
        let reach = decide::reach(&tables, now, &question.task, destination);
        decided = ("reach", reach);
    }
    let mut answer = answer(decided.0, decided.1, policy, &question.task);
    let sources = info.sources.iter().map(ToString::to_string);
    answer["sources"] = sources.collect();
    answer
}

fn answer(kind: &str, verdict: Verdict, policy: &Policy, task: &Task) -> Value {
    let entitlement = policy.entitlement_info.get(&verdict.entitlement());
    json!({
        "kind": kind,
        "verdict": if verdict.denied().is_some() { "deny" } else { "allow" },
        "reason": verdict.denied().map(|it| it.name()),
        "mode": verdict.mode().name(),
        "action": verdict.action().name(),
        "trusted": verdict.trusted(),
        "workloads": policy.workloads_of(task),
        "entitlement": entitlement.map(|it| json!({
            "id": it.id,
            "workload": it.workload,
            "approver": it.approval.as_ref().and_then(|it| it.approver.clone()),
            "ticket": it.approval.as_ref().and_then(|it| it.ticket.clone()),
        })),
    })
}
