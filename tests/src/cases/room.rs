//! A node that outgrows the tables of an ordinary one: the daemon starts again with larger ones, and nobody notices.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other, restart::Crowd, standard};
use crate::{
    bundle,
    harness::{
        Allowed, Bundle, Daemon, Refused,
        daemon::{log_is_whole, status, version_in_force},
        wait_so_long,
    },
};

cases![more_units_than_ordinary_tables_hold];

/// Where the daemon notes it.
pub(super) const LARGE: &str = "/var/lib/enforcer/large-tables";
/// In emulation, beside others who work all the time.
pub(super) const STARTED_AGAIN_BY: Duration = Duration::from_secs(300);
const KEY: &str = "read /srv/t/key";

/// More than ordinary tables hold.
pub(super) fn with_many_units(bundle: Bundle) -> Bundle {
    (0..1100).fold(bundle, |bundle, number| {
        let unit = format!("systemdUnit: many-{number}.service");
        bundle.workload(&format!("many-{number}"), &unit)
    })
}

fn more_units_than_ordinary_tables_hold(scene: &mut Scene) -> Result<()> {
    scene.off()?;
    if fs::exists(LARGE)? {
        fs::remove_file(LARGE)?;
    }
    let pid = scene.small(&standard::bundle()?, &[])?.pid();
    let now = status()?;
    if now["tier"] == "fanotify" {
        ensure!(now["room"] == "large", "the status is {now}");
        return Ok(());
    }
    ensure!(now["room"] == "ordinary", "the status is {now}");
    let crowd = Crowd::gather()?;
    let many = with_many_units(standard::bundle()?);
    let (version, head) = bundle::head();
    let text = format!("{head}{}", many.text());
    scene.daemon()?.give(&text)?;
    wait_so_long(STARTED_AGAIN_BY, "large tables", || {
        (version_in_force().ok()? == version).then_some(())
    })?;
    // In the same process, and nothing of the ordinary ones is left.
    let now = status()?;
    ensure!(
        now["room"] == "large" && now["refused"].is_null(),
        "the status is {now}"
    );
    let daemon = scene.daemon()?;
    ensure!(
        daemon.pid() == pid && daemon.is_alive(),
        "the daemon is another process"
    );
    let refused = daemon.events.find(|event| event.kind() == "bundle-refused");
    ensure!(refused.is_none(), "a bundle was refused");
    let sets = fs::read_dir("/sys/fs/bpf/enforcer")?.count();
    ensure!(sets == 1, "there are {sets} sets of pins");
    log_is_whole()?;
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
