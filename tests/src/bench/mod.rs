//! What the enforcer costs: operations without it and with it, by how much there is in its tables.
//!
//! Where time counts instructions (`cargo xtask bench`), figures repeat; elsewhere both ways are measured in turns, and
//! only their differences and ratios mean something.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_common::capacity::HOLDERS;
use serde_json::{Value, json};

use crate::{
    bpf,
    harness::{Bundle, Daemon, daemon, wait_for},
};

pub mod holders;
pub mod operations;
pub mod scale;

use holders::Holders;
use operations::Set;

/// How it is measured.
#[derive(clap::Args)]
pub struct Args {
    /// The tier that the daemon is told to use; without, it chooses
    #[arg(long)]
    tier: Option<String>,
    /// How many entitlements there are, one measurement for each
    #[arg(long, value_delimiter = ',', default_value = "10,1000")]
    entitlements: Vec<usize>,
    /// How many processes hold a credential meanwhile
    #[arg(long, default_value_t = 0)]
    holders: usize,
    /// How often each operation is done
    #[arg(long, default_value_t = 200)]
    times: usize,
    /// How often all of it is measured, with and without the daemon in turns
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

/// Medians of one operation, of each round.
#[derive(Clone, Debug, Default)]
struct Cost {
    without: Vec<u64>,
    /// For each number of entitlements.
    with: Vec<Vec<u64>>,
}

/// Measures, and prints a table and one line of JSON with the same.
pub fn run(args: &Args) -> Result<()> {
    if let Some(tier) = &args.tier {
        daemon::use_tier(tier.clone());
    }
    operations::set_up()?;
    let mut costs: Vec<(String, Cost)> = Vec::new();
    let mut sizes = Vec::new();
    for round in 0..args.rounds {
        for (name, median) in measured(args.times)? {
            let cost = entry(&mut costs, &name);
            cost.without.push(median);
            cost.with.resize(args.entitlements.len(), Vec::new());
        }
        let mut running: Option<Daemon> = None;
        let mut holders = None;
        for (at, entitlements) in args.entitlements.iter().enumerate() {
            let bundle = scale::bundle(*entitlements)?;
            let start = Instant::now();
            let applied = match &mut running {
                None => {
                    let room = args.holders.max(HOLDERS as usize).to_string();
                    let all = ["--holders", &room];
                    let options: &[&str] = if args.holders > 0 { &all } else { &[] };
                    running = Some(Daemon::start(&bundle, options)?);
                    "started and in force"
                }
                Some(daemon) => {
                    daemon.swap(&bundle)?;
                    "in force"
                }
            };
            let applied_ns = start.elapsed().as_nanos();
            let daemon = running.as_mut().context("no daemon")?;
            ensure!(
                fs::File::open(operations::DENIED).is_err(),
                "{} can be opened, so nothing that is measured is a denial",
                operations::DENIED
            );
            if args.holders > 0 && holders.is_none() {
                holders = Some(Holders::gather(args.holders)?);
            }
            until_idle(daemon)?;
            for (name, median) in measured(args.times)? {
                entry(&mut costs, &name).with[at].push(median);
            }
            if round == 0 {
                let size = json!({"entitlements": entitlements, "what": applied, "ns": applied_ns,
                    "memory": memory(daemon)?, "delta": delta(daemon, &bundle)?});
                println!("{size}");
                sizes.push(size);
                if at == 0 {
                    programs(daemon, args.times)?;
                }
            }
        }
        drop(holders);
        if let Some(daemon) = running {
            daemon.stop()?;
        }
    }
    print(&args.entitlements, &costs);
    let operations: Vec<Value> = costs.iter().map(|(name, cost)| of(name, cost)).collect();
    println!(
        "{}",
        json!({"entitlements": args.entitlements, "operations": operations, "sizes": sizes})
    );
    Ok(())
}

/// All operations once, in order.
fn measured(times: usize) -> Result<Vec<(String, u64)>> {
    let mut all = Vec::new();
    for set in Set::ALL {
        all.extend(one(set, times)?);
    }
    Ok(all)
}

/// One set.
fn one(set: Set, times: usize) -> Result<Vec<(String, u64)>> {
    // Nobody accepts: connections and what they carry wait in its queue, and go with it.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let peer: SocketAddr = listener.local_addr()?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096)?)?;
    let _datagrams = UdpSocket::bind(peer)?;
    operations::of(set, times, peer)
}

/// Prints how often each program runs in each set, and how long, as the kernel counts it: with what counting costs; and how
/// often the daemon was woken.
fn programs(daemon: &Daemon, times: usize) -> Result<()> {
    const COUNT: &str = "/proc/sys/kernel/bpf_stats_enabled";
    fs::write(COUNT, "1").context("cannot count the runs")?;
    for set in Set::ALL {
        let before = bpf::programs()?;
        // It is told who looks at its programs.
        until_idle(daemon)?;
        let slept = sleeps(daemon)?;
        one(set, times)?;
        println!(
            "programs, {set:?}, who woke the daemon {} times:",
            sleeps(daemon)? - slept
        );
        for (name, after) in bpf::programs()? {
            let before = before.get(&name).copied().unwrap_or_default();
            let (runs, time_ns) = (after.count - before.count, after.time_ns - before.time_ns);
            // Others do something now and then, too.
            if runs >= times as u64 / 2 {
                println!("  {name:<20} {runs:>8} runs, {:>6} ns each", time_ns / runs);
            }
        }
    }
    fs::write(COUNT, "0").context("cannot end counting the runs")
}

/// Waits until the daemon has done what it still has to do: it hashes a program that it has not seen before, and on one
/// processor that takes turns with what is measured.
fn until_idle(daemon: &Daemon) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(500);
    const IDLE_NS: u64 = 2_000_000;
    wait_for("the daemon to be idle", || {
        let before = ran_ns(daemon).ok()?;
        thread::sleep(LOOK);
        (ran_ns(daemon).ok()? < before + IDLE_NS).then_some(())
    })
}

/// How long the daemon's threads have run.
fn ran_ns(daemon: &Daemon) -> Result<u64> {
    of_threads(daemon, "schedstat", |text| {
        text.split_whitespace().next()?.parse().ok()
    })
}

/// How often the daemon's threads went to sleep.
fn sleeps(daemon: &Daemon) -> Result<u64> {
    of_threads(daemon, "status", |text| {
        let mut lines = text.lines();
        let switches = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        switches?.trim().parse().ok()
    })
}

/// Sums what one file says of each of its threads.
fn of_threads(daemon: &Daemon, file: &str, number: fn(&str) -> Option<u64>) -> Result<u64> {
    let mut all = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        let path = thread?.path().join(file);
        let text = fs::read_to_string(&path)?;
        all += number(&text).with_context(|| format!("{} says {text:?}", path.display()))?;
    }
    Ok(all)
}

/// How long one entitlement more takes to be in force.
fn delta(daemon: &mut Daemon, bundle: &Bundle) -> Result<u64> {
    let start = Instant::now();
    let more = bundle.clone().entitlement(
        "E-more",
        "holder",
        "denied",
        "destinations: none, validUntil: 2020-01-01T00:00:00Z",
    );
    daemon.swap(&more)?;
    Ok(u64::try_from(start.elapsed().as_nanos())?)
}

/// Memory of the daemon and of the kernel's tables, bytes.
fn memory(daemon: &Daemon) -> Result<Value> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let (maps, bytes) = bpf::map_bytes()?;
    Ok(json!({
        "residentBytes": kib("VmRSS:").unwrap_or_default() * 1024,
        "mostResidentBytes": kib("VmHWM:").unwrap_or_default() * 1024,
        "maps": maps,
        "mapBytes": bytes,
    }))
}

fn entry<'a>(costs: &'a mut Vec<(String, Cost)>, name: &str) -> &'a mut Cost {
    let at = costs.iter().position(|(other, _)| other == name);
    let at = at.unwrap_or_else(|| {
        costs.push((name.to_owned(), Cost::default()));
        costs.len() - 1
    });
    &mut costs[at].1
}

/// The median over the rounds.
fn middle(rounds: &[u64]) -> u64 {
    let mut rounds = rounds.to_vec();
    rounds.sort_unstable();
    rounds.get(rounds.len() / 2).copied().unwrap_or_default()
}

fn of(name: &str, cost: &Cost) -> Value {
    let with: Vec<u64> = cost.with.iter().map(|it| middle(it)).collect();
    json!({"name": name, "withoutNs": middle(&cost.without), "withNs": with})
}

fn print(entitlements: &[usize], costs: &[(String, Cost)]) {
    print!("{:<42}{:>10}", "ns", "without");
    for count in entitlements {
        print!("{:>12}", format!("{count} ent."));
    }
    println!();
    for (name, cost) in costs {
        let without = middle(&cost.without);
        print!("{name:<42}{without:>10}");
        for with in &cost.with {
            let added = middle(with).cast_signed() - without.cast_signed();
            print!("{:>12}", format!("{added:+}"));
        }
        println!();
    }
}
