//! The thread that writes the log: nobody else waits for the disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use enforcer_governance::journal::{CHECKPOINT, Journal, TRIMMED};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::model::{Record, Told};
use crate::kernel::settled::{Settled, Settles};
use crate::serve::metrics::Metrics;

/// How often it looks after the files, and tells what it could not write.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often what is new is signed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// So many records are put on disk at once.
const BATCH: usize = 512;

/// What is not in the log.
#[derive(Debug, Default)]
pub struct Unwritten {
    records: AtomicU64,
    /// How many of them were denials.
    denials: AtomicU64,
    /// How many of them came out of the kernel's rings.
    from_rings: AtomicU64,
}

/// A record on its way, and what is settled once it is in the log.
pub(super) struct Sent {
    pub record: Box<Record>,
    pub settles: Settles,
}

impl Unwritten {
    /// One more.
    pub fn add(&self, is_denial: bool, settles: Settles) {
        self.give_back((1, is_denial.into(), settles.records));
    }

    fn take(&self) -> (u64, u64, u64) {
        let taken = |it: &AtomicU64| it.swap(0, Ordering::Relaxed);
        (
            taken(&self.records),
            taken(&self.denials),
            taken(&self.from_rings),
        )
    }

    fn give_back(&self, (records, denials, from_rings): (u64, u64, u64)) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.denials.fetch_add(denials, Ordering::Relaxed);
        self.from_rings.fetch_add(from_rings, Ordering::Relaxed);
    }
}

/// Writes what it is sent, until nobody sends any more.
pub(super) struct Writer {
    pub journal: Journal,
    pub node: String,
    pub boot: String,
    pub records: Receiver<Sent>,
    /// Has a permit for each record that may be sent.
    pub room: Arc<Semaphore>,
    pub metrics: Metrics,
    pub unwritten: Arc<Unwritten>,
    /// Once there are programs.
    pub settled: Arc<OnceLock<Settled>>,
}

impl Writer {
    pub fn run(mut self) {
        let mut looked = Instant::now();
        let mut signed = (Instant::now(), self.journal.head());
        loop {
            match self.records.recv_timeout(LOOK_EVERY) {
                Ok(first) => self.write(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.look_after();
                if signed.0.elapsed() >= CHECKPOINT_EVERY && signed.1 != self.journal.head() {
                    self.sign();
                    signed = (Instant::now(), self.journal.head());
                }
            }
        }
        self.tell_unwritten();
        self.sign();
    }

    /// This record and what else is there.
    fn write(&mut self, first: Sent) {
        let mut settles = Settles::default();
        let mut denials = 0;
        let mut appended = 0;
        let mut taken = 0;
        let mut next = Some(first);
        while let Some(sent) = next {
            taken += 1;
            let is_denial = sent.record.is_denial();
            match self.journal.append(&*sent.record) {
                Ok(_) => {
                    appended += 1;
                    denials += u64::from(is_denial);
                    settles.add(sent.settles);
                }
                Err(error) => {
                    tracing::debug!("a record is not kept: {}", crate::chain(&error));
                    self.unwritten.add(is_denial, sent.settles);
                }
            }
            next = match taken < BATCH {
                true => self.records.try_recv().ok(),
                false => None,
            };
        }
        match self.journal.commit() {
            Ok(_) => self.settle(settles),
            Err(error) => {
                tracing::error!("{appended} records are not kept: {}", crate::chain(&error));
                self.unwritten
                    .give_back((appended, denials, settles.records));
            }
        }
        self.room.add_permits(taken);
    }

    fn look_after(&mut self) {
        self.journal.look_after();
        self.tell_unwritten();
        let Some(through) = self.journal.excess() else {
            return;
        };
        if self.tell(TRIMMED, json!({"through": through}))
            && let Err(error) = self.journal.trim(through)
        {
            tracing::error!("old records stay: {}", crate::chain(&error));
        }
    }

    fn tell_unwritten(&mut self) {
        let (records, denials, from_rings) = self.unwritten.take();
        let fields = json!({"stage": "log", "count": records, "denials": denials});
        if records == 0 {
            return;
        }
        if self.tell("lost", fields) {
            self.metrics.lost("log", records);
            self.settle(Settles {
                records: from_rings,
                ..Settles::default()
            });
        } else {
            self.unwritten.give_back((records, denials, from_rings));
        }
    }

    fn settle(&self, what: Settles) {
        if let Some(settled) = self.settled.get() {
            settled.settle(what);
        }
    }

    fn tell(&mut self, kind: &'static str, fields: Value) -> bool {
        let record = self.record(kind, fields);
        let told = self
            .journal
            .append(&record)
            .and_then(|_| self.journal.commit());
        told.is_ok()
    }

    fn sign(&mut self) {
        let record = self.record(CHECKPOINT, Value::Null);
        let signed = self
            .journal
            .checkpoint(&record)
            .and_then(|_| self.journal.commit());
        if let Err(error) = signed {
            tracing::error!(
                "what is new in the log is not signed: {}",
                crate::chain(&error)
            );
        }
    }

    fn record(&self, kind: &'static str, fields: Value) -> Record {
        node_record(&self.node, &self.boot, kind, fields)
    }
}

/// What the daemon itself has to tell.
pub(super) fn node_record(node: &str, boot: &str, kind: &str, fields: Value) -> Record {
    Record {
        time: Timestamp::now(),
        node: node.to_owned(),
        boot: boot.to_owned(),
        kind: kind.to_owned().into(),
        told: Told::Node(match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }),
        place: None,
    }
}
