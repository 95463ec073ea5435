//! The daemon goes and another comes: nobody notices who is judged.

use std::{collections::BTreeSet, fs, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other, standard};
use crate::harness::{
    Allowed, Bundle, Daemon, Refused, Running, check,
    daemon::{BUNDLE, clean_up, enforcer, status},
    wait_for, write,
};

cases![
    next_daemon_takes_over,
    without_a_good_bundle,
    next_daemon_of_another_build,
    one_of_another_build_that_had_no_bundle,
    half_written_pins,
    a_table_is_missing,
    cleanup_only_without_a_daemon,
];

/// Other sizes are another build.
pub(super) const ANOTHER_BUILD: &[&str] = &["--holders", "4096"];
const YET_ANOTHER_BUILD: &[&str] = &["--holders", "8192"];
const PINS: &str = "/sys/fs/bpf/enforcer";
const KEY: &str = "read /srv/t/key";
const HOME: &str = "tcp 10.20.0.2:9000";
const ABROAD: &str = "tcp 10.20.0.66:9000";
/// However long it takes.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two attempts of one reader.
const PAUSE_US: u64 = 20_000;

/// Some who may read, some who may not, and a holder who may not send, all the time.
pub struct Crowd(Vec<(bool, Running)>);

impl Crowd {
    pub fn gather() -> Result<Self> {
        let mut crowd = Vec::new();
        let read = format!("hammer /srv/t/key {PAUSE_US}");
        let send = format!("hammer-udp 10.20.0.66:9000 {PAUSE_US}");
        for (actor, steps, allowed) in [
            (entitled(), vec![read.clone()], true),
            (other(), vec![read], false),
            (entitled(), vec![KEY.to_owned(), send], false),
        ] {
            let mut running = actor.start(steps)?;
            running.patiently(PATIENCE);
            running.until("hammering")?;
            crowd.push((allowed, running));
        }
        Ok(Self(crowd))
    }

    /// Of all of them.
    pub fn pids(&self) -> BTreeSet<u32> {
        self.0.iter().map(|(_, running)| running.pid()).collect()
    }

    /// Nobody has seen anything else than what is due. Returns how often somebody was refused.
    pub fn agrees(self) -> Result<u64> {
        let mut refused = 0;
        for (allowed, running) in self.0 {
            let count = check::readers_agree(&running.finish()?, allowed)?;
            println!(
                "  {count} times {}",
                if allowed { "allowed" } else { "refused" }
            );
            refused += if allowed { 0 } else { count };
        }
        Ok(refused)
    }
}

/// The standard bundle, with another credential before the others: what has a number keeps it.
pub(super) fn renumbered() -> Result<Bundle> {
    write("/srv/t/added-key", "the secret itself\n")?;
    Ok(standard::bundle()?.file_first("aaa", "/srv/t/added-key"))
}

/// Holds the key, and waits.
fn holder() -> Result<Running> {
    let mut holder = entitled().start([KEY, HOME, "pause", HOME, ABROAD])?;
    holder.until("paused")?;
    Ok(holder)
}

/// It may go where it might before, and nowhere else.
fn is_still_held(mut holder: Running) -> Result<()> {
    holder.go_on()?;
    let outcome = holder.finish()?;
    let last: Vec<i32> = (outcome.steps.iter().rev().take(2))
        .map(|step| step.errno)
        .collect();
    ensure!(last == [libc::EPERM, 0], "a holder of before: {outcome:?}");
    Ok(())
}

fn next_daemon_takes_over(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let holder = holder()?;
    let crowd = Crowd::gather()?;
    let generation = status()?["generation"].as_u64();
    scene.daemon.take().context("no daemon")?.kill()?;

    // What was protected is, and what comes new.
    let outcome = other().run([KEY])?;
    ensure!(outcome.last()?.errno == libc::EPERM, "{outcome:?}");
    fs::create_dir_all("/srv/t/globbed")?;
    write("/srv/t/globbed/new.key", "the secret itself\n")?;
    let outcome = other().run(["read /srv/t/globbed/new.key"])?;
    ensure!(outcome.last()?.errno == libc::EPERM, "{outcome:?}");

    scene.daemon = Some(Daemon::start(&renumbered()?, &[])?);
    let now = status()?;
    ensure!(
        now["takenOver"] == true && now["generation"].as_u64() > generation,
        "the status is {now}"
    );
    is_still_held(holder)?;
    scene.check(&other(), &[("read /srv/t/added-key", Refused(""))])?;
    // In good order this time.
    scene.daemon.take().context("no daemon")?.hand_over()?;
    scene.daemon = Some(Daemon::start(&standard::bundle()?, &[])?);
    crowd.agrees()?;
    scene.check(&other(), &[("read /srv/t/added-key", Allowed)])?;
    fs::remove_file("/srv/t/globbed/new.key")?;
    Ok(())
}

fn without_a_good_bundle(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.daemon.take().context("no daemon")?.kill()?;
    // The next one finds a bundle that it cannot read: what is in force stays, and it says so.
    let mut next = Daemon::start_on("kind: Nonsense\n", &[])?;
    let now = status()?;
    ensure!(
        now["bundle"].is_null() && now["takenOver"] == true && !now["refused"].is_null(),
        "the status is {now}"
    );
    let outcome = other().run([KEY])?;
    ensure!(outcome.last()?.errno == libc::EPERM, "{outcome:?}");
    next.swap(&standard::bundle()?)?;
    scene.daemon = Some(next);
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene
        .check(&entitled(), &[(KEY, Allowed), (HOME, Allowed)])
        .map(drop)
}

fn next_daemon_of_another_build(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let holder = holder()?;
    let crowd = Crowd::gather()?;
    scene.daemon.take().context("no daemon")?.hand_over()?;
    scene.daemon = Some(Daemon::start(&renumbered()?, ANOTHER_BUILD)?);
    let now = status()?;
    ensure!(now["takenOver"] == false, "the status is {now}");
    let sets = fs::read_dir(PINS)?.count();
    ensure!(sets == 1, "there are {sets} sets of pins");
    is_still_held(holder)?;
    crowd.agrees().map(drop)
}

fn one_of_another_build_that_had_no_bundle(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let holder = holder()?;
    let crowd = Crowd::gather()?;
    scene.daemon.take().context("no daemon")?.hand_over()?;
    write(BUNDLE, "kind: Nonsense\n")?;
    let without = Daemon::spawn(&[&["--bundle", BUNDLE], YET_ANOTHER_BUILD].concat())?;
    let now = wait_for("the refusal of its bundle", || {
        status().ok().filter(|it| !it["refused"].is_null())
    })?;
    ensure!(
        now["takenOver"] == false && now["bundle"].is_null(),
        "the status is {now}"
    );
    let sets = || -> Result<usize> { Ok(fs::read_dir(PINS)?.count()) };
    ensure!(sets()? == 2, "there are {} sets of pins", sets()?);
    without.kill()?;
    scene.daemon = Some(Daemon::start(&renumbered()?, YET_ANOTHER_BUILD)?);
    ensure!(sets()? == 1, "there are {} sets of pins", sets()?);
    is_still_held(holder)?;
    crowd.agrees().map(drop)
}

/// A daemon may die at any moment of making its pins, or of removing another's.
fn half_written_pins(scene: &mut Scene) -> Result<()> {
    scene.off()?;
    for half in ["new-1", "new-2/maps", "new-3/links"] {
        fs::create_dir_all(format!("{PINS}/{half}"))?;
    }
    scene.standard()?;
    let sets = fs::read_dir(PINS)?.count();
    ensure!(sets == 1, "there are {sets} sets of pins");
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(&entitled(), &[(KEY, Allowed)]).map(drop)
}

fn a_table_is_missing(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    // After an orderly end whoever is on the host may take it away.
    scene.daemon.take().context("no daemon")?.hand_over()?;
    for set in fs::read_dir(PINS)? {
        fs::remove_file(set?.path().join("maps/SHARES"))?;
    }
    scene.daemon = Some(Daemon::start(&standard::bundle()?, &[])?);
    let now = status()?;
    ensure!(now["takenOver"] == false, "the status is {now}");
    let sets = fs::read_dir(PINS)?.count();
    ensure!(sets == 1, "there are {sets} sets of pins");
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(&entitled(), &[(KEY, Allowed)]).map(drop)
}

fn cleanup_only_without_a_daemon(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let refused: Output = enforcer(&["cleanup"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        refused.status.code() == Some(1) && said.contains("stop it first"),
        "it ended with {} and said {said}",
        refused.status
    );
    scene.check(&other(), &[(KEY, Refused(""))])?;
    // Nor does a second daemon begin.
    let second: Output = enforcer(&["run", "--socket", "/run/enforcer/second.sock"])?;
    let said = String::from_utf8_lossy(&second.stderr);
    ensure!(
        second.status.code() == Some(1) && said.contains("another daemon"),
        "it ended with {} and said {said}",
        second.status
    );
    scene.off()?;
    ensure!(!fs::exists(PINS)?, "pins are left");
    clean_up().context("once more")?;
    scene.check(&other(), &[(KEY, Allowed)]).map(drop)
}
