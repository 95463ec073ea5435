//! The start of a container: nobody reads before it is known who it is, and no start waits for ever.

use std::thread;

use anyhow::{Result, bail, ensure};

use super::{
    cri::Pod,
    stage::{READS, Reader, Stage, bundle, expect, reader, run_pod},
};
use crate::harness::{Daemon, spread, wait_for};

/// Pods that all start at once, half of them entitled, each reading as its first act: none is wrongly refused, none wrongly
/// allowed.
pub(super) fn many_at_once(stage: &mut Stage<'_>) -> Result<()> {
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

/// A container of which no runtime says what it is, is refused with a reason of its own, or let and recorded if the bundle
/// says so; and its start does not wait for it.
pub(super) fn nobody_knows_it(stage: &mut Stage<'_>) -> Result<()> {
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
pub(super) fn nobody_waits_for_it(stage: &mut Stage<'_>) -> Result<()> {
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
pub(super) fn the_daemon_is_gone(stage: &mut Stage<'_>) -> Result<()> {
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
