//! Containers of Docker and Podman, by name and labels.

use anyhow::{Context as _, Result, ensure};

use super::{
    engines::{Engine, Kind},
    stage::{INSIDE, READS, SECRET, Stage, first_of},
};
use crate::harness::{Bundle, Daemon, daemon, wait_for};

/// Containers of Docker and Podman, by name and labels: the entitled one may (of Podman's a moment after its start), and
/// another, one of its name without the label, and a command from outside may not. The next daemon finds it, and without
/// one all may.
pub(super) fn an_engine_runs_it(stage: &mut Stage<'_>, kind: Kind) -> Result<()> {
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
