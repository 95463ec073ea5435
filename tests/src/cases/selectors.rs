//! Who is meant: executables, users, units, cgroups; and the reasons given to those who are not.

use anyhow::Result;

use super::{Scene, cases, entitled, other, standard::DESTINATIONS};
use crate::harness::{ALICE, Actor, Allowed, BOB, Bundle, Cgroup, Refused};

cases![
    unit_selects,
    cgroup_selects,
    user_narrows_executable,
    unit_and_executable,
    reasons_for_reads,
    cgroup_names_elsewhere_do_not_select,
    units_of_users,
    root_of_a_user_namespace,
];

fn unit_selects(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let (app, sibling) = (
        Cgroup::unit("app.service")?,
        Cgroup::unit("sibling.service")?,
    );
    let read = "read /srv/t/unit-key";
    scene.check(&other().within(app.name()), &[(read, Allowed)])?;
    scene.check(
        &other().within(sibling.name()),
        &[(read, Refused("wrong-workload"))],
    )?;
    scene.check(&other(), &[(read, Refused(""))])?;
    // And below the unit.
    let below = Cgroup::unit("app.service/workers")?;
    scene.check(&other().within(below.name()), &[(read, Allowed)])?;
    Ok(())
}

fn cgroup_selects(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let web = Cgroup::new("apps.slice/web.scope")?;
    let elsewhere = Cgroup::new("apps.slice/database.scope")?;
    let read = "read /srv/t/group-key";
    scene.check(&other().within(web.name()), &[(read, Allowed)])?;
    scene.check(
        &other().within(elsewhere.name()),
        &[(read, Refused("wrong-workload"))],
    )?;
    let below = Cgroup::new("apps.slice/web.scope/inner")?;
    scene.check(&other().within(below.name()), &[(read, Allowed)])?;
    Ok(())
}

fn user_narrows_executable(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let personal = Actor::new("/opt/t/personal");
    let read = "read /srv/t/personal-key";
    scene.check(&personal.clone().user(ALICE), &[(read, Allowed)])?;
    scene.check(
        &personal.clone().user(BOB),
        &[(read, Refused("wrong-workload|unclassified-workload"))],
    )?;
    scene.check(
        &personal,
        &[(read, Refused("wrong-workload|unclassified-workload"))],
    )?;
    scene.check(&other(), &[(read, Refused("wrong-executable"))])?;
    Ok(())
}

fn unit_and_executable(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let strict = Cgroup::unit("strict.service")?;
    let read = "read /srv/t/strict-key";
    scene.check(&entitled().within(strict.name()), &[(read, Allowed)])?;
    scene.check(
        &other().within(strict.name()),
        &[(read, Refused("wrong-executable"))],
    )?;
    scene.check(
        &entitled(),
        &[(read, Refused("wrong-workload|unclassified-workload"))],
    )?;
    Ok(())
}

fn reasons_for_reads(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let app = Cgroup::unit("app.service")?;
    scene.check(
        &entitled(),
        &[("read /srv/t/lone-key", Refused("no-entitlement"))],
    )?;
    scene.check(
        &other().within(app.name()),
        &[
            ("read /srv/t/group-key", Refused("wrong-workload")),
            ("read /srv/t/lone-key", Refused("no-entitlement")),
        ],
    )?;
    Ok(())
}

fn cgroup_names_elsewhere_do_not_select(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let disguised = Cgroup::new("apps.slice/mine.scope/system.slice/app.service")?;
    scene.check(
        &other().within(disguised.name()),
        &[("read /srv/t/unit-key", Refused("wrong-workload"))],
    )?;
    Ok(())
}

fn units_of_users(scene: &mut Scene) -> Result<()> {
    let bundle = Bundle::default()
        .file("key", "/srv/t/key")
        .file("unit-key", "/srv/t/unit-key")
        .workload("alices", "systemdUnit: {name: backup.service, user: alice}")
        .workload("systems", "systemdUnit: backup.service")
        .entitlement("E-alices", "alices", "key", DESTINATIONS)
        .entitlement("E-systems", "systems", "unit-key", DESTINATIONS);
    let manager = |uid: u32| format!("user.slice/user-{uid}.slice/user@{uid}.service");
    let (alice, bob) = (manager(ALICE), manager(BOB));
    // One that was there before the bundle, and those that come.
    let early = Cgroup::new(&format!("{alice}/app.slice/app-one.slice/backup.service"))?;
    scene.on(&bundle)?;
    let (alices, systems) = ("read /srv/t/key", "read /srv/t/unit-key");
    let refused = Refused("wrong-workload");
    for place in [
        format!("{alice}/app.slice/backup.service"),
        format!("{alice}/backup.service/sub"),
        format!("{alice}/app.slice/deep.slice/backup.service"),
    ] {
        let place = Cgroup::new(&place)?;
        let actor = other().within(place.name());
        scene.check(&actor, &[(alices, Allowed), (systems, refused)])?;
    }
    let actor = other().within(early.name());
    scene.check(&actor, &[(alices, Allowed), (systems, refused)])?;
    let unit = Cgroup::unit("backup.service")?;
    let actor = other().within(unit.name());
    scene.check(&actor, &[(alices, refused), (systems, Allowed)])?;
    // Of another user; within another unit; by names that only the host may give.
    for place in [
        format!("{bob}/app.slice/backup.service"),
        format!("{alice}/mine.service/backup.service"),
        format!("{bob}/app.slice/user@{ALICE}.service/backup.service"),
        format!("{bob}/mine.service/{alice}/backup.service"),
        format!("system.slice/mine.service/{alice}/backup.service"),
    ] {
        let place = Cgroup::new(&place)?;
        let actor = other().within(place.name());
        scene.check(&actor, &[(alices, refused), (systems, refused)])?;
    }
    Ok(())
}

fn root_of_a_user_namespace(scene: &mut Scene) -> Result<()> {
    let bundle = Bundle::default()
        .file("key", "/srv/t/key")
        .file("unit-key", "/srv/t/unit-key")
        .workload("roots", "executable: {path: /opt/t/other}, user: root")
        .workload("alices", "executable: {path: /opt/t/other}, user: alice")
        .entitlement("E-roots", "roots", "key", DESTINATIONS)
        .entitlement("E-alices", "alices", "unit-key", DESTINATIONS);
    scene.on(&bundle)?;
    let steps = [("read /srv/t/key", Allowed)];
    scene.check(&Actor::new("/opt/t/other"), &steps)?;
    let steps = [
        ("user-namespace", Allowed),
        (
            "read /srv/t/key",
            Refused("wrong-workload|unclassified-workload"),
        ),
        ("read /srv/t/unit-key", Allowed),
    ];
    scene.check(&other(), &steps).map(drop)
}
