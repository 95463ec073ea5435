//! Units' cgroups, made by hand.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// A cgroup that is new, and goes when dropped.
pub struct Cgroup {
    name: String,
    directory: PathBuf,
}

impl Cgroup {
    /// Makes it, below the cgroup root; one of the same name is removed first.
    pub fn new(name: &str) -> Result<Self> {
        let directory = Path::new("/sys/fs/cgroup").join(name);
        if directory.exists() {
            remove(&directory)?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self {
            name: name.to_owned(),
            directory,
        })
    }

    /// A service of systemd's.
    pub fn unit(name: &str) -> Result<Self> {
        Self::new(&format!("system.slice/{name}"))
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its path below the cgroup root.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            eprintln!("enforcer-tests: {error:#}");
        }
    }
}

/// The last process may still be on its way out.
fn remove(directory: &Path) -> Result<()> {
    for _ in 0..200 {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                thread::sleep(Duration::from_millis(10));
            }
            result => {
                return result.with_context(|| format!("cannot remove {}", directory.display()));
            }
        }
    }
    anyhow::bail!("{} still has processes", directory.display())
}
