//! The `enforcer` command line.

mod cli;
mod governed;
mod outgrown;
mod run;
mod supervisor;
mod watched;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
