//! Who is meant: executables, users, units, cgroups; and the reasons given to those who are not.

use anyhow::Result;

use super::{Scene, cases, entitled, other};
use crate::harness::{ALICE, Actor, Allowed, BOB, Cgroup, Refused};

cases![
    unit_selects,
    cgroup_selects,
    user_narrows_executable,
    unit_and_executable,
    reasons_for_reads,
    cgroup_names_elsewhere_do_not_select,
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
