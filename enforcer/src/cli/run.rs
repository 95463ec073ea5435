//! `enforcer run`: its flags, which are the configuration's settings too, and its start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use enforcer::engine::containers;
use enforcer::fanotify::hold::PROGRAMS;
use enforcer::kernel::load;
use enforcer::kernel::tier::Tier;
use enforcer::node::containers::SOCKETS;
use enforcer::node::pods;
use enforcer::respond::webhook;
use enforcer::serve::Remote;
use enforcer::sink::Sink;
use enforcer_common::capacity::{self, Room};
use enforcer_governance::client::EVIDENCE_CURSOR;
use enforcer_governance::journal::Limits;

use super::config::{self, Failure};
use super::{Cli, Command, Socket, failed, label, log_to_stderr, words};
use crate::governed::Governance;
use crate::outgrown;
use crate::run::{Ended, Settings, Source, run};

/// The daemon's settings: each flag is one of the configuration too.
#[derive(clap::Args)]
pub struct RunArgs {
    /// The configuration: YAML with the settings below, `ring-bytes` as `ringBytes`; then the `*.yaml` in the
    /// directory beside it whose name ends in `.d`. The environment and flags count before it
    #[arg(
        long,
        env = "ENFORCER_CONFIG",
        value_name = "FILE",
        default_value = config::FILE
    )]
    config: PathBuf,
    /// The bundle: a YAML file, or a directory of them; read again when it changes and on SIGHUP
    #[arg(
        long,
        env = "ENFORCER_BUNDLE",
        default_value = "/etc/enforcer/bundle.yaml"
    )]
    bundle: PathBuf,
    #[command(flatten)]
    governance: NodeOfGovernance,
    /// As long as there is no good bundle, deny everybody the places where credentials are known to lie
    /// (keys and tokens in home directories, TLS keys, cloud metadata, container sockets)
    #[arg(
        long,
        env = "ENFORCER_REQUIRE_BUNDLE",
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_parser = clap::value_parser!(bool)
    )]
    require_bundle: bool,
    /// Also write the events to this file (created with mode 0600)
    #[arg(long, env = "ENFORCER_EVENT_LOG", value_name = "FILE")]
    event_log: Option<PathBuf>,
    /// Also deliver the events here, NAME=URL#OPTION=VALUE&..., each from where it was left off. Repeated, or with spaces
    /// between. URL: file:///PATH, stdout:, http://..., https://..., otlp://HOST:4317, otlp+tls://...,
    /// nats://HOST/SUBJECT, nats+tls://..., syslog+udp://HOST, syslog+tcp://HOST, syslog+tls://HOST,
    /// syslog+unix:///dev/log. Options: shape=native|ocsf|ecs|cloudevents|falco|cef, batch=RECORDS, only=denials,
    /// ca=FILE, token=FILE
    #[arg(
        long = "sink",
        env = "ENFORCER_SINKS",
        value_name = "NAME=URL",
        value_delimiter = ' '
    )]
    sinks: Vec<Sink>,
    /// Serve a page that shows what is decided, on this loopback address (usually 127.0.0.1:9479); `enforcer page` says
    /// how to open it
    #[arg(long, env = "ENFORCER_PAGE", value_name = "ADDRESS:PORT")]
    page: Option<SocketAddr>,
    /// Tell this address of each denial, https://... (http:// only on this machine): the event as JSON, signed as in
    /// Standard Webhooks
    #[arg(
        long,
        env = "ENFORCER_WEBHOOK",
        value_name = "URL",
        requires = "webhook_key"
    )]
    webhook: Option<String>,
    /// A file with the secret that this is signed with: `whsec_` and Base64
    #[arg(long, env = "ENFORCER_WEBHOOK_KEY", value_name = "FILE")]
    webhook_key: Option<PathBuf>,
    /// So many processes are killed (`kill`), and so many workload instances killed or frozen (`kill-workload`,
    /// `freeze`), a minute, of one workload and on this node; what goes beyond is only refused
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    actions_per_minute: u32,
    /// By what means to gate; auto takes the strongest this kernel has
    #[arg(long, env = "ENFORCER_TIER", value_enum, default_value_t)]
    tier: WantedTier,
    #[command(flatten)]
    containers: ContainerArgs,
    #[command(flatten)]
    kernel: KernelSizes,
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Answer here, ADDRESS:PORT, for Prometheus (/metrics) and for probes (/livez, /readyz), to whoever asks: usually
    /// 127.0.0.1:9478
    #[arg(long, env = "ENFORCER_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

/// Who may ask the daemon from elsewhere: what is in force and what happened, and nothing that changes anything.
#[derive(clap::Args)]
struct RemoteArgs {
    /// Also answer here, ADDRESS:PORT, those with a certificate of --listen-ca for one of the names of --allow-client
    #[arg(long, env = "ENFORCER_LISTEN", value_name = "ADDRESS", requires_all = ["listen_certificate", "listen_key", "listen_ca", "allow_client"])]
    listen: Option<SocketAddr>,
    /// The certificate to answer with, PEM
    #[arg(long, value_name = "FILE")]
    listen_certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE")]
    listen_key: Option<PathBuf>,
    /// The authority of those who may ask, PEM
    #[arg(long, value_name = "FILE")]
    listen_ca: Option<PathBuf>,
    /// Common name, DNS name or URI in the certificate of who may ask; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    allow_client: Vec<String>,
}

impl RemoteArgs {
    fn remote(self) -> Option<Remote> {
        Some(Remote {
            listen: self.listen?,
            certificate: self.listen_certificate?,
            key: self.listen_key?,
            client_authority: self.listen_ca?,
            clients: self.allow_client,
        })
    }
}

/// What makes a node one of a governance server's.
#[derive(clap::Args)]
struct NodeOfGovernance {
    /// Take the bundle from this governance server, https://HOST:PORT, instead of a file. Repeated, or with commas
    /// between: servers of one fleet, another of which is turned to when one fails
    #[arg(
        long,
        env = "ENFORCER_GOVERNANCE",
        value_name = "URL",
        value_delimiter = ','
    )]
    governance: Vec<String>,
    /// The server's authority, PEM: its STATE/ca.pem
    #[arg(long, env = "ENFORCER_GOVERNANCE_CA", value_name = "FILE")]
    governance_ca: Option<PathBuf>,
    /// Whose signatures count: the server's STATE/trust.json
    #[arg(
        long,
        env = "ENFORCER_TRUST",
        value_name = "FILE",
        default_value = "/etc/enforcer/trust.json"
    )]
    trust: PathBuf,
    /// A file with a token from `enforcer governance token`, for the first time
    #[arg(long, env = "ENFORCER_JOIN_TOKEN", value_name = "FILE")]
    join_token: Option<PathBuf>,
    /// Where the node keeps its certificate, what is in force, and its log, which governance gets as evidence
    #[arg(
        long,
        env = "ENFORCER_STATE",
        value_name = "DIRECTORY",
        default_value = "/var/lib/enforcer"
    )]
    state: PathBuf,
    /// Most bytes of the log: beyond, the oldest records go, but none that governance is still to have
    #[arg(long, value_name = "BYTES", default_value_t = 256 * 1024 * 1024, value_parser = clap::value_parser!(u64).range(65_536..))]
    log_bytes: u64,
    /// How long records are kept in the log
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..))]
    log_days: u16,
    /// The node's name [default: the host's]
    #[arg(long, env = "ENFORCER_NODE", value_name = "NAME")]
    node: Option<String>,
    /// A label of the node, NAME=VALUE: what a bundle has for other nodes only is left out. May be repeated
    #[arg(long = "label", env = "ENFORCER_LABELS", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,
}

impl NodeOfGovernance {
    fn node(&self) -> String {
        self.node.clone().unwrap_or_else(|| {
            nix::unistd::gethostname().map_or_else(
                |_| "unknown".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            )
        })
    }

    /// Where the log is, and what it may take.
    fn log(&self) -> (PathBuf, Limits) {
        let limits = Limits {
            bytes: self.log_bytes,
            age: Duration::from_secs(u64::from(self.log_days) * 24 * 60 * 60),
            keep_for: (!self.governance.is_empty()).then_some(EVIDENCE_CURSOR),
        };
        (self.state.join("log"), limits)
    }

    fn source(self, bundle: PathBuf) -> Source {
        let mut servers = self.governance.into_iter();
        match (servers.next(), self.governance_ca) {
            (Some(url), Some(authority)) => Source::Governance(Governance {
                url,
                others: servers.collect(),
                authority,
                trust: self.trust,
                join_token: self.join_token,
                state: self.state,
            }),
            _ => Source::File(std::path::absolute(&bundle).unwrap_or(bundle)),
        }
    }
}

/// Who says what containers are.
#[derive(clap::Args)]
struct ContainerArgs {
    /// A container runtime's socket: of the Container Runtime Interface, or of Docker or Podman if its name says so.
    /// Repeated, or with commas between [default: those that are there of containerd, CRI-O, k3s, cri-dockerd, Docker and
    /// Podman]
    #[arg(
        long = "runtime",
        env = "ENFORCER_RUNTIMES",
        value_name = "SOCKET",
        value_delimiter = ','
    )]
    runtimes: Vec<PathBuf>,
    /// Where kubelet lists its pods, http://... or https://HOST:10250: for the secrets in their volumes, and the service
    /// accounts of those without a token
    #[arg(long, env = "ENFORCER_KUBELET", value_name = "URL", value_parser = kubelet_url)]
    kubelet: Option<String>,
    /// The authority of its certificate, PEM
    #[arg(long, env = "ENFORCER_KUBELET_CA", value_name = "FILE")]
    kubelet_ca: Option<PathBuf>,
    /// A file with the token that it knows us by
    #[arg(long, env = "ENFORCER_KUBELET_TOKEN", value_name = "FILE")]
    kubelet_token: Option<PathBuf>,
    /// Where kubelet keeps the volumes of pods
    #[arg(
        long,
        env = "ENFORCER_KUBELET_DIRECTORY",
        value_name = "DIRECTORY",
        default_value = "/var/lib/kubelet"
    )]
    kubelet_directory: PathBuf,
    /// A container's start waits so long at most until it is known what it is, where the bundle selects containers; 0: it
    /// does not wait
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(..=60_000))]
    hold: u64,
    /// A namespace whose containers start at once all the same. Repeated, or with commas between
    #[arg(
        long = "exempt-namespace",
        env = "ENFORCER_EXEMPT_NAMESPACES",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    exempt_namespaces: Vec<String>,
    /// A program that runtimes start containers with, which is what waits. Repeated, or with commas between [default: those
    /// that are there of runc and crun]
    #[arg(
        long = "runtime-program",
        env = "ENFORCER_RUNTIME_PROGRAMS",
        value_name = "FILE",
        value_delimiter = ','
    )]
    runtime_programs: Vec<PathBuf>,
}

impl ContainerArgs {
    fn settings(self) -> containers::Settings {
        let or = |given: Vec<PathBuf>, known: &[&str]| match given.is_empty() {
            true => known.iter().map(PathBuf::from).collect(),
            false => given,
        };
        let directory = self.kubelet_directory;
        let pods = self.kubelet.map(|url| pods::Settings {
            url,
            authority: self.kubelet_ca,
            token: self.kubelet_token,
            directory: directory.clone(),
        });
        containers::Settings {
            runtimes: or(self.runtimes, &SOCKETS),
            kubelet: directory,
            pods,
            hold: Duration::from_millis(self.hold),
            exempt: self.exempt_namespaces,
            programs: or(self.runtime_programs, &PROGRAMS),
        }
    }
}

/// How much the kernel keeps for the daemon.
#[derive(clap::Args)]
struct KernelSizes {
    /// Entries of the table of holders: one for each credential of each process, unit, session and container
    /// that holds it; what finds no room is refused. Without, 4,096 at first and 65,536 on a node
    /// that needs more; with it, all other tables are large from the start
    #[arg(long, value_name = "ENTRIES", value_parser = clap::value_parser!(u32).range(1..))]
    holders: Option<u32>,
    /// Bytes of each of the two rings, for denials and for uses: a power of two, 4096 or more
    #[arg(long, value_name = "BYTES", default_value_t = capacity::RING_BYTES, value_parser = ring_bytes)]
    ring_bytes: u32,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum WantedTier {
    /// The strongest this kernel has
    #[default]
    Auto,
    /// LSM hooks: the kernel's LSM list has `bpf`
    Lsm,
    /// The same programs on the functions that call the hooks
    ModifyReturn,
    /// Permission events for files; the network gates as on the others
    Fanotify,
}

impl From<WantedTier> for Option<Tier> {
    fn from(wanted: WantedTier) -> Self {
        match wanted {
            WantedTier::Auto => None,
            WantedTier::Lsm => Some(Tier::Lsm),
            WantedTier::ModifyReturn => Some(Tier::ModifyReturn),
            WantedTier::Fanotify => Some(Tier::Fanotify),
        }
    }
}

impl RunArgs {
    pub fn run(self, effective: config::Settings) -> ExitCode {
        start(self.settings(effective))
    }

    fn settings(self, effective: config::Settings) -> Settings {
        let room = match self.kernel.holders {
            Some(_) => Room::Large,
            None => outgrown::room(&self.governance.state),
        };
        Settings {
            node: self.governance.node(),
            labels: self.governance.labels.iter().cloned().collect(),
            state: self.governance.state.clone(),
            log: self.governance.log(),
            source: self.governance.source(self.bundle),
            require_bundle: self.require_bundle,
            kernel: load::Options {
                tier: self.tier.into(),
                room,
                holders: self.kernel.holders,
                ring_bytes: self.kernel.ring_bytes,
                actions_per_minute: self.actions_per_minute,
            },
            webhook: (self.webhook.zip(self.webhook_key))
                .map(|(url, key)| webhook::Settings { url, key }),
            event_log: self.event_log,
            sinks: self.sinks,
            page: self.page,
            socket: self.socket.socket,
            metrics: self.metrics,
            remote: self.remote.remote(),
            containers: self.containers.settings(),
            effective,
        }
    }
}

/// What this daemon would run with, were it started now.
fn settings_now() -> Result<Settings, String> {
    match config::read(&words()) {
        Ok((
            Cli {
                command: Command::Run(run),
            },
            effective,
        )) => Ok(run.settings(effective)),
        Ok(_) => Err("this is no `enforcer run`".to_owned()),
        Err(Failure::Usage(error)) => Err(error.to_string()),
        Err(Failure::Configuration(reason)) => Err(reason),
    }
}

fn start(settings: Settings) -> ExitCode {
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    let state = settings.state.clone();
    let ended = runtime.block_on(run(settings, settings_now));
    // Whoever does not read our standard output must not keep us.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::Asked) => ExitCode::SUCCESS,
        Ok(Ended::Outgrown) => failed(&format!("{:#}", outgrown::start_again(&state))),
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn kubelet_url(text: &str) -> Result<String, String> {
    match text.starts_with("http://") || text.starts_with("https://") {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false => Err(format!("{text:?} does not begin with http:// or https://")),
    }
}

fn ring_bytes(text: &str) -> Result<u32, String> {
    let bytes: u32 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of bytes"))?;
    if bytes < 4096 || !bytes.is_power_of_two() {
        return Err("the kernel takes powers of two from 4096 on".to_owned());
    }
    Ok(bytes)
}
