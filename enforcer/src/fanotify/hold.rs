//! Container runtimes are made to wait while it is not known what a container is that they start.
//!
//! A runtime makes a container's cgroup in one run of its program and starts what the container runs in the next, which it
//! waits for to begin: `create` and `start` of the OCI runtime specification. A mark for FAN_OPEN_EXEC_PERM (since 5.0) on
//! the program stops that second one before it does anything, and nobody who is such a program already. When this process
//! ends, the kernel lets everyone go on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags,
    Response,
};

use crate::node::containers::Starting;

/// Where runtimes have their programs, unless somebody says otherwise.
pub const PROGRAMS: [&str; 9] = [
    "/usr/bin/runc",
    "/usr/sbin/runc",
    "/usr/local/bin/runc",
    "/usr/local/sbin/runc",
    "/usr/bin/crun",
    "/usr/local/bin/crun",
    "/usr/libexec/crio/runc",
    "/usr/libexec/crio/crun",
    "/var/lib/rancher/k3s/data/current/bin/runc",
];

/// Waiting takes little.
const STACK_BYTES: usize = 128 * 1024;
/// Before it is read again.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// Why nobody can be made to wait.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no permission events, or does not let us have them.
    #[error(
        "cannot make a fanotify group for permission events; it takes CAP_SYS_ADMIN and CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y"
    )]
    Group(#[source] nix::Error),
    /// No thread.
    #[error("cannot start the thread that makes runtimes wait")]
    Thread(#[source] io::Error),
}

/// The programs that are made to wait.
pub struct Hold {
    group: Arc<Fanotify>,
    programs: Vec<PathBuf>,
    marked: BTreeSet<PathBuf>,
}

impl Hold {
    /// Makes these programs wait, for `limit` at most, while there are containers of which it is not known what they are.
    ///
    /// # Errors
    /// [`Error`] if the kernel does not let us.
    pub fn start(
        programs: Vec<PathBuf>,
        starting: Arc<Starting>,
        limit: Duration,
    ) -> Result<Self, Error> {
        let group = Fanotify::init(
            InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_UNLIMITED_QUEUE | InitFlags::FAN_CLOEXEC,
            EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC,
        );
        let group = Arc::new(group.map_err(Error::Group)?);
        let reader = group.clone();
        std::thread::Builder::new()
            .name("hold".to_owned())
            .spawn(move || follow(&reader, &starting, limit))
            .map_err(Error::Thread)?;
        let mut hold = Self {
            group,
            programs,
            marked: BTreeSet::new(),
        };
        hold.mark();
        Ok(hold)
    }

    /// Marks the programs that are there now: again and again, because a package manager puts a new one in the old one's
    /// place.
    pub fn mark(&mut self) {
        self.marked.clear();
        for program in &self.programs {
            let marked = self.group.mark(
                MarkFlags::FAN_MARK_ADD,
                MaskFlags::FAN_OPEN_EXEC_PERM,
                nix::fcntl::AT_FDCWD,
                Some(program.as_path()),
            );
            match marked {
                Ok(()) => {
                    self.marked.insert(program.clone());
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => {
                    tracing::warn!(program = %program.display(), %error, "cannot be made to wait");
                }
            }
        }
    }

    /// Those that are there.
    pub fn programs(&self) -> impl Iterator<Item = &Path> {
        self.marked.iter().map(PathBuf::as_path)
    }
}

fn follow(group: &Arc<Fanotify>, starting: &Arc<Starting>, limit: Duration) {
    loop {
        let events = match group.read_events() {
            Ok(events) => events,
            Err(Errno::EINTR) => continue,
            // Whoever waits would do so for ever if nobody read on.
            Err(error) => {
                tracing::warn!(%error, "cannot read a permission event of a container runtime");
                std::thread::sleep(AFTER_FAILURE);
                continue;
            }
        };
        for event in events {
            let these = starting.now(limit);
            if these.is_empty() || is_of_runtime(&event) {
                release(group, &event);
                continue;
            }
            // Each waits by itself: another that comes meanwhile may have nothing to wait for.
            let event = Arc::new(event);
            let waiter = {
                let (group, starting, event) = (group.clone(), starting.clone(), event.clone());
                move || {
                    starting.wait(these, limit);
                    release(&group, &event);
                }
            };
            let spawned = std::thread::Builder::new()
                .name("held".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(waiter);
            if spawned.is_err() {
                release(group, &event);
            }
        }
    }
}

/// Whether it is a runtime that starts itself once more, as `runc create` does for the process that sets the container up:
/// only with that has the container a root.
fn is_of_runtime(event: &FanotifyEvent) -> bool {
    let Some(file) = event.fd() else { return false };
    let of = |path: String| fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
    let is = of(format!("/proc/{}/exe", event.pid()));
    is.is_some() && is == of(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn release(group: &Fanotify, event: &FanotifyEvent) {
    // An overflow has none, and nobody waits for it.
    let Some(file) = event.fd() else { return };
    let answer = FanotifyResponse::new(file, Response::FAN_ALLOW);
    if let Err(error) = group.write_response(answer) {
        tracing::debug!(%error, "a container runtime went on, or is gone");
    }
}
