//! What the decision would be for somebody: a question in the terms of people, and the answer in theirs.

use std::net::SocketAddr;
use std::path::PathBuf;

use enforcer_common::address::{Destination, Protocol};
use enforcer_common::decide;
use enforcer_common::facts::Task;
use enforcer_common::ids::{BootNs, CgroupId, Tgid, Uid};
use enforcer_common::tables::Holder;
use enforcer_common::verdict::Verdict;
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::compile::{HostTables, Policy};
use crate::engine::Engine;
use crate::kernel::clock::boot_now;
use crate::record::{misfit, model};

/// A question of `enforcer explain`, in the terms of people.
#[derive(Debug)]
pub struct Ask {
    /// A running process, instead of the next five.
    pub pid: Option<u32>,
    /// Path of the executable.
    pub executable: Option<PathBuf>,
    /// User id.
    pub uid: Option<u32>,
    /// cgroup path from the cgroup root.
    pub cgroup: Option<String>,
    /// A container, instead of that: `NAMESPACE/POD/CONTAINER`, `NAMESPACE/POD`, or the name of one of no pod.
    pub container: Option<String>,
    /// Paths of programs that it descends from.
    pub ancestors: Vec<PathBuf>,
    /// Whether it is interactive.
    pub interactive: bool,
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
    /// The path of what it runs, as far as it is known.
    pub executable: String,
    /// The credential's id.
    pub credential: String,
    /// Where to, if at all.
    pub destination: Option<Destination>,
    /// The same for people.
    pub told: Option<model::Destination>,
}

/// Turns a question into facts. The engine knows those of a process, captures the executable, and knows what tasks in a
/// cgroup are.
pub fn question(ask: &Ask, engine: &mut Engine) -> Result<Question, String> {
    let task = match ask.pid {
        Some(pid) => {
            let found = engine.task_of(pid).map_err(|error| crate::chain(&error))?;
            found.ok_or_else(|| format!("there is no process {pid}"))?
        }
        None => {
            let contained = ask.container.as_ref();
            let contained = contained.map(|name| engine.cgroup_of_container(name));
            let contained = contained.transpose()?;
            let executable = match (&ask.executable, &contained) {
                (None, _) => None,
                (Some(path), Some(cgroup)) => Some(engine.executable_key_inside(cgroup, path)?),
                (Some(path), None) => {
                    let key = engine.executable_key(path);
                    Some(key.map_err(|error| crate::chain(&error))?)
                }
            };
            let cgroup = contained.or_else(|| ask.cgroup.clone());
            let cgroup = cgroup.unwrap_or_else(|| "/".to_owned());
            Task {
                executable: executable.unwrap_or_default(),
                identity: engine.identity_of(&cgroup, &ask.ancestors, ask.interactive),
                uid: Uid(ask.uid.unwrap_or(0)),
                tgid: Tgid(1),
                start: BootNs(1),
                classified: 1,
                cgroup: CgroupId(1),
                ..Task::default()
            }
        }
    };
    let protocol = match ask.protocol.as_str() {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        other => return Err(format!("protocol `{other}`: expected tcp or udp")),
    };
    let executable = match ask.pid {
        Some(pid) => std::fs::read_link(format!("/proc/{pid}/exe")).ok(),
        None => ask.executable.clone(),
    };
    Ok(Question {
        task,
        executable: executable.map_or_else(
            || "a program that is not known".to_owned(),
            |path| path.display().to_string(),
        ),
        told: ask.destination.map(|to| model::Destination {
            address: to.ip().to_canonical().to_string(),
            port: to.port(),
            protocol: ask.protocol.clone().into(),
            host: None,
            answers: false,
        }),
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
    if let Some(reason) = decided.1.denied() {
        let entitlement = policy.entitlement_info.get(&decided.1.entitlement());
        let misfit = misfit(
            bundle,
            reason,
            Some(&question.credential),
            entitlement.map(|it| it.id.as_str()),
            &policy.workloads_of(&question.task),
            &question.executable,
            question.told.as_ref().filter(|_| decided.0 == "reach"),
        );
        answer["misfit"] = json!(misfit.what);
    }
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
