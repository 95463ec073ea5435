//! The `enforcer` command line.

mod cli;
mod governed;
mod run;
mod supervisor;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
