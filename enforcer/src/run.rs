//! `enforcer run`: the daemon's loop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use enforcer::bundle::Labels;
use enforcer::engine::Engine;
use enforcer::engine::containers::{self, Containers};
use enforcer::kernel::load::Options;
use enforcer::kernel::rings::{self, Change};
use enforcer::memory;
use enforcer::record::Log;
use enforcer::record::outputs::Outputs;
use enforcer::respond::webhook::{self, Webhook};
use enforcer::serve::{Around, Remote, serve, status};
use enforcer::sink::{Sink, Sinks};
use enforcer::usage::Thresholds;
use enforcer::view::page::{self, Document};
use enforcer_common::event::Use;
use enforcer_governance::client::Order;
use enforcer_governance::journal::{Limits, Reader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};

use crate::cli::config;
use crate::governed::{Governance, Governed};
use crate::supervisor::Supervisor;
use crate::watched::Watched;

/// How often the canaries are tried.
const CANARY_EVERY: Duration = Duration::from_secs(1);
/// How often clocks, names and losses are looked at.
const TICK_EVERY: Duration = Duration::from_secs(1);
/// How often it is made sure that every file has its mark, where reads are gated by marks.
const RECONCILE_EVERY: Duration = Duration::from_secs(10);
/// Changes that come in a burst are acted on together after this long.
const SETTLE: Duration = Duration::from_millis(100);

/// What to run with.
pub struct Settings {
    /// The node's name.
    pub node: String,
    /// Its labels.
    pub labels: Labels,
    /// Where the bundle comes from.
    pub source: Source,
    /// Whether known locations of credentials are denied as long as there is no bundle.
    pub require_bundle: bool,
    /// The log's directory, and what it may take.
    pub log: (PathBuf, Limits),
    /// A file for the events, besides standard output.
    pub event_log: Option<PathBuf>,
    /// Where else they are delivered.
    pub sinks: Vec<Sink>,
    /// Where a page is served.
    pub page: Option<SocketAddr>,
    /// Who is told of denials.
    pub webhook: Option<webhook::Settings>,
    /// Where the node keeps what must outlive it.
    pub state: PathBuf,
    /// The tier, and the sizes of tables.
    pub kernel: Options,
    /// The control socket; the canaries' files lie beside it.
    pub socket: PathBuf,
    /// Where it answers for metrics and health.
    pub metrics: Option<std::net::SocketAddr>,
    /// Where it listens besides.
    pub remote: Option<Remote>,
    /// Who says what containers are.
    pub containers: containers::Settings,
    /// All of them by name, as they were set.
    pub effective: config::Settings,
}

/// Where the bundle comes from.
pub enum Source {
    /// A file or a directory.
    File(PathBuf),
    /// A governance server.
    Governance(Governance),
}

/// Why it ended.
pub enum Ended {
    /// A signal.
    Asked,
    /// The tables in the kernel have too little room for this node.
    Outgrown,
}

/// How long records that came before the stop are still written; the rest is counted.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// How long the sinks may take with the last records. What is not delivered by then, the next daemon delivers.
const LAST_DELIVERIES: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT. On SIGHUP, `settings_now` says what it would be started with.
pub async fn run(
    settings: Settings,
    settings_now: fn() -> Result<Settings, String>,
) -> Result<Ended> {
    let directory = settings.socket.parent().unwrap_or(Path::new("/run"));
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let (place, limits) = settings.log;
    let log = Log::start(settings.node.clone(), &place, limits).context("cannot keep a log")?;
    let (reader, room) = (log.reader(), log.room());
    let mut outputs = Outputs::start(reader.clone(), settings.event_log.as_deref())
        .with_context(|| format!("cannot open the event log {:?}", settings.event_log))?;
    let mut sinks = Sinks::start(&settings.sinks, &reader).context("cannot start the sinks")?;
    let (wanting, mut wanted) = mpsc::channel(4);
    if let Some(address) = settings.page {
        serve_page(address, &settings.socket, &reader, wanting)?;
    }
    let (file, governance) = match settings.source {
        Source::File(path) => (Some(path), None),
        Source::Governance(governance) => (None, Some(governance)),
    };
    let labels = settings.labels.clone();
    let mut effective = settings.effective;
    let (containers, mut heard) =
        Containers::new(settings.containers).context("cannot follow containers")?;
    let starting = containers.starting().clone();
    let mut engine = Engine::new(&settings.kernel, file, labels, directory, containers, log)?;

    engine.keep_usage_in(&settings.state);
    if let Some(webhook) = &settings.webhook {
        engine.tell_denials_to(Webhook::start(webhook)?);
    }

    let (records, mut recorded) = rings::channels();
    let rings = rings::start(engine.ebpf(), &records, starting)?;
    engine.watch_rings(rings);
    engine.follow_gate(&records);
    if let Err(error) = rings::start_diagnostics(engine.ebpf()) {
        tracing::warn!(%error, "the programs' diagnostics cannot be read");
    }
    let (asking, mut asked) = mpsc::channel(16);
    if let Some(address) = settings.metrics {
        let metrics = engine.log().metrics().clone();
        enforcer::serve::metrics::serve(address, asking.clone(), metrics).await?;
    }
    serve(&settings.socket, settings.remote, asking, reader.clone()).await?;
    let (changes, mut changed) = mpsc::unbounded_channel();
    let mut watched = Watched::new(changes)?;
    let (mounts, mut mounted) = mpsc::unbounded_channel();
    if let Err(error) = enforcer::node::mounts::follow(mounts) {
        tracing::warn!(%error, "changes of mounts cannot be followed: they are noticed when the bundle is read again");
    }

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut canary = tokio::time::interval(CANARY_EVERY);
    let mut tick = tokio::time::interval(TICK_EVERY);
    let mut reconcile = tokio::time::interval(RECONCILE_EVERY);
    for interval in [&mut canary, &mut tick, &mut reconcile] {
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }

    if settings.require_bundle {
        engine.require_bundle();
    }
    let mut governed = match governance {
        None => None,
        Some(governance) => Some(
            governance
                .start(&mut engine, settings.node, settings.labels, reader)
                .await?,
        ),
    };
    if let Err(error) = engine.learn_containers().await {
        tracing::warn!(
            "what runs in containers is not known: {}",
            enforcer::chain(&error)
        );
    }
    engine.reload().await;
    engine.prove().await;
    watched.follow(&engine);
    memory::give_back();
    tracing::info!(socket = %settings.socket.display(), "running");
    let mut supervisor = Supervisor::default();
    supervisor.turns(engine.state_line());
    if engine.outgrown().is_none() {
        supervisor.ready();
    }
    let ended = loop {
        if let Some(why) = engine.outgrown() {
            tracing::info!(
                "{why}: starting again with large tables; what is in force stays in force"
            );
            break Ended::Outgrown;
        }
        tokio::select! {
            // Whichever is ready, by lot: what comes in floods keeps nothing else waiting for long.
            _ = terminate.recv() => break Ended::Asked,
            _ = interrupt.recv() => break Ended::Asked,
            _ = hangup.recv() => {
                supervisor.reloading();
                match settings_now() {
                    Ok(now) => reconfigure(&mut engine, &mut outputs, &mut effective, now).await,
                    Err(reason) => tracing::error!("what was set stays: {reason}"),
                }
                engine.reload().await;
                engine.prove().await;
                watched.follow(&engine);
                supervisor.turns(engine.state_line());
                supervisor.ready();
            }
            Some(question) = asked.recv() => {
                question(&mut engine, around(governed.as_ref(), &sinks));
                engine.follow_mode().await;
            }
            Some((document, answer)) = wanted.recv() => {
                let told = match document {
                    Document::Status => status(&mut engine, around(governed.as_ref(), &sinks)),
                    Document::Usage => engine.usage(),
                    Document::Findings => engine.findings(&Thresholds::default()),
                };
                let _ = answer.send(told);
            }
            Some(()) = changed.recv() => {
                tokio::time::sleep(SETTLE).await;
                let mut paths = watched.take();
                while changed.try_recv().is_ok() {}
                paths.extend(watched.take());
                let source = engine.source().map(Path::to_owned);
                let concerns = |path: &PathBuf| source.as_ref().is_some_and(|it| path.starts_with(it));
                if paths.iter().any(concerns) {
                    engine.reload().await;
                    engine.prove().await;
                } else {
                    engine.reapply().await;
                }
                watched.follow(&engine);
            }
            Some(()) = mounted.recv() => {
                while mounted.try_recv().is_ok() {}
                if engine.mounts_changed() {
                    engine.reapply().await;
                }
            }
            Some(order) = ordered(&mut governed) => {
                if let Some(governed) = &mut governed {
                    governed.obey(&mut engine, order).await;
                }
                watched.follow(&engine);
            }
            _ = canary.tick() => {
                engine.prove().await;
                if let Some(governed) = &governed {
                    governed.tell(&engine);
                }
                supervisor.turns(engine.state_line());
            }
            _ = tick.tick() => {
                for (name, count) in sinks.take_losses() {
                    engine.undelivered(&name, count);
                }
                engine.tick().await;
            }
            _ = reconcile.tick() => {
                engine.reconcile();
                engine.look_after_containers().await;
            }
            Some(word) = heard.next() => engine.heard(word).await,
            Some(change) = recorded.changes.recv() => match change {
                Change::Notice(it) => engine.noticed(&it),
                Change::Unknown => engine.reconcile(),
            },
            Some(record) = when_there_is_room(&room, &mut recorded.uses) => engine.used(&record),
        }
    };
    match ended {
        Ended::Asked => supervisor.stopping(),
        Ended::Outgrown => supervisor.starting_again(),
    }
    let deadline = Instant::now() + LAST_RECORDS;
    while Instant::now() < deadline
        && room.available_permits() > 0
        && let Ok(record) = recorded.uses.try_recv()
    {
        engine.used(&record);
    }
    recorded.uses.close();
    while let Ok(record) = recorded.uses.try_recv() {
        engine.not_told(&record);
    }
    engine.stopping();
    outputs.finish().await;
    sinks.stop(LAST_DELIVERIES);
    let _ = std::fs::remove_file(page_file(&settings.socket));
    let _ = std::fs::remove_file(&settings.socket);
    Ok(ended)
}

/// Takes over what can change while it runs, and says what cannot.
async fn reconfigure(
    engine: &mut Engine,
    outputs: &mut Outputs,
    was: &mut config::Settings,
    now: Settings,
) {
    let changed: Vec<String> = config::changed(was, &now.effective)
        .map(str::to_owned)
        .collect();
    // Opened again in any case: whoever moves a full log away sends this signal.
    if let Err(error) = outputs.write_to(now.event_log.as_deref()).await {
        tracing::error!(%error, "what was set stays: cannot open the event log {:?}", now.event_log);
        return;
    }
    for name in changed {
        let Some(new) = now.effective.get(&name) else {
            continue;
        };
        let value = new.values.join(",");
        match (name.as_str(), &now.source) {
            ("eventLog", _) => {}
            ("bundle", Source::File(path)) if engine.source().is_some() => {
                engine.read_bundle_from(path.clone());
            }
            _ => {
                tracing::warn!(setting = name, value, origin = %new.origin, "changed, and counts from the next start on");
                continue;
            }
        }
        tracing::info!(setting = name, value, origin = %new.origin, "changed");
        was.insert(name, new.clone());
    }
}

/// The next use, once there is room for its record: until then it stays in the kernel's ring.
async fn when_there_is_room(room: &Semaphore, uses: &mut mpsc::Receiver<Use>) -> Option<Use> {
    // Never closed.
    drop(room.acquire().await);
    uses.recv().await
}

/// The next order of governance; never, if there is none to be had.
async fn ordered(governed: &mut Option<Governed>) -> Option<Order> {
    match governed {
        Some(governed) => governed.orders.recv().await,
        None => std::future::pending().await,
    }
}

/// What there is to say besides what the engine knows.
fn around(governed: Option<&Governed>, sinks: &Sinks) -> Around {
    Around {
        link: governed.map(Governed::link),
        sinks: sinks.health(),
    }
}

/// The file that says how the page is opened.
pub fn page_file(socket: &Path) -> PathBuf {
    socket.with_file_name("page")
}

fn serve_page(address: SocketAddr, socket: &Path, log: &Reader, ask: page::Ask) -> Result<()> {
    let listener = page::bind(address).context("cannot serve the page")?;
    let file = page_file(socket);
    let token = page::invite(&listener, &file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    page::start(listener, log.clone(), ask, &token).context("cannot serve the page")
}
