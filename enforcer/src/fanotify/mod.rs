//! The read gate of the `fanotify` tier: permission events, answered by this process with the same decision
//! over the same tables.

mod abilities;
mod call;
mod gate;
pub mod hold;
mod kill;
mod marks;
mod snapshot;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use aya::Ebpf;
use enforcer_common::event::{Notice, NoticeKind, Ring, Use};
use enforcer_common::ids::{CgroupId, InodeKey};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags};
use nix::sys::inotify::{self, AddWatchFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

pub use abilities::{Abilities, Error as TrialError, subject, trial};
pub use gate::{Counts, Trouble};
pub use kill::kill;
pub use marks::{Count, Kind, Marks, Survey};
pub use snapshot::{Found, Places, Rules, Snapshot};

use crate::kernel::clock::boot_now;
use crate::kernel::holders::Holders;
use crate::kernel::iterate::{self, Inquiry};
use crate::kernel::maps;
use crate::kernel::rings::{Change, Records};
use crate::respond::Limiter;
use gate::{Answerer, Reports};

/// Reports waiting to be taken, of each kind.
const REPORTS: usize = 4096;
/// A mount seldom comes alone.
const SETTLE: Duration = Duration::from_millis(100);

/// Why the gate cannot be put up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no permission events, or does not let us have them.
    #[error(
        "cannot make a fanotify group for permission events; it takes CAP_SYS_ADMIN and CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y"
    )]
    Group(#[source] nix::Error),
    /// No inotify.
    #[error("cannot watch directories (inotify)")]
    Inotify(#[source] nix::Error),
    /// No facts about tasks.
    #[error(transparent)]
    Iterate(#[from] iterate::Error),
    /// The table of holders cannot be written.
    #[error(transparent)]
    Table(#[from] maps::Error),
    /// No thread.
    #[error("cannot start the thread that answers")]
    Thread(#[source] io::Error),
}

/// The gate, as the engine sees it. The thread ends when this is dropped; the kernel then lets everyone go on.
pub struct ReadGate {
    snapshot: Arc<ArcSwap<Snapshot>>,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    abilities: Abilities,
    knows_calls: bool,
    reports: Option<Unread>,
}

/// Reports that nobody takes yet.
struct Unread {
    denials: mpsc::Receiver<Use>,
    uses: mpsc::Receiver<Use>,
    notices: mpsc::Receiver<Notice>,
    troubles: mpsc::Receiver<Trouble>,
    inotify: Arc<Inotify>,
    directories: marks::Directories,
}

/// A group that can be asked for permission.
pub(crate) fn group() -> nix::Result<Fanotify> {
    Fanotify::init(
        InitFlags::FAN_CLASS_CONTENT
            | InitFlags::FAN_UNLIMITED_QUEUE
            | InitFlags::FAN_UNLIMITED_MARKS
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_REPORT_TID,
        EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC,
    )
}

impl ReadGate {
    /// Starts the thread. Nothing is marked yet, so nobody waits for it.
    pub fn start(
        ebpf: &Ebpf,
        abilities: Abilities,
        kills: Limiter<u64>,
    ) -> Result<(Self, Marks), Error> {
        let group = Arc::new(group().map_err(Error::Group)?);
        let flags = inotify::InitFlags::IN_CLOEXEC | inotify::InitFlags::IN_NONBLOCK;
        let inotify = Arc::new(Inotify::init(flags).map_err(Error::Inotify)?);
        let directories = marks::Directories::default();
        let (denials, unread_denials) = mpsc::channel(REPORTS);
        let (uses, unread_uses) = mpsc::channel(REPORTS);
        let (notices, unread_notices) = mpsc::channel(REPORTS);
        let (troubles, unread_troubles) = mpsc::channel(REPORTS);
        let mut gate = Self {
            snapshot: Arc::default(),
            counts: Arc::default(),
            stop: Arc::default(),
            abilities,
            knows_calls: false,
            reports: Some(Unread {
                denials: unread_denials,
                uses: unread_uses,
                notices: unread_notices,
                troubles: unread_troubles,
                inotify: inotify.clone(),
                directories: directories.clone(),
            }),
        };
        let inquiry = Inquiry::new(ebpf)?;
        gate.knows_calls = inquiry.knows_calls();
        let answerer = Answerer {
            group: group.clone(),
            snapshot: gate.snapshot.clone(),
            inquiry,
            holders: Holders::new(ebpf)?,
            reports: Reports {
                denials,
                uses,
                notices,
                troubles,
            },
            counts: gate.counts.clone(),
            kills,
            stop: gate.stop.clone(),
            appeared: HashMap::new(),
            compared: 0,
        };
        harden();
        std::thread::Builder::new()
            .name("gate".to_owned())
            .spawn(|| answerer.run())
            .map_err(Error::Thread)?;
        Ok((gate, Marks::new(group, inotify, directories)))
    }

    /// What this kernel's permission events can do.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// What this tier leaves open on this kernel, for `status`.
    pub fn not_covered(&self) -> Vec<&'static str> {
        let mut list = self.abilities.not_covered();
        if !self.knows_calls {
            list.push(
                "opening for writing counts as reading: this kernel does not show which it is",
            );
        }
        list
    }

    /// How many permission events were answered, and denied because nothing was known of them.
    pub fn answered(&self) -> (u64, u64) {
        let count = |it: &std::sync::atomic::AtomicU64| it.load(Ordering::Relaxed);
        (count(&self.counts.answered), count(&self.counts.unclear))
    }

    /// How many records were not passed on since this was last asked.
    pub fn take_lost(&self, ring: Ring) -> u64 {
        let counter = match ring {
            Ring::Denials => &self.counts.denials,
            Ring::Uses => &self.counts.uses,
            Ring::Notices => &self.counts.notices,
        };
        counter.swap(0, Ordering::Relaxed)
    }

    /// From now on decisions are made by this. Returns when none is made by the previous one any more.
    pub fn publish(&self, snapshot: Snapshot) {
        let old = self.snapshot.swap(Arc::new(snapshot));
        // A decision takes microseconds, and the gate waits for nothing: this ends.
        while Arc::strong_count(&old) > 1 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The same policy, other files.
    pub fn publish_places(&self, places: Places) {
        let rules = self.snapshot.load().rules.clone();
        self.publish(Snapshot {
            rules,
            places: Arc::new(places),
        });
    }

    /// Passes on what the gate tells, and what appears in watched directories and among the mounts. Once.
    pub fn follow(&mut self, records: &Records) {
        let Some(unread) = self.reports.take() else {
            return;
        };
        tokio::spawn(pass_on(unread.denials, records.uses.clone(), |it| it));
        tokio::spawn(pass_on(unread.uses, records.uses.clone(), |it| it));
        let changes = &records.changes;
        tokio::spawn(pass_on(unread.notices, changes.clone(), |it| {
            Change::Notice(Box::new(it))
        }));
        let mut troubles = unread.troubles;
        tokio::spawn(async move {
            while let Some(trouble) = troubles.recv().await {
                tracing::error!(
                    reason = trouble.reason,
                    "the read gate failed at {}",
                    trouble.step
                );
            }
        });
        let names = follow_names(unread.inotify, unread.directories, changes.clone());
        tokio::spawn(async move {
            if let Err(error) = names.await {
                tracing::error!(%error, "new files and directories are not noticed any more, only found every ten seconds");
            }
        });
        let mounts = follow_mounts(changes.clone());
        tokio::spawn(async move {
            if let Err(error) = mounts.await {
                tracing::error!(%error, "new mounts are not noticed any more, only found every ten seconds");
            }
        });
    }
}

impl Drop for ReadGate {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The kernel lets everyone read when this process ends, so it should be the last to run out of anything.
fn harden() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Each event that waits for its answer is an open file.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!(%error, "cannot ask to be spared when memory runs out: if that ends the daemon, reads are not gated");
    }
}

async fn pass_on<T, U>(mut from: mpsc::Receiver<T>, to: mpsc::Sender<U>, wrap: fn(T) -> U) {
    while let Some(record) = from.recv().await {
        if to.send(wrap(record)).await.is_err() {
            return;
        }
    }
}

/// Tells of what is created in watched directories or moved there, as the kernel's own notices do elsewhere.
async fn follow_names(
    inotify: Arc<Inotify>,
    directories: marks::Directories,
    changes: mpsc::Sender<Change>,
) -> io::Result<()> {
    let descriptor: OwnedFd = std::os::fd::AsFd::as_fd(&*inotify).try_clone_to_owned()?;
    // SAFETY: an owned descriptor stays the same until it is dropped.
    let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
        .map_err(io::Error::from)?;
    loop {
        let mut ready = descriptor.readable().await?;
        let events = match inotify.read_events() {
            Ok(events) => events,
            Err(nix::Error::EAGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                let _ = changes.send(Change::Unknown).await;
                continue;
            }
            let directory = {
                let mut known = directories
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    known.remove(&event.wd);
                    continue;
                }
                known.get(&event.wd).copied()
            };
            let (Some(directory), Some(name)) = (directory, event.name) else {
                continue;
            };
            let notice = appeared(directory, name.as_encoded_bytes());
            if changes
                .send(Change::Notice(Box::new(notice)))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
    }
}

fn appeared(directory: InodeKey, name: &[u8]) -> Notice {
    let mut notice = Notice {
        time: boot_now(),
        cgroup: CgroupId(0),
        directory,
        file: InodeKey::default(),
        kind: NoticeKind::Appeared as u32,
        reserved: 0,
        name: [0; 256],
    };
    let kept = name.len().min(notice.name.len() - 1);
    notice.name[..kept].copy_from_slice(&name[..kept]);
    notice
}

/// Has everything looked at again when something was mounted.
async fn follow_mounts(changes: mpsc::Sender<Change>) -> io::Result<()> {
    let mounts = File::open("/proc/self/mountinfo")?;
    let interest = Interest::PRIORITY | Interest::ERROR;
    // SAFETY: a file keeps its descriptor until it is dropped.
    let mounts =
        unsafe { AsyncFd::register_with_interest(mounts, interest) }.map_err(io::Error::from)?;
    loop {
        let mut ready = mounts.ready(interest).await?;
        ready.clear_ready();
        tokio::time::sleep(SETTLE).await;
        if changes.send(Change::Unknown).await.is_err() {
            return Ok(());
        }
    }
}
