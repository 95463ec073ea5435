//! How secrets travel in honest scripts and services: the entitled ends work untouched, the others are refused, and
//! the event of a refusal names the way.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, standard::DESTINATIONS};
use crate::{
    harness::{Actor, Bundle, Cgroup, PROGRAMS, check, daemon, wait_for},
    peer,
};

cases![
    shells_hand_secrets_on,
    a_session_goes_on_with_other_work,
    pipes_of_others_stay_what_they_are,
    a_named_pipe_forgets,
    a_sidecar_renders_a_configuration,
    a_log_pipeline,
];

const KEY: &str = "/srv/t/key";
const SHARED: &str = "/srv/t/shared";

/// A script in which something entitled prints a secret (`CAT`) and something ends with it (`END`), and through what
/// it went from hand to hand in between.
const SCRIPTS: &[(&str, &str, &[&str])] = &[
    ("substitution", "T=$(CAT); END", &["busybox"]),
    ("backquotes", "T=`CAT`; END", &["busybox"]),
    (
        "here-document",
        "{ read T; END; } <<EOF\n$(CAT)\nEOF",
        &["busybox"],
    ),
    (
        "exported variable",
        "export T=$(CAT); sh -c 'END'",
        &["busybox"],
    ),
    ("subshell", "( T=$(CAT); END )", &["busybox"]),
    ("background", "{ T=$(CAT); END; } & wait $!", &["busybox"]),
    (
        "standard input",
        "CAT | { T=$(cat); END; }",
        &["busybox"; 2],
    ),
    (
        "loop",
        "CAT | while read line; do END; break; done",
        &["busybox"],
    ),
    (
        "xargs",
        "CAT | xargs -n 1 sh -c 'END; exit 255' 2>/dev/null",
        &["busybox"],
    ),
    (
        "filters",
        "f() { CAT; }; f | sed s/a/b/ | tr b a | { read T; END; }",
        &["busybox"; 3],
    ),
    (
        "tee",
        "CAT | tee /dev/null | { read T; END; }",
        &["busybox"; 2],
    ),
    (
        "fifo",
        "mkfifo /srv/t/in; CAT > /srv/t/in & read T < /srv/t/in; rm /srv/t/in; END",
        &["busybox"],
    ),
    (
        "own descriptor",
        "exec 3<<EOF\n$(CAT)\nEOF\nread T <&3; END",
        &["busybox"],
    ),
    ("trap", "T=$(CAT); trap 'END' EXIT", &["busybox"]),
];

fn bundle(credential: &str) -> Bundle {
    Bundle::default()
        .credential(credential)
        .workload("app", &format!("executable: {{path: {PROGRAMS}/entitled}}"))
        .entitlement("E1", "app", "key", DESTINATIONS)
}

fn plain() -> Bundle {
    bundle(&format!("id: key, sources: [{{file: {KEY}}}]"))
}

fn following() -> Bundle {
    bundle(&format!(
        "id: key, follow: true, sources: [{{file: {KEY}}}]"
    ))
}

fn root(program: &str) -> Actor {
    Actor::new(format!("{PROGRAMS}/{program}"))
}

/// Runs a script in a shell outside any unit.
fn run(script: &str) -> Result<crate::harness::Outcome> {
    root("other").run([format!("shell {script}")])
}

pub(super) fn arrived(scene: &mut Scene, at: &str) -> Result<u64> {
    let counts = scene.outside.counts()?;
    Ok(counts
        .get(&format!("tcp {at}"))
        .copied()
        .unwrap_or_default())
}

fn shells_hand_secrets_on(scene: &mut Scene) -> Result<()> {
    scene.on(&plain())?;
    for (name, script, hands) in SCRIPTS {
        travels(scene, script, hands).with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

fn travels(scene: &mut Scene, script: &str, hands: &[&str]) -> Result<()> {
    let script = script.replace("CAT", &format!("{PROGRAMS}/entitled cat {KEY}"));
    let ending =
        |program: &str, to: &str| script.replace("END", &format!("{PROGRAMS}/{program} tcp {to}"));

    let before = arrived(scene, peer::ALLOWED)?;
    let outcome = run(&ending("entitled", peer::ALLOWED))?;
    let last = outcome.last()?;
    ensure!(
        last.errno == 0,
        "the entitled end failed: {}",
        check::summary(&outcome)
    );
    wait_for("the entitled end's bytes", || {
        (arrived(scene, peer::ALLOWED).ok()? > before).then_some(())
    })?;

    for (program, to) in [("entitled", peer::FORBIDDEN), ("other", peer::ALLOWED)] {
        let before = arrived(scene, to)?;
        let outcome = run(&ending(program, to))?;
        let last = outcome.last()?;
        ensure!(
            last.errno == libc::EPERM && arrived(scene, to)? == before,
            "{program} to {to}: {}",
            check::summary(&outcome)
        );
        way(scene, last.pid, hands)?;
    }
    Ok(())
}

/// The event of a process's refusal names the way: read by the entitled program, and then from hand to hand.
pub(super) fn way(scene: &mut Scene, pid: u32, hands: &[&str]) -> Result<()> {
    let events = scene.daemon()?.events.clone();
    let event = wait_for("the event", || {
        events.find(|event| event.is_denial() && event.pid() == u64::from(pid))
    })?;
    let hops = event.0["path"].as_array().cloned().unwrap_or_default();
    let text =
        |hop: &serde_json::Value, field: &str| hop[field].as_str().unwrap_or_default().to_owned();
    let (first, others) = hops.split_first().context("it names no way")?;
    let fits = text(first, "how") == "read"
        && text(first, "exe").ends_with("/entitled")
        && text(first, "file") == KEY
        && others.len() == hands.len()
        && others
            .iter()
            .zip(hands)
            .all(|(hop, hand)| text(hop, "how") == "pipe" && text(hop, "exe").contains(hand));
    ensure!(fits, "it came by {hops:?}, expected {hands:?}");
    Ok(())
}

/// What is done in a subshell stays there; what the shell itself was handed, it holds to its end.
fn a_session_goes_on_with_other_work(scene: &mut Scene) -> Result<()> {
    scene.on(&plain())?;
    let cat = format!("{PROGRAMS}/entitled cat {KEY}");
    let send = format!("{PROGRAMS}/other tcp {}", peer::FORBIDDEN);
    let goes_on = run(&format!(
        "( T=$({cat}); : ); {cat} > /dev/null; {cat} | grep -q x; {send}"
    ))?;
    ensure!(goes_on.last()?.errno == 0, "{}", check::summary(&goes_on));
    let holds = run(&format!("T=$({cat}); {send}"))?;
    ensure!(
        holds.last()?.errno == libc::EPERM,
        "{}",
        check::summary(&holds)
    );
    // The next shell of the same user has nothing to do with it.
    let next = run(&send)?;
    ensure!(next.last()?.errno == 0, "{}", check::summary(&next));
    Ok(())
}

/// As in the build of a package: many pipes, none of them with a secret.
fn pipes_of_others_stay_what_they_are(scene: &mut Scene) -> Result<()> {
    scene.on(&following())?;
    let holder = root("entitled").run([format!("read {KEY}")])?;
    ensure!(holder.last()?.errno == 0, "{}", check::summary(&holder));
    let labels = || -> Result<u64> {
        let tables = daemon::enforcer_json(&["status", "--tables", "-o", "json"])?;
        tables["labels"].as_u64().context("no count of labels")
    };
    let before = labels()?;
    let send = format!("{PROGRAMS}/other tcp {}", peer::FORBIDDEN);
    let outcome = run(&format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i | sed s/1/2/ | sort > /srv/t/built-$i; cat /srv/t/built-$i; done > /dev/null; rm /srv/t/built-*; {send}"
    ))?;
    ensure!(outcome.last()?.errno == 0, "{}", check::summary(&outcome));
    let after = labels()?;
    ensure!(after <= before, "{before} labels became {after}");
    Ok(())
}

/// What was in it goes when nobody has it open any more; it can be used for something else.
fn a_named_pipe_forgets(scene: &mut Scene) -> Result<()> {
    scene.on(&plain())?;
    let fifo = "/srv/t/named";
    let through = run(&format!(
        "mkfifo {fifo}; {PROGRAMS}/entitled cat {KEY} > {fifo} & cat < {fifo} > /dev/null; wait"
    ))?;
    let send = format!("{PROGRAMS}/other tcp {}", peer::FORBIDDEN);
    let later = run(&format!(
        "echo hello > {fifo} & read T < {fifo}; rm {fifo}; {send}"
    ))?;
    ensure!(
        later.last()?.errno == 0,
        "{}, and before that {}",
        check::summary(&later),
        check::summary(&through)
    );
    Ok(())
}

/// One unit writes what another reads: who is not entitled to the secret may not read what was made of it.
fn a_sidecar_renders_a_configuration(scene: &mut Scene) -> Result<()> {
    scene.on(&following())?;
    let (sidecar, app) = (
        Cgroup::unit("sidecar.service")?,
        Cgroup::unit("app.service")?,
    );
    fs::create_dir_all(SHARED)?;
    let config = format!("{SHARED}/app.conf");
    let rendered = root("entitled")
        .within(sidecar.name())
        .run([format!("read {KEY}"), format!("write-renamed {config}")])?;
    ensure!(rendered.last()?.errno == 0, "{}", check::summary(&rendered));
    let reads = |program: &str, steps: &[String]| root(program).within(app.name()).run(steps);
    let refused = reads("other", &[format!("read {config}")])?;
    ensure!(
        refused.last()?.errno == libc::EPERM,
        "{}",
        check::summary(&refused)
    );
    let home = format!("tcp {}", peer::ALLOWED);
    let works = reads("entitled", &[format!("read {config}"), home])?;
    ensure!(works.last()?.errno == 0, "{}", check::summary(&works));
    let away = format!("tcp {}", peer::FORBIDDEN);
    let refused = reads("entitled", &[format!("read {config}"), away])?;
    ensure!(
        refused.last()?.errno == libc::EPERM,
        "{}",
        check::summary(&refused)
    );
    fs::remove_dir_all(SHARED).context("cannot clean up")
}

/// A service that holds writes its log, and a shipper sends that elsewhere: refused, unless logs are declassified.
fn a_log_pipeline(scene: &mut Scene) -> Result<()> {
    let log = format!("{SHARED}/service.log");
    for (bundle, expected) in [
        (following(), libc::EPERM),
        (following().declassify(&format!("directory: {SHARED}")), 0),
    ] {
        fs::create_dir_all(SHARED)?;
        scene.on(&bundle)?;
        let (service, shipper) = (
            Cgroup::unit("service.service")?,
            Cgroup::unit("shipper.service")?,
        );
        let logged = root("entitled")
            .within(service.name())
            .run([format!("read {KEY}"), format!("write-file {log}")])?;
        ensure!(logged.last()?.errno == 0, "{}", check::summary(&logged));
        let shipped = root("other")
            .within(shipper.name())
            .run([format!("read {log}"), format!("tcp {}", peer::FORBIDDEN)])?;
        let read = shipped
            .steps
            .iter()
            .find(|step| step.text.starts_with("read "));
        let errno = read.context("it did not read")?.errno;
        ensure!(errno == expected, "{}", check::summary(&shipped));
        ensure!(
            expected != 0 || shipped.last()?.errno == 0,
            "{}",
            check::summary(&shipped)
        );
        fs::remove_dir_all(SHARED).context("cannot clean up")?;
    }
    Ok(())
}
