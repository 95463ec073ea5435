//! `enforcer uninstall`: nothing of it is left on this node but its configuration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use enforcer::kernel::pins;
use nix::sys::signal::{SigSet, Signal};

/// `enforcer uninstall`.
#[derive(clap::Args)]
pub struct Uninstall {
    /// Keep what the daemon has on disk: its certificate, what is in force, evidence that governance does not have
    /// yet, and logs. `enforcer cleanup` is the same
    #[arg(long)]
    keep_state: bool,
    /// Where the daemon kept its state
    #[arg(
        long,
        env = "ENFORCER_STATE",
        value_name = "DIRECTORY",
        default_value = "/var/lib/enforcer"
    )]
    state: PathBuf,
    /// Where it kept its logs
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/log/enforcer")]
    logs: PathBuf,
    /// Afterwards wait for SIGTERM: for a DaemonSet, which knows no end
    #[arg(long)]
    stay: bool,
}

impl Uninstall {
    /// Takes everything off the kernel, and then off the disk.
    pub fn run(&self) -> Result<(), String> {
        pins::clean_up().map_err(|error| enforcer::chain(&error))?;
        println!("nothing enforces here");
        if !self.keep_state {
            for directory in [&self.state, &self.logs] {
                remove(directory)
                    .map_err(|error| format!("cannot remove {}: {error}", directory.display()))?;
            }
            println!(
                "{} and {} are gone",
                self.state.display(),
                self.logs.display()
            );
        }
        if self.stay {
            let mut ends = SigSet::empty();
            ends.add(Signal::SIGTERM);
            ends.add(Signal::SIGINT);
            let waited = ends.thread_block().and_then(|()| ends.wait());
            waited.map_err(|error| format!("cannot wait for SIGTERM: {error}"))?;
        }
        Ok(())
    }
}

/// Removes a directory; of a mount point only what is in it.
fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_all_that_is_in_it_and_links_are_not_followed() {
        let place = tempfile::tempdir().expect("a directory");
        let (state, other) = (place.path().join("state"), place.path().join("other"));
        fs::create_dir_all(state.join("a/b")).expect("made");
        fs::create_dir(&other).expect("made");
        fs::write(other.join("file"), "").expect("written");
        fs::write(state.join("file"), "").expect("written");
        std::os::unix::fs::symlink(&other, state.join("link")).expect("linked");
        remove(&state).expect("removed");
        assert!(!state.exists() && other.join("file").exists());
        remove(&state).expect("once more");
    }
}
