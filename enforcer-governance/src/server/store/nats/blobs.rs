//! Bytes of any length in a bucket: packed, in pieces, and under their digest how many these are.

use std::io::{Read as _, Write as _};

use async_nats::jetstream::kv;
use enforcer_bundle::Digest;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::bus::{Bus, PIECE};
use crate::server::Error;

/// Most bytes that a blob unpacks to.
const LARGEST: u64 = 1 << 30;

/// Keeps bytes, to be found by their digest.
pub async fn keep(bus: &Bus, bucket: &kv::Store, bytes: &[u8]) -> Result<Digest, Error> {
    let digest = Digest::of_bytes(bytes);
    let packed = packed(bytes).map_err(|error| bus.failed(error))?;
    let pieces = packed.chunks(PIECE);
    let count = pieces.len();
    for (number, piece) in pieces.enumerate() {
        let key = format!("blob.{digest}.{number}");
        bus.put_entry(bucket, &key, piece.to_vec(), None).await?;
    }
    let key = format!("blob.{digest}");
    let count = count.to_string().into_bytes();
    bus.put_entry(bucket, &key, count, None).await?;
    Ok(digest)
}

/// The bytes of a digest.
pub async fn read(bus: &Bus, bucket: &kv::Store, digest: &Digest) -> Result<Vec<u8>, Error> {
    let missing = |key: &str| bus.failed(format!("{} has no {key}, which is needed", bucket.name));
    let key = format!("blob.{digest}");
    let count = bus.entry(bucket, &key).await?;
    let count = count.ok_or_else(|| missing(&key))?;
    let count: usize = std::str::from_utf8(&count.payload)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| missing(&key))?;
    let mut packed = Vec::new();
    for number in 0..count {
        let key = format!("blob.{digest}.{number}");
        let piece = bus.entry(bucket, &key).await?;
        packed.extend_from_slice(&piece.ok_or_else(|| missing(&key))?.payload);
    }
    let mut bytes = Vec::new();
    GzDecoder::new(packed.as_slice())
        .take(LARGEST)
        .read_to_end(&mut bytes)
        .map_err(|error| bus.failed(format!("{key}: {error}")))?;
    if Digest::of_bytes(&bytes) != *digest {
        return Err(bus.failed(format!("{key} has another digest")));
    }
    Ok(bytes)
}

/// Drops what nothing refers to any more.
pub async fn forget(bucket: &kv::Store, digest: &Digest) {
    let subject = format!("{}blob.{digest}", bucket.prefix);
    for subject in [format!("{subject}.*"), subject] {
        // If it stays, it is only that.
        let _ = bucket.stream.purge().filter(subject).await;
    }
}

fn packed(bytes: &[u8]) -> Result<Vec<u8>, std::io::Error> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}
