//! Canaries: the proof, every few seconds, that the gates refuse.
//!
//! A child process opens a file it has no entitlement to, then one it has, and as a holder of that one
//! sends to a destination no entitlement covers. Only the child becomes a holder.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use aya::Ebpf;
use enforcer_common::ids::{CredentialId, ExecutableKey, InodeKey};
use enforcer_common::tables::Versioned;

use crate::compile::{Policy, Reserved};
use crate::kernel::capture::{self, capture};
use crate::kernel::maps::Maps;

/// Credential that nobody is entitled to.
pub const READ: &str = "enforcer-canary-read";
/// Credential that the daemon's executable may read and take nowhere.
pub const SEND: &str = "enforcer-canary-send";

/// Whether a credential is a canary's: what is done to it is no use to report.
pub fn is_canary(credential: &str) -> bool {
    credential == READ || credential == SEND
}

/// The discard port: nothing listens, nothing is sent.
const NOWHERE: &str = "127.0.0.1:9";
/// A child that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the child's exit status says got through.
mod passed {
    /// The unentitled read.
    pub const READ: i32 = 1;
    /// The entitled read did not: then nothing is proved of the send.
    pub const NO_READ: i32 = 2;
    /// The send.
    pub const SEND: i32 = 4;
}

/// Why the canaries prove nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Their files cannot be made.
    #[error("cannot make the canaries' file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Their files' keys are not known.
    #[error(transparent)]
    Capture(#[from] capture::Error),
    /// The child did not run.
    #[error("cannot run the canaries")]
    Child(#[source] io::Error),
    /// The child took too long.
    #[error("the canaries did not end within {PATIENCE:?}")]
    Stuck,
    /// A gate let something through.
    #[error("{0} got through")]
    Through(&'static str),
    /// The entitled read was refused.
    #[error("the canary's own read was refused, so its send proves nothing")]
    Inconclusive,
}

/// The canaries' files and executable.
pub struct Canaries {
    read: PathBuf,
    send: PathBuf,
    keys: [Vec<InodeKey>; 2],
    executable: ExecutableKey,
}

impl Canaries {
    /// Makes the files in `directory`.
    pub fn new(ebpf: &mut Ebpf, directory: &Path) -> Result<Self, Error> {
        let mut make = |name: &str| -> Result<(PathBuf, Vec<InodeKey>), Error> {
            let path = directory.join(name);
            std::fs::write(&path, "canary\n").map_err(|source| Error::File {
                path: path.clone(),
                source,
            })?;
            let (keys, _) = capture(ebpf, &path)?;
            Ok((path, keys.into_iter().map(|key| key.inode).collect()))
        };
        let (read, read_keys) = make("canary-read")?;
        let (send, send_keys) = make("canary-send")?;
        let (executable, _) = capture(ebpf, Path::new("/proc/self/exe"))?;
        Ok(Self {
            read,
            send,
            keys: [read_keys, send_keys],
            executable: executable[0],
        })
    }

    /// The credentials to compile into every bundle.
    pub fn reserved(&self) -> [Reserved; 2] {
        [
            Reserved {
                id: READ.to_owned(),
                entitled: None,
            },
            Reserved {
                id: SEND.to_owned(),
                entitled: Some(self.executable),
            },
        ]
    }

    /// The files, and what they are.
    pub fn files<'a>(
        &'a self,
        policy: &'a Policy,
    ) -> impl Iterator<Item = (InodeKey, CredentialId, &'a Path)> {
        policy.credential_info.iter().flat_map(|(id, info)| {
            let (keys, path) = match info.id.as_str() {
                READ => (self.keys[0].as_slice(), &self.read),
                SEND => (self.keys[1].as_slice(), &self.send),
                _ => (&[][..], &self.read),
            };
            keys.iter().map(|key| (*key, *id, path.as_path()))
        })
    }

    /// Protects the files.
    pub fn protect(
        &self,
        ebpf: &mut Ebpf,
        policy: &Policy,
    ) -> Result<(), crate::kernel::maps::Error> {
        for (key, id, _) in self.files(policy) {
            Maps(ebpf).put::<InodeKey, Versioned<CredentialId>>(
                "FILES",
                key,
                Versioned::constant(id),
            )?;
        }
        Ok(())
    }

    /// Tries the gates.
    pub async fn fly(&self) -> Result<(), Error> {
        let child = tokio::process::Command::new("/proc/self/exe")
            .arg("canary")
            .args([&self.read, &self.send])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status();
        let status = tokio::time::timeout(PATIENCE, child)
            .await
            .map_err(|_| Error::Stuck)?
            .map_err(Error::Child)?;
        match status.code() {
            Some(0) => Ok(()),
            Some(code) if code & passed::READ != 0 => Err(Error::Through("an unentitled read")),
            Some(code) if code & passed::SEND != 0 => Err(Error::Through("a holder's send")),
            Some(code) if code & passed::NO_READ != 0 => Err(Error::Inconclusive),
            _ => Err(Error::Child(io::Error::other(status.to_string()))),
        }
    }
}

/// What the child does. Returns its exit status.
pub fn child(read: &Path, send: &Path) -> i32 {
    let refused = |result: io::Result<()>| {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
    };
    let mut status = 0;
    if !refused(File::open(read).map(drop)) {
        status |= passed::READ;
    }
    if File::open(send).is_err() {
        return status | passed::NO_READ;
    }
    let sent = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"canary", NOWHERE));
    if !refused(sent.map(drop)) {
        status |= passed::SEND;
    }
    status
}
