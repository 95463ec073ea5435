//! Reading the rings.

use std::io;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError, RingBuf};
use aya_log::EbpfLogger;
use enforcer_common::event::{Notice, NoticeKind, Use};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::fill::Fill;
use super::maps::Error;
use crate::node::cgroups;
use crate::node::containers::Starting;

/// Passes the programs' own diagnostics on to the daemon's log. Never events.
pub fn start_diagnostics(ebpf: &mut Ebpf) -> io::Result<()> {
    let logger = EbpfLogger::init(ebpf).map_err(io::Error::other)?;
    // SAFETY: the logger owns its ring's descriptor and always names the same one.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
        .map_err(io::Error::from)?;
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}

/// What changed on the node and has to be acted on.
#[derive(Clone, Debug)]
pub enum Change {
    /// The kernel says what it is.
    Notice(Box<Notice>),
    /// It is not known what: everything is to be looked at again.
    Unknown,
}

/// How many records wait for the engine in a channel; more stay in the kernel's rings, where a daemon that is killed leaves
/// them to the next.
const WAITING: usize = 64;

/// Where everything that is read from the kernel goes. Changes wait apart from uses: a flood of uses must not
/// delay the protection of a file that has just appeared.
#[derive(Clone, Debug)]
pub struct Records {
    /// Uses, to be told.
    pub uses: mpsc::Sender<Use>,
    /// Changes, to be acted on.
    pub changes: mpsc::Sender<Change>,
}

/// The other end of [`Records`].
#[derive(Debug)]
pub struct Recorded {
    /// Uses, to be told.
    pub uses: mpsc::Receiver<Use>,
    /// Changes, to be acted on.
    pub changes: mpsc::Receiver<Change>,
}

/// Both ends.
pub fn channels() -> (Records, Recorded) {
    let (uses, used) = mpsc::channel(WAITING);
    let (changes, changed) = mpsc::channel(WAITING);
    let recorded = Recorded {
        uses: used,
        changes: changed,
    };
    (Records { uses, changes }, recorded)
}

/// Starts reading all rings. Records arrive in the order of each ring, and uses before the denials that they led to; when
/// a channel is full the kernel's ring fills up instead, which the programs count. How full each ring is can be seen by
/// what is returned. Containers are noted in `starting` as soon as they come.
pub fn start(
    ebpf: &mut Ebpf,
    records: &Records,
    starting: Arc<Starting>,
) -> Result<Vec<Fill>, Error> {
    let fills = ["DENIALS", "USES", "NOTICES"].map(|ring| fill(ebpf, ring));
    let fills = fills.into_iter().collect::<Result<_, _>>()?;
    let (denials, uses) = (open(ebpf, "DENIALS")?, open(ebpf, "USES")?);
    let to = records.uses.clone();
    spawn("DENIALS and USES", read_uses(denials, uses, to));
    let notices = open(ebpf, "NOTICES")?;
    let to = records.changes.clone();
    alone("NOTICES", read_notices(notices, to, starting))?;
    Ok(fills)
}

/// How full a ring is.
pub(super) fn fill(ebpf: &Ebpf, name: &'static str) -> Result<Fill, Error> {
    let Some(Map::RingBuf(ring)) = ebpf.map(name) else {
        return Err(Error::Missing(name));
    };
    let opened = || {
        let capacity = ring.info()?.max_entries() as usize;
        Fill::open(name, ring.fd(), capacity)
            .map_err(|error| MapError::IoError(io::Error::from(error)))
    };
    opened().map_err(|source| Error::Map {
        action: "look at",
        table: name,
        source,
    })
}

fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, Error> {
    let map = ebpf.take_map(name).ok_or(Error::Missing(name))?;
    RingBuf::try_from(map).map_err(|source| Error::Map {
        action: "open",
        table: name,
        source,
    })
}

fn spawn(name: &'static str, reader: impl Future<Output = io::Result<()>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = reader.await {
            tracing::error!(ring = name, %error, "a ring cannot be read any more");
        }
    });
}

/// On a thread of its own, which the rest of the daemon does not keep from running: somebody may be made to wait by what it
/// reads.
fn alone(
    name: &'static str,
    reader: impl Future<Output = io::Result<()>> + Send + 'static,
) -> Result<(), Error> {
    let failed = |error| Error::Map {
        action: "read",
        table: name,
        source: MapError::IoError(error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    let read = move || {
        if let Err(error) = runtime.block_on(reader) {
            tracing::error!(ring = name, %error, "a ring cannot be read any more");
        }
    };
    std::thread::Builder::new()
        .name(name.to_lowercase())
        .spawn(read)
        .map(drop)
        .map_err(failed)
}

fn follow(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its descriptor, closes it only when dropped, and always names the same one.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}

/// How many records are taken from a ring at once.
const BATCH: usize = 64;

/// Takes records out of a ring. `true` if there may be more.
fn take<T>(ring: &mut RingBuf<MapData>, decode: fn(&[u8]) -> Option<T>, into: &mut Vec<T>) -> bool {
    for _ in 0..BATCH {
        let Some(item) = ring.next() else {
            return false;
        };
        into.extend(decode(&item));
    }
    true
}

async fn read_uses(
    denials: RingBuf<MapData>,
    uses: RingBuf<MapData>,
    to: mpsc::Sender<Use>,
) -> io::Result<()> {
    let (mut denials, mut uses) = (follow(denials)?, follow(uses)?);
    loop {
        let mut batch = Vec::new();
        // Denials first: what led to one is in the other ring by then.
        tokio::select! {
            guard = denials.readable_mut() => {
                let mut guard = guard?;
                if !take(guard.get_inner_mut(), decode_use, &mut batch) {
                    guard.clear_ready();
                }
                take(uses.get_mut(), decode_use, &mut batch);
            }
            guard = uses.readable_mut() => {
                let mut guard = guard?;
                take(denials.get_mut(), decode_use, &mut batch);
                if !take(guard.get_inner_mut(), decode_use, &mut batch) {
                    guard.clear_ready();
                }
            }
        }
        batch.sort_by_key(|record| record.time);
        for record in batch {
            if to.send(record).await.is_err() {
                return Ok(());
            }
        }
    }
}

async fn read_notices(
    ring: RingBuf<MapData>,
    to: mpsc::Sender<Change>,
    starting: Arc<Starting>,
) -> io::Result<()> {
    let mut ring = follow(ring)?;
    loop {
        let mut batch = Vec::new();
        let mut guard = ring.readable_mut().await?;
        if !take(guard.get_inner_mut(), decode_notice, &mut batch) {
            guard.clear_ready();
        }
        for notice in &batch {
            if notice.kind == NoticeKind::CgroupCreated as u32 {
                starting.created(&cgroups::path_seen(notice.cgroup, notice.name()));
            }
        }
        for notice in batch {
            if to.send(Change::Notice(notice)).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn decode_use(bytes: &[u8]) -> Option<Use> {
    // SAFETY: every bit pattern of the record's integers is a value.
    unsafe { decode(bytes) }
}

fn decode_notice(bytes: &[u8]) -> Option<Box<Notice>> {
    // SAFETY: as above.
    unsafe { decode(bytes) }.map(Box::new)
}

/// Reads a record; `None` if it is too short, which a record of our programs never is.
///
/// # Safety
///
/// Every bit pattern is a valid `T`.
unsafe fn decode<T: Copy>(bytes: &[u8]) -> Option<T> {
    (bytes.len() >= size_of::<T>()).then(|| {
        // SAFETY: long enough, by the check; unaligned is allowed; any bits are a `T`, by the caller.
        unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
    })
}
