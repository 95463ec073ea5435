//! What the cases stand on: pods of the runtime, containers that read, and a daemon that asks it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{self, MntFlags};
use serde_json::Value;

use super::{
    containerd::{Containerd, IMAGE},
    cri::{Container, NewContainer, NewPod, Pod, Runtime},
};
use crate::harness::{Bundle, Daemon, Event, daemon, wait_for};

/// The secret, on the host and in containers.
pub(super) const SECRET: &str = "/srv/t/stripe";
pub(super) const INSIDE: &str = "/secret";
pub(super) const LOGS: &str = "/srv/logs";
/// Reads it at once, and stays.
pub(super) const READS: &[&str] = &["/actor", "read", "/secret/key", "sleep", "1000000000"];

/// What a case stands on.
pub(super) struct Stage<'a> {
    pub programs: &'a Path,
    pub containerd: &'a Containerd,
    pub cri: Runtime,
    pub pods: Vec<Pod>,
    pub count: usize,
}

/// A pod's container that reads the secret as its first act, and what came of that.
pub(super) struct Reader {
    pub container: Container,
    pub log: PathBuf,
    /// How long its start took.
    pub took: Duration,
}

impl Reader {
    /// 0, or why it could not read.
    pub fn errno(&self) -> Result<i32> {
        wait_for("a container to read", || first_step(&self.log))
            .with_context(|| format!("{} has {:?}", self.log.display(), fs::read(&self.log).ok()))
    }
}

/// What the first step of an actor came to, by what the runtime logged of its output.
pub(super) fn first_step(log: &Path) -> Option<i32> {
    let text = fs::read_to_string(log).ok()?;
    let lines = text
        .lines()
        .filter_map(|line| line.split_once(" stdout F "));
    first_of(lines.map(|(_, line)| line))
}

/// The same by what it said.
pub(super) fn first_of<'a>(mut lines: impl Iterator<Item = &'a str>) -> Option<i32> {
    let step: Value = serde_json::from_str(lines.next()?).ok()?;
    let errno = i32::try_from(step["errno"].as_i64()?).ok()?;
    // Reading nothing is not reading.
    (errno != 0 || step["read"].as_u64() > Some(0)).then_some(errno)
}

/// The uid of the pod of this number.
pub(super) fn uid(number: usize) -> String {
    format!("1399d9c7-c86f-4371-8568-{number:012x}")
}

impl Stage<'_> {
    pub fn daemon(&self, bundle: &Bundle) -> Result<Daemon> {
        self.daemon_with(bundle, &[])
    }

    pub fn daemon_with(&self, bundle: &Bundle, options: &[&str]) -> Result<Daemon> {
        let socket = Containerd::socket().display().to_string();
        let runc = self.containerd.runc.display().to_string();
        let own = [
            "--runtime",
            &socket,
            "--runtime-program",
            &runc,
            "--hold",
            "20000",
        ];
        Daemon::start(bundle, &[&own, options].concat())
    }

    pub fn pod(&mut self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Result<Pod> {
        let pod = run_pod(&self.cri, self.pods.len(), namespace, name, labels)?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Ends all pods.
    pub fn clear(&mut self) -> Result<()> {
        for pod in std::mem::take(&mut self.pods) {
            self.cri.remove(&pod)?;
        }
        Ok(())
    }
}

/// Takes off what a runtime has left mounted there.
pub(super) fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut below: Vec<&str> = places
        .filter(|place| Path::new(place).starts_with(directory))
        .collect();
    below.sort_unstable();
    for place in below.into_iter().rev() {
        let _ = mount::umount2(place, MntFlags::MNT_DETACH);
    }
}

pub(super) fn run_pod(
    cri: &Runtime,
    number: usize,
    namespace: &str,
    name: &str,
    labels: &[(&str, &str)],
) -> Result<Pod> {
    let logs = Path::new(LOGS).join(format!("{namespace}-{name}"));
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs)?;
    cri.run(&NewPod {
        name,
        uid: &uid(number),
        namespace,
        labels,
        logs: &logs,
    })
}

/// Starts a container that reads.
pub(super) fn reader(cri: &Runtime, pod: &Pod, name: &str) -> Result<Reader> {
    start(cri, pod, name, READS, &[(SECRET, INSIDE)])
}

pub(super) fn start(
    cri: &Runtime,
    pod: &Pod,
    name: &str,
    command: &[&str],
    mounts: &[(&str, &str)],
) -> Result<Reader> {
    let container = cri.create(
        pod,
        &NewContainer {
            name,
            image: IMAGE,
            command,
            mounts,
        },
    )?;
    let start = Instant::now();
    cri.start(&container)?;
    Ok(Reader {
        container,
        log: pod.logs().join(format!("{name}.log")),
        took: start.elapsed(),
    })
}

pub(super) const SELECTS: &str = "kubernetes: {namespace: payments, podLabels: {app: billing}, container: app}, interactive: false";

pub(super) fn bundle() -> Bundle {
    Bundle::default()
        .file("stripe", &format!("{SECRET}/key"))
        .workload("billing", SELECTS)
        .entitlement("E1", "billing", "stripe", "destinations: none")
}

pub(super) fn expect(reader: &Reader, who: &str, errno: i32) -> Result<()> {
    let got = reader.errno()?;
    ensure!(
        got == errno,
        "{who} got {got}, expected {errno}; its events are {}",
        events_of(&reader.container)
    );
    Ok(())
}

/// What was recorded of a container.
pub(super) fn events_of(container: &Container) -> String {
    let all = fs::read_to_string(daemon::EVENT_LOG).unwrap_or_default();
    let own: Vec<&str> = all
        .lines()
        .filter(|line| line.contains(&container.id))
        .collect();
    own.join("\n")
}

/// The event of a container's refusal.
pub(super) fn refusal(daemon: &Daemon, container: &Container) -> Result<Event> {
    wait_for("the refusal's event", || {
        daemon.events.find(|event| {
            event.is_denial() && event.0["instance"]["container"]["id"] == container.id
        })
    })
}
