//! Who a process in a pod is: which container, which program, and nobody else by a name.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::stage::{INSIDE, READS, SECRET, Stage, bundle, expect, reader, refusal, start, uid};
use crate::harness::{Actor, Bundle, Cgroup, copy_program, daemon};

/// The entitled container may, and its sidecar, the same image in another namespace or without the label, and a command
/// that somebody runs in it from outside, may not. With the daemon off all may.
pub(super) fn who_is_in_a_pod(stage: &mut Stage<'_>) -> Result<()> {
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
pub(super) fn which_program_in_it(stage: &mut Stage<'_>) -> Result<()> {
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

/// Who has a cgroup of its own may name it as it likes; what a container has below is the container.
pub(super) fn no_identity_is_borrowed(stage: &mut Stage<'_>) -> Result<()> {
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
        format!("kubepods/burstable/pod{}/{id}", super::stage::uid(999)),
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
