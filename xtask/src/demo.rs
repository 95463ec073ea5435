//! The demonstration: builds, boots, and lets the guest tell the story.

use std::{
    fs,
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Mutex,
};

use anyhow::{Context as _, Result};

use crate::{picture, programs, setup, vm};

/// `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: vm::Options,
    /// Also draw what was printed, as SVG, into this file
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// Runs the demonstration; its status is the story's.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::run(false)?;
    programs::run()?;
    let story = Mutex::new(Vec::new());
    // The guest's terminal is a serial line, which cannot tell where its output ends up.
    let plain = args.picture.is_some() || !io::stdout().is_terminal();
    let command = if plain {
        "NO_COLOR=1 enforcer-tests demo"
    } else {
        "enforcer-tests demo"
    };
    let outcome = vm::run(&args.guest, command, Tee(&story));
    if let Some(path) = &args.picture {
        let story = story.into_inner().unwrap_or_default();
        fs::write(path, picture::of(&String::from_utf8_lossy(&story)))
            .with_context(|| format!("cannot write the picture {}", path.display()))?;
    }
    Ok(ExitCode::from(vm::status(outcome)))
}

/// Standard output, and a copy.
pub struct Tee<'a>(pub &'a Mutex<Vec<u8>>);

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = io::stdout().write(bytes)?;
        if let Ok(mut copy) = self.0.lock() {
            copy.extend_from_slice(&bytes[..count]);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
