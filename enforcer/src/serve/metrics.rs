//! Numbers for Prometheus, and whether the daemon lives and is ready, over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use enforcer_common::event::{Kind, Ring};
use enforcer_common::verdict::{Mode, Reason};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

use super::{Around, Error, Question, io_error};
use crate::engine::Engine;

/// Names with values: each name has a few values that are known beforehand.
type Labels = [(&'static str, String); 1];
type DecisionLabels = [(&'static str, String); 4];

/// What is counted, from the daemon's start on.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    decisions: Family<DecisionLabels, Counter>,
    lost: Family<Labels, Counter>,
    classified: Histogram,
    /// The rest is looked at when it is asked for.
    state: Family<Labels, Gauge>,
    entries: Family<Labels, Gauge>,
    capacity: Family<Labels, Gauge>,
    ring_bytes: Family<Labels, Gauge>,
    ring_capacity: Family<Labels, Gauge>,
    uses: Family<Labels, Counter>,
    sinks: Sinks,
    webhook: (Counter, Counter),
    numbers: Numbers,
}

/// By their names.
#[derive(Clone, Debug, Default)]
struct Sinks {
    delivered: Family<Labels, Counter>,
    lost: Family<Labels, Counter>,
    behind: Family<Labels, Gauge>,
    failures: Family<Labels, Gauge>,
}

#[derive(Clone, Debug, Default)]
struct Numbers {
    version: Gauge,
    issued: Gauge,
    expires: Gauge,
    stale: Gauge,
    gates: Gauge,
    files: Gauge,
    connected: Gauge,
    evidence: Gauge,
    sequence: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("enforcer");
        let numbers = Numbers::default();
        let decisions = Family::default();
        // From 10 microseconds to 10 seconds.
        let classified = Histogram::new(exponential_buckets(1e-5, 4.0, 11));
        let webhook = <(Counter, Counter)>::default();
        registry.register(
            "decisions",
            "Uses that were told one by one",
            decisions.clone(),
        );
        registry.register(
            "classification_seconds",
            "From a cgroup's creation until it is known exactly what it means to the bundle",
            classified.clone(),
        );
        let lost = family(
            &mut registry,
            "lost",
            "Records that were not told, by where they were lost",
        );
        let uses = family(
            &mut registry,
            "entitlement_uses",
            "Uses that an entitlement in force has allowed, since the usage ledger began",
        );
        let sinks = Sinks {
            delivered: family(
                &mut registry,
                "sink_delivered",
                "Records that a sink has delivered",
            ),
            lost: family(
                &mut registry,
                "sink_lost",
                "Records that a sink's receiver refused for good, or that the log no longer had",
            ),
            behind: family(
                &mut registry,
                "sink_behind",
                "Records that a sink has yet to deliver",
            ),
            failures: family(
                &mut registry,
                "sink_failures",
                "Attempts of a sink that failed since the last that did not",
            ),
        };
        let [state, entries, capacity, ring_bytes, ring_capacity] = [
            ("state", "1 for the state that the daemon is in"),
            ("table_entries", "Entries of the kernel's tables"),
            ("table_capacity", "Room for entries in the kernel's tables"),
            ("ring_bytes", "What waits in the kernel's rings to be read"),
            ("ring_capacity_bytes", "What fits into the kernel's rings"),
        ]
        .map(|(name, help)| family(&mut registry, name, help));
        registry.register(
            "webhook_delivered",
            "Denials that the webhook took",
            webhook.0.clone(),
        );
        registry.register(
            "webhook_lost",
            "Denials that the webhook did not take",
            webhook.1.clone(),
        );
        let each: [(&str, &str, &Gauge); 9] = [
            (
                "bundle_version",
                "Version of the bundle in force; 0 if there is none",
                &numbers.version,
            ),
            (
                "bundle_issued_timestamp_seconds",
                "When the bundle in force was issued",
                &numbers.issued,
            ),
            (
                "bundle_expires_timestamp_seconds",
                "When the bundle in force ends; 0 if it does not",
                &numbers.expires,
            ),
            (
                "bundle_stale",
                "1 if the bundle has ended, or governance is silent for too long",
                &numbers.stale,
            ),
            (
                "gates_attached",
                "Programs of the enforcer in the kernel",
                &numbers.gates,
            ),
            (
                "protected_files",
                "Files that are credentials",
                &numbers.files,
            ),
            (
                "governance_connected",
                "1 if there is a connection to governance",
                &numbers.connected,
            ),
            (
                "governance_evidence_sequence",
                "The last record that governance has",
                &numbers.evidence,
            ),
            (
                "log_sequence",
                "The last record of the log",
                &numbers.sequence,
            ),
        ];
        for (name, help, gauge) in each {
            registry.register(name, help, gauge.clone());
        }
        let metrics = Self {
            registry: Arc::new(registry),
            decisions,
            lost,
            classified,
            state,
            entries,
            capacity,
            ring_bytes,
            ring_capacity,
            uses,
            sinks,
            webhook,
            numbers,
        };
        metrics.begin();
        metrics
    }
}

impl Metrics {
    /// Counts what alerts are about from 0 on: of a counter that is first seen at 1, Prometheus sees no increase.
    fn begin(&self) {
        let rings = [Ring::Denials, Ring::Uses, Ring::Notices].map(Ring::name);
        for stage in rings.into_iter().chain(["webhook", "daemon", "log"]) {
            self.lost(stage, 0);
        }
        for kind in [Kind::Read, Kind::Reach] {
            for reason in Reason::ALL {
                self.decisions(kind.name(), "deny", reason.name(), Mode::Enforce.name());
            }
        }
    }

    /// A use was decided.
    pub fn decided(&self, kind: &str, verdict: &str, reason: &str, mode: &str) {
        self.decisions(kind, verdict, reason, mode).inc();
    }

    fn decisions(&self, kind: &str, verdict: &str, reason: &str, mode: &str) -> Counter {
        let labels = [
            ("kind", kind.to_owned()),
            ("verdict", verdict.to_owned()),
            ("reason", reason.to_owned()),
            ("mode", mode.to_owned()),
        ];
        self.decisions.get_or_create(&labels).clone()
    }

    /// So many records were lost at this stage.
    pub fn lost(&self, stage: &str, count: u64) {
        self.lost
            .get_or_create(&[("stage", stage.to_owned())])
            .inc_by(count);
    }

    /// How long it took to know a cgroup exactly.
    pub fn classified(&self, seconds: f64) {
        self.classified.observe(seconds);
    }

    fn look(&self, engine: &mut Engine, around: &Around) {
        let link = around.link.as_ref();
        let seen = engine.measured();
        let numbers = &self.numbers;
        self.state.clear();
        self.state.get_or_create(&[("state", seen.state)]).set(1);
        for (table, entries, room) in seen.tables {
            let labels = [("table", table.to_owned())];
            self.entries.get_or_create(&labels).set(entries);
            self.capacity.get_or_create(&labels).set(room);
        }
        for (ring, bytes, room) in seen.rings {
            let labels = [("ring", ring.to_lowercase())];
            self.ring_bytes.get_or_create(&labels).set(bytes);
            self.ring_capacity.get_or_create(&labels).set(room);
        }
        self.uses.clear();
        for (entitlement, count) in seen.uses {
            let labels = [("entitlement", entitlement)];
            set(&self.uses.get_or_create(&labels), count);
        }
        for sink in &around.sinks {
            let labels = [("sink", sink.name.clone())];
            let Sinks {
                delivered,
                lost,
                behind,
                failures,
            } = &self.sinks;
            set(&delivered.get_or_create(&labels), sink.delivered);
            set(&lost.get_or_create(&labels), sink.refused + sink.missed);
            behind.get_or_create(&labels).set(sink.behind as i64);
            failures.get_or_create(&labels).set(sink.failures.into());
        }
        if let Some((taken, not)) = seen.told {
            set(&self.webhook.0, taken);
            set(&self.webhook.1, not);
        }
        numbers.version.set(seen.version);
        numbers.issued.set(seen.issued);
        numbers.expires.set(seen.expires);
        numbers.stale.set(seen.stale.into());
        numbers.gates.set(seen.gates);
        numbers.files.set(seen.files);
        numbers.sequence.set(seen.sequence);
        numbers
            .connected
            .set(link.is_some_and(|it| it.connected).into());
        numbers
            .evidence
            .set(link.map_or(0, |it| it.evidence_stored as i64));
    }

    fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a string does not fail.
            Err(_) => String::new(),
        }
    }
}

/// A number for each value of a label.
fn family<M>(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, M>
where
    Family<Labels, M>: Metric + Clone + Default,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

/// For what is counted elsewhere, and never goes down while the daemon runs.
fn set(counter: &Counter, count: u64) {
    counter.inner().store(count, Ordering::Relaxed);
}

/// What is measured when somebody asks.
#[derive(Debug, Default)]
pub struct Measured {
    /// See `enforcer status`.
    pub state: String,
    /// Of the bundle in force; 0 if there is none.
    pub version: i64,
    /// Seconds since 1970.
    pub issued: i64,
    /// Seconds since 1970.
    pub expires: i64,
    /// Whether it has ended.
    pub stale: bool,
    /// Programs.
    pub gates: i64,
    /// Files.
    pub files: i64,
    /// Of the log.
    pub sequence: i64,
    /// Name, entries, and room.
    pub tables: Vec<(&'static str, i64, i64)>,
    /// Name, bytes that wait, and room.
    pub rings: Vec<(&'static str, i64, i64)>,
    /// Of each entitlement in force: what it has allowed.
    pub uses: Vec<(String, u64)>,
    /// What the webhook took, and what it did not; `None` if there is none.
    pub told: Option<(u64, u64)>,
}

/// Answers `/metrics`, `/livez` and `/readyz`.
///
/// # Errors
/// If it cannot listen.
pub async fn serve(
    address: SocketAddr,
    asking: mpsc::Sender<Question>,
    metrics: Metrics,
) -> Result<(), Error> {
    let (live, ready) = (asking.clone(), asking.clone());
    let router = Router::new()
        .route(
            "/metrics",
            get(async move || {
                let measured = metrics.clone();
                ask(&asking, move |engine, around| {
                    measured.look(engine, &around)
                })
                .await
                .map(|()| {
                    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                    ([("content-type", kind)], metrics.text())
                })
            }),
        )
        .route("/livez", get(async move || ask(&live, |_, _| "ok\n").await))
        .route(
            "/readyz",
            get(async move || {
                let line =
                    ask(&ready, |engine, _| (engine.is_ready(), engine.state_line())).await?;
                Ok::<_, StatusCode>(match line {
                    (true, line) => (StatusCode::OK, line + "\n"),
                    (false, line) => (StatusCode::SERVICE_UNAVAILABLE, line + "\n"),
                })
            }),
        );
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(io_error(format!("{address} for metrics")))?;
    let server = Server::builder()
        .accept_http1(true)
        .add_routes(Routes::from(router));
    tokio::spawn(async move {
        let ended = server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await;
        tracing::error!(?ended, "nobody answers for metrics any more");
    });
    Ok(())
}

async fn ask<T: Send + 'static>(
    asking: &mpsc::Sender<Question>,
    question: impl FnOnce(&mut Engine, Around) -> T + Send + 'static,
) -> Result<T, StatusCode> {
    let (answer, answered) = oneshot::channel();
    let question: Question = Box::new(move |engine, around| {
        let _ = answer.send(question(engine, around));
    });
    let gone = StatusCode::SERVICE_UNAVAILABLE;
    asking.send(question).await.map_err(|_| gone)?;
    answered.await.map_err(|_| gone)
}
