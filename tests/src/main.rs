//! Integration tests against a running kernel and daemon, and the demonstration.
//!
//! Runs as root, in a guest of its own or else in namespaces: it mounts, adds users' processes and devices, and
//! in a guest sets the clock.
//! One program plays every part: the runner, the peer outside, and, under other names, the actors.

use std::{env, path::Path, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

mod actor;
mod attacks;
mod bench;
mod bpf;
mod bundle;
mod cases;
mod demo;
mod evidence;
mod fleet;
mod flood;
mod harness;
mod isolate;
mod peer;
mod pods;
mod replay;
mod soak;
mod throughput;

/// Integration tests of the enforcer, and its demonstration.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the cases, one after the other
    Guest {
        /// Only the cases with this in their names, or with one of several that `|` separates
        #[arg(long, value_name = "TEXT", default_value = "")]
        filter: String,
        /// Do a tenth of what is done many times
        #[arg(long)]
        brief: bool,
    },
    /// Hand secrets on by Debian's Python, git, ssh and docker, where the guest has them (`xtask vm --tools`)
    Tools,
    /// Try the ways round the enforcer, each next to its harmless twin
    Attacks {
        /// The tier that the daemon is told to use; without, it chooses
        #[arg(long)]
        tier: Option<String>,
        /// Only those with this in their id and name, as in `A01 io_uring`
        #[arg(long, value_name = "TEXT", default_value = "")]
        filter: String,
        /// In namespaces and a cgroup of its own, as always where this is no test guest
        #[arg(long)]
        isolated: bool,
    },
    /// Try them over and over beside an entitled workload: nothing grows, and the workload never fails
    Siege {
        /// For so long
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// Only those with this in their id and name
        #[arg(long, value_name = "TEXT", default_value = "")]
        filter: String,
    },
    /// Everything together: work and attacks go on while bundles, secrets, daemons, the clock and receivers of events come and
    /// go
    Soak(soak::Args),
    /// How many denials a second are told until some are lost, how many uses are counted, and what the daemon takes for it
    Throughput(throughput::Args),
    /// Kill daemons at any moment of their lives, under readers and senders for whom that makes no difference
    Kills {
        /// How many
        #[arg(long, default_value_t = 1_000)]
        count: u64,
        /// From each so manieth on they are of another build
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
        upgrades: u64,
        /// Where the random moments start
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// A pod, a service and a session at work beside each other: nothing leaks, is lost or left
    Mixed {
        /// For so long
        #[arg(long, default_value_t = 30)]
        minutes: u64,
    },
    /// Have tens of thousands of denials a second under the eyes of several who watch, one of whom never looks: every one
    /// is told or counted, and the daemon does not grow
    Flood(flood::Args),
    /// Have pods of a real container runtime read a secret
    Pods(pods::Args),
    /// Print docs/coverage.md
    Coverage,
    /// Tell the story
    Demo,
    /// Measure what operations cost with the daemon and without
    Bench(bench::Args),
    /// Measure how soon a revocation is in the kernel
    Revocations {
        /// How many
        #[arg(long, default_value_t = 200)]
        count: usize,
        /// How many entitlements there are besides
        #[arg(long, default_value_t = 0)]
        entitlements: usize,
    },
    /// Measure governance servers with many nodes
    Fleet {
        /// How many
        #[arg(long, default_value_t = 5_000)]
        nodes: usize,
        /// How many entitlements each has
        #[arg(long, default_value_t = 100)]
        entitlements: usize,
        /// How many servers; several have a cluster of NATS, and one of each is killed at the end
        #[arg(long, default_value_t = 1)]
        servers: u16,
    },
    /// Compare the kernel's decisions with the host's
    Replay {
        /// How many cases, at least
        #[arg(long, default_value_t = 3_000)]
        cases: usize,
        /// Where the random cases start
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Do steps as a process of its own; `actor/mod.rs` lists them
    Act {
        /// The steps
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        steps: Vec<String>,
    },
    /// Be a process that measures
    #[command(hide = true)]
    Measure {
        set: bench::operations::Set,
        times: usize,
        peer: std::net::SocketAddr,
    },
    /// Be the first of processes that hold what is measured
    #[command(hide = true)]
    Hold { count: usize },
    /// Be a node that only reports
    #[command(hide = true)]
    Report {
        directory: std::path::PathBuf,
        url: String,
        node: String,
    },
    /// Be the world outside
    #[command(hide = true)]
    Peer,
}

fn main() -> ExitCode {
    let mut words = env::args();
    let name = words.next().unwrap_or_default();
    // A copy under another name is an actor.
    if Path::new(&name).file_name() != Some("enforcer-tests".as_ref()) {
        return actor::main(words.collect());
    }
    let result = match Cli::parse().command {
        Command::Act { steps } => return actor::main(steps),
        Command::Guest { filter, brief } => return apart(false, |_| cases::run(&filter, brief)),
        Command::Tools => return apart(false, |_| cases::run_with_tools()),
        Command::Attacks {
            tier,
            filter,
            isolated,
        } => {
            if let Some(tier) = tier {
                harness::daemon::use_tier(tier);
            }
            return apart(isolated, |shared| attacks::run(&filter, shared));
        }
        Command::Throughput(args) => return apart(false, |_| throughput::run(&args)),
        Command::Soak(args) => return apart(false, |shared| soak::run(&args, shared)),
        Command::Siege { minutes, filter } => {
            let how_long = Duration::from_secs(60 * minutes);
            return apart(false, |shared| {
                attacks::siege::run(&filter, how_long, shared)
            });
        }
        Command::Kills {
            count,
            upgrades,
            seed,
        } => {
            return apart(false, |_| cases::kills::run(count, upgrades, seed));
        }
        Command::Mixed { minutes } => {
            let how_long = Duration::from_secs(60 * minutes);
            return apart(false, |_| cases::mixed::run(how_long));
        }
        Command::Flood(args) => return apart(false, |_| flood::run(&args)),
        Command::Pods(args) => return apart(true, |_| pods::run(&args)),
        Command::Coverage => {
            print!("{}", attacks::coverage::table());
            Ok(true)
        }
        Command::Revocations {
            count,
            entitlements,
        } => {
            return apart(false, |_| cases::governance::measure(count, entitlements));
        }
        Command::Report {
            directory,
            url,
            node,
        } => evidence::run(&directory, &url, &node),
        Command::Demo => demo::run(),
        Command::Fleet {
            nodes,
            entitlements,
            servers,
        } => fleet::run(nodes, entitlements, servers),
        Command::Bench(args) => return apart(false, |_| bench::run(&args).map(|()| true)),
        Command::Measure { set, times, peer } => {
            bench::operations::run(set, times, peer).map(|()| true)
        }
        Command::Hold { count } => bench::holders::run(count).map(|()| true),
        Command::Replay { cases, seed } => replay::run(cases, seed),
        Command::Peer => peer::run().map(|()| true),
    };
    exit_code(result)
}

/// Runs in namespaces of its own, unless the whole machine is for tests. It is told whether there are others.
fn apart(isolated: bool, run: impl FnOnce(bool) -> anyhow::Result<bool>) -> ExitCode {
    if !isolated && isolate::in_guest() {
        return exit_code(run(false));
    }
    isolate::run(|| exit_code(run(true))).unwrap_or_else(|error| exit_code(Err(error)))
}

fn exit_code(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("enforcer-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}
