//! The attacks over and over, beside a workload that is entitled to what it does and must not fail once.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{Suite, rows};
use crate::{
    bundle,
    harness::{Actor, PROGRAMS, copy_program, daemon, write},
};

/// What is left of the last row has ended by then: connections that are closed, processes that exit.
const SETTLED: Duration = Duration::from_secs(5);
/// As many entries more than at first may be in a table: what just now comes and goes.
const COMING_AND_GOING: u64 = 4;
/// The allocator keeps some of what it once had.
const GROWTH_KIB: u64 = 8 * 1024;

/// Takes the hooks off, as who may; all holders are to feel that, the workload too.
const FELT_BY_ALL: &str = "tracing_switched_off_all_the_same";

/// What must not grow.
#[derive(Debug)]
struct Size {
    resident_kib: u64,
    tables: BTreeMap<String, u64>,
}

/// Runs all rows with `filter` in `ID name` again and again, for so long. The result is whether all came to what is
/// expected, nothing grew, and the workload never failed.
pub fn run(filter: &str, how_long: Duration, shared: bool) -> Result<bool> {
    bundle::with_steady();
    copy_program(format!("{PROGRAMS}/steady"))?;
    let mut suite = Suite::set_up(shared)?;
    write("/srv/t/steady-key", "the secret itself\n")?;
    let start = Instant::now();
    let mut steady = Actor::new(format!("{PROGRAMS}/steady"))
        .start(["steady /srv/t/steady-key 10.20.0.2:9000"])?;
    steady.patiently(how_long * 2 + Duration::from_secs(3600));
    steady.until("working")?;

    // Rows that end the daemon are run once: what grows in one daemon is looked for.
    let mut once = BTreeSet::new();
    let mut sizes = Vec::new();
    while sizes.len() < 2 || start.elapsed() < how_long {
        for attack in rows(filter) {
            if once.contains(attack.name) || attack.name == FELT_BY_ALL {
                continue;
            }
            let before = suite.scene.daemon().map(|daemon| daemon.pid()).ok();
            suite.try_one(attack);
            let after = suite.scene.daemon().map(|daemon| daemon.pid()).ok();
            if before != after {
                once.insert(attack.name);
            }
        }
        let size = Size::now(&mut suite)?;
        println!(
            "round {} after {:.0} s: {} passed, {} failed; {size:?}",
            sizes.len() + 1,
            start.elapsed().as_secs_f64(),
            suite.tally.passed,
            suite.tally.failed,
        );
        sizes.push(size);
    }
    let outcome = steady.finish()?;
    let work = outcome.last()?;
    println!("the entitled workload: {}", work.more);
    let all_well = suite.end()?;
    ensure!(
        work.count("done") > 0 && work.count("failed") == 0,
        "the entitled workload failed: {}",
        work.more
    );
    // The first round still had several daemons.
    if let [_, first, .., last] = &sizes[..] {
        last.has_not_grown(first)?;
    }
    Ok(all_well)
}

impl Size {
    /// Of the daemon and its tables, with the standard bundle in force.
    fn now(suite: &mut Suite) -> Result<Self> {
        suite.scene.on(&super::stage::standard_bundle()?)?;
        thread::sleep(SETTLED);
        let resident_kib = suite.scene.daemon()?.resident_kib()?;
        let tables = daemon::enforcer_json(&["status", "--tables", "-o", "json"])?;
        Ok(Self {
            resident_kib,
            tables: serde_json::from_value(tables)?,
        })
    }

    fn has_not_grown(&self, first: &Self) -> Result<()> {
        ensure!(
            self.resident_kib <= first.resident_kib + GROWTH_KIB,
            "the daemon grew from {} to {} KiB",
            first.resident_kib,
            self.resident_kib
        );
        for (table, count) in &self.tables {
            let before = first.tables.get(table).copied().unwrap_or_default();
            ensure!(
                *count <= before + COMING_AND_GOING,
                "table {table} grew from {before} to {count} entries"
            );
        }
        Ok(())
    }
}
