//! Where records go besides the log: each sink reads the log by a cursor of its own, on a thread of its own, and hands
//! over what it reads in the shape that it is asked for. None can slow a decision, the log, or another sink.
//!
//! A record counts as delivered once its receiver has said so, and only then the cursor on disk moves: after a crash
//! some records may come again, under the same key. What a receiver refuses for good, and what the log no longer had,
//! is counted and told.

mod file;
mod nats;
mod otlp;
mod pace;
mod place;
mod syslog;
pub(crate) mod tls;
mod webhook;
mod worker;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use enforcer_governance::journal::Reader;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::shape::{Key, Record, Shape};
pub use place::{Place, Sink};
pub use worker::{Outlet, Take, run};

/// A record on its way.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// What its receiver knows it by.
    pub key: Key,
    /// As it is in the log.
    pub record: Value,
    /// In the sink's shape, one line without its end.
    pub line: String,
}

impl Parcel {
    /// A line of the log, if it is a record.
    #[must_use]
    pub fn new(line: &[u8], shape: Shape) -> Option<Self> {
        let record: Value = serde_json::from_slice(line).ok()?;
        Some(Self {
            key: Record(&record).key(),
            line: shape.line(&record),
            record,
        })
    }
}

/// Why a batch was not delivered as a whole.
#[derive(Debug)]
pub struct Failure {
    /// So many from the front were.
    pub delivered: usize,
    /// The receiver will never take the next one.
    pub refused: bool,
    /// The receiver asks to be left alone for so long.
    pub after: Option<Duration>,
    /// In words.
    pub reason: String,
}

impl Failure {
    /// Nothing was delivered; it may be, later.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self {
            delivered: 0,
            refused: false,
            after: None,
            reason: reason.to_string(),
        }
    }
}

/// How a sink is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Its name.
    pub name: String,
    /// What kind it is.
    pub kind: &'static str,
    /// Records delivered since the start.
    pub delivered: u64,
    /// Records that the receiver refused for good.
    pub refused: u64,
    /// Records that the log no longer had when they were to be delivered.
    pub missed: u64,
    /// Records that are to be delivered.
    pub behind: u64,
    /// Attempts that failed since the last that did not.
    pub failures: u32,
    /// Why the last attempt failed, if the last one did.
    pub error: Option<String>,
    /// When something was last delivered.
    pub last_delivered: Option<String>,
    /// The last record that is done with.
    #[serde(skip)]
    through: u64,
}

/// The health of one sink, shared by its thread and those who ask.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<Health>>);

impl Shared {
    /// Of a sink.
    #[must_use]
    pub fn new(name: &str, kind: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Health {
            name: name.to_owned(),
            kind,
            ..Health::default()
        })))
    }

    /// As it is now.
    #[must_use]
    pub fn now(&self) -> Health {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn change(&self, change: impl FnOnce(&mut Health)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn delivered(&self, count: usize) {
        self.change(|it| {
            it.delivered += count as u64;
            it.last_delivered = Some(Timestamp::now().to_string());
        });
    }
}

/// All sinks of a daemon.
#[derive(Debug, Default)]
pub struct Sinks {
    running: Vec<Running>,
    stop: Option<watch::Sender<bool>>,
    log: Option<Reader>,
}

#[derive(Debug)]
struct Running {
    health: Shared,
    /// What was told of losses.
    told: u64,
    ended: std::sync::mpsc::Receiver<()>,
}

impl Sinks {
    /// Starts a thread for each.
    ///
    /// # Errors
    /// If a thread cannot be started, or a cursor not read.
    pub fn start(sinks: &[Sink], log: &Reader) -> std::io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut running = Vec::new();
        for sink in sinks {
            let health = Shared::new(&sink.name, sink.place.kind());
            let cursor = log.named(&format!("sink-{}", sink.name))?;
            health.change(|it| it.through = cursor.last());
            let (ending, ended) = std::sync::mpsc::channel();
            let (sink, shared, stopped) = (sink.clone(), health.clone(), stopped.clone());
            std::thread::Builder::new()
                .name(format!("sink {}", sink.name))
                .spawn(move || {
                    let name = sink.name.clone();
                    if let Err(error) = serve(sink, cursor, &shared, stopped) {
                        tracing::error!(sink = name, %error, "the sink has ended");
                        shared.change(|it| it.error = Some(error.to_string()));
                    }
                    let _ = ending.send(());
                })?;
            running.push(Running {
                health,
                told: 0,
                ended,
            });
        }
        Ok(Self {
            running,
            stop: Some(stop),
            log: Some(log.clone()),
        })
    }

    /// How they are.
    #[must_use]
    pub fn health(&self) -> Vec<Health> {
        let written = self.log.as_ref().map_or(0, |it| it.head().sequence);
        let now = self.running.iter().map(|it| it.health.now());
        now.map(|it| Health {
            behind: written.saturating_sub(it.through),
            ..it
        })
        .collect()
    }

    /// How many records each sink has not delivered and never will, as far as not yet told: name and count.
    pub fn take_losses(&mut self) -> Vec<(String, u64)> {
        let new = self.running.iter_mut().filter_map(|it| {
            let health = it.health.now();
            let lost = health.refused + health.missed;
            let new = lost - std::mem::replace(&mut it.told, lost);
            (new > 0).then_some((health.name, new))
        });
        new.collect()
    }

    /// Has them deliver what is there, but no longer than this; what is not delivered, the next daemon delivers.
    pub fn stop(self, within: Duration) {
        if let Some(stop) = self.stop {
            stop.send_replace(true);
        }
        let deadline = Instant::now() + within;
        for running in self.running {
            let left = deadline.saturating_duration_since(Instant::now());
            let _ = running.ended.recv_timeout(left);
        }
    }
}

/// One sink's thread.
fn serve(
    sink: Sink,
    cursor: enforcer_governance::journal::Cursor,
    health: &Shared,
    stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (shape, batch, denials) = (sink.shape, sink.batch, sink.denials);
    let take = worker::Take {
        shape,
        batch,
        denials,
    };
    runtime.block_on(async {
        match sink.place {
            Place::File(path) => {
                run(file::Appended::new(path), cursor, take, health, stopped).await
            }
            Place::Stdout => run(file::Stdout, cursor, take, health, stopped).await,
            Place::Otlp(to) => run(otlp::Otlp::new(to), cursor, take, health, stopped).await,
            Place::Nats(to) => run(nats::Nats::new(to), cursor, take, health, stopped).await,
            Place::Webhook(to) => {
                let outlet = webhook::Webhook::new(to, shape, batch);
                run(outlet, cursor, take, health, stopped).await;
            }
            Place::Syslog(to) => run(syslog::Syslog::new(to), cursor, take, health, stopped).await,
        }
    });
    Ok(())
}
