//! Developer tasks: `cargo xtask setup|build|vm|package|image|chart|test|bench|demo`.

mod apt;
mod bench;
mod chart;
mod cmd;
mod containers;
mod cpio;
mod debian;
mod demo;
mod fuzz;
mod image;
mod initramfs;
mod kernels;
mod modules;
mod package;
mod paths;
mod picture;
mod programs;
mod servers;
mod setup;
mod soak;
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
    Setup {
        /// Also what only the tests need: servers that they talk to, and a browser
        #[arg(long)]
        tests: bool,
    },
    /// Build the eBPF programs, then the static user-space programs that embed them
    Build,
    /// Boot a kernel in QEMU and run a command in it
    ///
    /// Exits with the command's own status; 125 means that the guest failed.
    Vm(vm::Args),
    /// Make a Debian package
    Package(package::Args),
    /// Make a container image
    Image(image::Args),
    /// Render the plain Kubernetes manifests from the Helm chart
    Chart,
    /// Run every check, on this machine and on every promised kernel
    Test(test::Args),
    /// Measure what the enforcer costs, in instructions of emulated machines
    Bench(bench::Args),
    /// Run work, attacks and disturbances together for long, on this machine and in a guest
    Soak(soak::Args),
    /// Build, boot and show what the enforcer does
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let result: anyhow::Result<ExitCode> = match Cli::parse().task {
        Task::Setup { tests } => setup::run(tests).map(|()| ExitCode::SUCCESS),
        Task::Build => programs::run().map(|()| ExitCode::SUCCESS),
        Task::Vm(args) => Ok(vm::main(&args)),
        Task::Package(args) => package::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Image(args) => image::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Chart => chart::run().map(|()| ExitCode::SUCCESS),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Demo(args) => demo::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
