//! What is done to the daemon and its surroundings.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::collector::Collector;
use crate::{
    cases::{Scene, clock::Stepped, entitled, standard},
    harness::{Bundle, Daemon, check, daemon, write},
};

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Disturbance {
    /// Another bundle that means the same to those who are watched.
    Bundle,
    /// An entitlement is taken back, and given again.
    Revocation,
    /// The key is replaced by a new file, forty times.
    Rotation,
    /// The daemon stands still for a while.
    Stopped,
    /// Nobody receives events for a while.
    Outage,
    /// The wall clock is a day off for a while.
    Clock,
    /// The daemon ends, and another one takes its place.
    Restart,
    /// It is killed.
    Kill,
}

/// Those that are possible here. Without programs that go on, somebody would rightly get through while no daemon runs, and
/// a new file is protected only a moment later.
pub fn all(shared: bool, gated_without_daemon: bool) -> impl Iterator<Item = Disturbance> {
    use Disturbance::{Bundle, Clock, Kill, Outage, Restart, Revocation, Rotation, Stopped};
    let always = [Bundle, Revocation, Stopped, Outage];
    let gated = [Rotation, Restart, Kill].into_iter();
    let clock = (!shared).then_some(Clock);
    let gated = gated.filter(move |_| gated_without_daemon);
    always.into_iter().chain(gated).chain(clock)
}

/// For so long something is stopped, away or off.
const A_WHILE: Duration = Duration::from_secs(3);
/// What is taken back and given again.
const TAKEN: &str = "/srv/t/taken-key";
const READ_TAKEN: &str = "read /srv/t/taken-key";

/// Room in the log for all that is told in hours: what has been taken out is in no account.
const LOG_BYTES: &str = "4294967296";

/// The node with its daemon.
pub struct Node<'a> {
    scene: &'a mut Scene,
    collector: &'a Collector,
    options: Vec<String>,
    before: BTreeMap<String, u64>,
    swaps: u64,
    refused: u64,
}

impl<'a> Node<'a> {
    /// Starts the daemon, which sends everything to the collector.
    pub fn start(scene: &'a mut Scene, collector: &'a Collector) -> Result<Self> {
        write(TAKEN, "the secret itself\n")?;
        write("/srv/t/added-key", "the secret itself\n")?;
        let sink = format!("soak={}", collector.url());
        let options = ["--sink", &sink, "--log-bytes", LOG_BYTES]
            .map(str::to_owned)
            .to_vec();
        let mut node = Self {
            scene,
            collector,
            options,
            before: BTreeMap::new(),
            swaps: 0,
            refused: 0,
        };
        let daemon = node.another()?;
        node.scene.start(|| Ok(daemon))?;
        // Every kind of bundle has been there once: numbers are kept.
        node.disturb(Disturbance::Bundle)?;
        node.disturb(Disturbance::Revocation)?;
        node.calm()?;
        node.before = daemon::tables()?;
        node.refused = 0;
        Ok(node)
    }

    /// Whether somebody is refused while no daemon runs.
    pub fn is_gated_without_daemon(&self) -> bool {
        daemon::status().is_ok_and(|it| it["tier"] != "fanotify")
    }

    /// What the tables had at first.
    pub fn before(&self) -> &BTreeMap<String, u64> {
        &self.before
    }

    /// The daemon.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.scene.daemon()
    }

    /// The epoch and number of the last record.
    pub fn last_record(&self) -> Result<(String, u64)> {
        let last = daemon::enforcer_json(&["events", "-o", "json", "--last", "1"])?;
        let number = last["sequence"].as_u64().context("no sequence")?;
        let epoch = last["epoch"].as_str().context("no epoch")?;
        Ok((epoch.to_owned(), number))
    }

    /// Back to how it was at first.
    pub fn calm(&mut self) -> Result<()> {
        self.collector.set_away(false);
        self.daemon()?.swap(&with_taken()?)
    }

    /// How many uses were refused by what was done here, since it has started.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Does one of them, and returns when it is over.
    pub fn disturb(&mut self, what: Disturbance) -> Result<()> {
        match what {
            Disturbance::Bundle => self.change_bundle(),
            Disturbance::Revocation => self.revoke(),
            Disturbance::Rotation => rotate(),
            Disturbance::Stopped => {
                self.daemon()?.signal(Signal::SIGSTOP)?;
                thread::sleep(A_WHILE);
                self.daemon()?.signal(Signal::SIGCONT)
            }
            Disturbance::Outage => {
                self.collector.set_away(true);
                thread::sleep(A_WHILE);
                self.collector.set_away(false);
                Ok(())
            }
            Disturbance::Clock => {
                let _stepped = Stepped::by_a_day(self.swaps.is_multiple_of(2))?;
                thread::sleep(A_WHILE);
                Ok(())
            }
            Disturbance::Restart => {
                self.scene.take().context("no daemon")?.hand_over()?;
                self.take_over()
            }
            Disturbance::Kill => {
                self.scene.take().context("no daemon")?.kill()?;
                self.take_over()
            }
        }
    }

    fn another(&self) -> Result<Daemon> {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Daemon::start(&with_taken()?, &options)
    }

    fn take_over(&mut self) -> Result<()> {
        let next = self.another()?;
        self.scene.put(next);
        ensure!(daemon::status()?["takenOver"] == true, "it began anew");
        Ok(())
    }

    fn change_bundle(&mut self) -> Result<()> {
        self.swaps += 1;
        let bundle = match self.swaps % 2 {
            0 => with_taken()?,
            // With another credential before the others: what has a number keeps it.
            _ => with_taken()?.file_first("aaa", "/srv/t/added-key"),
        };
        self.daemon()?.swap(&bundle)
    }

    fn revoke(&mut self) -> Result<()> {
        self.daemon()?.swap(&with_taken()?)?;
        let mut reader = entitled().start([READ_TAKEN, "pause", READ_TAKEN])?;
        reader.until("paused")?;
        self.daemon()?.swap(&without_grant()?)?;
        reader.go_on()?;
        let outcome = reader.finish()?;
        let errors: Vec<i32> = (outcome.steps.iter())
            .filter(|step| step.text == READ_TAKEN)
            .map(|step| step.errno)
            .collect();
        ensure!(
            errors == [0, libc::EPERM],
            "before and after it was taken back: {}",
            check::summary(&outcome)
        );
        self.refused += 1;
        self.daemon()?.swap(&with_taken()?)?;
        let outcome = entitled().run([READ_TAKEN])?;
        ensure!(
            outcome.last()?.errno == 0,
            "given again: {}",
            check::summary(&outcome)
        );
        Ok(())
    }
}

fn without_grant() -> Result<Bundle> {
    Ok(standard::bundle()?.file("taken", TAKEN))
}

fn with_taken() -> Result<Bundle> {
    Ok(without_grant()?.entitlement("E-taken", "app", "taken", standard::DESTINATIONS))
}

/// As whoever renews a secret should: in one step, so that there is always one.
fn rotate() -> Result<()> {
    for number in 0..40 {
        write("/srv/t/key.new", &format!("the secret itself {number}\n"))?;
        fs::rename("/srv/t/key.new", "/srv/t/key").context("cannot rotate")?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
