//! The daemon killed over and over, at any moment of its life, while others read and send for whom that must make no
//! difference.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Scene,
    restart::{Crowd, renumbered},
    standard,
};
use crate::harness::{Accounts, Daemon, daemon};

/// Those of another build, whose programs take the place of the others.
const SIZES: [&[&str]; 2] = [&[], &["--holders", "60000"]];
/// As much longer than a daemon takes to be there may it live.
const LIVES: u32 = 2;

/// Kills `count` daemons; from each `upgrades`th on they are of another build. The moments follow from `seed`.
pub fn run(count: u64, upgrades: u64, seed: u64) -> Result<bool> {
    let mut scene = Scene::set_up(false)?;
    Daemon::start(&standard::bundle()?, SIZES[0])?.hand_over()?;
    // What a daemon takes to take over.
    let begun = Instant::now();
    scene.daemon = Some(Daemon::start(&standard::bundle()?, SIZES[0])?);
    let begins = begun.elapsed();
    let before = tables()?;
    let accounts = Accounts::open()?;
    let crowd = Crowd::gather()?;
    let pids = crowd.pids();
    scene.daemon.take().context("no daemon")?.kill()?;
    println!(
        "{count} daemons are killed between 0 and {:?} after their start; seed {seed}",
        begins * LIVES
    );

    let mut moments = Moments(seed | 1);
    let mut build = 0;
    for number in 1..=count {
        let bundle = if number % 2 == 0 {
            standard::bundle()?
        } else {
            renumbered()?
        };
        if number % upgrades == 0 {
            build = (build + 1) % SIZES.len();
        }
        let daemon = Daemon::launch_with(&bundle, SIZES[build])?;
        thread::sleep(moments.next(begins * LIVES));
        daemon.kill()?;
        if number % 100 == 0 {
            println!("{number} after {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    scene.daemon = Some(Daemon::start(&standard::bundle()?, SIZES[build])?);
    accounts.have(crowd.agrees()?, Some(&pids))?;
    let after = tables()?;
    ensure!(
        before == after,
        "the tables were {before:?}, and are {after:?}"
    );
    let status = daemon::status()?;
    ensure!(
        status["unaccounted"] == serde_json::json!({"processes": false, "instances": false}),
        "the status is {status}"
    );
    scene.off()?;
    println!("{count} daemons killed: nobody was allowed or refused anything wrongly");
    Ok(true)
}

/// How many entries those tables have that only change with the bundle.
fn tables() -> Result<BTreeMap<String, u64>> {
    let mut all = daemon::tables()?;
    all.retain(|table, _| {
        [
            "cgroupNames",
            "credentials",
            "files",
            "grants",
            "subjects",
            "watchNodes",
            "watches",
        ]
        .contains(&table.as_str())
    });
    Ok(all)
}

/// Moments by xorshift: the same seed gives the same.
struct Moments(u64);

impl Moments {
    fn next(&mut self, within: Duration) -> Duration {
        for shift in [13, -7, 17_i32] {
            self.0 ^= if shift > 0 {
                self.0 << shift
            } else {
                self.0 >> -shift
            };
        }
        within.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}
