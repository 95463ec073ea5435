//! Reading: refused to some, allowed to others, and as before once nobody watches.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Scene, cases, entitled, other};
use crate::harness::{ALICE, Allowed, Event, Outcome, Refused, daemon, wait_for};

cases![
    attach_and_detach,
    read_allowed_twin,
    write_is_no_read,
    event_of_a_denied_read,
    event_of_a_denied_reach,
    event_of_an_allowed_read,
    status_names_the_bundle,
    explain_agrees,
];

const KEY: &str = "read /srv/t/key";

fn attach_and_detach(scene: &mut Scene) -> Result<()> {
    scene.off()?;
    let holder_abroad = [(KEY, Allowed), ("tcp 10.20.0.66:9000", Allowed)];
    let before = "before the daemon runs";
    scene.check(&other(), &[(KEY, Allowed)]).context(before)?;
    scene.check(&entitled(), &holder_abroad).context(before)?;

    scene.standard()?;
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(
        &entitled(),
        &[
            (KEY, Allowed),
            ("tcp 10.20.0.66:9000", Refused("outside-destination")),
        ],
    )?;

    scene.off()?;
    let after = "after the daemon stopped";
    scene.check(&other(), &[(KEY, Allowed)]).context(after)?;
    scene.check(&entitled(), &holder_abroad).context(after)?;
    Ok(())
}

fn read_allowed_twin(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.check(
        &entitled(),
        &[(KEY, Allowed), ("tcp 10.20.0.2:9000", Allowed)],
    )?;
    scene.check(
        &other(),
        &[
            ("read /srv/t/globbed/notes.txt", Allowed),
            ("read /etc/passwd", Allowed),
        ],
    )?;
    // By root, too: it is no identity.
    let root = crate::harness::Actor::new("/opt/t/other");
    scene.check(&root, &[(KEY, Refused(""))])?;
    Ok(())
}

fn write_is_no_read(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    // This very program has no entitlement.
    let file = fs::File::options().append(true).open("/srv/t/key");
    ensure!(file.is_ok(), "opening for writing only ended with {file:?}");
    let both = fs::File::options()
        .read(true)
        .append(true)
        .open("/srv/t/key");
    let errno = both.err().and_then(|error| error.raw_os_error());
    ensure!(
        errno == Some(libc::EPERM),
        "opening for both ended with {errno:?}, expected EPERM"
    );
    Ok(())
}

/// Each of these fields has exactly this value.
fn has(event: &Value, fields: &[(&str, Value)]) -> Result<()> {
    for (pointer, wanted) in fields {
        let got = event.pointer(pointer);
        ensure!(
            got == Some(wanted),
            "{pointer} is {got:?}, expected {wanted}, in {event}"
        );
    }
    let time = event["time"].as_str().unwrap_or_default();
    let time: jiff::Timestamp = time.parse().with_context(|| format!("time is {time:?}"))?;
    let age = jiff::Timestamp::now().duration_since(time).as_secs();
    ensure!((0..60).contains(&age), "the event is {age} s old: {event}");
    ensure!(
        event["node"].is_string() && event["tier"].is_string(),
        "node or tier is missing: {event}"
    );
    Ok(())
}

fn event_of_a_denied_read(scene: &mut Scene) -> Result<()> {
    let version = {
        scene.standard()?;
        daemon::version_in_force()?
    };
    let outcome = scene.check(&other(), &[(KEY, Refused(""))])?;
    let event = denial(scene, &outcome)?;
    has(
        &event.0,
        &[
            ("/kind", json!("read")),
            ("/verdict", json!("deny")),
            ("/mode/requested", json!("enforce")),
            ("/mode/effective", json!("enforce")),
            ("/action/requested", json!("block")),
            ("/action/taken", json!("block")),
            ("/credential", json!("key")),
            ("/bundle", json!(version)),
            ("/process/pid", json!(outcome.pid)),
            ("/process/uid", json!(ALICE)),
            ("/process/comm", json!("other")),
        ],
    )?;
    // The whole path is there as long as the process is; then the name that the kernel gave.
    let exe = event.0["process"]["exe"].as_str().unwrap_or_default();
    ensure!(["/opt/t/other", "other"].contains(&exe), "exe is {exe}");
    ensure!(event.0["reason"].is_string(), "no reason in {}", event.0);
    // The same line is in the log.
    wait_for("the event in the log file", || {
        let log = fs::read_to_string(daemon::EVENT_LOG).ok()?;
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|line| line == event.0).then_some(())
    })?;
    scene.daemon()?.events.all_parsed()
}

/// The last denial to a process.
fn denial(scene: &mut Scene, outcome: &Outcome) -> Result<Event> {
    let events = scene.daemon()?.events.clone();
    events
        .find(|event| event.pid() == u64::from(outcome.pid) && event.is_denial())
        .context("no event")
}

fn event_of_a_denied_reach(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let steps = [
        (KEY, Allowed),
        ("tcp 10.20.0.66:9000", Refused("outside-destination")),
    ];
    let outcome = scene.check(&entitled(), &steps)?;
    let event = denial(scene, &outcome)?;
    has(
        &event.0,
        &[
            ("/kind", json!("reach")),
            ("/reason", json!("outside-destination")),
            ("/credential", json!("key")),
            ("/workload", json!("app")),
            ("/entitlement", json!("E0")),
            ("/destination/address", json!("10.20.0.66")),
            ("/destination/port", json!(9000)),
            ("/destination/protocol", json!("tcp")),
            ("/process/exe", json!("/opt/t/entitled")),
        ],
    )
}

fn event_of_an_allowed_read(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let outcome = scene.check(&entitled(), &[(KEY, Allowed)])?;
    let events = scene.daemon()?.events.clone();
    let event = wait_for("the event of an allowed read", || {
        events.find(|event| event.pid() == u64::from(outcome.pid) && event.kind() == "read")
    })?;
    has(
        &event.0,
        &[
            ("/verdict", json!("allow")),
            ("/reason", Value::Null),
            ("/credential", json!("key")),
            ("/workload", json!("app")),
            ("/entitlement", json!("E0")),
        ],
    )
}

fn status_names_the_bundle(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let status = daemon::status()?;
    let state = status["state"].as_str().unwrap_or_default();
    ensure!(state == "enforcing/lsm", "the state is {state:?}: {status}");
    ensure!(status["tier"] == "lsm", "the tier is {}", status["tier"]);
    ensure!(status["generation"].is_u64(), "no generation in {status}");
    Ok(())
}

fn explain_agrees(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    for (program, credential, destination, verdict, reason) in [
        ("entitled", "key", None, "allow", None),
        ("entitled", "key", Some("10.20.0.2:9000"), "allow", None),
        (
            "entitled",
            "key",
            Some("10.20.0.66:9000"),
            "deny",
            Some("outside-destination"),
        ),
        ("entitled", "lone-key", None, "deny", Some("no-entitlement")),
        ("other", "key", None, "deny", None),
    ] {
        let path = format!("/opt/t/{program}");
        let mut words = vec![
            "explain",
            "-o",
            "json",
            "--executable",
            &path,
            "--user",
            "alice",
        ];
        words.extend(["--credential", credential]);
        words.extend(destination.iter().flat_map(|to| ["--destination", to]));
        let said = daemon::enforcer_json(&words)?;
        ensure!(
            said["verdict"] == verdict,
            "`enforcer {}` said {said}, expected {verdict}",
            words.join(" ")
        );
        if let Some(reason) = reason {
            ensure!(
                said["reason"] == reason,
                "{} gave {said}, expected {reason}",
                words.join(" ")
            );
        }
        // As its event does.
        let misfit = said["misfit"].as_str().unwrap_or_default();
        let named = destination.map_or(program, |to| to.split(':').next().unwrap_or(to));
        ensure!(
            (verdict == "allow") == misfit.is_empty()
                && (!matches!(reason, Some("outside-destination")) || misfit.contains(named)),
            "{} gave {said}",
            words.join(" ")
        );
        let read = format!("read /srv/t/{credential}");
        let as_said = if verdict == "allow" {
            Allowed
        } else {
            Refused("")
        };
        let actor = if program == "other" {
            other()
        } else {
            entitled()
        };
        match destination {
            None => scene.check(&actor, &[(&read, as_said)])?,
            Some(to) => {
                scene.check(&actor, &[(&read, Allowed), (&format!("tcp {to}"), as_said)])?
            }
        };
    }
    Ok(())
}
