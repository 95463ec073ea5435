//! The keys of files, as the kernel sees them.
//!
//! The daemon opens the file; the program on `file_open` leaves the keys it saw under the thread's id. On the
//! tier without hooks an iterator over the daemon's descriptors shows the open file instead.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use enforcer_common::ids::{ExecutableKey, InodeKey, Tid};
use enforcer_common::tables::Capture;
use nix::unistd::gettid;

use super::iterate;
use super::maps::{self, Maps};

/// Why a file's keys are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a pipe, socket or device, which the daemon does not open.
    #[error("{path} is neither a file nor a directory")]
    Special {
        /// The file.
        path: PathBuf,
    },
    /// It was a socket, and is something else now.
    #[error("{path} is no socket any more")]
    NoSocket {
        /// What it is about.
        path: PathBuf,
    },
    /// The hook did not see the open: what it would protect, it would not protect.
    #[error("the kernel did not show the open of {path}: the file_open program does not run")]
    Unseen {
        /// The file.
        path: PathBuf,
    },
    /// The iterator did not tell.
    #[error("the kernel does not tell the key of {path}")]
    Untold {
        /// The file.
        path: PathBuf,
        /// Why; nothing if it passed the file over.
        source: Option<Box<iterate::Error>>,
    },
    /// The table could not be used.
    #[error(transparent)]
    Table(#[from] maps::Error),
}

/// The key of the unix socket at `path`, on a tier that gates sockets. It is only looked at, not contacted.
pub fn capture_socket(ebpf: &mut Ebpf, path: &Path) -> Result<InodeKey, Error> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path);
    let is_socket = |file: &File| Ok(file.metadata()?.file_type().is_socket());
    let (socket, is_socket) = opened
        .and_then(|socket| is_socket(&socket).map(|is_socket| (socket, is_socket)))
        .map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
    if !is_socket {
        return Err(Error::NoSocket {
            path: path.to_owned(),
        });
    }
    match iterate::own_socket(ebpf, socket.as_fd()) {
        Ok(Some(record)) => Ok(record.key.inode),
        other => Err(Error::Untold {
            path: path.to_owned(),
            source: other.err().map(Box::new),
        }),
    }
}

/// Opens `path` and returns the keys that the kernel saw, the first being the file's own, and the open file.
pub fn capture(ebpf: &mut Ebpf, path: &Path) -> Result<(Vec<ExecutableKey>, File), Error> {
    let open_error = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    let kind = std::fs::metadata(path).map_err(open_error)?.file_type();
    if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
        return Err(Error::Special {
            path: path.to_owned(),
        });
    }
    let open = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
    };
    if iterate::shows_own_files(ebpf) {
        let file = open().map_err(open_error)?;
        return match iterate::own_file(ebpf, file.as_fd()) {
            Ok(Some(record)) => Ok((vec![record.key], file)),
            other => Err(Error::Untold {
                path: path.to_owned(),
                source: other.err().map(Box::new),
            }),
        };
    }
    let tid = Tid(gettid().as_raw() as u32);
    let mut maps = Maps(ebpf);
    maps.put("CAPTURES", tid, Capture::default())?;
    let opened = open();
    let seen = maps.get::<Tid, Capture>("CAPTURES", &tid)?;
    maps.remove::<Tid, Capture>("CAPTURES", &tid)?;
    let file = opened.map_err(open_error)?;
    let seen = seen.unwrap_or_default();
    let count = (seen.count as usize).min(seen.keys.len());
    if count == 0 {
        return Err(Error::Unseen {
            path: path.to_owned(),
        });
    }
    Ok((seen.keys[..count].to_vec(), file))
}
