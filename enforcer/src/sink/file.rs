//! Records as lines of a file, or of standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use super::{Failure, Outlet, Parcel};

/// A file that is only appended to, made with mode 0600; opened anew once another one is in its place.
pub struct Appended {
    path: PathBuf,
    file: Option<File>,
}

impl Appended {
    /// The file need not be there.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let there = fs::metadata(&self.path).map(|it| (it.dev(), it.ino())).ok();
        let ours = self.file.as_ref().and_then(|it| it.metadata().ok());
        if there.is_none() || there != ours.map(|it| (it.dev(), it.ino())) {
            let options = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&self.path);
            self.file = Some(options?);
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let whole = file.metadata()?.len();
        let written = file.write_all(text).and_then(|()| file.sync_data());
        if written.is_err() && file.metadata()?.is_file() {
            // No half of a line stays, nor what will be written again.
            file.set_len(whole)?;
        }
        written
    }
}

impl Outlet for Appended {
    async fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        let path = self.path.display().to_string();
        self.append(&lines(parcels))
            .map_err(|error| Failure::new(format_args!("{path}: {error}")))
    }
}

/// Standard output.
pub struct Stdout;

impl Outlet for Stdout {
    async fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(&lines(parcels))
            .and_then(|()| out.flush())
            .map_err(|error| Failure::new(format_args!("standard output: {error}")))
    }
}

fn lines(parcels: &[Parcel]) -> Vec<u8> {
    let mut text = Vec::new();
    for parcel in parcels {
        text.extend_from_slice(parcel.line.as_bytes());
        text.push(b'\n');
    }
    text
}
