//! What a bundle can say besides who and where: trusted, baseline, exclusive, monitor.

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other, standard::DESTINATIONS};
use crate::harness::{ALICE, Actor, Allowed, Bundle, Event, Refused, wait_for};

cases![
    trusted_is_never_a_holder,
    baseline_is_for_all_holders,
    exclusive_must_itself_cover,
    one_of_several_held_is_enough,
    destinations_none,
    monitored_entitlement,
    monitored_bundle,
    times_not_yet_valid,
];

const FORBIDDEN: &str = "tcp 10.20.0.66:9000";
const PERMITTED: &str = "tcp 10.20.0.2:9000";

fn trusted_is_never_a_holder(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let trusted = Actor::new("/opt/t/trusted").user(ALICE);
    scene.check(
        &trusted,
        &[
            ("read /srv/t/key", Allowed),
            ("read /srv/t/lone-key", Allowed),
            (FORBIDDEN, Allowed),
        ],
    )?;
    scene.check(&other(), &[("read /srv/t/lone-key", Refused(""))])?;
    Ok(())
}

fn baseline_is_for_all_holders(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.check(
        &entitled(),
        &[
            ("read /srv/t/bare-key", Allowed),
            ("udp 10.20.0.53:9000", Allowed),
            ("tcp 10.20.0.53:9000", Allowed),
            (FORBIDDEN, Refused("outside-destination")),
        ],
    )?;
    Ok(())
}

fn exclusive_must_itself_cover(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.check(
        &entitled(),
        &[
            ("read /srv/t/jealous-key", Allowed),
            (FORBIDDEN, Allowed),
            ("read /srv/t/key", Allowed),
            (PERMITTED, Refused("outside-destination")),
            (FORBIDDEN, Allowed),
        ],
    )?;
    Ok(())
}

fn one_of_several_held_is_enough(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.check(
        &entitled(),
        &[
            ("read /srv/t/bare-key", Allowed),
            (PERMITTED, Refused("outside-destination")),
            ("read /srv/t/key", Allowed),
            (PERMITTED, Allowed),
        ],
    )?;
    Ok(())
}

fn destinations_none(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.check(
        &entitled(),
        &[
            ("read /srv/t/bare-key", Allowed),
            (PERMITTED, Refused("outside-destination")),
            (FORBIDDEN, Refused("outside-destination")),
        ],
    )?;
    Ok(())
}

/// The record of what would have been denied.
fn recorded(event: &Event) -> Result<()> {
    let json = &event.0;
    ensure!(
        json["mode"]["effective"] == "monitor" && json["reason"].is_string(),
        "the record of a monitored use is {json}"
    );
    ensure!(
        event.action_taken() != "block" && event.action_taken() != "kill",
        "it says {json}"
    );
    Ok(())
}

fn find_denial(scene: &mut Scene, pid: u32, kind: &str) -> Result<Event> {
    let events = scene.daemon()?.events.clone();
    wait_for(&format!("the record of a monitored {kind}"), || {
        events.find(|event| {
            event.pid() == u64::from(pid) && event.is_denial() && event.kind() == kind
        })
    })
    .with_context(|| format!("the events are {:?}", events.of(pid)))
}

fn monitored_entitlement(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let steps = [("read /srv/t/monitored-key", Allowed), (FORBIDDEN, Allowed)];
    let outcome = scene.check(&entitled(), &steps)?;
    recorded(&find_denial(scene, outcome.pid, "reach")?)?;
    // Its mode is its own.
    scene.check(&other(), &[("read /srv/t/monitored-key", Refused(""))])?;
    Ok(())
}

fn monitored_bundle(scene: &mut Scene) -> Result<()> {
    let bundle = Bundle::of_key(DESTINATIONS).front("defaults: {mode: monitor, action: kill}\n");
    scene.on(&bundle)?;
    let outcome = scene.check(&other(), &[("read /srv/t/key", Allowed)])?;
    recorded(&find_denial(scene, outcome.pid, "read")?)?;
    let outcome = scene.check(
        &entitled(),
        &[("read /srv/t/key", Allowed), (FORBIDDEN, Allowed)],
    )?;
    recorded(&find_denial(scene, outcome.pid, "reach")?)?;
    // The same bundle in earnest refuses both.
    let enforced = bundle.front("defaults: {mode: enforce, action: block}\n");
    scene.on(&enforced)?;
    scene.check(&other(), &[("read /srv/t/key", Refused(""))])?;
    let steps = [
        ("read /srv/t/key", Allowed),
        (FORBIDDEN, Refused("outside-destination")),
    ];
    scene.check(&entitled(), &steps)?;
    Ok(())
}

fn times_not_yet_valid(scene: &mut Scene) -> Result<()> {
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let bundle = Bundle::of_key(&format!("{DESTINATIONS}, validFrom: {tomorrow}"))
        .file("second-key", "/srv/t/second-key")
        .entitlement(
            "E2",
            "app",
            "second-key",
            &format!("{DESTINATIONS}, validUntil: {tomorrow}"),
        );
    scene.on(&bundle)?;
    let steps = [
        ("read /srv/t/key", Refused("not-yet-valid")),
        ("read /srv/t/second-key", Allowed),
    ];
    scene.check(&entitled(), &steps)?;
    Ok(())
}
