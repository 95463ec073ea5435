//! The shapes in which other programs take records: pure functions of one record, a file each.
//!
//! Whatever a record has or lacks, its shape is valid: what a shape requires and a record does not tell is said to be
//! unknown in that shape's own words.

mod cef;
mod cloudevents;
mod ecs;
mod falco;
mod ocsf;
mod record;
pub mod summary;

use std::io::{self, BufRead, Write};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use record::{Key, Record, Severity};

/// Who tells, in the shapes that name a product.
const PRODUCT: &str = "enforcer";
/// Its version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How a record is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// As it is in the log
    #[default]
    Native,
    /// Open Cybersecurity Schema Framework 1.8
    Ocsf,
    /// Elastic Common Schema
    Ecs,
    /// CloudEvents 1.0, with the record as data
    #[value(name = "cloudevents")]
    CloudEvents,
    /// Falco's JSON, which falcosidekick takes
    Falco,
    /// ArcSight Common Event Format 0
    Cef,
}

impl Shape {
    /// The record in this shape: one line without its end.
    #[must_use]
    pub fn line(self, record: &Value) -> String {
        let record = Record(record);
        match self {
            Self::Native => record.0.to_string(),
            Self::Ocsf => ocsf::event(record).to_string(),
            Self::Ecs => ecs::document(record).to_string(),
            Self::CloudEvents => cloudevents::event(record).to_string(),
            Self::Falco => falco::alert(record).to_string(),
            Self::Cef => cef::line(record),
        }
    }

    /// The media type of one such line.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::CloudEvents => "application/cloudevents+json",
            Self::Cef => "text/plain; charset=utf-8",
            _ => "application/json",
        }
    }
}

/// Turns a log of records, one on each line, into the same in another shape.
///
/// # Errors
/// If something cannot be read or written, or a line is no record: then with its number.
pub fn convert(log: impl BufRead, shape: Shape, mut out: impl Write) -> io::Result<()> {
    for (index, line) in log.lines().enumerate() {
        let line = line?;
        if line.is_empty() {
            continue;
        }
        let record: Value = serde_json::from_str(&line).map_err(|error| {
            let number = index + 1;
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("line {number} is no record: {error}"),
            )
        })?;
        writeln!(out, "{}", shape.line(&record))?;
    }
    out.flush()
}
