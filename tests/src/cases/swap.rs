//! Many bundles one after the other, under readers for whom all of them say the same.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use super::{Scene, cases, entitled, other};
use crate::harness::{Bundle, Cgroup, check, daemon};

cases![swap_under_readers, cgroups_that_go];

const READERS: usize = 8;
const SWAPS: u64 = 1_000;
const SWAPS_IN_BRIEF: u64 = 100;
const SWAPS_AMONG_CGROUPS: u64 = 20;
/// As long may the readers be at it.
const BUDGET: Duration = Duration::from_secs(600);
/// Between two reads of one reader: sixteen of them share two emulated processors with the daemon.
const PAUSE_US: u64 = 50_000;

/// Two bundles that differ in everything but what they mean for the readers.
fn bundle(second: bool) -> Bundle {
    let (workload, entitlement, port) = if second {
        ("b", "E-b", 9001)
    } else {
        ("a", "E-a", 9000)
    };
    let mut bundle = Bundle::default();
    if second {
        bundle = bundle.file("another", "/srv/t/second-key");
    }
    bundle
        .file("key", "/srv/t/key")
        .workload(workload, "executable: {path: /opt/t/entitled}")
        .entitlement(
            entitlement,
            workload,
            "key",
            &format!("destinations: [{{cidr: 10.20.0.2, ports: [{port}]}}]"),
        )
}

/// What cgroups mean is written for those that were there a moment ago: one that went since must not stay in the table.
fn cgroups_that_go(scene: &mut Scene) -> Result<()> {
    scene.on(&bundle(false))?;
    let before = daemon::tables()?["cgroups"];
    let done = AtomicBool::new(false);
    let made = thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let mut made = 0;
            while !done.load(Ordering::Relaxed) {
                let cgroups: Vec<_> = (0..32)
                    .map(|number| Cgroup::new(&format!("going-{number}")))
                    .collect::<Result<_>>()?;
                made += cgroups.len();
            }
            Ok::<_, anyhow::Error>(made)
        });
        for number in 0..SWAPS_AMONG_CGROUPS {
            scene.daemon()?.swap_under_way(&bundle(number % 2 == 0))?;
        }
        done.store(true, Ordering::Relaxed);
        churn.join().map_err(|_| anyhow!("it panicked"))?
    })?;
    println!("  {made} cgroups came and went");
    let after = daemon::tables()?["cgroups"];
    ensure!(
        before == after,
        "{before} cgroups were known, and are {after}"
    );
    Ok(())
}

fn swap_under_readers(scene: &mut Scene) -> Result<()> {
    scene.on(&bundle(false))?;
    let mut readers = Vec::new();
    for number in 0..2 * READERS {
        let allowed = number < READERS;
        let actor = if allowed { entitled() } else { other() };
        let mut reader = actor.start([format!("hammer /srv/t/key {PAUSE_US}")])?;
        reader.patiently(BUDGET);
        reader.until("hammering")?;
        readers.push((allowed, reader));
    }
    let swaps = if scene.brief { SWAPS_IN_BRIEF } else { SWAPS };
    let start = Instant::now();
    for number in 0..swaps {
        scene.daemon()?.swap_under_way(&bundle(number % 2 == 0))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let (mut reads, mut refusals) = (0, 0);
    for (allowed, reader) in readers {
        let count = check::readers_agree(&reader.finish()?, allowed)?;
        *(if allowed { &mut reads } else { &mut refusals }) += count;
    }
    println!(
        "  {swaps} swaps in {seconds:.1} s under {reads} reads and {refusals} refusals, none of them wrong"
    );
    let state = daemon::status()?["state"].clone();
    ensure!(state == "enforcing/lsm", "the state is {state} after it");
    Ok(())
}
