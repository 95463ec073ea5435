//! What the enforcer costs, in guests whose time counts instructions.

use std::{
    fs,
    process::{Command, ExitCode},
    sync::Mutex,
};

use anyhow::{Context as _, Result};

use crate::{cmd, demo::Tee, kernels::Wanted, paths, programs, setup, toolchain, vm};

/// `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Measure only on this kernel (may be repeated), and nothing on this machine
    #[arg(long)]
    kernel: Vec<Wanted>,
    /// Measure on this tier (may be repeated): lsm, modify-return or fanotify
    #[arg(long, default_values = ["lsm", "fanotify"])]
    tier: Vec<String>,
    /// How many entitlements there are, one measurement for each
    #[arg(long, default_value = "10,1000")]
    entitlements: String,
    /// How many processes hold a credential meanwhile
    #[arg(long, default_value_t = 0)]
    holders: usize,
    /// Measure with what is built
    #[arg(long)]
    no_build: bool,
}

/// Measures on each kernel and tier, or where none is asked for on 6.1 and the newest, and then on this machine how much is told
/// until something is lost, by the `fanotify` tier, and the daemon's own work by criterion. What guests print is also in
/// `target/bench`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let status = in_guests(args)?;
    if args.kernel.is_empty() && status == ExitCode::SUCCESS {
        let mut here = Command::new("enforcer-tests");
        here.arg("throughput")
            .env("ENFORCER_TIER", "fanotify")
            .env("PATH", paths::path_with_programs()?);
        cmd::stream(&mut here)?;
        let mut cargo = toolchain::host_cargo();
        cmd::stream(cargo.args(["bench", "--package", "enforcer"]))?;
    }
    Ok(status)
}

fn in_guests(args: &Args) -> Result<ExitCode> {
    if !args.no_build {
        setup::run(false)?;
        programs::run()?;
    }
    let directory = paths::target().join("bench");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let mut kernels = args.kernel.clone();
    if kernels.is_empty() {
        kernels = vec![Wanted::Series(6, 1), Wanted::Newest];
    }
    for kernel in &kernels {
        for tier in &args.tier {
            let options = vm::Options {
                icount: true,
                memory: 8192,
                timeout: 3600,
                lsm: (tier != "lsm").then(|| vm::LSM_WITHOUT_BPF.to_owned()),
                ..vm::Options::for_kernel(kernel.clone())
            };
            let command = format!(
                "enforcer probe | grep -i verifier; enforcer-tests bench --tier {tier} --entitlements {} --holders {}",
                args.entitlements, args.holders
            );
            println!("{kernel} {tier}");
            let printed = Mutex::new(Vec::new());
            let status = vm::status(vm::run(&options, &command, Tee(&printed)));
            let file = directory.join(format!("{kernel}-{tier}.txt").replace('/', "_"));
            let printed = printed.into_inner().unwrap_or_default();
            fs::write(&file, printed)
                .with_context(|| format!("cannot write {}", file.display()))?;
            if status != 0 {
                return Ok(ExitCode::from(status));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
