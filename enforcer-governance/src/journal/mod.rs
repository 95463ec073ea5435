//! The records of a node on disk: numbered without a gap, chained, signed now and then, and read by whoever wants to.
//!
//! A record is a line: the canonical JSON (RFC 8785) of an object that has, besides what it tells, its `epoch`, its
//! `sequence` in it from 1 on, and the `previous` record's hash; and appended to that its own `hash`, which is SHA-256
//! over the line without it. Checkpoints are records too, with a signature over all before them. [`Journal`] appends,
//! any number of [`Cursor`]s read at their own pace, and [`verify`] finds what somebody else changed.

mod line;
mod read;
mod segment;
#[cfg(test)]
mod tests;
mod verify;
mod write;

pub use read::{Batch, Cursor, Reader};
pub use verify::{Fault, Report, Span, verify};
pub use write::{Error, Journal, Limits};

/// The kind of records that are signed.
pub const CHECKPOINT: &str = "checkpoint";
/// The kind of records that tell that older ones were removed to keep the limits: all up to number `through`.
pub const TRIMMED: &str = "log-trimmed";
/// The file with the key that signs checkpoints, in the journal's directory.
pub const KEY: &str = "key.pem";
/// The file with the last checkpoint.
const HEAD: &str = "head.json";

/// How far a journal is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Under which numbers are given; changes when the journal was lost. Empty before there is one.
    pub epoch: String,
    /// The last record that is on disk; 0 if there is none.
    pub sequence: u64,
}
