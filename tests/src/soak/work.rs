//! Processes that come and go all the while: services and containers that use their credential, others that try to, shells,
//! and packages that are installed.

use std::{
    fmt,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{container::Containers, package::Package};
use crate::{
    cases::{entitled, other},
    harness::{Cgroup, check},
};

const KEY: &str = "read /srv/t/key";
/// The same in a container.
pub const KEY_INSIDE: &str = "read /secret/key";
/// Where a holder of it may send.
pub const HOME: &str = "tcp 10.20.0.2:9000";
/// Where it may not.
pub const ABROAD: &str = "tcp 10.20.0.66:9000";
/// Ways to the same file.
const DETOURS: [&str; 2] = [KEY, "read /proc/self/root/srv/t/key"];
/// Between two rounds of one worker.
const REST: Duration = Duration::from_millis(300);
/// What a shell does all day.
const SHELL: &str =
    "for i in 1 2 3 4 5 6 7 8; do (echo $i | cat | wc -c) >/dev/null || exit 1; done";

/// What all of them have done so far.
#[derive(Default)]
struct Counts {
    used: AtomicU64,
    refused: AtomicU64,
    unrelated: AtomicU64,
    done: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

/// What a worker does each time, of this number.
type Round = Box<dyn Fn(&Counts, u64) -> Result<()> + Send>;

/// The workers.
pub struct Work {
    counts: Arc<Counts>,
    workers: Vec<JoinHandle<()>>,
}

impl Work {
    /// Lets them begin.
    pub fn start() -> Result<Self> {
        let (containers, package) = (Containers::prepare()?, Package::build()?);
        let counts = Arc::new(Counts::default());
        let rounds: [Round; 5] = [
            Box::new(service),
            Box::new(attacker),
            Box::new(move |counts, _| {
                let (used, refused) = containers.both()?;
                counts.used.fetch_add(used, Ordering::Relaxed);
                counts.refused.fetch_add(refused, Ordering::Relaxed);
                Ok(())
            }),
            Box::new(move |counts, _| {
                package.comes_and_goes()?;
                counts.unrelated.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }),
            Box::new(shell),
        ];
        let workers = rounds.map(|round| {
            let counts = Arc::clone(&counts);
            thread::spawn(move || {
                let mut number = 0;
                while !counts.done.load(Ordering::Relaxed) {
                    if let Err(error) = round(&counts, number)
                        && let Ok(mut failure) = counts.failure.lock()
                    {
                        failure.get_or_insert(error);
                    }
                    number += 1;
                    thread::sleep(REST);
                }
            })
        });
        Ok(Self {
            counts,
            workers: workers.into(),
        })
    }

    /// Nobody has seen anything wrong yet.
    pub fn goes_well(&self) -> Result<()> {
        let failure = self.counts.failure.lock().ok();
        match failure.and_then(|mut it| it.take()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Ends it: how many uses were allowed, and how many refused; all as was due.
    pub fn end(mut self) -> Result<(u64, u64)> {
        self.counts.done.store(true, Ordering::Relaxed);
        for worker in std::mem::take(&mut self.workers) {
            worker.join().map_err(|_| anyhow!("a worker panicked"))?;
        }
        self.goes_well()?;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (used, refused) = (of(&self.counts.used), of(&self.counts.refused));
        ensure!(used > 0 && refused > 0, "nobody has done anything");
        Ok((used, refused))
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts {
            used,
            refused,
            unrelated,
            ..
        } = &*self.counts;
        write!(
            f,
            "{} used, {} refused, {} that have nothing to do with it",
            of(used),
            of(refused),
            of(unrelated)
        )
    }
}

/// In a unit of its own, which goes with it: it may read, and send where its entitlement says.
fn service(counts: &Counts, number: u64) -> Result<()> {
    let unit = Cgroup::unit(&format!("soak-{number}.service"))?;
    let outcome = entitled()
        .within(unit.name())
        .start([KEY, HOME, ABROAD])?
        .finish()?;
    let errors: Vec<i32> = (outcome.steps.iter().rev().take(3).rev())
        .map(|step| step.errno)
        .collect();
    ensure!(
        errors == [0, 0, libc::EPERM],
        "a service: {}",
        check::summary(&outcome)
    );
    counts.used.fetch_add(2, Ordering::Relaxed);
    counts.refused.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// It may not read, whichever way it takes.
fn attacker(counts: &Counts, _: u64) -> Result<()> {
    for way in DETOURS {
        let outcome = other().run([way])?;
        let step = outcome.last()?;
        ensure!(
            step.errno == libc::EPERM && step.read == 0,
            "an attacker: {}",
            check::summary(&outcome)
        );
        counts.refused.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// It has nothing to do with any credential, and must not feel anything.
fn shell(counts: &Counts, _: u64) -> Result<()> {
    let output = Command::new("sh")
        .args(["-c", SHELL])
        .stdin(Stdio::null())
        .output()
        .context("no shell")?;
    ensure!(
        output.status.success(),
        "`{SHELL}` ended with {} and said {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    counts.unrelated.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
