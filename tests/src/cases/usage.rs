//! What is used: told at once the first time, counted from then on, kept over restarts, and what follows from it.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Scene, cases, standard::DESTINATIONS};
use crate::harness::{
    Actor, Allowed, Bundle, Cgroup, Daemon, Event, Expect, PROGRAMS, Refused, daemon, wait_for,
    write,
};

cases![
    usage_counted,
    usage_outlives_daemons,
    usage_recommended_and_enforced,
    what_has_ended_is_counted_and_forgotten,
];

const KEY: &str = "read /srv/t/key";
const HOME: &str = "tcp 10.20.0.2:9000";
const ABROAD: &str = "tcp 10.20.0.66:9000";

fn within(program: &str, cgroup: &Cgroup) -> Actor {
    Actor::new(format!("{PROGRAMS}/{program}")).within(cgroup.name())
}

/// An entitlement that no other case uses.
fn bundle(entitlement: &str) -> Bundle {
    Bundle::default()
        .file("key", "/srv/t/key")
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement(entitlement, "app", "key", DESTINATIONS)
}

/// What `usage` says of an entitlement.
fn usage(of: &str) -> Result<Value> {
    let usage = daemon::enforcer_json(&["usage", "--entitlement", of, "-o", "json"])?;
    Ok(usage["entitlements"][0].clone())
}

fn count(of: &Value) -> u64 {
    of["used"]["count"].as_u64().unwrap_or(0)
}

fn usage_counted(scene: &mut Scene) -> Result<()> {
    const READS: usize = 20;
    const REACHES: usize = 5;
    const DENIALS: usize = 4;
    scene.on(&bundle("E-counted"))?;
    let unit = Cgroup::unit("counted.service")?;
    let mut steps: Vec<(&str, Expect)> = vec![(KEY, Allowed); READS];
    steps.extend([(HOME, Allowed); REACHES]);
    steps.extend([(ABROAD, Refused("outside-destination")); DENIALS]);
    let outcome = scene.check(&within("entitled", &unit), &steps)?;
    let used = usage("E-counted")?;
    ensure!(
        count(&used) == (READS + REACHES) as u64,
        "{READS} reads and {REACHES} reaches became {used}"
    );
    ensure!(
        used["denied"]["count"] == DENIALS,
        "{DENIALS} denials became {used}"
    );
    let by = &used["by"][0];
    ensure!(
        by["executable"] == format!("{PROGRAMS}/entitled")
            && by["workload"] == "app"
            && by["uid"] == 0
            && by["place"] == "counted.service",
        "it was {by}"
    );
    let to = used["destinations"].as_array().context("no destinations")?;
    let to = |address: &str, verdict: &str| {
        let mut all = to.iter();
        all.any(|it| it["address"] == address && it["port"] == 9000 && it["verdict"] == verdict)
    };
    ensure!(
        to("10.20.0.2", "allow") && to("10.20.0.66", "deny"),
        "the destinations are in {used}"
    );
    // Each kind was told once, and the rest in a summary; each denial by itself.
    let events = scene.daemon()?.events.clone();
    let told = |kind: &str, denial: bool| {
        let all = events.of(outcome.pid).into_iter();
        all.filter(|event| event.kind() == kind && event.is_denial() == denial)
            .count()
    };
    ensure!(
        (
            told("read", false),
            told("reach", false),
            told("reach", true)
        ) == (1, 1, DENIALS),
        "the events are {:?}",
        events.of(outcome.pid)
    );
    for (verb, rest) in [("read", READS - 1), ("reach", REACHES - 1)] {
        let is = |event: &Event| {
            event.kind() == verb
                && event.0["count"] == rest
                && event.0["entitlement"] == "E-counted"
                && event.0["process"]["exe"] == format!("{PROGRAMS}/entitled")
        };
        wait_for("the summary", || events.find(is))
            .with_context(|| format!("of {rest} times {verb}"))?;
    }
    // Another process of the unit is nothing new; one of another unit is.
    let again = scene.check(&within("entitled", &unit), &[(KEY, Allowed)])?;
    let other = Cgroup::unit("another.service")?;
    let fresh = scene.check(&within("entitled", &other), &[(KEY, Allowed)])?;
    wait_for("the first use elsewhere", || events.of(fresh.pid).pop())?;
    ensure!(
        events.of(again.pid).is_empty(),
        "told again: {:?}",
        events.of(again.pid)
    );
    Ok(())
}

fn usage_outlives_daemons(scene: &mut Scene) -> Result<()> {
    let bundle = bundle("E-kept");
    scene.on(&bundle)?;
    let unit = Cgroup::unit("kept.service")?;
    let reader = within("entitled", &unit);
    scene.check(&reader, &[(KEY, Allowed), (KEY, Allowed)])?;
    wait_for("two reads", || {
        (count(&usage("E-kept").ok()?) == 2).then_some(())
    })?;
    let coverage =
        || daemon::enforcer_json(&["usage", "-o", "json"]).map(|it| it["coverage"].clone());
    let before = coverage()?;
    // Killed, and what is used meanwhile is counted all the same.
    let daemon = scene.take().context("no daemon")?;
    daemon.kill()?;
    scene.check(&reader, &[(KEY, Allowed), (KEY, Allowed), (KEY, Allowed)])?;
    scene.start(|| Daemon::start(&bundle, &[]))?;
    wait_for("five reads", || {
        (count(&usage("E-kept").ok()?) == 5).then_some(())
    })
    .with_context(|| format!("after a kill: {:?}", usage("E-kept")))?;
    let missing = |coverage: &Value| {
        let gaps = coverage["gaps"].as_array().cloned().unwrap_or_default();
        let without = gaps.iter();
        without
            .filter(|gap| gap["reason"] == "no programs in the kernel")
            .count()
    };
    let whole = coverage()?;
    ensure!(
        missing(&whole) == missing(&before),
        "the programs were there: {whole}"
    );
    // Stopped and cleaned up: then nothing was seen, and that is said.
    scene.off()?;
    scene.check(&reader, &[(KEY, Allowed)])?;
    scene.on(&bundle)?;
    ensure!(
        count(&usage("E-kept")?) == 5,
        "after a clean-up: {}",
        usage("E-kept")?
    );
    let gaps = coverage()?;
    ensure!(
        missing(&gaps) > missing(&before),
        "there were no programs: {gaps}"
    );
    Ok(())
}

/// A program, its unit, its file and where it goes.
const SERVICES: [(&str, &str, &str, &str); 3] = [
    (
        "entitled",
        "orders.service",
        "/srv/t/key",
        "tcp 10.20.0.2:9000",
    ),
    (
        "other",
        "mail.service",
        "/srv/t/second-key",
        "udp 10.20.0.2:9000",
    ),
    (
        "personal",
        "web.service",
        "/srv/t/unit-key",
        "tcp [fd20::2]:9000",
    ),
];

fn usage_recommended_and_enforced(scene: &mut Scene) -> Result<()> {
    let mut monitored = Bundle::default().front("defaults: {mode: monitor}\n");
    for (_, unit, file, _) in SERVICES {
        monitored = monitored.file(unit, file);
    }
    scene.on(&monitored)?;
    let units = SERVICES.map(|(_, unit, ..)| Cgroup::unit(unit));
    let [first, second, third] = units;
    let units = [first?, second?, third?];
    let work = |scene: &mut Scene| -> Result<()> {
        for ((program, _, file, to), unit) in SERVICES.iter().zip(&units) {
            let read = format!("read {file}");
            scene.check(
                &within(program, unit),
                &[(&read, Allowed), (to, Allowed), (to, Allowed)],
            )?;
        }
        Ok(())
    };
    // As services do, they stay: of who has gone, only the name is known.
    let events = scene.daemon()?.events.clone();
    for ((program, _, file, to), unit) in SERVICES.iter().zip(&units) {
        let read = format!("read {file}");
        let mut service = within(program, unit).start([&read, *to, to, "pause"])?;
        service.until("paused")?;
        let pid = service.pid();
        let reaches = || {
            let all = events.of(pid).into_iter();
            all.filter(|event| event.kind() == "reach").count()
        };
        wait_for("what was seen", || (reaches() >= 2).then_some(()))?;
        service.go_on()?;
        let outcome = service.finish()?;
        ensure!(
            outcome.steps.iter().all(|step| step.errno == 0),
            "while only monitored: {outcome:?}"
        );
    }
    let output = daemon::enforcer(&["recommend", "--bundle", daemon::BUNDLE])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "recommend said {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // What a reviewer does: agree.
    let text = text.replace("mode: monitor", "mode: enforce");
    write("/tmp/recommended.yaml", &text)?;
    let checked = daemon::enforcer(&["check", "/tmp/recommended.yaml"])?;
    ensure!(
        checked.status.success(),
        "check said {} of\n{text}",
        String::from_utf8_lossy(&checked.stdout)
    );
    let log = fs::read_to_string(daemon::EVENT_LOG)?;
    let before = daemon::version_in_force()?;
    scene.daemon()?.give(&text)?;
    wait_for("what is recommended to be in force", || {
        (daemon::version_in_force().ok()? > before).then_some(())
    })
    .with_context(daemon::log_tail)?;
    work(scene).with_context(|| format!("under\n{text}"))?;
    for ((program, _, file, _), unit) in SERVICES.iter().zip(&units) {
        let read = format!("read {file}");
        scene.check(
            &within(program, unit),
            &[(&read, Allowed), (ABROAD, Refused("outside-destination"))],
        )?;
        // Nor by another program, nor elsewhere.
        scene.check(&within("hashed", unit), &[(&read, Refused(""))])?;
        scene.check(
            &Actor::new(format!("{PROGRAMS}/{program}")),
            &[(&read, Refused(""))],
        )?;
    }
    // And so says a replay of what was seen: all of it would be allowed.
    write("/tmp/monitored.jsonl", &log)?;
    let words = [
        "replay",
        "--events",
        "/tmp/monitored.jsonl",
        "--bundle",
        "/tmp/recommended.yaml",
        "-o",
        "json",
    ];
    let replayed = daemon::enforcer_json(&words)?;
    let different = replayed["different"].as_array().context("no differences")?;
    let of_ours = different.iter().filter(|it| it[0]["credential"] != "key");
    let verdicts: Vec<&Value> = of_ours.map(|it| &it[0]["after"]["verdict"]).collect();
    ensure!(!verdicts.is_empty(), "nothing became allowed: {replayed}");
    scene.off()
}

/// Jobs come and go, each a unit of its own: what they used is in the ledger, and nothing else is left of them.
fn what_has_ended_is_counted_and_forgotten(scene: &mut Scene) -> Result<()> {
    const JOBS: u64 = 8;
    /// Records of first uses may be on their way for ten.
    const SETTLED: Duration = Duration::from_secs(12);
    scene.on(&bundle("E-jobs"))?;
    let counted =
        || -> Result<(u64, u64)> { Ok((count(&usage("E-jobs")?), daemon::tables()?["usages"])) };
    let stays = Cgroup::unit("stays.service")?;
    scene.check(&within("entitled", &stays), &[(KEY, Allowed)])?;
    thread::sleep(SETTLED);
    let before = counted()?;
    for job in 0..JOBS {
        let unit = Cgroup::unit(&format!("job-{job}.service"))?;
        scene.check(
            &within("entitled", &unit),
            &[(KEY, Allowed), (KEY, Allowed)],
        )?;
    }
    // Of the first ones nothing may be left already.
    let kinds = daemon::tables()?["usages"];
    ensure!(
        kinds > before.1,
        "{JOBS} jobs made {kinds} kinds of use of {}",
        before.1
    );
    thread::sleep(SETTLED);
    let after = counted()?;
    ensure!(
        after == (before.0 + 2 * JOBS, before.1),
        "uses and kinds of use were {before:?}, and after {JOBS} jobs {after:?}"
    );
    // A unit that is still there is known as before.
    let events = scene.daemon()?.events.clone();
    let again = scene.check(&within("entitled", &stays), &[(KEY, Allowed)])?;
    ensure!(
        events.of(again.pid).is_empty(),
        "told again: {:?}",
        events.of(again.pid)
    );
    Ok(())
}
