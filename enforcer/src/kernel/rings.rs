//! Reading the rings.

use std::io;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use enforcer_common::event::{Notice, Use};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::maps::Error;

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

/// What came out of a ring.
#[derive(Clone, Copy, Debug)]
pub enum Record {
    /// A use.
    Use(Use),
    /// A notice.
    Notice(Notice),
    /// Something changed that tells no more: everything is to be looked at again.
    Reconcile,
}

/// Starts reading all rings. Records arrive in the order of each ring; when the channel is full the kernel's
/// ring fills up instead, which the programs count.
pub fn start(ebpf: &mut Ebpf, records: &mpsc::Sender<Record>) -> Result<(), Error> {
    for (name, decode) in [
        ("DENIALS", decode_use as fn(&[u8]) -> Option<Record>),
        ("USES", decode_use),
        ("NOTICES", decode_notice),
    ] {
        let map = ebpf.take_map(name).ok_or(Error::Missing(name))?;
        let ring = RingBuf::try_from(map).map_err(|source| Error::Map {
            action: "open",
            table: name,
            source,
        })?;
        let records = records.clone();
        tokio::spawn(async move {
            if let Err(error) = read(ring, decode, records).await {
                tracing::error!(ring = name, %error, "a ring cannot be read any more");
            }
        });
    }
    Ok(())
}

async fn read(
    ring: RingBuf<MapData>,
    decode: fn(&[u8]) -> Option<Record>,
    records: mpsc::Sender<Record>,
) -> io::Result<()> {
    // SAFETY: the ring owns its descriptor, closes it only when dropped, and always names the same one.
    let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(io::Error::from)?;
    loop {
        let mut guard = ring.readable_mut().await?;
        let mut batch = Vec::new();
        while let Some(item) = guard.get_inner_mut().next() {
            batch.extend(decode(&item));
            if batch.len() == 256 {
                break;
            }
        }
        if batch.len() < 256 {
            guard.clear_ready();
        }
        for record in batch {
            if records.send(record).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn decode_use(bytes: &[u8]) -> Option<Record> {
    // SAFETY: every bit pattern of the record's integers is a value.
    unsafe { decode(bytes) }.map(Record::Use)
}

fn decode_notice(bytes: &[u8]) -> Option<Record> {
    // SAFETY: as above.
    unsafe { decode(bytes) }.map(Record::Notice)
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
