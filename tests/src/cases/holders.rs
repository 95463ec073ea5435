//! Who holds: the reader, all that come from it, and the unit around it.

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other};
use crate::harness::{ALICE, Actor, Allowed, Cgroup, Dropped, Expect, Refused, wait_for};

cases![
    fork,
    double_fork,
    exec,
    exec_of_another_program,
    thread,
    thread_whose_leader_has_gone,
    exec_by_another_thread,
    vfork,
    posix_spawn,
    clone_vm,
    fork_of_fork_of_thread,
    ways_do_not_make_holders,
    holding_ends_with_the_last_process,
    unit_holds_together,
    unit_shell_with_nc,
    unit_from_a_child_group,
    holding_leaves_with_the_process,
    holding_ends_with_the_unit,
];

const READ: (&str, Expect) = ("read /srv/t/key", Allowed);
const FORBIDDEN: &str = "tcp 10.20.0.66:9000";
const PERMITTED: &str = "tcp 10.20.0.2:9000";
const OUTSIDE: Expect = Refused("outside-destination");

/// A holder goes on by these ways, and is held to the destinations all the same.
fn by(scene: &mut Scene, ways: &[&str]) -> Result<()> {
    scene.standard()?;
    let mut steps = vec![READ];
    steps.extend(ways.iter().map(|way| (*way, Allowed)));
    steps.extend([
        (FORBIDDEN, OUTSIDE),
        ("udp 10.20.0.66:9000", OUTSIDE),
        (PERMITTED, Allowed),
    ]);
    scene.check(&entitled(), &steps)?;
    Ok(())
}

fn fork(scene: &mut Scene) -> Result<()> {
    by(scene, &["fork"])
}

fn double_fork(scene: &mut Scene) -> Result<()> {
    by(scene, &["double-fork"])
}

fn exec(scene: &mut Scene) -> Result<()> {
    by(scene, &["exec"])
}

fn exec_of_another_program(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    // The other program holds, and is entitled to nothing.
    let steps = [
        READ,
        ("exec-as /opt/t/other", Allowed),
        (FORBIDDEN, Refused("")),
        (PERMITTED, Refused("")),
    ];
    scene.check(&entitled(), &steps)?;
    Ok(())
}

fn thread(scene: &mut Scene) -> Result<()> {
    by(scene, &["thread"])
}

fn thread_whose_leader_has_gone(scene: &mut Scene) -> Result<()> {
    by(scene, &["leaderless"])
}

fn exec_by_another_thread(scene: &mut Scene) -> Result<()> {
    by(scene, &["thread-exec"])
}

fn vfork(scene: &mut Scene) -> Result<()> {
    by(scene, &["vfork"])
}

fn posix_spawn(scene: &mut Scene) -> Result<()> {
    by(scene, &["spawn"])
}

fn clone_vm(scene: &mut Scene) -> Result<()> {
    by(scene, &["clone-vm"])
}

fn fork_of_fork_of_thread(scene: &mut Scene) -> Result<()> {
    by(
        scene,
        &["fork", "fork", "exec", "thread-exec", "double-fork"],
    )
}

fn ways_do_not_make_holders(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    for way in [
        "fork",
        "double-fork",
        "exec",
        "thread",
        "leaderless",
        "thread-exec",
        "vfork",
        "spawn",
        "clone-vm",
    ] {
        scene.check(&entitled(), &[(way, Allowed), (FORBIDDEN, Allowed)])?;
    }
    Ok(())
}

fn holding_ends_with_the_last_process(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.check(&entitled(), &[READ, (FORBIDDEN, OUTSIDE)])?;
    scene.check(&entitled(), &[(FORBIDDEN, Allowed)])?;
    Ok(())
}

/// Runs a script in a unit, and checks what its actors said.
fn script(scene: &mut Scene, unit: &Cgroup, text: &str, expected: &[(&str, Expect)]) -> Result<()> {
    let before = scene.outside.counts()?;
    let actor = other().within(unit.name());
    let outcome = actor.run([format!("shell {text}")])?;
    let mut all = vec![("shell", Allowed)];
    all.extend(expected);
    scene
        .compare(&before, &outcome, actor.steps_before(), &all)
        .with_context(|| text.to_owned())
}

fn unit_holds_together(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let (app, sibling) = (
        Cgroup::unit("app.service")?,
        Cgroup::unit("sibling.service")?,
    );
    script(
        scene,
        &app,
        "T=$(cat /srv/t/unit-key); /opt/t/other tcp 10.20.0.66:9000; /opt/t/other tcp 10.20.0.2:9000; test \"$T\"",
        &[(FORBIDDEN, OUTSIDE), (PERMITTED, Allowed)],
    )?;
    // Whoever comes into the unit later is part of it; a sibling is not.
    scene.check(
        &other().within(app.name()),
        &[(FORBIDDEN, OUTSIDE), (PERMITTED, Allowed)],
    )?;
    scene.check(&other().within(sibling.name()), &[(FORBIDDEN, Allowed)])?;
    scene.check(&other(), &[(FORBIDDEN, Allowed)])?;
    Ok(())
}

/// Sends by netcat from a unit's shell, and says how many bytes came to the address.
fn netcat(scene: &mut Scene, unit: &Cgroup, address: &str, reads: bool) -> Result<(u64, bool)> {
    let key = format!("tcp {address}:9000");
    let count = |scene: &mut Scene| -> Result<u64> {
        Ok(scene
            .outside
            .counts()?
            .get(&key)
            .copied()
            .unwrap_or_default())
    };
    let before = count(scene)?;
    let token = if reads {
        "$(cat /srv/t/unit-key)"
    } else {
        "nothing"
    };
    let text = format!("shell T={token}; echo \"$T\" | nc -w 2 {address} 9000 </dev/stdin");
    let outcome = Actor::new("/opt/t/other")
        .user(ALICE)
        .within(unit.name())
        .run([text])?;
    std::thread::sleep(crate::harness::A_MOMENT);
    Ok((count(scene)? - before, outcome.status.success()))
}

fn unit_shell_with_nc(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let app = Cgroup::unit("app.service")?;
    let (bytes, ok) = netcat(scene, &app, "10.20.0.66", false)?;
    ensure!(
        bytes > 0 && ok,
        "before the read {bytes} bytes arrived, and nc ended well: {ok}"
    );
    let (bytes, ok) = netcat(scene, &app, "10.20.0.66", true)?;
    ensure!(
        bytes == 0 && !ok,
        "{bytes} bytes arrived, and nc ended well: {ok}"
    );
    let (bytes, ok) = netcat(scene, &app, "10.20.0.2", true)?;
    ensure!(
        bytes > 0 && ok,
        "to the permitted one {bytes} bytes arrived, nc ended well: {ok}"
    );
    let events = scene.daemon()?.events.clone();
    wait_for("nc's event", || {
        events.find(|event| {
            event.is_denial() && event.0["process"]["comm"] == "nc" && event.kind() == "reach"
        })
    })?;
    Ok(())
}

fn unit_from_a_child_group(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let app = Cgroup::unit("app.service")?;
    let below = Cgroup::unit("app.service/workers")?;
    scene.check(
        &other().within(below.name()),
        &[("read /srv/t/unit-key", Allowed)],
    )?;
    // The unit is the instance, not the group in it.
    scene.check(&other().within(app.name()), &[(FORBIDDEN, OUTSIDE)])?;
    Ok(())
}

fn holding_leaves_with_the_process(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let (app, sibling) = (
        Cgroup::unit("app.service")?,
        Cgroup::unit("sibling.service")?,
    );
    let join_app = format!("join {}", app.name());
    let join_sibling = format!("join {}", sibling.name());
    let steps = [
        (join_app.as_str(), Allowed),
        ("read /srv/t/unit-key", Allowed),
        (join_sibling.as_str(), Allowed),
        (FORBIDDEN, Refused("")),
    ];
    scene.check(&Actor::new("/opt/t/other"), &steps)?;
    // Connected outside, used in a unit that holds.
    drop(app);
    let app = Cgroup::unit("app.service")?;
    let steps = [
        ("dial 10.20.0.66:9000", Allowed),
        (join_app.as_str(), Allowed),
        ("read /srv/t/unit-key", Allowed),
        ("send", Dropped),
    ];
    scene.check(&Actor::new("/opt/t/other"), &steps)?;
    drop(app);
    Ok(())
}

fn holding_ends_with_the_unit(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let app = Cgroup::unit("app.service")?;
    let steps = [("read /srv/t/unit-key", Allowed), (FORBIDDEN, OUTSIDE)];
    scene.check(&other().within(app.name()), &steps)?;
    scene.check(&other().within(app.name()), &[(FORBIDDEN, OUTSIDE)])?;
    drop(app);
    let app = Cgroup::unit("app.service")?;
    scene.check(&other().within(app.name()), &[(FORBIDDEN, Allowed)])?;
    Ok(())
}
