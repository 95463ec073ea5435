//! Pods in a real container runtime, made as kubelet makes them: who is entitled reads from its first instruction on, and
//! nobody else ever.

mod containerd;
mod cri;
mod engines;
mod identity;
mod kubelet;
mod named;
mod secrets;
mod stage;
mod starts;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result};

use crate::harness::write;
use containerd::Containerd;
use cri::Runtime;
use engines::Kind;
use stage::{SECRET, Stage};

/// `enforcer-tests pods`.
#[derive(clap::Args)]
pub struct Args {
    /// Where containerd, runc and ctr are, in `usr/bin` and `usr/sbin`
    #[arg(long)]
    programs: PathBuf,
    /// How many pods are started at once
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Only the cases with this in their names
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
}

type Case = (&'static str, fn(&mut Stage<'_>) -> Result<()>);

const CASES: &[Case] = &[
    ("who_is_in_a_pod", identity::who_is_in_a_pod),
    ("which_program_in_it", identity::which_program_in_it),
    ("left_in_an_image", secrets::left_in_an_image),
    ("many_at_once", starts::many_at_once),
    (
        "secrets_that_are_rotated",
        secrets::secrets_that_are_rotated,
    ),
    ("no_identity_is_borrowed", identity::no_identity_is_borrowed),
    ("nobody_knows_it", starts::nobody_knows_it),
    ("nobody_waits_for_it", starts::nobody_waits_for_it),
    ("the_daemon_is_gone", starts::the_daemon_is_gone),
    ("docker_runs_it", |stage| {
        named::an_engine_runs_it(stage, Kind::Docker)
    }),
    ("podman_runs_it", |stage| {
        named::an_engine_runs_it(stage, Kind::Podman)
    }),
];

/// Runs the cases. The result is whether all went well.
pub fn run(args: &Args) -> Result<bool> {
    write(format!("{SECRET}/key"), "the secret itself\n")?;
    let containerd = Containerd::start(&args.programs)?;
    let cri = Runtime::connect(&Containerd::socket())?;
    cri.answers().with_context(Containerd::log)?;
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES.iter().filter(|it| it.0.contains(&args.filter)) {
        let start = Instant::now();
        let mut stage = Stage {
            programs: &args.programs,
            containerd: &containerd,
            cri: cri.clone(),
            pods: Vec::new(),
            count: args.pods,
        };
        let result = case(&mut stage);
        let cleared = stage.clear();
        let took = start.elapsed().as_secs_f64();
        match result.and(cleared) {
            Ok(()) => {
                passed += 1;
                println!("ok {name} ({took:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED {name}: {error:#} ({took:.1} s)");
            }
        }
    }
    println!("{passed} passed, {failed} failed, 0 skipped");
    Ok(failed == 0)
}
