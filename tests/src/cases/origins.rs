//! Where processes come from: trees that have a root, and people among services.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other, standard::DESTINATIONS};
use crate::harness::{
    Actor, Allowed, Bundle, Cgroup, Daemon, Expect, Refused, Running, daemon, wait_for,
};

cases![
    a_tree_has_its_root,
    trees_in_trees,
    a_tree_that_is_traced,
    a_tree_older_than_its_bundle,
    a_number_is_no_descent,
    people_with_a_terminal,
    people_in_a_session,
    put_into_what_runs,
    told_where_they_come_from,
    origins_outlive_daemons,
];

/// However long a daemon takes to start.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
const OTHER: &str = "exec-as /opt/t/other";
const ROOT: &str = "exec-as /opt/t/entitled";
const KEY: &str = "read /srv/t/key";
const PERSONAL: &str = "read /srv/t/personal-key";
/// The reason given to those who are not meant.
const STRANGER: Expect = Refused("wrong-workload|unclassified-workload");

/// What `/opt/t/entitled` is the root of may read the key, and what `/opt/t/personal` is within that, the personal one.
fn trees() -> Bundle {
    Bundle::default()
        .file("key", "/srv/t/key")
        .file("personal-key", "/srv/t/personal-key")
        .workload("agent", "ancestor: {path: /opt/t/entitled}")
        .workload(
            "tool",
            "ancestor: {path: /opt/t/entitled}, executable: {path: /opt/t/personal}",
        )
        .entitlement("E-agent", "agent", "key", DESTINATIONS)
        .entitlement("E-tool", "tool", "personal-key", DESTINATIONS)
}

/// The service itself may read one key, and people in it the other.
fn people() -> Bundle {
    Bundle::default()
        .file("key", "/srv/t/key")
        .file("personal-key", "/srv/t/personal-key")
        .workload("service", "systemdUnit: app.service, interactive: false")
        .workload("person", "systemdUnit: app.service, interactive: true")
        .workload(
            "programs",
            "executable: {path: /opt/t/other}, interactive: false",
        )
        .workload("session", "cgroup: /user.slice, interactive: true")
        .entitlement("E-service", "service", "key", DESTINATIONS)
        .entitlement("E-person", "person", "personal-key", DESTINATIONS)
        .entitlement("E-programs", "programs", "key", DESTINATIONS)
        .entitlement("E-session", "session", "personal-key", DESTINATIONS)
}

/// Whom the bundle entitles by the unit alone.
fn stranger() -> Actor {
    Actor::new("/opt/t/replaced")
}

fn a_tree_has_its_root(scene: &mut Scene) -> Result<()> {
    scene.on(&trees())?;
    scene.check(&entitled(), &[(KEY, Allowed)])?;
    scene.check(&other(), &[(KEY, STRANGER)])?;
    for ways in [
        &[OTHER][..],
        &["fork", OTHER],
        &["fork", OTHER, "double-fork"],
        &["vfork", OTHER, "thread"],
        &["fork", OTHER, "exec", "thread-exec"],
    ] {
        let with = |key| {
            let ways = ways.iter().map(|way| (*way, Allowed));
            ways.chain([(KEY, key)]).collect::<Vec<_>>()
        };
        scene.check(&entitled(), &with(Allowed))?;
        scene.check(&other(), &with(STRANGER))?;
    }
    // It begins with the program, and not with its parent.
    let steps = [("fork", Allowed), (ROOT, Allowed), (OTHER, Allowed)];
    let steps = [&steps[..], &[(KEY, Allowed)]].concat();
    scene.check(&other(), &steps)?;
    // A file of that content is not the program.
    let copy = [("exec-memory", Allowed), (OTHER, Allowed), (KEY, Allowed)];
    scene.check(&entitled(), &copy)?;
    let copy = [("exec-memory", Allowed), (OTHER, Allowed), (KEY, STRANGER)];
    scene.check(&other(), &copy).map(drop)
}

fn trees_in_trees(scene: &mut Scene) -> Result<()> {
    scene.on(&trees())?;
    let tool = ("exec-as /opt/t/personal", Allowed);
    scene.check(&entitled(), &[tool, (PERSONAL, Allowed), (KEY, Allowed)])?;
    scene.check(
        &entitled(),
        &[tool, (OTHER, Allowed), (PERSONAL, Refused(""))],
    )?;
    scene
        .check(&Actor::new("/opt/t/personal"), &[(PERSONAL, STRANGER)])
        .map(drop)
}

fn a_tree_that_is_traced(scene: &mut Scene) -> Result<()> {
    scene.on(&trees())?;
    let traced = "exec-traced /opt/t/entitled";
    scene.check(&other(), &[(traced, Allowed), (KEY, STRANGER)])?;
    // Its child is not traced.
    let child = [(traced, Allowed), ("fork", Allowed), (KEY, STRANGER)];
    scene.check(&other(), &child)?;
    let child = [
        (traced, Allowed),
        ("fork", Allowed),
        (OTHER, Allowed),
        (KEY, STRANGER),
    ];
    scene.check(&other(), &child)?;
    // Somebody of the tree traces somebody outside, which makes that no part of it.
    let outside = [
        (OTHER, Allowed),
        ("exec-traced /opt/t/other", Allowed),
        (KEY, STRANGER),
    ];
    scene.check(&entitled(), &outside).map(drop)
}

/// Two processes of before, of which one descends from the root that a later bundle names.
fn a_tree_older_than_its_bundle(scene: &mut Scene) -> Result<()> {
    scene.on(&Bundle::of_key(DESTINATIONS))?;
    let steps = ["fork", OTHER, "pause", KEY];
    let mut waiting = Vec::new();
    for root in [entitled(), other()] {
        let mut running = root.start(steps)?;
        running.until("paused")?;
        waiting.push(running);
    }
    scene.on(&trees())?;
    for (mut running, expected) in waiting.into_iter().zip([0, libc::EPERM]) {
        running.go_on()?;
        let outcome = running.finish()?;
        ensure!(outcome.last()?.errno == expected, "{outcome:?}");
    }
    // A bundle without them, and one with them again.
    scene.on(&people())?;
    scene.on(&trees())?;
    scene.check(&entitled(), &[(OTHER, Allowed), (KEY, Allowed)])?;
    scene.check(&other(), &[(KEY, STRANGER)]).map(drop)
}

fn a_number_is_no_descent(scene: &mut Scene) -> Result<()> {
    scene.on(&trees())?;
    let outcome = scene.check(&entitled(), &[(OTHER, Allowed), (KEY, Allowed)])?;
    let number = format!("with-number {}", outcome.pid);
    let steps = [(number.as_str(), Allowed), (KEY, STRANGER)];
    let root = Actor::new("/opt/t/other");
    let second = scene.check(&root, &steps)?;
    ensure!(second.last()?.pid == outcome.pid, "{second:?}");
    let tree = [(OTHER, Allowed), (number.as_str(), Allowed), (KEY, Allowed)];
    let root = Actor::new("/opt/t/entitled");
    scene.check(&root, &tree).map(drop)
}

fn people_with_a_terminal(scene: &mut Scene) -> Result<()> {
    scene.on(&people())?;
    let app = Cgroup::unit("app.service")?;
    let within = stranger().within(app.name());
    scene.check(&within, &[(KEY, Allowed), (PERSONAL, STRANGER)])?;
    let terminal = ("terminal", Allowed);
    scene.check(
        &stranger().within(app.name()),
        &[terminal, (KEY, STRANGER), (PERSONAL, Allowed)],
    )?;
    // A program, wherever it runs.
    scene.check(&other(), &[(KEY, Allowed)])?;
    scene.check(&other(), &[terminal, (KEY, STRANGER)])?;
    // A child may leave the terminal, and stays what it is.
    let left = [terminal, ("fork", Allowed), ("leave-terminal", Allowed)];
    scene.check(&other(), &[&left[..], &[(KEY, STRANGER)]].concat())?;
    let exec = ("exec", Allowed);
    scene.check(&other(), &[&left[..], &[exec, (KEY, STRANGER)]].concat())?;
    let twice = ("double-fork", Allowed);
    scene
        .check(&other(), &[&left[..], &[twice, (KEY, STRANGER)]].concat())
        .map(drop)
}

fn people_in_a_session(scene: &mut Scene) -> Result<()> {
    scene.on(&people())?;
    let session = Cgroup::new("user.slice/user-1000.slice/session-3.scope")?;
    let elsewhere = Cgroup::new("user.slice/user-1000.slice/run-3.scope")?;
    let disguised = Cgroup::new("system.slice/mine.service/session-3.scope")?;
    let actor = stranger();
    scene.check(
        &actor.clone().within(session.name()),
        &[(PERSONAL, Allowed)],
    )?;
    scene.check(&actor.within(elsewhere.name()), &[(PERSONAL, STRANGER)])?;
    scene.check(&other().within(session.name()), &[(KEY, STRANGER)])?;
    scene.check(&other().within(disguised.name()), &[(KEY, Allowed)])?;
    // Who leaves it goes on being a person.
    let left = format!("join {}", elsewhere.name());
    let steps = [(left.as_str(), Allowed), (KEY, STRANGER)];
    scene
        .check(&Actor::new("/opt/t/other").within(session.name()), &steps)
        .map(drop)
}

/// A service that runs: it has started a program where it is.
fn running(app: &Cgroup, rest: &[&str]) -> Result<Running> {
    let steps = [&["exec", "pause"], rest].concat();
    let mut running = stranger().within(app.name()).start(steps)?;
    running.until("paused")?;
    Ok(running)
}

/// Puts a process into a cgroup, as a container's runtime does.
fn put(pid: u32, into: &Cgroup) -> Result<()> {
    let file = into.directory().join("cgroup.procs");
    fs::write(&file, pid.to_string()).with_context(|| format!("cannot write {}", file.display()))
}

fn put_into_what_runs(scene: &mut Scene) -> Result<()> {
    scene.on(&people())?;
    let app = Cgroup::unit("app.service")?;
    let workers = Cgroup::unit("app.service/workers")?;
    let inside = format!("join {}", workers.name());
    let service = running(&app, &[&inside, KEY])?;
    for ways in [
        &[][..],
        &["fork"],
        &["exec", "double-fork"],
        &["leave-terminal", "fork", &inside],
    ] {
        let before = scene.outside.counts()?;
        let steps = [&["pause"], ways, &[KEY, PERSONAL]].concat();
        let mut came = stranger().start(steps)?;
        came.until("paused")?;
        put(came.pid(), &app)?;
        came.go_on()?;
        let ways = ways.iter().map(|way| (*way, Allowed));
        let last = [(KEY, STRANGER), (PERSONAL, Allowed)];
        let expected: Vec<_> = ways.chain(last).collect();
        scene.compare(&before, &came.finish()?, 1, &expected)?;
    }
    let born = format!("into-cgroup {}", app.name());
    match scene.check(
        &stranger(),
        &[(&born, Allowed), (KEY, STRANGER), (PERSONAL, Allowed)],
    ) {
        // Before 5.7 there is no such call, and in some machines it is refused.
        Err(error) if format!("{error:#}").contains("was not come to") => println!("  {error:#}"),
        other => drop(other?),
    }
    if daemon::status()?["tier"] != "fanotify" {
        // Where the programs see it before, who moves itself comes from outside as well.
        let moved = stranger().within(app.name());
        scene.check(&moved, &[(KEY, STRANGER), (PERSONAL, Allowed)])?;
    }
    // The service itself moves within itself.
    let before = scene.outside.counts()?;
    let mut service = service;
    service.go_on()?;
    // After `join`, `exec` and `pause`.
    let expected = [(inside.as_str(), Allowed), (KEY, Allowed)];
    scene.compare(&before, &service.finish()?, 3, &expected)
}

fn told_where_they_come_from(scene: &mut Scene) -> Result<()> {
    scene.on(&trees())?;
    let explain = |who: &[&str], verdict: &str| {
        let ask = [&["explain", "-o", "json", "--credential", "key"], who].concat();
        let said = daemon::enforcer_json(&ask)?;
        ensure!(
            said["verdict"] == verdict,
            "`{}` said {said}",
            ask.join(" ")
        );
        anyhow::Ok(())
    };
    explain(
        &[
            "--executable",
            "/opt/t/other",
            "--ancestor",
            "/opt/t/entitled",
        ],
        "allow",
    )?;
    explain(&["--executable", "/opt/t/other"], "deny")?;
    for (root, verdict) in [(entitled(), "allow"), (other(), "deny")] {
        let mut running = root.start(["exec-as", "/opt/t/other", "pause"])?;
        running.until("paused")?;
        explain(&["--pid", &running.pid().to_string()], verdict)?;
    }
    scene.on(&people())?;
    let unit = ["--cgroup", "/system.slice/app.service"];
    explain(&unit, "allow")?;
    explain(&[&unit[..], &["--interactive"]].concat(), "deny")
}

fn origins_outlive_daemons(scene: &mut Scene) -> Result<()> {
    for options in [&[][..], &["--holders", "4096"]] {
        scene.off()?;
        scene.on(&trees())?;
        // What its root was, nobody can see any more.
        let mut waiting = Vec::new();
        for root in [entitled(), other()] {
            let mut running =
                root.start(["exec-as", "/opt/t/other", "double-fork", "pause", KEY])?;
            running.patiently(PATIENCE);
            running.until("paused")?;
            waiting.push(running);
        }
        scene.daemon.take().context("no daemon")?.kill()?;
        scene.daemon = Some(Daemon::start(&trees(), options)?);
        for (mut running, expected) in waiting.into_iter().zip([0, libc::EPERM]) {
            running.go_on()?;
            let outcome = running.finish()?;
            ensure!(
                outcome.last()?.errno == expected,
                "with {options:?}: {outcome:?}"
            );
        }
    }
    scene.off()?;
    wait_for("the end of what it left", || {
        (!Path::new("/run/enforcer/enforcer.sock").exists()).then_some(())
    })
}
