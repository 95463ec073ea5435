//! The demonstration: builds, boots, and lets the guest tell the story.

use std::{io, process::ExitCode};

use anyhow::Result;

use crate::{programs, setup, vm};

/// `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: vm::Options,
}

/// Runs the demonstration; its status is the story's.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::run()?;
    programs::run()?;
    let outcome = vm::run(&args.guest, "enforcer-tests demo", io::stdout());
    Ok(ExitCode::from(vm::status(outcome)))
}
