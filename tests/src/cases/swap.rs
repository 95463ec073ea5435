//! Many bundles one after the other, under readers for whom all of them say the same.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Scene, cases, entitled, other};
use crate::harness::{Bundle, check, daemon};

cases![swap_under_readers];

const READERS: usize = 8;
const SWAPS: u64 = 1_000;
const SWAPS_IN_BRIEF: u64 = 100;
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
