//! More than there is room for: nothing is permitted for want of it, what was lost is told, and the others go on.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Scene, cases, entitled, other, standard};
use crate::harness::{Actor, Allowed, Cgroup, PROGRAMS, Refused, Running, check, daemon, wait_for};

cases![
    table_of_holders_full,
    ring_full,
    flood_of_refused_opens,
    storms_of_forking_holders,
];

const KEY: &str = "read /srv/t/key";
const ALLOWED: &str = "tcp 10.20.0.2:9000";
const ABROAD: &str = "tcp 10.20.0.66:9000";

fn table_of_holders_full(scene: &mut Scene) -> Result<()> {
    const ROOM: usize = 16;
    scene.small(&standard::bundle()?, &["--holders", &ROOM.to_string()])?;
    let unit = Cgroup::unit("late.service")?;
    // As root, who may move to another cgroup.
    let mover = Actor::new(format!("{PROGRAMS}/entitled"));
    let mut mover = paused(&mover, &[&format!("join {}", unit.name()), "pause"])?;
    let mut parent = paused(&entitled(), &["fork", ABROAD, ALLOWED])?;
    let mut holders = Vec::new();
    loop {
        let mut holder = entitled().start([KEY, "pause", ALLOWED])?;
        holder.until("paused")?;
        let read = holder.said().last().context("it said nothing")?;
        if read.errno != 0 {
            ensure!(
                read.errno == libc::EPERM,
                "the read without room came to {read:?}"
            );
            break;
        }
        holders.push(holder);
        let count = holders.len();
        ensure!(count <= ROOM, "{count} could read with room for {ROOM}");
    }
    let mut first = holders.pop().context("nobody could read")?;
    first.go_on()?;
    let first = first.finish()?;
    ensure!(
        first.last()?.errno == 0,
        "a holder with room was not allowed: {}",
        check::summary(&first)
    );
    // Its end made room for one.
    holders.push(paused(&entitled(), &[])?);

    // A unit into which a holder is moved, and a child that cannot be recorded.
    mover.go_on()?;
    mover.until("paused")?;
    let inside = Actor::new(format!("{PROGRAMS}/other")).within(unit.name());
    scene.check(&inside, &[(ABROAD, Refused("too-many-held"))])?;
    let counts = scene.outside.counts()?;
    parent.go_on()?;
    let refused = Refused("too-many-held");
    let expected = [
        (KEY, Allowed),
        ("pause", Allowed),
        ("fork", Allowed),
        (ABROAD, refused),
        (ALLOWED, refused),
    ];
    scene.compare(&counts, &parent.finish()?, 1, &expected)?;
    wait_for("the loss to be told", || {
        let status = daemon::status().ok()?;
        (status["unaccounted"] == serde_json::json!({"processes": true, "instances": true}))
            .then_some(())
    })?;
    let events = scene.daemon()?.events.clone();
    wait_for("an event of the full table", || {
        events.find(|event| event.kind() == "table-full")
    })?;

    // The others go on, in units of their own.
    let apart = Cgroup::unit("apart.service")?;
    let inside = Actor::new(format!("{PROGRAMS}/other")).within(apart.name());
    scene.check(&inside, &[(ABROAD, Allowed)])?;
    drop(holders);
    scene.off()
}

/// A holder that waits before it does these steps.
fn paused(actor: &Actor, then: &[&str]) -> Result<Running> {
    let mut holder = actor.start([&[KEY, "pause"], then].concat())?;
    holder.until("paused")?;
    let read = holder.said().last().context("it said nothing")?;
    ensure!(read.errno == 0, "a holder could not read: {read:?}");
    Ok(holder)
}

fn ring_full(scene: &mut Scene) -> Result<()> {
    const READS: usize = 40;
    // Room for ten records or so.
    let daemon = scene.small(&standard::bundle()?, &["--ring-bytes", "4096"])?;
    daemon.signal(Signal::SIGSTOP)?;
    for _ in 0..READS {
        let outcome = other().run([KEY])?;
        let step = outcome.last()?;
        ensure!(
            step.errno == libc::EPERM && step.read == 0,
            "with the daemon stopped, {}",
            check::summary(&outcome)
        );
    }
    let daemon = scene.daemon()?;
    daemon.signal(Signal::SIGCONT)?;
    let events = daemon.events.clone();
    let lost = wait_for("the loss to be told", || {
        events.find(|event| event.kind() == "lost" && event.0["stage"] == "denials")
    })?;
    let lost = lost.0["count"].as_u64().unwrap_or_default() as usize;
    ensure!(
        lost > 0 && lost < READS,
        "{lost} of {READS} denials were lost"
    );
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(&entitled(), &[(KEY, Allowed), (ALLOWED, Allowed)])?;
    scene.off()
}

fn flood_of_refused_opens(scene: &mut Scene) -> Result<()> {
    /// As many as a guest has processors.
    const FLOODS: usize = 2;
    scene.standard()?;
    let start = Instant::now();
    let mut floods = Vec::new();
    for _ in 0..FLOODS {
        let mut flood = other().start(["hammer /srv/t/key 0"])?;
        flood.until("hammering")?;
        floods.push(flood);
    }
    let mut twin = entitled().start(["hammer /srv/t/key 1000"])?;
    twin.until("hammering")?;
    // Somebody else's denials are told all the same, and the node and the daemon answer.
    for _ in 0..5 {
        scene.check(
            &other(),
            &[(KEY, Refused("")), ("read /etc/passwd", Allowed)],
        )?;
        scene.check(&entitled(), &[(KEY, Allowed), (ALLOWED, Allowed)])?;
        let status = daemon::status()?;
        ensure!(
            status["state"] == "enforcing/lsm",
            "the state is {}",
            status["state"]
        );
    }
    let events = scene.daemon()?.events.clone();
    let lost = wait_for(
        "the denials that were not told one by one to be counted",
        || events.find(|event| event.kind() == "lost" && event.0["stage"] == "denials"),
    )?;
    let mut refused = 0;
    for flood in floods {
        refused += check::readers_agree(&flood.finish()?, false)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let allowed = check::readers_agree(&twin.finish()?, true)?;
    println!(
        "  {refused} refused opens in {seconds:.1} s beside {allowed} allowed ones; {} denials counted at first",
        lost.0["count"]
    );
    Ok(())
}

fn storms_of_forking_holders(scene: &mut Scene) -> Result<()> {
    /// Of 511 processes each.
    const STORMS: usize = 3;
    scene.standard()?;
    let before = scene.outside.counts()?;
    let mut storms = Vec::new();
    for _ in 0..STORMS {
        storms.push(entitled().start([KEY, "bomb 10.20.0.66:9000 8"])?);
    }
    // Whoever holds nothing goes on.
    let bystander = other().run(["read /etc/passwd", "fork", "exec", "read /etc/passwd"])?;
    ensure!(
        bystander.status.success(),
        "a bystander came to {}",
        check::summary(&bystander)
    );
    for storm in storms {
        let outcome = storm.finish()?;
        ensure!(
            outcome.last()?.errno == libc::EPERM,
            "a storm came to {}",
            check::summary(&outcome)
        );
    }
    let after = scene.outside.counts()?;
    ensure!(
        after == before,
        "from the storms came {before:?} -> {after:?}"
    );
    let status: Value = daemon::status()?;
    ensure!(
        status["unaccounted"] == serde_json::json!({"processes": false, "instances": false}),
        "status says {status}"
    );
    scene.check(&entitled(), &[(KEY, Allowed), (ALLOWED, Allowed)])?;
    Ok(())
}
