//! What follows a denial besides the refusal: a workload killed or frozen as a whole, and no more often than allowed.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Scene, cases, standard::DESTINATIONS};
use crate::harness::{Actor, Allowed, Bundle, Cgroup, Event, PROGRAMS, Running, wait_for, write};

cases![
    workload_killed,
    workload_frozen,
    workload_killed_without_instance,
    limited_and_posted,
];

const KEY: &str = "read /srv/t/key";
const HOME: &str = "tcp 10.20.0.2:9000";
const ABROAD: &str = "tcp 10.20.0.66:9000";
const HARMLESS: &str = "read /etc/passwd";

fn bundle(action: &str) -> Bundle {
    Bundle::of_key(&format!("{DESTINATIONS}, action: {action}"))
}

fn within(program: &str, cgroup: &Cgroup) -> Actor {
    Actor::new(format!("{PROGRAMS}/{program}")).within(cgroup.name())
}

/// One that waits in the cgroup, and does something harmless afterwards.
fn bystander(cgroup: &Cgroup) -> Result<Running> {
    let mut waits = within("other", cgroup).start(["pause", HARMLESS])?;
    waits.until("paused")?;
    Ok(waits)
}

/// It was never touched.
fn goes_on(mut waits: Running) -> Result<()> {
    waits.go_on()?;
    let outcome = waits.finish()?;
    let last = outcome.last()?;
    ensure!(
        last.text == HARMLESS && last.errno == 0,
        "the twin elsewhere did not go on: {outcome:?}"
    );
    Ok(())
}

/// The denial of a process, as it was acted on.
fn acted(scene: &mut Scene, pid: u32, requested: &str, taken: &str) -> Result<Event> {
    let events = scene.daemon()?.events.clone();
    let is = |event: &Event| {
        event.pid() == u64::from(pid)
            && event.is_denial()
            && event.0["action"]["requested"] == requested
            && event.action_taken() == taken
    };
    wait_for("the event of the action", || events.find(is))
        .with_context(|| format!("the events are {:?}", events.of(pid)))
}

fn workload_killed(scene: &mut Scene) -> Result<()> {
    scene.on(&bundle("kill-workload"))?;
    let (doomed, spared) = (
        Cgroup::unit("doomed.service")?,
        Cgroup::unit("spared.service")?,
    );
    let (mut beside, elsewhere) = (bystander(&doomed)?, bystander(&spared)?);
    // The twin that stays within its destinations.
    scene.check(
        &within("entitled", &spared),
        &[(KEY, Allowed), (HOME, Allowed)],
    )?;
    let counts = scene.outside.counts()?;
    let offender = within("entitled", &doomed).start([KEY, ABROAD])?.finish()?;
    ensure!(offender.was_killed(), "the offender lives: {offender:?}");
    ensure!(scene.outside.counts()? == counts, "bytes of it arrived");
    acted(scene, offender.pid, "kill-workload", "kill-workload")?;
    wait_for("the rest of the unit to be killed", || {
        beside.was_killed().then_some(())
    })?;
    goes_on(elsewhere)
}

fn workload_frozen(scene: &mut Scene) -> Result<()> {
    scene.on(&bundle("freeze"))?;
    let (cold, warm) = (Cgroup::unit("cold.service")?, Cgroup::unit("warm.service")?);
    let (beside, elsewhere) = (bystander(&cold)?, bystander(&warm)?);
    let offender = within("entitled", &cold).start([KEY, ABROAD, "pause", HOME])?;
    let pid = offender.pid();
    acted(scene, pid, "freeze", "freeze")?;
    let frozen = || {
        let events = fs::read_to_string(cold.directory().join("cgroup.events")).ok()?;
        events.lines().any(|line| line == "frozen 1").then_some(())
    };
    wait_for("the unit to be frozen", frozen)?;
    goes_on(elsewhere)?;
    fs::write(cold.directory().join("cgroup.freeze"), "0")?;
    // It was refused, and lives.
    let mut offender = offender;
    offender.until("paused")?;
    offender.go_on()?;
    let outcome = offender.finish()?;
    let sent = outcome.steps.iter().filter(|it| it.text.starts_with("tcp"));
    let errnos: Vec<i32> = sent.map(|it| it.errno).collect();
    ensure!(
        errnos == [libc::EPERM, 0],
        "abroad and home came to {errnos:?}: {outcome:?}"
    );
    goes_on(beside)
}

fn workload_killed_without_instance(scene: &mut Scene) -> Result<()> {
    scene.on(&bundle("kill-workload"))?;
    let alone = Actor::new(format!("{PROGRAMS}/entitled"));
    let outcome = alone.start([KEY, ABROAD])?.finish()?;
    ensure!(outcome.was_killed(), "it lives: {outcome:?}");
    // Only the process was, and that is said.
    acted(scene, outcome.pid, "kill-workload", "kill")?;
    withheld(scene, "unit, session or container")
}

fn withheld(scene: &mut Scene, reason: &str) -> Result<()> {
    let events = scene.daemon()?.events.clone();
    let is = |event: &Event| {
        let why = event.0["reason"].as_str().unwrap_or_default();
        event.kind() == "action-withheld" && why.contains(reason)
    };
    wait_for("the record of what was not done", || events.find(is)).map(drop)
}

const LIMIT: usize = 2;

/// Offends until it is no longer killed for it. The minute may turn once meanwhile.
fn until_refused(mut offend: impl FnMut(usize) -> Result<bool>) -> Result<()> {
    for killed in 0..=2 * LIMIT {
        if !offend(killed)? {
            ensure!(killed >= LIMIT, "refused after {killed} kills, of {LIMIT}");
            return Ok(());
        }
    }
    bail!("more than {} were killed, of {LIMIT} a minute", 2 * LIMIT)
}

fn limited_and_posted(scene: &mut Scene) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/denied", listener.local_addr()?);
    let (sender, taken) = mpsc::channel();
    thread::spawn(move || receiver(listener, sender));
    write(
        "/tmp/webhook.key",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n",
    )?;
    let options = [
        "--actions-per-minute",
        &LIMIT.to_string(),
        "--webhook",
        &url,
    ];
    let options = [&options[..], &["--webhook-key", "/tmp/webhook.key"]].concat();
    scene.small(&bundle("kill"), &options)?;
    kills_limited(scene)?;
    scene.on(&bundle("kill-workload"))?;
    workload_kills_limited(scene)?;
    posted(&taken)?;
    scene.off()
}

fn kills_limited(scene: &mut Scene) -> Result<()> {
    let offender = Actor::new(format!("{PROGRAMS}/entitled"));
    until_refused(|_| {
        let outcome = offender.run([KEY, ABROAD])?;
        if outcome.was_killed() {
            acted(scene, outcome.pid, "kill", "kill")?;
            return Ok(true);
        }
        ensure!(
            outcome.last()?.errno == libc::EPERM,
            "it came to {outcome:?}"
        );
        acted(scene, outcome.pid, "kill", "block")?;
        Ok(false)
    })?;
    withheld(scene, "this minute")?;
    // Refused it still is, and nothing else.
    scene.check(&offender, &[(KEY, Allowed), (HOME, Allowed)])?;
    Ok(())
}

fn workload_kills_limited(scene: &mut Scene) -> Result<()> {
    until_refused(|number| {
        let unit = Cgroup::unit(&format!("limited-{number}.service"))?;
        let mut beside = bystander(&unit)?;
        let outcome = within("entitled", &unit).run([KEY, ABROAD])?;
        let pid = outcome.pid;
        let events = scene.daemon()?.events.clone();
        let denial = |event: &Event| event.pid() == u64::from(pid) && event.is_denial();
        let event = wait_for("the denial", || events.find(denial))?;
        if event.action_taken() == "kill-workload" {
            wait_for("the unit's end", || beside.was_killed().then_some(()))?;
            return Ok(true);
        }
        goes_on(beside)?;
        Ok(false)
    })?;
    withheld(scene, "this minute")
}

/// Takes requests, refuses the first, and hands on the others' heads and bodies.
fn receiver(listener: TcpListener, taken: mpsc::Sender<(String, String)>) {
    for (number, stream) in listener.incoming().flatten().enumerate() {
        let mut reader = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
                break;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            head.push_str(&lower);
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            continue;
        }
        let status = match number {
            0 => "503 Not Yet",
            _ => "204 No Content",
        };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let _ = reader.get_mut().write_all(answer.as_bytes());
        let body = String::from_utf8_lossy(&body).into_owned();
        if number > 0 && taken.send((head, body)).is_err() {
            return;
        }
    }
}

/// Every denial comes to the receiver, also the one that it did not take at first, and nothing else does.
fn posted(taken: &mpsc::Receiver<(String, String)>) -> Result<()> {
    let offender = Actor::new(format!("{PROGRAMS}/other"));
    let outcome = offender.run([KEY])?;
    ensure!(
        outcome.was_killed() || outcome.last()?.errno == libc::EPERM,
        "it came to {outcome:?}"
    );
    let mut bodies = Vec::new();
    wait_for("the last denial to be posted", || {
        let (head, body) = taken.try_recv().ok()?;
        let event: Value = serde_json::from_str(&body).ok()?;
        let signed = head.contains("webhook-signature: v1,") && head.contains("webhook-id:");
        let last = event["process"]["pid"] == outcome.pid;
        bodies.push((signed, event));
        last.then_some(())
    })
    .with_context(|| format!("posted were {bodies:?}"))?;
    ensure!(
        bodies
            .iter()
            .all(|(signed, event)| *signed && event["verdict"] == "deny"),
        "posted were {bodies:?}"
    );
    ensure!(
        bodies.len() > 2 * LIMIT && bodies[0].1["reason"] == "outside-destination",
        "the first is missing: {bodies:?}"
    );
    Ok(())
}
