//! Everything together for a long time: who works and who attacks goes on, while bundles change, secrets are rotated, grants
//! are taken back, daemons come and go, the clock is set and a receiver of events is away. Nothing entitled may be refused
//! and nothing else permitted, no record may be lost without account, and nothing may grow.

mod collector;
mod container;
mod disturb;
mod package;
mod work;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use collector::Collector;
use disturb::{Disturbance, Node};
use work::Work;

use crate::{
    cases::{Scene, restart::Crowd},
    harness::{Accounts, daemon, wait_for},
};

/// `enforcer-tests soak`.
#[derive(clap::Args)]
pub struct Args {
    /// For so long
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Where chance starts: the same seed disturbs in the same order
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Sockets and the like of the last work have ended by then.
const SETTLED: Duration = Duration::from_secs(15);
/// Between two disturbances.
const REST: Duration = Duration::from_millis(500);
const MINUTE: Duration = Duration::from_secs(60);
/// The allocator keeps some of what it once had.
const GROWTH_KIB: u64 = 16 * 1024;
/// As many entries more than at first may be in a table: what just now comes and goes.
const COMING_AND_GOING: u64 = 4;

/// Goes on for so long; `shared` says that the machine has other users, whose clock stays as it is. The result is true, or
/// an error.
pub fn run(args: &Args, shared: bool) -> Result<bool> {
    let mut scene = Scene::set_up(true)?;
    let collector = Collector::start()?;
    let mut node = Node::start(&mut scene, &collector)?;
    let all: Vec<Disturbance> = disturb::all(shared, node.is_gated_without_daemon()).collect();
    println!("seed {}: {all:?}", args.seed);

    let accounts = Accounts::open()?;
    let crowd = Crowd::gather()?;
    let work = Work::start()?;
    let mut chance = Chance(args.seed | 1);
    let begun = Instant::now();
    let end = begun + MINUTE * u32::try_from(args.minutes)?;
    let (mut minute, mut done) = (0, 0);
    let mut resident = None;
    while Instant::now() < end {
        let disturbance = all[chance.below(all.len())];
        node.disturb(disturbance)
            .map_err(|error| error.context(format!("{disturbance:?}")))?;
        done += 1;
        work.goes_well()?;
        thread::sleep(REST);
        if begun.elapsed() >= MINUTE * (minute + 1) {
            minute = (begun.elapsed().as_secs() / MINUTE.as_secs()) as u32;
            let now = node.daemon()?.resident_kib()?;
            resident.get_or_insert(now);
            println!("{minute} min: {done} disturbances, {work}, {now} KiB");
        }
    }
    node.calm()?;
    let (used, others) = work.end()?;
    let held = crowd.agrees()?;
    println!(
        "{done} disturbances; {used} short-lived entitled uses allowed, {others} others refused"
    );
    accounts.have(held + others + node.refused(), None)?;
    let head = node.last_record()?;
    wait_for("the collector to have every record", || {
        collector.has_all(&head).then_some(())
    })?;
    println!(
        "the collector has {} records, each once or more",
        collector.count()
    );
    daemon::log_is_whole()?;
    thread::sleep(SETTLED);
    // It is counted up to now, and what has ended is forgotten.
    daemon::enforcer_json(&["usage", "-o", "json"])?;
    let (before, after) = (node.before(), daemon::tables()?);
    println!("tables at first {before:?}, at the end {after:?}");
    for (table, count) in &after {
        let first = before.get(table).copied().unwrap_or_default();
        ensure!(
            *count <= first + COMING_AND_GOING,
            "table {table} grew from {first} to {count} entries"
        );
    }
    if let Some(first) = resident {
        let last = node.daemon()?.resident_kib()?;
        println!("resident after a minute {first} KiB, at the end {last} KiB");
        ensure!(
            last <= first + GROWTH_KIB,
            "the daemon grew from {first} to {last} KiB"
        );
    }
    scene.off()?;
    Ok(true)
}

/// By xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
