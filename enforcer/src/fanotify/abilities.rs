//! What this kernel's permission events can do, found by trying: on a file of our own, in a mount namespace of
//! a child's own, so that nobody else notices.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::fanotify::{FanotifyResponse, MarkFlags, MaskFlags, Response};

/// Places where the child mounts its own small world; every system has one.
const PLACES: &[&str] = &["/tmp", "/run", "/mnt", "/var"];
/// A trial that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// What permission events stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Abilities {
    /// The open of a marked file.
    pub open: bool,
    /// The read of a file that was opened before it was marked: up to 6.11.
    pub older_descriptor: bool,
    /// The open through an overlay mount over its directory, from 6.5 on; `None` if no overlay could be mounted.
    pub through_overlay: Option<bool>,
}

impl Abilities {
    /// What this tier leaves open with them, for `status`.
    pub fn not_covered(self) -> Vec<&'static str> {
        let mut list = vec![
            "reads while no daemon answers: when it dies, the kernel lets waiting readers go on, and everyone after them",
            "a new subdirectory of a watched directory, for the moment until the daemon has seen it",
            "mappings of a credential: judged when the file is opened, not when it is mapped or touched",
            "memory of a holder (ptrace, /proc/PID/mem)",
            "what a holder hands on: pipes, unix sockets, files",
            "packet, vsock and other socket families of holders, except what passes the packet gate",
            "credentials that are endpoints",
            "answers on accepted connections, where the bundle's defaults.inbound is permit",
            "what root on the host does to the daemon or its programs (that one was detached is noticed)",
        ];
        if !self.older_descriptor {
            list.push("descriptors of a credential that are older than its mark (this kernel does not ask about those)");
        }
        match self.through_overlay {
            Some(true) => {}
            Some(false) => list.push("reads through an overlay mount over a credential's directory (this kernel does not ask about those; 6.5 and later do)"),
            None => list.push("reads through an overlay mount over a credential's directory, maybe: none could be mounted to try it"),
        }
        list
    }
}

/// Why it could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No permission events.
    #[error(
        "cannot make a fanotify group for permission events; it takes CAP_SYS_ADMIN and CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y"
    )]
    Group(#[source] nix::Error),
    /// The file could not be marked.
    #[error("cannot mark a file for permission events")]
    Mark(#[source] nix::Error),
    /// The child did not do its part.
    #[error("the trial's child process failed")]
    Child(#[source] io::Error),
    /// The child did not end.
    #[error("the trial did not end within {PATIENCE:?}")]
    Stuck,
}

/// Lets a child try to read a marked file in all ways of interest, and refuses each.
pub fn trial() -> Result<Abilities, Error> {
    let group = super::group().map_err(Error::Group)?;
    let mut child = KillOnDrop(
        Command::new("/proc/self/exe")
            .arg("trial")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::Child)?,
    );
    let none = || Error::Child(io::ErrorKind::BrokenPipe.into());
    let output = child.0.stdout.take().ok_or_else(none)?;
    let mut output = BufReader::new(output);
    let mut ready = String::new();
    output.read_line(&mut ready).map_err(Error::Child)?;
    if ready.is_empty() {
        return Err(none());
    }
    let secret = format!("/proc/{}/root{}", child.0.id(), ready.trim_end());
    group
        .mark(
            MarkFlags::FAN_MARK_ADD,
            MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ACCESS_PERM,
            nix::fcntl::AT_FDCWD,
            Some(Path::new(&secret)),
        )
        .map_err(Error::Mark)?;
    let mut input = child.0.stdin.take().ok_or_else(none)?;
    input.write_all(b"\n").map_err(Error::Child)?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let mut ready = [
            PollFd::new(group.as_fd(), PollFlags::POLLIN),
            PollFd::new(output.get_ref().as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut ready, PollTimeout::from(100_u16));
        let said = ready[1].any() == Some(true);
        for event in group.read_events().unwrap_or_default() {
            if let Some(file) = event.fd() {
                let _ = group.write_response(FanotifyResponse::new(file, Response::FAN_DENY));
            }
        }
        if said {
            let mut line = String::new();
            output.read_line(&mut line).map_err(Error::Child)?;
            return parse(&line).ok_or_else(none);
        }
    }
    Err(Error::Stuck)
}

fn parse(line: &str) -> Option<Abilities> {
    let mut words = line.split_whitespace().map(|word| match word {
        "refused" => Some(true),
        "passed" => Some(false),
        _ => None,
    });
    Some(Abilities {
        open: words.next()??,
        older_descriptor: words.next()??,
        through_overlay: words.next()?,
    })
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the child does. Returns its exit status.
pub fn subject() -> i32 {
    match try_subject() {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn try_subject() -> io::Result<()> {
    // Whatever holds it up, the parent does not wait for ever.
    nix::unistd::alarm::set(PATIENCE.as_secs() as u32);
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let place = PLACES
        .iter()
        .map(PathBuf::from)
        .find(|place| mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).is_ok())
        .ok_or(io::ErrorKind::NotFound)?;
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(place.join(name))?;
    }
    let secret = place.join("lower/secret");
    let merged = place.join("merged");
    std::fs::write(&secret, "secret\n")?;
    let mut older = File::open(&secret)?;
    let layer = |name: &str| place.join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        layer("lower"),
        layer("upper"),
        layer("work")
    );
    let overlay = mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    println!("{}", secret.display());
    io::stdin().read_line(&mut String::new())?;
    let word = |result: io::Result<()>| match result {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => "refused",
        Ok(()) => "passed",
        Err(_) => "unknown",
    };
    let opened = word(File::open(&secret).map(drop));
    let read = word(older.read(&mut [0; 16]).map(drop));
    let through = match overlay {
        Ok(()) => word(
            File::open(merged.join("secret"))
                .and_then(|mut it| it.read(&mut [0; 16]))
                .map(drop),
        ),
        Err(_) => "unknown",
    };
    println!("{opened} {read} {through}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_says() {
        assert_eq!(
            parse("refused passed unknown\n"),
            Some(Abilities {
                open: true,
                older_descriptor: false,
                through_overlay: None,
            })
        );
        assert_eq!(parse("refused\n"), None);
        assert_eq!(parse("unknown passed refused\n"), None);
    }
}
