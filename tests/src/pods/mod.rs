//! Pods in a real container runtime, made as kubelet makes them: who is entitled reads from its first instruction on, and
//! nobody else ever.

mod containerd;
mod cri;
mod engines;
mod kubelet;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{self, MntFlags};
use serde_json::Value;

use crate::harness::{
    Actor, Bundle, Cgroup, Daemon, Event, copy_program, daemon, spread, wait_for, write,
};
use containerd::{Containerd, IMAGE};
use cri::{Container, NewContainer, NewPod, Pod, Runtime};
use engines::{Engine, Kind};
use kubelet::Kubelet;

/// The secret, on the host and in containers.
const SECRET: &str = "/srv/t/stripe";
const INSIDE: &str = "/secret";
const LOGS: &str = "/srv/logs";
/// Reads it at once, and stays.
const READS: &[&str] = &["/actor", "read", "/secret/key", "sleep", "1000000000"];

/// `enforcer-tests pods`.
#[derive(clap::Args)]
pub struct Args {
    /// Where containerd, runc and ctr are, in `usr/bin` and `usr/sbin`
    #[arg(long)]
    programs: PathBuf,
    /// How many pods are started at once
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Only the cases with this in their names
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
}

type Case = (&'static str, fn(&mut Stage<'_>) -> Result<()>);

const CASES: &[Case] = &[
    ("who_is_in_a_pod", who_is_in_a_pod),
    ("which_program_in_it", which_program_in_it),
    ("left_in_an_image", left_in_an_image),
    ("many_at_once", many_at_once),
    ("secrets_that_are_rotated", secrets_that_are_rotated),
    ("no_identity_is_borrowed", no_identity_is_borrowed),
    ("nobody_knows_it", nobody_knows_it),
    ("nobody_waits_for_it", nobody_waits_for_it),
    ("the_daemon_is_gone", the_daemon_is_gone),
    ("docker_runs_it", |stage| {
        an_engine_runs_it(stage, Kind::Docker)
    }),
    ("podman_runs_it", |stage| {
        an_engine_runs_it(stage, Kind::Podman)
    }),
];

/// Runs the cases. The result is whether all went well.
pub fn run(args: &Args) -> Result<bool> {
    write(format!("{SECRET}/key"), "the secret itself\n")?;
    let containerd = Containerd::start(&args.programs)?;
    let cri = Runtime::connect(&Containerd::socket())?;
    cri.answers().with_context(Containerd::log)?;
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES.iter().filter(|it| it.0.contains(&args.filter)) {
        let start = Instant::now();
        let mut stage = Stage {
            programs: &args.programs,
            containerd: &containerd,
            cri: cri.clone(),
            pods: Vec::new(),
            count: args.pods,
        };
        let result = case(&mut stage);
        let cleared = stage.clear();
        let took = start.elapsed().as_secs_f64();
        match result.and(cleared) {
            Ok(()) => {
                passed += 1;
                println!("ok {name} ({took:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED {name}: {error:#} ({took:.1} s)");
            }
        }
    }
    println!("{passed} passed, {failed} failed, 0 skipped");
    Ok(failed == 0)
}

/// What a case stands on.
struct Stage<'a> {
    programs: &'a Path,
    containerd: &'a Containerd,
    cri: Runtime,
    pods: Vec<Pod>,
    count: usize,
}

/// A pod's container that reads the secret as its first act, and what came of that.
struct Reader {
    container: Container,
    log: PathBuf,
    /// How long its start took.
    took: Duration,
}

impl Reader {
    /// 0, or why it could not read.
    fn errno(&self) -> Result<i32> {
        wait_for("a container to read", || first_step(&self.log))
            .with_context(|| format!("{} has {:?}", self.log.display(), fs::read(&self.log).ok()))
    }
}

/// What the first step of an actor came to, by what the runtime logged of its output.
fn first_step(log: &Path) -> Option<i32> {
    let text = fs::read_to_string(log).ok()?;
    let lines = text
        .lines()
        .filter_map(|line| line.split_once(" stdout F "));
    first_of(lines.map(|(_, line)| line))
}

/// The same by what it said.
fn first_of<'a>(mut lines: impl Iterator<Item = &'a str>) -> Option<i32> {
    let step: Value = serde_json::from_str(lines.next()?).ok()?;
    let errno = i32::try_from(step["errno"].as_i64()?).ok()?;
    // Reading nothing is not reading.
    (errno != 0 || step["read"].as_u64() > Some(0)).then_some(errno)
}

/// The uid of the pod of this number.
fn uid(number: usize) -> String {
    format!("1399d9c7-c86f-4371-8568-{number:012x}")
}

impl Stage<'_> {
    fn daemon(&self, bundle: &Bundle) -> Result<Daemon> {
        self.daemon_with(bundle, &[])
    }

    fn daemon_with(&self, bundle: &Bundle, options: &[&str]) -> Result<Daemon> {
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

    fn pod(&mut self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Result<Pod> {
        let pod = run_pod(&self.cri, self.pods.len(), namespace, name, labels)?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Ends all pods.
    fn clear(&mut self) -> Result<()> {
        for pod in std::mem::take(&mut self.pods) {
            self.cri.remove(&pod)?;
        }
        Ok(())
    }
}

/// Takes off what a runtime has left mounted there.
fn unmount_below(directory: &Path) {
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

fn run_pod(
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
fn reader(cri: &Runtime, pod: &Pod, name: &str) -> Result<Reader> {
    start(cri, pod, name, READS, &[(SECRET, INSIDE)])
}

fn start(
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

const SELECTS: &str = "kubernetes: {namespace: payments, podLabels: {app: billing}, container: app}, interactive: false";

fn bundle() -> Bundle {
    Bundle::default()
        .file("stripe", &format!("{SECRET}/key"))
        .workload("billing", SELECTS)
        .entitlement("E1", "billing", "stripe", "destinations: none")
}

fn expect(reader: &Reader, who: &str, errno: i32) -> Result<()> {
    let got = reader.errno()?;
    ensure!(
        got == errno,
        "{who} got {got}, expected {errno}; its events are {}",
        events_of(&reader.container)
    );
    Ok(())
}

/// What was recorded of a container.
fn events_of(container: &Container) -> String {
    let all = fs::read_to_string(daemon::EVENT_LOG).unwrap_or_default();
    let own: Vec<&str> = all
        .lines()
        .filter(|line| line.contains(&container.id))
        .collect();
    own.join("\n")
}

/// The event of a container's refusal.
fn refusal(daemon: &Daemon, container: &Container) -> Result<Event> {
    wait_for("the refusal's event", || {
        daemon.events.find(|event| {
            event.is_denial() && event.0["instance"]["container"]["id"] == container.id
        })
    })
}

/// The entitled container may, and its sidecar, the same image in another namespace or without the label, and a command
/// that somebody runs in it from outside, may not. With the daemon off all may.
fn who_is_in_a_pod(stage: &mut Stage<'_>) -> Result<()> {
    let cri = stage.cri.clone();
    let billing = [("app", "billing")];
    let pod = stage.pod("payments", "before", &billing)?;
    let sidecar = reader(&cri, &pod, "sidecar")?;
    expect(&sidecar, "a sidecar without the daemon", 0)?;
    stage.clear()?;

    let daemon = stage.daemon(&bundle())?;
    let pod = stage.pod("payments", "billing-7", &billing)?;
    let app = reader(&cri, &pod, "app")?;
    expect(&app, "the entitled container", 0)?;
    let sidecar = reader(&cri, &pod, "sidecar")?;
    expect(&sidecar, "its sidecar", libc::EPERM)?;
    let event = refusal(&daemon, &sidecar.container)?;
    let instance = &event.0["instance"];
    ensure!(
        event.reason() == "wrong-workload"
            && instance["pod"]["namespace"] == "payments"
            && instance["pod"]["name"] == "billing-7"
            && instance["container"]["name"] == "sidecar",
        "the event is {}",
        event.0
    );
    let other = stage.pod("other", "billing-7", &billing)?;
    let other = reader(&cri, &other, "app")?;
    expect(&other, "the same in another namespace", libc::EPERM)?;
    let unlabelled = stage.pod("payments", "batch", &[("app", "batch")])?;
    let unlabelled = reader(&cri, &unlabelled, "app")?;
    expect(&unlabelled, "a pod without the label", libc::EPERM)?;

    let shell = cri.exec(&app.container, &READS[..3])?;
    ensure!(
        shell.exit_code == 1,
        "a command from outside ended with {} and said {}",
        shell.exit_code,
        String::from_utf8_lossy(&shell.stdout)
    );

    // Who looks for a pod's denials sees those, and of no other.
    let told = |words: &[&str]| -> Result<BTreeSet<String>> {
        let words = [
            &[
                "events",
                "--last",
                "1000",
                "-o",
                "json",
                "--verdict",
                "deny",
            ],
            words,
        ]
        .concat();
        let said = daemon::enforcer(&words)?.stdout;
        let records = said
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let pods = records.map(|line| {
            let record: Value = serde_json::from_slice(line)?;
            let pod = &record["instance"]["pod"];
            Ok(format!("{}/{}", pod["namespace"], pod["name"]).replace('"', ""))
        });
        pods.collect()
    };
    let only = |pods: &[&str]| {
        pods.iter()
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>()
    };
    for (words, expected) in [
        (&["--namespace", "other"][..], only(&["other/billing-7"])),
        (
            &["--namespace", "payments", "--pod", "billing-7"],
            only(&["payments/billing-7"]),
        ),
        (&["--exclude", "pod=billing-7"], only(&["payments/batch"])),
    ] {
        let told = told(words)?;
        ensure!(
            told == expected,
            "`enforcer events {}` told of {told:?}",
            words.join(" ")
        );
    }

    // Another daemon finds them as they are.
    daemon.stop()?;
    let daemon = stage.daemon(&bundle())?;
    let again = cri.exec(&sidecar.container, &READS[..3])?;
    ensure!(again.exit_code == 1, "the next daemon let a sidecar read");
    let pod = stage.pod("payments", "billing-8", &billing)?;
    let late = reader(&cri, &pod, "app")?;
    expect(&late, "another entitled container", 0)?;
    daemon.stop()?;

    let after = cri.exec(&sidecar.container, &READS[..3])?;
    ensure!(
        after.exit_code == 0,
        "a sidecar after the daemon ended with {}",
        after.exit_code
    );
    Ok(())
}

/// The program of a container, by its path there, may, and another in the same container may not, nor the same one in
/// another container. The next daemon sees it the same.
fn which_program_in_it(stage: &mut Stage<'_>) -> Result<()> {
    const PROGRAMS: &str = "/srv/t/programs";
    const OTHER: &[&str] = &["/other/actor", "read", "/secret/key", "sleep", "1000000000"];
    let cri = stage.cri.clone();
    let mounts = [(SECRET, INSIDE), (PROGRAMS, "/other")];
    copy_program(format!("{PROGRAMS}/actor"))?;
    let bundle = Bundle::default()
        .file("stripe", &format!("{SECRET}/key"))
        .workload(
            "billing",
            "executable: {path: /actor}, kubernetes: {namespace: payments, container: app}",
        )
        .entitlement("E1", "billing", "stripe", "destinations: none");
    let pod = stage.pod("payments", "before", &[])?;
    let before = start(&cri, &pod, "app", OTHER, &mounts)?;
    expect(&before, "another program without the daemon", 0)?;
    stage.clear()?;

    let daemon = stage.daemon(&bundle)?;
    let pod = stage.pod("payments", "billing", &[])?;
    let app = start(&cri, &pod, "app", READS, &mounts)?;
    expect(&app, "the container's program", 0)?;
    let second = stage.pod("payments", "billing-2", &[])?;
    let other = start(&cri, &second, "app", OTHER, &mounts)?;
    expect(&other, "another program of such a container", libc::EPERM)?;
    let event = refusal(&daemon, &other.container)?;
    ensure!(
        event.reason() == "wrong-executable" && event.0["process"]["exe"] == "/other/actor",
        "the event is {}",
        event.0
    );
    let elsewhere = stage.pod("payments", "batch", &[])?;
    let elsewhere = start(&cri, &elsewhere, "batch", READS, &mounts)?;
    expect(
        &elsewhere,
        "the same program in another container",
        libc::EPERM,
    )?;

    daemon.stop()?;
    let daemon = stage.daemon(&bundle)?;
    for (program, expected) in [("/actor", 0), ("/other/actor", 1)] {
        let ran = cri.exec(&app.container, &[program, "read", "/secret/key"])?;
        ensure!(
            ran.exit_code == expected,
            "{program} under the next daemon ended with {} and said {}",
            ran.exit_code,
            String::from_utf8_lossy(&ran.stdout)
        );
    }
    daemon.stop()
}

/// What the catalogue knows and an image brings is protected in each of its containers, those that run already too.
fn left_in_an_image(stage: &mut Stage<'_>) -> Result<()> {
    const LEFT: &str = "/root/.aws/credentials";
    const SHARED: &str = "/srv/t/shared";
    const STEPS: &[&str] = &["/actor", "read", LEFT, "sleep", "1000000000"];
    let cri = stage.cri.clone();
    let bundle = Bundle::default()
        .credential("id: aws, sources: [{catalogue: aws}]")
        .workload(
            "billing",
            "kubernetes: {namespace: payments, container: app}",
        )
        .entitlement("E1", "billing", "aws", "destinations: none");
    let pod = stage.pod("other", "before", &[])?;
    let before = start(&cri, &pod, "app", STEPS, &[])?;
    expect(&before, "a container without the daemon", 0)?;

    let daemon = stage.daemon(&bundle)?;
    let again = cri.exec(&before.container, &STEPS[..3])?;
    ensure!(again.exit_code == 1, "one that ran already was let");
    let pod = stage.pod("payments", "billing", &[])?;
    let app = start(&cri, &pod, "app", STEPS, &[])?;
    expect(&app, "the entitled container", 0)?;
    let sidecar = start(&cri, &pod, "sidecar", STEPS, &[])?;
    expect(&sidecar, "its sidecar", libc::EPERM)?;
    let event = refusal(&daemon, &sidecar.container)?;
    ensure!(
        event.credential() == "aws"
            && event.0["file"] == LEFT
            && event.reason() == "wrong-workload",
        "the event is {}",
        event.0
    );

    // What two have is protected for as long as one of them is there.
    write(format!("{SHARED}/credentials"), "the secret itself\n")?;
    let mounts = [(SHARED, "/root/.aws")];
    let pod = stage.pod("other", "stays", &[])?;
    let stays = start(&cri, &pod, "app", STEPS, &mounts)?;
    expect(&stays, "one with a directory that others have", libc::EPERM)?;
    let pod = stage.pod("other", "goes", &[])?;
    let goes = start(&cri, &pod, "app", STEPS, &mounts)?;
    expect(&goes, "another with it", libc::EPERM)?;
    let generation = || Ok::<_, anyhow::Error>(daemon::status()?["generation"].as_u64());
    let before = generation()?;
    let known = || daemon::status().ok()?["containers"]["known"].as_u64();
    let all = known();
    cri.remove(&stage.pods.pop().context("no pod")?)?;
    wait_for("the container to go", || (known() < all).then_some(()))?;
    let reads = || Ok::<_, anyhow::Error>(cri.exec(&stays.container, &STEPS[..3])?.exit_code);
    ensure!(reads()? == 1, "it was let when another had gone");
    wait_for("what has gone to be taken out", || {
        (generation().ok()? > before).then_some(())
    })?;
    ensure!(reads()? == 1, "it was let when what had gone was taken out");

    daemon.stop()?;
    let after = cri.exec(&sidecar.container, &STEPS[..3])?;
    ensure!(
        after.exit_code == 0,
        "after the daemon: {}",
        after.exit_code
    );
    Ok(())
}

/// Pods that all start at once, half of them entitled, each reading as its first act: none is wrongly refused, none wrongly
/// allowed.
fn many_at_once(stage: &mut Stage<'_>) -> Result<()> {
    let without = start_many(stage, "without")?;
    for (reader, _) in &without {
        expect(reader, "a pod without the daemon", 0)?;
    }
    stage.clear()?;
    let daemon = stage.daemon(&bundle())?;
    let with = start_many(stage, "with")?;
    let mut wrong = Vec::new();
    for (reader, entitled) in &with {
        let got = reader.errno()?;
        let expected = if *entitled { 0 } else { libc::EPERM };
        if got != expected {
            wrong.push(format!("{} got {got}", reader.log.display()));
        }
    }
    let span = |readers: &[(Reader, bool)]| {
        spread(
            readers
                .iter()
                .map(|it| it.0.took.as_secs_f64() * 1e3)
                .collect(),
        )
    };
    println!(
        "{} containers at once: start without the daemon {}; with it {}",
        with.len(),
        span(&without),
        span(&with)
    );
    let known = wait_for("all starts to be told", || {
        let told = daemon.events.all("container-classified");
        (told.len() >= with.len()).then_some(told)
    })?;
    let took = known.iter().filter_map(|it| it.0["tookMs"].as_f64());
    let count = |field| known.iter().filter(|it| it.0[field] == true).count();
    println!(
        "it took {} to know what they are; {} were held, {} let go on too early",
        spread(took.collect()),
        count("held"),
        count("late")
    );
    ensure!(
        wrong.is_empty(),
        "{} of {}: {}",
        wrong.len(),
        with.len(),
        wrong.join(", ")
    );
    daemon.stop()
}

/// Starts pods from several threads, every second of which is entitled.
fn start_many(stage: &mut Stage<'_>, when: &str) -> Result<Vec<(Reader, bool)>> {
    const THREADS: usize = 8;
    let cri = &stage.cri;
    let count = stage.count;
    let one = |number: usize| -> Result<(Pod, Reader, bool)> {
        let entitled = number.is_multiple_of(2);
        let app = if entitled { "billing" } else { "batch" };
        let name = format!("{when}-{number}");
        let pod = run_pod(cri, number, "payments", &name, &[("app", app)])?;
        let reader = reader(cri, &pod, "app")?;
        Ok((pod, reader, entitled))
    };
    let some = |first: usize| (first..count).step_by(THREADS).map(one).collect();
    let all: Vec<Result<Vec<_>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|first| scope.spawn(move || some(first)))
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread panicked"),
            })
            .collect()
    });
    let mut readers = Vec::new();
    for part in all {
        for (pod, reader, entitled) in part? {
            stage.pods.push(pod);
            readers.push((reader, entitled));
        }
    }
    Ok(readers)
}

/// How often a secret is rotated.
const ROTATIONS: u64 = 1_000;

/// A secret is rotated as kubelet does it, under the eyes of an entitled container, of another and of a process of the host,
/// who all read it all the time: the one is never refused, and the others never let.
fn secrets_that_are_rotated(stage: &mut Stage<'_>) -> Result<()> {
    const READS_ON: &[&str] = &["/actor", "keep-reading", "/secret/key", "/control/stop"];
    const CONTROL: &str = "/srv/control";
    let cri = stage.cri.clone();
    let kubelet = Kubelet::start()?;
    let bundle = Bundle::default()
        .credential(
            "id: stripe, sources: [{kubernetesSecret: {namespace: payments, name: stripe}}]",
        )
        .workload(
            "billing",
            "kubernetes: {namespace: payments, serviceAccount: billing, container: app}",
        )
        .entitlement("E1", "billing", "stripe", "destinations: none");
    let address = format!("https://{}", kubelet.address);
    let options = [
        "--kubelet",
        &address,
        "--kubelet-ca",
        kubelet::AUTHORITY,
        "--kubelet-token",
        kubelet::TOKEN,
        "--kubelet-directory",
        kubelet::DIRECTORY,
    ];
    let daemon = stage.daemon_with(&bundle, &options)?;
    let _ = fs::remove_dir_all(CONTROL);
    fs::create_dir_all(CONTROL)?;

    // As kubelet goes about it: the pod is listed and has its cgroup before its volumes are filled.
    let number = stage.pods.len();
    let cgroup = format!("/sys/fs/cgroup/kubepods/burstable/pod{}", uid(number));
    // An earlier case may have had a pod of this uid; kubelet never has two.
    let _ = fs::remove_dir(&cgroup);
    fs::create_dir_all(&cgroup)?;
    let mut volume = kubelet.admit(&uid(number), "payments", "billing", "stripe")?;
    let path = volume.path().display().to_string();
    let host_key = format!("{path}/key");
    let on_host = "/opt/t/host";
    copy_program(on_host)?;
    let filled = Instant::now();
    wait_for("the volume to be protected", || {
        let outcome = Actor::new(on_host).run([format!("read {host_key}")]).ok()?;
        (outcome.last().ok()?.errno == libc::EPERM).then_some(())
    })?;
    println!(
        "protected {} ms after it was filled",
        filled.elapsed().as_millis()
    );
    let pod = stage.pod("payments", "billing-1", &[])?;
    let mounts = [(path.as_str(), INSIDE), (CONTROL, "/control")];
    let app = start(&cri, &pod, "app", READS_ON, &mounts)?;
    let sidecar = start(&cri, &pod, "sidecar", READS_ON, &mounts)?;
    let stop = format!("{CONTROL}/stop");
    let host = Actor::new(on_host).start([format!("keep-reading {host_key} {stop}")])?;

    for _ in 0..ROTATIONS {
        volume.rotate()?;
    }
    fs::write(&stop, "")?;
    let counts = |log: &Path| {
        wait_for("a reader to end", || {
            let text = fs::read_to_string(log).ok()?;
            let mut steps = text.lines().filter_map(|line| {
                serde_json::from_str::<Value>(line.split_once(" stdout F ")?.1).ok()
            });
            let count = |step: &Value, name: &str| step["more"][name].as_u64();
            steps.find_map(|step| Some((count(&step, "read")?, count(&step, "refused")?)))
        })
    };
    let app = counts(&app.log)?;
    let sidecar = counts(&sidecar.log)?;
    let host = host.finish()?;
    let host = (host.last()?.count("read"), host.last()?.count("refused"));
    println!(
        "{ROTATIONS} rotations; read and refused: entitled {app:?}, sidecar {sidecar:?}, host {host:?}"
    );
    ensure!(app.0 > 0 && app.1 == 0, "the entitled one was refused");
    ensure!(sidecar.0 == 0 && sidecar.1 > 0, "the sidecar was let");
    ensure!(host.0 == 0 && host.1 > 0, "a process of the host was let");
    daemon.stop()
}

/// Who has a cgroup of its own may name it as it likes; what a container has below is the container.
fn no_identity_is_borrowed(stage: &mut Stage<'_>) -> Result<()> {
    let cri = stage.cri.clone();
    let bundle = Bundle::default()
        .file("stripe", &format!("{SECRET}/key"))
        .workload(
            "billing",
            "kubernetes: {namespace: payments, container: app}",
        )
        .workload("named", "container: {name: app}")
        .entitlement("E1", "billing", "stripe", "destinations: none")
        .entitlement("E2", "named", "stripe", "destinations: none");
    let daemon = stage.daemon(&bundle)?;
    let number = stage.pods.len();
    let pod = stage.pod("payments", "billing-1", &[])?;
    let app = reader(&cri, &pod, "app")?;
    expect(&app, "the entitled container", 0)?;
    let (uid, id) = (uid(number), &app.container.id);
    let slice = format!("kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_"));
    let manager = "user.slice/user-1000.slice/user@1000.service";
    let key = format!("{SECRET}/key");
    let read = |cgroup: &Cgroup| -> Result<i32> {
        let actor = Actor::new("/opt/t/host").within(cgroup.name());
        Ok(actor.run([format!("read {key}")])?.last()?.errno)
    };
    copy_program("/opt/t/host")?;
    for name in [
        format!("{manager}/{slice}/cri-containerd-{id}.scope"),
        format!("{manager}/user.slice/docker-{id}.scope"),
        format!("system.slice/own.service/kubepods/burstable/pod{uid}/{id}"),
        format!("system.slice/own.service/{id}"),
        // Another pod's, and none's.
        format!("kubepods/burstable/pod{}/{id}", self::uid(999)),
        format!("docker/{id}"),
    ] {
        let cgroup = Cgroup::new(&name)?;
        let errno = read(&cgroup)?;
        ensure!(errno == libc::EPERM, "in /{name} it got {errno}");
    }
    let within = Cgroup::new(&format!(
        "kubepods/burstable/pod{uid}/{id}/own/docker-{id}.scope"
    ))?;
    let errno = read(&within)?;
    ensure!(errno == 0, "below the container it got {errno}");
    drop(within);
    // In namespaces of their own all stay what they are.
    let own = Cgroup::new(&format!("system.slice/own.service/{id}"))?;
    let cgroup = format!("kubepods/burstable/pod{uid}/{id}");
    for (name, expected) in [(own.name(), libc::EPERM), (&cgroup, 0)] {
        let actor = Actor::new("/opt/t/host").within(name);
        let outcome = actor.run(["user-namespace", &format!("read {key}")])?;
        let errno = outcome.last()?.errno;
        ensure!(
            errno == expected && outcome.steps[0].errno == 0,
            "in a user namespace, in /{name}: {outcome:?}"
        );
    }
    drop(own);
    // Who is taken out again is nobody.
    let steps = [
        format!("join {cgroup}"),
        format!("read {key}"),
        "join .".to_owned(),
        format!("read {key}"),
    ];
    let outcome = Actor::new("/opt/t/host").run(steps)?;
    let errnos: Vec<i32> = outcome.steps.iter().map(|step| step.errno).collect();
    ensure!(
        errnos == [0, 0, 0, libc::EPERM],
        "migration came to {errnos:?}"
    );
    daemon.stop()
}

/// A container of which no runtime says what it is, is refused with a reason of its own, or let and recorded if the bundle
/// says so; and its start does not wait for it.
fn nobody_knows_it(stage: &mut Stage<'_>) -> Result<()> {
    let cri = stage.cri.clone();
    let nothing = ["--runtime", "/srv/t/no-such.sock"];
    let runc = stage.containerd.runc.display().to_string();
    let options = [
        &nothing[..],
        &["--runtime-program", &runc, "--hold", "60000"],
    ]
    .concat();
    let mut daemon = Daemon::start(&bundle(), &options)?;
    let pod = stage.pod("payments", "billing-1", &[("app", "billing")])?;
    let app = reader(&cri, &pod, "app")?;
    expect(&app, "a container nobody knows", libc::EPERM)?;
    let event = wait_for("the refusal's event", || {
        daemon
            .events
            .find(|event| event.is_denial() && event.credential() == "stripe")
    })?;
    ensure!(
        event.reason() == "unclassified-workload",
        "the event is {}",
        event.0
    );
    daemon.swap(&bundle().front("defaults: {unclassified: monitor}\n"))?;
    let again = cri.exec(&app.container, &READS[..3])?;
    ensure!(
        again.exit_code == 0,
        "it was not let, though only monitored"
    );
    wait_for("its record", || {
        daemon.events.find(|event| {
            event.reason() == "unclassified-workload" && event.0["mode"]["effective"] == "monitor"
        })
    })?;
    daemon.stop()
}

/// A container of an exempt namespace starts at once, and is known a moment later like the others.
fn nobody_waits_for_it(stage: &mut Stage<'_>) -> Result<()> {
    let cri = stage.cri.clone();
    let daemon = stage.daemon_with(&bundle(), &["--exempt-namespace", "kube-system,payments"])?;
    for (namespace, exempt) in [("payments", true), ("other", false)] {
        let pod = stage.pod(namespace, "billing-1", &[("app", "billing")])?;
        let app = reader(&cri, &pod, "app")?;
        app.errno()?;
        let event = wait_for("its start to be told", || {
            daemon.events.find(|event| {
                event.kind() == "container-classified"
                    && event.0["container"]["id"] == app.container.id
            })
        })?;
        ensure!(
            event.0["exempt"] == exempt && !(exempt && event.0["held"] == true),
            "of {namespace} the event is {}",
            event.0
        );
        if exempt {
            let known = cri.exec(&app.container, &["/actor", "read", "/secret/key"])?;
            // From outside, where the entitlement asks for somebody who is not.
            ensure!(known.exit_code == 1, "a command from outside was let");
        }
    }
    daemon.stop()
}

/// Pods start while there is no daemon, whatever became of the last one.
fn the_daemon_is_gone(stage: &mut Stage<'_>) -> Result<()> {
    let cri = stage.cri.clone();
    let daemon = stage.daemon(&bundle())?;
    let pod = stage.pod("payments", "billing-1", &[("app", "billing")])?;
    let app = reader(&cri, &pod, "app")?;
    expect(&app, "the entitled container", 0)?;
    daemon.kill()?;
    let pod = stage.pod("payments", "billing-2", &[("app", "billing")])?;
    let sidecar = reader(&cri, &pod, "sidecar")?;
    sidecar.errno()?;
    // The next one knows what came meanwhile.
    let daemon = stage.daemon(&bundle())?;
    let again = cri.exec(&sidecar.container, &READS[..3])?;
    ensure!(
        again.exit_code == 1,
        "a sidecar that came meanwhile was let"
    );
    let event = wait_for("the refusal's event", || {
        daemon
            .events
            .find(|event| event.is_denial() && event.0["instance"]["pod"]["name"] == "billing-2")
    })?;
    ensure!(
        event.reason() == "wrong-workload",
        "the event is {}",
        event.0
    );
    daemon.stop()
}

/// Containers of Docker and Podman, by name and labels: the entitled one may (of Podman's a moment after its start), and
/// another, one of its name without the label, and a command from outside may not. The next daemon finds it, and without
/// one all may.
fn an_engine_runs_it(stage: &mut Stage<'_>, kind: Kind) -> Result<()> {
    let engine = Engine::start(kind, stage.programs)?;
    let volume = format!("{SECRET}:{INSIDE}:ro");
    let (reads, steps_before) = match kind {
        Kind::Docker => (READS.to_vec(), 0),
        Kind::Podman => ([&["/actor", "sleep", "2000"], &READS[1..]].concat(), 1),
    };
    let errno_of = |name: &str, options: &[&str]| -> Result<i32> {
        let options = [&["--volume", &volume], options].concat();
        engine.run(name, &options, &reads)?;
        wait_for("a container to read", || {
            let said = engine.said(name).ok()?;
            first_of(said.lines().skip(steps_before))
        })
        .with_context(|| format!("{name} said {:?}", engine.said(name)))
    };
    let is = |who: &str, got: i32, expected: i32| {
        ensure!(got == expected, "{who} got {got}, expected {expected}");
        Ok(())
    };
    is("a container without the daemon", errno_of("other", &[])?, 0)?;
    engine.remove("other")?;

    let bundle = Bundle::default()
        .file("stripe", &format!("{SECRET}/key"))
        .workload(
            "billing",
            "container: {name: app, labels: {team: payments}}, interactive: false",
        )
        .entitlement("E1", "billing", "stripe", "destinations: none");
    let socket = engine.socket.display().to_string();
    let runtime = engine.runtime.display().to_string();
    let options = [
        "--runtime",
        &socket,
        "--runtime-program",
        &runtime,
        "--hold",
        "20000",
    ];
    let daemon = Daemon::start(&bundle, &options)?;
    is(
        "another container",
        errno_of("other", &["--label=team=payments"])?,
        libc::EPERM,
    )?;
    let event = wait_for("the refusal's event", || {
        daemon.events.find(|event| event.is_denial())
    })?;
    ensure!(
        event.reason() == "wrong-workload"
            && event.0["instance"]["container"]["name"] == "other"
            && event.0["instance"]["container"]["labels"]["team"] == "payments",
        "the event is {}",
        event.0
    );
    is("one without the label", errno_of("app", &[])?, libc::EPERM)?;
    engine.remove("app")?;
    is(
        "the entitled container",
        errno_of("app", &["--label=team=payments"])?,
        0,
    )?;
    let outside = engine.exec("app", &READS[..3])?;
    ensure!(
        !outside.status.success(),
        "a command from outside was let: {outside:?}"
    );
    daemon.stop()?;

    let daemon = Daemon::start(&bundle, &options)?;
    let explained = |name: &str| {
        let words = ["explain", "--container", name, "--credential", "stripe"];
        Ok::<_, anyhow::Error>(daemon::enforcer(&words)?.status.code())
    };
    ensure!(
        explained("app")? == Some(0),
        "the next daemon does not know it"
    );
    ensure!(
        explained("other")? == Some(3),
        "the next daemon takes another for it"
    );
    daemon.stop()?;
    let after = engine.exec("other", &READS[..3])?;
    ensure!(after.status.success(), "after the daemon: {after:?}");
    Ok(())
}
