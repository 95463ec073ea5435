//! Processes that hold a credential while others are measured.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{self, ForkResult},
};

use super::operations::{HELD, Set};

/// So many of them, until this is dropped.
pub struct Holders(Child);

impl Holders {
    /// Starts them, and waits until all hold it.
    pub fn gather(count: usize) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut first = Command::new(Set::Holder.program())
            .arg0("enforcer-tests")
            .args(["hold", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the holders")?;
        let mut line = String::new();
        let said = first.stdout.take().context("no standard output")?;
        BufReader::new(said).read_line(&mut line)?;
        ensure!(
            line == "holding\n",
            "the first of the holders said {line:?}"
        );
        Ok(Self(first))
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            eprintln!("enforcer-tests: the holders have gone: {error}");
        }
    }
}

/// Is the first of so many, until nobody wants them.
pub fn run(count: usize) -> Result<()> {
    fs::read(HELD).with_context(|| format!("cannot read {HELD}"))?;
    for _ in 1..count {
        // SAFETY: the child calls nothing but prctl and pause; this process has one thread.
        match unsafe { unistd::fork() }.context("cannot start one more")? {
            ForkResult::Child => {
                let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                loop {
                    unistd::pause();
                }
            }
            ForkResult::Parent { .. } => {}
        }
    }
    println!("holding");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
