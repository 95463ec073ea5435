//! Many denials a second, and several who watch: what is not told one by one is counted, whoever does not read what he
//! asked for disturbs nobody, and the daemon stays as small as it was.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use crate::{
    cases::{Scene, entitled, standard},
    harness::{Allowed, Refused, Running, check, daemon, wait_for},
};

const KEY: &str = "read /srv/t/key";
const ALLOWED: &str = "tcp 10.20.0.2:9000";
const ABROAD: &str = "10.20.0.66:9000";
/// Between two tries of a sender, microseconds: what a sleep takes comes on top.
const PAUSE_US: u64 = 200;
/// What the allocator may keep, and what stands in buffers.
const GROWTH_KIB: u64 = 32 * 1024;

/// `enforcer-tests flood`.
#[derive(clap::Args)]
pub struct Args {
    /// For so long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many processes send; each makes some 3,000 a second on a quick machine
    #[arg(long, default_value_t = 20)]
    senders: usize,
    /// How many watch; the last of them never looks
    #[arg(long, default_value_t = 4)]
    watchers: usize,
}

/// Floods for a quarter of the time unwatched, and then watched. The result is true, or an error.
pub fn run(args: &Args) -> Result<bool> {
    let mut scene = Scene::set_up(false)?;
    scene.on(&standard::bundle()?)?;
    let how_long = Duration::from_secs(args.seconds);
    let told = Watcher::start()?;
    let before = flood(&mut scene, args.senders, how_long / 4)?;
    println!("unwatched: {before}");

    let watchers = (1..args.watchers)
        .map(|_| Watcher::start())
        .collect::<Result<Vec<_>>>()?;
    let mut stuck = watch()?;
    let watched = flood(&mut scene, args.senders, how_long)?;
    println!("with {} who watch: {watched}", args.watchers);

    let refused = before.refused + watched.refused;
    let seen = wait_for("every denial to be told or counted", || {
        let seen = told.seen().ok()?;
        (seen.told + seen.counted >= refused).then_some(seen)
    })
    .with_context(|| format!("{refused} were refused, and {:?}", told.seen()))?;
    println!(
        "{refused} refused = {} told + {} counted as lost",
        seen.told, seen.counted
    );
    ensure!(
        seen.told + seen.counted == refused,
        "more than were refused"
    );
    // What was told after the last of them began to watch, all of them have.
    for watcher in watchers {
        wait_for("each watcher to have all", || {
            (watcher.seen().ok()?.last >= seen.last).then_some(())
        })?;
        watcher.end()?;
    }
    told.end()?;
    ensure!(
        stuck.try_wait()?.is_none(),
        "the one who never looks was not waiting any more"
    );
    stuck.kill()?;
    stuck.wait()?;
    daemon::log_is_whole()?;
    scene.off()?;
    Ok(true)
}

/// What a flood came to.
struct Flood {
    refused: u64,
    took: Duration,
    /// The daemon's memory at first, and the most of it, KiB.
    memory_kib: (u64, u64),
    checks: u64,
}

impl std::fmt::Display for Flood {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64();
        let (first, most) = self.memory_kib;
        write!(
            f,
            "{} denials in {seconds:.1} s, {:.0} a second; {} other decisions as ever; the daemon had {first} KiB, {most} KiB at most",
            self.refused,
            self.refused as f64 / seconds,
            self.checks,
        )
    }
}

/// Holders send where they may not, and others go on as ever.
fn flood(scene: &mut Scene, senders: usize, how_long: Duration) -> Result<Flood> {
    let send = format!("hammer-udp {ABROAD} {PAUSE_US}");
    let start = Instant::now();
    let senders = (0..senders)
        .map(|_| {
            let mut sender = entitled().start([KEY, &send])?;
            sender.patiently(how_long + Duration::from_secs(300));
            sender.until("hammering")?;
            Ok(sender)
        })
        .collect::<Result<Vec<Running>>>()?;
    let first = scene.daemon()?.resident_kib()?;
    let (mut most, mut checks) = (first, 0);
    while start.elapsed() < how_long {
        let other = crate::cases::other();
        scene.check(&other, &[(KEY, Refused("")), ("read /etc/passwd", Allowed)])?;
        scene.check(&entitled(), &[(KEY, Allowed), (ALLOWED, Allowed)])?;
        checks += 4;
        most = most.max(scene.daemon()?.resident_kib()?);
        thread::sleep(Duration::from_millis(500));
    }
    let mut refused = 0;
    for sender in senders {
        refused += check::readers_agree(&sender.finish()?, false)?;
    }
    ensure!(
        most <= first + GROWTH_KIB,
        "the daemon grew from {first} to {most} KiB"
    );
    Ok(Flood {
        refused,
        took: start.elapsed(),
        memory_kib: (first, most),
        checks,
    })
}

/// What somebody who watches has seen.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Denials of the senders.
    told: u64,
    /// Denials that were not told one by one.
    counted: u64,
    /// The number of the last record.
    last: u64,
}

/// Somebody who watches, and reads what comes.
struct Watcher {
    child: Child,
    seen: Arc<Mutex<Result<Seen>>>,
}

fn watch() -> Result<Child> {
    Command::new("enforcer")
        .args(["events", "-f", "-o", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run `enforcer events`")
}

impl Watcher {
    fn start() -> Result<Self> {
        let mut child = watch()?;
        let output = child.stdout.take().context("no standard output")?;
        let seen = Arc::new(Mutex::new(Ok(Seen::default())));
        let all = Arc::clone(&seen);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(mut seen) = all.lock() else { return };
                let next = match &*seen {
                    Ok(before) => before.with(&line),
                    Err(_) => return,
                };
                *seen = next;
            }
        });
        Ok(Self { child, seen })
    }

    fn seen(&self) -> Result<Seen> {
        let seen = self.seen.lock().map_err(|_| anyhow!("a reader panicked"))?;
        match &*seen {
            Ok(seen) => Ok(*seen),
            Err(error) => Err(anyhow!("{error:#}")),
        }
    }

    fn end(mut self) -> Result<()> {
        self.seen()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Seen {
    /// With one record more, which is the next.
    fn with(self, line: &str) -> Result<Self> {
        let record: Value = serde_json::from_str(line)?;
        let number = record["sequence"].as_u64().context("no sequence")?;
        ensure!(
            self.last == 0 || number == self.last + 1,
            "after {} came {number}",
            self.last
        );
        let mut seen = Self {
            last: number,
            ..self
        };
        let to = &record["destination"]["address"];
        if record["verdict"] == "deny" && ABROAD.starts_with(to.as_str().unwrap_or("-")) {
            seen.told += 1;
        }
        if record["kind"] == "lost" && record["stage"] == "denials" {
            seen.counted += record["count"].as_u64().context("no count")?;
        }
        Ok(seen)
    }
}
