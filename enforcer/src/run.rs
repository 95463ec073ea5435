//! `enforcer run`: the daemon's loop.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use enforcer::bundle::Labels;
use enforcer::control::{Request, question};
use enforcer::engine::Engine;
use enforcer::kernel::load::Options;
use enforcer::kernel::rings::{self, Change};
use enforcer::record::Log;
use enforcer_governance::client::Order;
use enforcer_governance::spool::Spool;
use notify::{RecursiveMode, Watcher as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::governed::{Governance, Governed};

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
    /// A file for the events, besides standard output.
    pub event_log: Option<PathBuf>,
    /// The tier, and the sizes of tables.
    pub kernel: Options,
    /// The control socket; the canaries' files lie beside it.
    pub socket: PathBuf,
}

/// Where the bundle comes from.
pub enum Source {
    /// A file or a directory.
    File(PathBuf),
    /// A governance server.
    Governance(Governance),
}

/// How long records that came before the stop are still written; the rest is counted.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// A request, and where its answer goes.
type Asked = (Request, oneshot::Sender<Value>);

/// Runs until SIGTERM or SIGINT.
pub async fn run(settings: Settings) -> Result<()> {
    let directory = settings.socket.parent().unwrap_or(Path::new("/run"));
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let evidence = match &settings.source {
        Source::File(_) => None,
        Source::Governance(governance) => Some(governance.evidence()?),
    };
    let reader = evidence.as_ref().map(Spool::reader);
    let log = Log::new(
        settings.node.clone(),
        settings.event_log.as_deref(),
        evidence,
    )
    .with_context(|| format!("cannot open the event log {:?}", settings.event_log))?;
    let (file, governance) = match settings.source {
        Source::File(path) => (Some(path), None),
        Source::Governance(governance) => (None, Some(governance)),
    };
    let labels = settings.labels.clone();
    let mut engine = Engine::new(&settings.kernel, file, labels, directory, log)?;

    let (records, mut recorded) = rings::channels();
    rings::start(engine.ebpf(), &records)?;
    engine.follow_gate(&records);
    if let Err(error) = rings::start_diagnostics(engine.ebpf()) {
        tracing::warn!(%error, "the programs' diagnostics cannot be read");
    }
    let listener = listen(&settings.socket)?;
    let (asking, mut asked) = mpsc::channel::<Asked>(16);
    tokio::spawn(serve(listener, asking));
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
        engine.require_bundle()?;
    }
    let mut governed = match governance {
        None => None,
        Some(governance) => Some(
            governance
                .start(&mut engine, settings.node, settings.labels, reader)
                .await?,
        ),
    };
    engine.reload().await;
    engine.prove().await;
    watched.follow(&engine);
    tracing::info!(socket = %settings.socket.display(), "running");
    loop {
        tokio::select! {
            // Whichever is ready, by lot: what comes in floods keeps nothing else waiting for long.
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                engine.reload().await;
                engine.prove().await;
                watched.follow(&engine);
            }
            Some((request, answer)) = asked.recv() => {
                let _ = answer.send(respond(&mut engine, governed.as_ref(), &request));
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
                if let Some(governed) = &governed {
                    governed.obey(&mut engine, order).await;
                }
                watched.follow(&engine);
            }
            _ = canary.tick() => {
                engine.prove().await;
                if let Some(governed) = &governed {
                    governed.tell(&engine);
                }
            }
            _ = tick.tick() => engine.tick().await,
            _ = reconcile.tick() => engine.reconcile(),
            Some(change) = recorded.changes.recv() => match change {
                Change::Notice(it) => engine.noticed(&it),
                Change::Unknown => engine.reconcile(),
            },
            Some(record) = recorded.uses.recv() => engine.used(&record),
        }
    }
    let deadline = Instant::now() + LAST_RECORDS;
    while Instant::now() < deadline
        && let Ok(record) = recorded.uses.try_recv()
    {
        engine.used(&record);
    }
    engine.unwritten(recorded.uses.len());
    engine.stopping();
    let _ = std::fs::remove_file(&settings.socket);
    Ok(())
}

/// Files whose change matters: the bundle and the executables it selects by. Their directories are watched,
/// because editors and package managers put a new file in the old one's place.
struct Watched {
    watcher: notify::RecommendedWatcher,
    directories: BTreeSet<PathBuf>,
    interesting: std::sync::Arc<std::sync::Mutex<Interest>>,
}

#[derive(Default)]
struct Interest {
    files: BTreeSet<PathBuf>,
    changed: Vec<PathBuf>,
}

impl Watched {
    fn new(changes: mpsc::UnboundedSender<()>) -> Result<Self> {
        let interesting = std::sync::Arc::<std::sync::Mutex<Interest>>::default();
        let shared = interesting.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            if event.kind.is_access() {
                return;
            }
            let Ok(mut interest) = shared.lock() else {
                return;
            };
            let matching: Vec<PathBuf> = event
                .paths
                .into_iter()
                .filter(|path| interest.files.iter().any(|file| path.starts_with(file)))
                .collect();
            if !matching.is_empty() {
                interest.changed.extend(matching);
                let _ = changes.send(());
            }
        })
        .context("cannot watch files (inotify)")?;
        Ok(Self {
            watcher,
            directories: BTreeSet::new(),
            interesting,
        })
    }

    /// Watches what the engine now depends on.
    fn follow(&mut self, engine: &Engine) {
        let mut files: BTreeSet<PathBuf> = engine.executables().into_iter().collect();
        files.extend(engine.source().map(Path::to_owned));
        let mut directories: BTreeSet<PathBuf> = files
            .iter()
            .filter_map(|file| file.parent().map(Path::to_owned))
            .collect();
        directories.extend(engine.source().filter(|it| it.is_dir()).map(Path::to_owned));
        for directory in directories.difference(&self.directories.clone()) {
            match self.watcher.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.directories.insert(directory.clone());
                }
                Err(error) => {
                    tracing::warn!(directory = %directory.display(), %error, "cannot be watched: changes there are noticed at the next reload");
                }
            }
        }
        if let Ok(mut interest) = self.interesting.lock() {
            interest.files = files;
        }
    }

    fn take(&self) -> Vec<PathBuf> {
        self.interesting
            .lock()
            .map(|mut interest| std::mem::take(&mut interest.changed))
            .unwrap_or_default()
    }
}

/// The next order of governance; never, if there is none to be had.
async fn ordered(governed: &mut Option<Governed>) -> Option<Order> {
    match governed {
        Some(governed) => governed.orders.recv().await,
        None => std::future::pending().await,
    }
}

fn respond(engine: &mut Engine, governed: Option<&Governed>, request: &Request) -> Value {
    match request {
        Request::Status => {
            let mut status = engine.status();
            status["governance"] = json!(governed.map(Governed::link));
            status
        }
        Request::Tables => engine.tables(),
        Request::Explain(ask) => {
            let identity = ask
                .cgroup
                .clone()
                .or_else(|| ask.pid.and_then(cgroup_of))
                .map(|path| engine.identity_of(&path))
                .unwrap_or_default();
            let asked = question(
                ask,
                |path| {
                    engine
                        .executable_key(path)
                        .map_err(|error| enforcer::chain(&error))
                },
                |_| identity,
            );
            match asked {
                Ok(question) => engine.explain(&question),
                Err(error) => json!({"error": error}),
            }
        }
    }
}

/// The cgroup of a process, from the cgroup root.
fn cgroup_of(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.to_owned())
}

fn listen(socket: &Path) -> Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        anyhow::bail!(
            "another daemon answers on {}; stop it, or give --socket another path",
            socket.display()
        );
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", socket.display()))?;
    Ok(listener)
}

/// Takes questions, one after the other, and never more than the engine answers.
async fn serve(listener: UnixListener, asking: mpsc::Sender<Asked>) {
    while let Ok((stream, _)) = listener.accept().await {
        let asking = asking.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, asking).await {
                tracing::debug!(%error, "a question was not answered");
            }
        });
    }
}

async fn converse(stream: UnixStream, asking: mpsc::Sender<Asked>) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line) {
            Ok(request) => {
                let (sender, receiver) = oneshot::channel();
                asking.send((request, sender)).await?;
                receiver.await?
            }
            Err(error) => json!({"error": format!("not a request: {error}")}),
        };
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}
