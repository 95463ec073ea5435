//! A node that outgrows the tables of an ordinary one: the daemon starts again with larger ones, and nobody notices.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other, restart::Crowd, standard};
use crate::harness::{
    Allowed, Bundle, Daemon, Refused, check,
    daemon::{log_is_whole, status},
    wait_for,
};

cases![
    more_units_than_ordinary_tables_hold,
    more_files_than_ordinary_tables_hold,
];

/// Where the daemon notes it.
const LARGE: &str = "/var/lib/enforcer/large-tables";
const KEY: &str = "read /srv/t/key";
const MANY: &str = "/srv/t/many";

/// A daemon with ordinary tables, and its process; nothing on the tier that has large ones from the start.
fn ordinary(scene: &mut Scene, bundle: &Bundle) -> Result<Option<u32>> {
    scene.off()?;
    if fs::exists(LARGE)? {
        fs::remove_file(LARGE)?;
    }
    let pid = scene.small(bundle, &[])?.pid();
    let now = status()?;
    if now["tier"] == "fanotify" {
        ensure!(now["room"] == "large", "the status is {now}");
        return Ok(None);
    }
    ensure!(now["room"] == "ordinary", "the status is {now}");
    Ok(Some(pid))
}

/// It has large ones, in the same process, and nothing of the others is left.
fn has_grown(scene: &mut Scene, pid: u32) -> Result<()> {
    let now = wait_for("large tables", || {
        status()
            .ok()
            .filter(|it| it["room"] == "large" && !it["bundle"].is_null())
    })
    .with_context(|| format!("status: {:?}", status().ok()))?;
    ensure!(now["refused"].is_null(), "the status is {now}");
    let daemon = scene.daemon()?;
    ensure!(
        daemon.pid() == pid && daemon.is_alive(),
        "the daemon is another process"
    );
    let sets = fs::read_dir("/sys/fs/bpf/enforcer")?.count();
    ensure!(sets == 1, "there are {sets} sets of pins");
    ensure!(
        daemon
            .events
            .find(|event| event.kind() == "bundle-refused")
            .is_none(),
        "a bundle was refused"
    );
    log_is_whole()
}

fn more_units_than_ordinary_tables_hold(scene: &mut Scene) -> Result<()> {
    let Some(pid) = ordinary(scene, &standard::bundle()?)? else {
        return Ok(());
    };
    let crowd = Crowd::gather()?;
    let mut many = standard::bundle()?;
    for number in 0..1100 {
        let unit = format!("systemdUnit: many-{number}.service");
        many = many.workload(&format!("many-{number}"), &unit);
    }
    scene.daemon()?.swap(&many)?;
    has_grown(scene, pid)?;
    crowd.agrees()?;
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(&entitled(), &[(KEY, Allowed)])?;

    // The next one has them from the start.
    scene.daemon.take().context("no daemon")?.hand_over()?;
    scene.daemon = Some(Daemon::start(&many, &[])?);
    let now = status()?;
    ensure!(
        now["room"] == "large" && now["takenOver"] == true,
        "the status is {now}"
    );
    scene.off()?;
    Ok(fs::remove_file(LARGE)?)
}

fn more_files_than_ordinary_tables_hold(scene: &mut Scene) -> Result<()> {
    fs::create_dir_all(MANY)?;
    let bundle =
        standard::bundle()?.credential(&format!("id: many, sources: [{{directory: {MANY}}}]"));
    let Some(pid) = ordinary(scene, &bundle)? else {
        return Ok(fs::remove_dir_all(MANY)?);
    };
    for number in 0..4200 {
        fs::write(format!("{MANY}/{number}"), "the secret itself\n")?;
    }
    has_grown(scene, pid)?;
    for number in [0, 4095, 4096, 4199] {
        let outcome = other().run([format!("read {MANY}/{number}").as_str()])?;
        ensure!(
            outcome.last()?.errno == libc::EPERM,
            "file {number}: {}",
            check::summary(&outcome)
        );
    }
    scene.off()?;
    fs::remove_dir_all(MANY)?;
    Ok(fs::remove_file(LARGE)?)
}
