//! The catalogue of ways round an enforcer, as tests: each entry is tried next to its harmless twin, and must
//! come to what the registry says for this tier and kernel. `docs/coverage.md` is printed from the registry.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, bail};

use crate::{
    cases::Scene,
    harness::{self, Skipped},
};

pub mod coverage;
pub mod expected;
pub mod siege;
mod stage;

mod daemon;
mod environment;
mod families;
mod forwarding;
mod governance;
mod holders;
mod inbound;
mod inflight;
mod local;
mod memory;
mod packets;
mod reads;
mod tamper;

use expected::{Expected, Kernel, Seen, Tier};
use stage::Stage;

/// One row of the table.
pub struct Attack {
    /// The catalogue's entry; several rows may share one.
    id: &'static str,
    /// The test's name.
    name: &'static str,
    /// The technique, in a few words.
    title: &'static str,
    expected: Expected,
    run: fn(&mut Stage<'_>) -> Result<()>,
}

/// A row.
const fn attack(
    id: &'static str,
    name: &'static str,
    title: &'static str,
    expected: Expected,
    run: fn(&mut Stage<'_>) -> Result<()>,
) -> Attack {
    Attack {
        id,
        name,
        title,
        expected,
        run,
    }
}

/// A row that is only there to say why it cannot be tried.
const fn untried(
    id: &'static str,
    name: &'static str,
    title: &'static str,
    why: &'static str,
) -> Attack {
    attack(id, name, title, expected::not_run(why), |_| {
        bail!("there is nothing to run")
    })
}

/// Every row, by group.
const ALL: &[&[Attack]] = &[
    reads::ATTACKS,
    memory::ATTACKS,
    environment::ATTACKS,
    holders::ATTACKS,
    forwarding::ATTACKS,
    families::ATTACKS,
    packets::ATTACKS,
    inflight::ATTACKS,
    inbound::ATTACKS,
    local::ATTACKS,
    tamper::ATTACKS,
    daemon::ATTACKS,
    governance::ATTACKS,
];

/// How the rows came out.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
    not_run: u32,
}

/// What the rows are tried on.
struct Suite {
    scene: Scene,
    tier: Tier,
    kernel: Kernel,
    /// Whether there are others on this machine.
    shared: bool,
    tally: Tally,
}

impl Suite {
    /// The daemon, and everything the rows need.
    fn set_up(shared: bool) -> Result<Self> {
        let mut scene = Scene::set_up(false)?;
        stage::make_files()?;
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
            .context("cannot allow ping sockets")?;
        scene.on(&stage::standard_bundle()?)?;
        let status = harness::daemon::status()?;
        let tier = expected::tier(status["tier"].as_str().unwrap_or_default())?;
        let uname = nix::sys::utsname::uname()?;
        let kernel = expected::kernel(&uname.release().to_string_lossy())?;
        println!("tier {}, kernel {}.{}", tier.name(), kernel.0, kernel.1);
        Ok(Self {
            scene,
            tier,
            kernel,
            shared,
            tally: Tally::default(),
        })
    }

    /// Tries one row, and says and counts how it came out.
    fn try_one(&mut self, attack: &Attack) {
        let Attack { id, name, .. } = attack;
        let seen = attack.expected.here(self.tier, self.kernel);
        if let Seen::NotRun(why) = seen {
            self.tally.not_run += 1;
            println!("not run {id} {name}: {why}");
            return;
        }
        let start = Instant::now();
        let before = match seen {
            Seen::CaughtOrTold(_) => passed_over().ok(),
            _ => None,
        };
        let mut stage = Stage {
            scene: &mut self.scene,
            seen,
            shared: self.shared,
            refusals: &[libc::EPERM],
            reasons: "",
        };
        let result = (attack.run)(&mut stage).or_else(|error| match before {
            Some(before) => told(before, error),
            None => Err(error),
        });
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.tally.passed += 1;
                println!("ok {id} {name}: {seen} ({seconds:.1} s)");
            }
            Err(error) => match error.downcast_ref::<Skipped>() {
                Some(why) => {
                    self.tally.skipped += 1;
                    println!("skipped {id} {name}: {why} ({seconds:.1} s)");
                }
                None => {
                    self.tally.failed += 1;
                    println!("FAILED {id} {name}: {error:#} ({seconds:.1} s)");
                }
            },
        }
    }

    /// Ends the daemon and sums up. The result is whether all came to what is expected.
    fn end(mut self) -> Result<bool> {
        self.scene.off().context("the daemon did not end well")?;
        let Tally {
            passed,
            failed,
            skipped,
            not_run,
        } = self.tally;
        println!("{not_run} as listed cannot be run here");
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        Ok(failed == 0)
    }
}

/// All rows with `filter` in `ID name`.
fn rows(filter: &str) -> impl Iterator<Item = &'static Attack> {
    let all = ALL.iter().copied().flatten();
    all.filter(move |attack| format!("{} {}", attack.id, attack.name).contains(filter))
}

/// Runs all attacks with `filter` in `ID name`. The result is whether all came to what is expected.
pub fn run(filter: &str, shared: bool) -> Result<bool> {
    let mut suite = Suite::set_up(shared)?;
    for attack in rows(filter) {
        suite.try_one(attack);
    }
    suite.end()
}

/// How many calls the daemon says that programs were passed over for.
fn passed_over() -> Result<u64> {
    let status = harness::daemon::status()?;
    let programs = status["passedOver"]
        .as_object()
        .context("status does not say what was passed over")?;
    Ok(programs
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum())
}

/// Something got through: the daemon must have told why.
fn told(before: u64, error: anyhow::Error) -> Result<()> {
    let Ok(more) = harness::wait_for("programs passed over", || {
        passed_over()
            .ok()?
            .checked_sub(before)
            .filter(|more| *more > 0)
    }) else {
        return Err(error.context("nothing was told of it"));
    };
    println!("  {more} calls were passed over, and told: {error:#}");
    Ok(())
}
