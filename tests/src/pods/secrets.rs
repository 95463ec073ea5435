//! Secrets in containers: left in an image, and rotated as kubelet does it.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    kubelet::{self, Kubelet},
    stage::{INSIDE, Stage, expect, refusal, start, uid},
};
use crate::harness::{Actor, Bundle, copy_program, daemon, wait_for, write};

/// How often a secret is rotated.
const ROTATIONS: u64 = 1_000;

/// What the catalogue knows and an image brings is protected in each of its containers, those that run already too.
pub(super) fn left_in_an_image(stage: &mut Stage<'_>) -> Result<()> {
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

/// A secret is rotated as kubelet does it, under the eyes of an entitled container, of another and of a process of the host,
/// who all read it all the time: the one is never refused, and the others never let.
pub(super) fn secrets_that_are_rotated(stage: &mut Stage<'_>) -> Result<()> {
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
