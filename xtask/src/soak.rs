//! Everything together for a long time, on this machine and in a guest.

use std::{
    env,
    ffi::OsString,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{cmd, containers, kernels::Wanted, paths, programs, setup, vm};

/// `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Args {
    /// For so long in each place
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Where chance starts: the same seed disturbs in the same order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only in guests of these kernels (may be repeated), and not on this machine
    #[arg(long)]
    kernel: Vec<Wanted>,
}

/// What a guest takes besides, to boot and to end, seconds.
const BESIDES: u64 = 900;

/// First on this machine, by the `fanotify` tier, then in a guest of 6.12; or only in those that are asked for.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::run(false)?;
    programs::run()?;
    let (minutes, seed) = (args.minutes.to_string(), args.seed.to_string());
    let words = ["soak", "--minutes", &minutes, "--seed", &seed];
    let mut kernels = args.kernel.clone();
    if kernels.is_empty() {
        println!("this machine");
        let mut here = Command::new("enforcer-tests");
        here.args(words)
            .env("ENFORCER_TIER", "fanotify")
            .env("PATH", path_here()?);
        cmd::stream(&mut here)?;
        kernels.push(Wanted::Series(6, 12));
    }
    for kernel in kernels {
        println!("{kernel}");
        let options = vm::Options {
            timeout: 60 * args.minutes + BESIDES,
            tools: true,
            ..vm::Options::for_kernel(kernel)
        };
        let command = format!("enforcer-tests {}", words.join(" "));
        let status = vm::status(vm::run(&options, &command, std::io::stdout()));
        if status != 0 {
            return Ok(ExitCode::from(status));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// With the programs, and with runc after all that the machine has itself.
fn path_here() -> Result<OsString> {
    let programs = paths::path_with_programs()?;
    let runc = containers::unpacked()?.join("usr/sbin");
    let all = env::split_paths(&programs).chain(std::iter::once(runc));
    Ok(env::join_paths(all)?)
}
