//! Canaries: the proof, every second, that the gates refuse.
//!
//! A child process opens a file it has no entitlement to, then one it has, and as a holder of that one
//! sends to a destination no entitlement covers. Only the child becomes a holder.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use aya::Ebpf;
use enforcer_common::ids::{CredentialId, ExecutableKey, InodeKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::compile::{Policy, Reserved};
use crate::kernel::capture::{self, capture};
use crate::kernel::own;
use crate::kernel::protected::Protected;

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

/// What the child says came of a try: bits of a byte.
mod came {
    /// The unentitled read got through.
    pub const READ: u8 = 1;
    /// A holder's send did.
    pub const SEND: u8 = 2;
    /// Something failed otherwise, so that nothing is proved; the byte after says how (`errno`).
    pub const NOTHING: u8 = 4;
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
    /// A program is not attached any more.
    #[error("somebody has detached program `{0}`; start the daemon anew")]
    Detached(String),
    /// The kernel does not say whether the programs are attached.
    #[error("the kernel does not say whether the programs are attached")]
    Links(#[source] Box<own::Error>),
    /// They failed for another reason than a gate's refusal.
    #[error("the canaries could not try what they should")]
    Inconclusive(#[source] io::Error),
}

/// The canaries' files and executable.
pub struct Canaries {
    read: PathBuf,
    send: PathBuf,
    keys: [Vec<InodeKey>; 2],
    executable: ExecutableKey,
    bird: Option<Bird>,
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
            bird: None,
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
        let mut protected = Protected::new(ebpf)?;
        for (key, id, _) in self.files(policy) {
            protected.put(key, id)?;
        }
        Ok(())
    }

    /// Tries the gates.
    pub async fn fly(&mut self) -> Result<(), Error> {
        let mut bird = match self.bird.take() {
            Some(bird) if bird.child.id().is_some() => bird,
            _ => Bird::hatch(&self.read, &self.send).map_err(Error::Child)?,
        };
        let tried = tokio::time::timeout(PATIENCE, bird.tries()).await;
        let [came, errno] = tried.map_err(|_| Error::Stuck)?.map_err(Error::Child)?;
        self.bird = Some(bird);
        if came & came::READ != 0 {
            Err(Error::Through("an unentitled read"))
        } else if came & came::SEND != 0 {
            Err(Error::Through("a holder's send"))
        } else if came != 0 {
            let why = io::Error::from_raw_os_error(errno.into());
            Err(Error::Inconclusive(why))
        } else {
            Ok(())
        }
    }
}

/// The child, which tries again each time that it is told to. It ends with its standard input.
struct Bird {
    child: Child,
    ask: ChildStdin,
    answer: ChildStdout,
}

impl Bird {
    fn hatch(read: &Path, send: &Path) -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg("canary")
            .args([read, send])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (ask, answer) = pipes.ok_or_else(|| io::Error::other("no pipe to the child"))?;
        Ok(Self { child, ask, answer })
    }

    async fn tries(&mut self) -> io::Result<[u8; 2]> {
        self.ask.write_all(b"?").await?;
        let mut answer = [0; 2];
        self.answer.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

/// What the child does, until its standard input ends.
pub fn child(read: &Path, send: &Path) -> io::Result<()> {
    let mut asked = [0];
    while io::stdin().lock().read(&mut asked)? > 0 {
        let mut out = io::stdout().lock();
        out.write_all(&tries(read, send))?;
        out.flush()?;
    }
    Ok(())
}

fn tries(read: &Path, send: &Path) -> [u8; 2] {
    let mut answer = [0; 2];
    refused(File::open(read), came::READ, &mut answer);
    if let Err(error) = File::open(send) {
        answer[0] |= came::NOTHING;
        answer[1] = number(&error);
        return answer;
    }
    let sent = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"canary", NOWHERE));
    refused(sent, came::SEND, &mut answer);
    answer
}

/// Notes what came of something that should be refused.
fn refused<T>(result: io::Result<T>, through: u8, answer: &mut [u8; 2]) {
    match result {
        Ok(_) => answer[0] |= through,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        Err(error) => {
            answer[0] |= came::NOTHING;
            answer[1] = number(&error);
        }
    }
}

fn number(error: &io::Error) -> u8 {
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    number.try_into().unwrap_or(u8::MAX)
}
