//! How many denials a second are told until some are lost, how many ordinary uses are counted, and what the daemon takes for it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cases::{Scene, entitled},
    harness::{Accounts, Bundle, Running, daemon, wait_for},
};

const KEY: &str = "read /srv/t/key";
const HOME: &str = "10.20.0.2:9000";
const ABROAD: &str = "10.20.0.66:9000";
/// Of one process not more than 16 denials are told in a second. Between two of them, microseconds.
const PAUSE_US: u64 = 1_000_000 / 12;
/// Room for all that is told: what has been taken out is in no account.
const LOG_BYTES: &str = "4294967296";
/// Who sends where it may, without a pause.
const USERS: usize = 20;
/// Beside what is measured.
const PATIENCE: Duration = Duration::from_secs(300);

/// `enforcer-tests throughput`.
#[derive(clap::Args)]
pub struct Args {
    /// For so long at each number of processes
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// So many processes are denied something a dozen times a second each, until something is lost
    #[arg(long, value_delimiter = ',', default_value = "50,100,200,400,800,1600")]
    processes: Vec<usize>,
}

/// Measures, and fails if a denial is neither told nor counted as lost, or a use not counted. The result is true, or an error.
pub fn run(args: &Args) -> Result<bool> {
    let how_long = Duration::from_secs(args.seconds);
    let mut scene = Scene::set_up(false)?;
    let bundle = Bundle::default()
        .file("key", "/srv/t/key")
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement("E", "app", "key", "destinations: [{cidr: 10.20.0.2}]");
    scene.small(&bundle, &["--log-bytes", LOG_BYTES])?;
    uses(&mut scene, how_long)?;
    for processes in &args.processes {
        if denials(&mut scene, *processes, how_long)? > 0 {
            break;
        }
    }
    daemon::log_is_whole()?;
    scene.off()?;
    Ok(true)
}

/// Returns how many were lost.
fn denials(scene: &mut Scene, processes: usize, how_long: Duration) -> Result<u64> {
    let accounts = Accounts::open()?;
    let work = Work::of(scene, processes, ABROAD, PAUSE_US, how_long)?;
    let account = accounts.have_in_a_flood(work.refused)?;
    println!(
        "{processes} processes: {work}, {} told and {} lost",
        account.told,
        account.lost()
    );
    Ok(account.lost())
}

fn uses(scene: &mut Scene, how_long: Duration) -> Result<()> {
    let before = used()?;
    let work = Work::of(scene, USERS, HOME, 0, how_long)?;
    // Each of them has read the key as well.
    let expected = before + work.allowed + USERS as u64;
    wait_for("every use to be counted", || {
        used().ok().filter(|now| *now >= expected)
    })
    .with_context(|| format!("expected {expected}, and there are {:?}", used()))?;
    ensure!(used()? == expected, "more were counted than there were");
    println!("{USERS} processes: {work}, all counted");
    Ok(())
}

/// How often the entitlement was used, as the daemon has it.
fn used() -> Result<u64> {
    let usage = daemon::enforcer_json(&["usage", "--entitlement", "E", "-o", "json"])?;
    Ok(usage["entitlements"][0]["used"]["count"]
        .as_u64()
        .unwrap_or(0))
}

/// What processes did that send over and over, and what the daemon took meanwhile.
struct Work {
    allowed: u64,
    refused: u64,
    took: Duration,
    cpu: Duration,
}

impl Work {
    fn of(
        scene: &mut Scene,
        processes: usize,
        to: &str,
        pause_us: u64,
        how_long: Duration,
    ) -> Result<Self> {
        let send = format!("hammer-udp {to} {pause_us}");
        let cpu = cpu(scene)?;
        let start = Instant::now();
        let all = (0..processes)
            .map(|_| {
                let mut one = entitled().start([KEY, &send])?;
                one.patiently(how_long + PATIENCE);
                Ok(one)
            })
            .collect::<Result<Vec<Running>>>()?;
        thread::sleep(how_long);
        let (mut allowed, mut refused) = (0, 0);
        for one in all {
            let outcome = one.finish()?;
            let counts = outcome.last()?;
            ensure!(counts.count("other") == 0, "a sender saw {}", counts.more);
            allowed += counts.count("opened");
            refused += counts.count("refused");
        }
        let took = start.elapsed();
        // What stands in the rings is still to be done.
        thread::sleep(Duration::from_secs(2));
        Ok(Self {
            allowed,
            refused,
            took,
            cpu: self::cpu(scene)? - cpu,
        })
    }
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.allowed + self.refused;
        write!(
            f,
            "{} allowed and {} refused in {:.1} s, {:.0} a second; the daemon took {:.2} s of processor, {:.1} s a million",
            self.allowed,
            self.refused,
            self.took.as_secs_f64(),
            count as f64 / self.took.as_secs_f64(),
            self.cpu.as_secs_f64(),
            self.cpu.as_secs_f64() * 1e6 / count.max(1) as f64,
        )
    }
}

/// How much of a processor the daemon has had.
fn cpu(scene: &mut Scene) -> Result<Duration> {
    let path = format!("/proc/{}/stat", scene.daemon()?.pid());
    let text = fs::read_to_string(&path)?;
    // The name before may have spaces in it. Times are the 14th and 15th field, in ticks (proc(5)).
    let ticks = text
        .rsplit_once(')')
        .and_then(|(_, rest)| {
            let mut fields = rest.split_whitespace().skip(11);
            let mut next = || fields.next()?.parse::<u64>().ok();
            Some(next()? + next()?)
        })
        .with_context(|| format!("{path} says {text:?}"))?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?
        .context("nobody knows how long a tick is")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
