//! Developer tasks: `cargo xtask setup|build|vm|test|demo`.

mod apt;
mod cmd;
mod cpio;
mod demo;
mod fuzz;
mod initramfs;
mod kernels;
mod modules;
mod paths;
mod picture;
mod programs;
mod setup;
mod tally;
mod test;
mod toolchain;
mod tools;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer tasks of the enforcer workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need and is missing here
    Setup,
    /// Build the eBPF programs, then the static user-space programs that embed them
    Build,
    /// Boot a kernel in QEMU and run a command in it
    ///
    /// Exits with the command's own status; 125 means that the guest failed.
    Vm(vm::Args),
    /// Run every check, on this machine and on every promised kernel
    Test(test::Args),
    /// Build, boot and show what the enforcer does
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let result: anyhow::Result<ExitCode> = match Cli::parse().task {
        Task::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Task::Build => programs::run().map(|()| ExitCode::SUCCESS),
        Task::Vm(args) => Ok(vm::main(&args)),
        Task::Test(args) => test::run(&args),
        Task::Demo(args) => demo::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
