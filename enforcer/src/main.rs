//! The `enforcer` command line.

mod cli;
mod governed;
mod run;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::Cli::parse().run()
}
