//! Records of what happens on the node: what they say ([`model`]), and where they go: into the log on disk, which numbers
//! and chains them, and from there to whoever reads it.

pub mod model;
pub mod outputs;

mod misfit;
mod processes;
mod redact;
mod tamper;
mod tell;
mod trail;
mod writer;

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use enforcer_common::event::Use;
use enforcer_governance::journal::{Journal, Limits, Reader};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::kernel::settled::{Settled, Settles};
use crate::serve::metrics::Metrics;
pub use misfit::destination as destination_words;
pub(crate) use misfit::misfit;
use processes::Processes;
pub use tell::Context;
pub(crate) use tell::protocol_name;
use trail::Trails;
use writer::{Sent, Unwritten, Writer};

/// So many records wait for the disk; while there are more, what the kernel tells stays in its rings.
const WAITING: usize = 4096;

/// Where records go.
pub struct Log {
    node: String,
    boot: String,
    to: Option<Sender<Sent>>,
    writer: Option<JoinHandle<()>>,
    reader: Reader,
    room: Arc<Semaphore>,
    metrics: Metrics,
    unwritten: Arc<Unwritten>,
    settled: Arc<OnceLock<Settled>>,
    processes: Processes,
    trails: Trails,
}

/// A use that is on its way to the log.
#[derive(Debug)]
pub struct Told {
    /// The executable's path, or its name where the process has gone.
    pub exe: String,
    /// The record, if it tells of a denial.
    pub denial: Option<model::Record>,
}

impl Log {
    /// The log of `node` in this directory. Where it cannot be written, what is not kept is counted, and told when it can.
    ///
    /// # Errors
    /// If there can be no thread to write it.
    pub fn start(node: String, directory: &Path, limits: Limits) -> std::io::Result<Self> {
        let mut journal = Journal::new(directory, limits);
        if let Err(error) = journal.open() {
            tracing::error!("no records can be kept: {}", crate::chain(&error));
        }
        let reader = journal.reader();
        let boot = boot_id();
        let (to, records) = channel();
        let room = Arc::new(Semaphore::new(WAITING));
        let unwritten = Arc::new(Unwritten::default());
        let metrics = Metrics::default();
        let settled = Arc::new(OnceLock::new());
        let writer = Writer {
            journal,
            node: node.clone(),
            boot: boot.clone(),
            records,
            room: room.clone(),
            metrics: metrics.clone(),
            unwritten: unwritten.clone(),
            settled: settled.clone(),
        };
        let writer = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self {
            node,
            processes: Processes::new(&boot),
            boot,
            to: Some(to),
            writer: Some(writer),
            reader,
            room,
            metrics,
            unwritten,
            settled,
            trails: Trails::default(),
        })
    }

    /// For those who read it.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Notes there from now on what became of the kernel's records.
    pub fn settle_in(&self, settled: Settled) {
        // There are no other programs for as long as the daemon lives.
        let _ = self.settled.set(settled);
    }

    /// This will not be told.
    pub fn settle(&self, what: Settles) {
        if let Some(settled) = self.settled.get() {
            settled.settle(what);
        }
    }

    /// Says when another record can be taken without any being lost.
    #[must_use]
    pub fn room(&self) -> Arc<Semaphore> {
        self.room.clone()
    }

    /// Writes one use.
    pub fn write_use(&mut self, record: &Use, context: &Context<'_>) -> Told {
        let description = self.processes.describe(record, context.executables);
        let file = (context.path_of)(&record.file).map(|path| path.display().to_string());
        let path = self
            .trails
            .follow(record, &description.exe, file.as_deref());
        let used = tell::used(record, context, description, file, path);
        let exe = used.process.exe.clone();
        let told = model::Record {
            time: (context.wall)(record.time),
            node: self.node.clone(),
            boot: self.boot.clone(),
            kind: tell::kind(record).into(),
            told: model::Told::Use(Box::new(used)),
            place: None,
        };
        let denial = told.is_denial().then(|| told.clone());
        self.send(told, Settles::of(record));
        Told { exe, denial }
    }

    /// Writes something the daemon itself has to tell: kind and fields.
    pub fn write(&mut self, kind: &str, fields: Value) {
        let record = writer::node_record(&self.node, &self.boot, kind, fields);
        self.send(record, Settles::default());
    }

    /// The same, of what accounts for records of the kernel. `false` if there is no room for it now: it is to be told later.
    #[must_use]
    pub fn write_account(&mut self, kind: &str, fields: Value, settles: Settles) -> bool {
        let record = writer::node_record(&self.node, &self.boot, kind, fields);
        self.try_send(record, settles)
    }

    fn send(&mut self, record: model::Record, settles: Settles) {
        let is_denial = record.is_denial();
        if !self.try_send(record, settles) {
            self.unwritten.add(is_denial, settles);
        }
    }

    fn try_send(&mut self, record: model::Record, settles: Settles) -> bool {
        self.room.try_acquire().is_ok_and(|permit| {
            permit.forget();
            let to = self.to.as_ref();
            let record = Box::new(record);
            to.is_some_and(|to| to.send(Sent { record, settles }).is_ok())
        })
    }

    /// Returns once everything is on disk, and signed. Nothing more is taken.
    pub fn close(&mut self) {
        self.to = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the thread that writes the log has panicked");
        }
    }
}

/// Of the running kernel.
fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| "unknown".to_owned(), |it| it.trim().to_owned())
}

/// NUL-padded bytes from the kernel as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
