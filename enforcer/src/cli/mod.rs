//! The command line: what can be asked for, and how the answer looks.

mod bundle;
mod governance;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use enforcer::bundle::LoadError;
use enforcer::control::{self, Ask, Request};
use enforcer::kernel::tier::Tier;
use enforcer::kernel::{load, pins, probe};
use enforcer_common::capacity;
use serde_json::Value;

use crate::governed::Governance;
use crate::run::{Settings, Source, run};

/// Exit code: done, and found wanting.
const WANTING: u8 = 3;

/// Enforces credential entitlements at the moment of use.
#[derive(Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// How much the kernel keeps for the daemon.
#[derive(clap::Args)]
struct KernelSizes {
    /// Entries of the table of holders: one for each credential of each process, unit, session and container
    /// that holds it; what finds no room is refused
    #[arg(long, value_name = "ENTRIES", default_value_t = capacity::HOLDERS, value_parser = clap::value_parser!(u32).range(1..))]
    holders: u32,
    /// Bytes of each of the two rings, for denials and for uses: a power of two, 4096 or more
    #[arg(long, value_name = "BYTES", default_value_t = capacity::RING_BYTES, value_parser = ring_bytes)]
    ring_bytes: u32,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon in the foreground: events on standard output, its own log on standard error. What it puts into
    /// the kernel goes on enforcing when it ends, until the next one takes over, or `enforcer cleanup`
    Run {
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
        #[arg(long, env = "ENFORCER_REQUIRE_BUNDLE")]
        require_bundle: bool,
        /// Also write the events to this file (created with mode 0600)
        #[arg(long, env = "ENFORCER_EVENT_LOG", value_name = "FILE")]
        event_log: Option<PathBuf>,
        /// By what means to gate; auto takes the strongest this kernel has
        #[arg(long, env = "ENFORCER_TIER", value_enum, default_value_t)]
        tier: WantedTier,
        #[command(flatten)]
        kernel: KernelSizes,
        #[command(flatten)]
        socket: Socket,
    },
    /// Checks a bundle: exit code 0 if it is good, 3 with a line for each mistake if not
    Check {
        /// A YAML file, or a directory of them
        bundle: PathBuf,
    },
    /// Says what this kernel can enforce, by trying; exit code 3 if it has none of the tiers
    Probe {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Says what the daemon does; exit code 3 if it does not enforce
    Status {
        /// Wait this long for a bundle in force and refused canaries: 500ms, 20s, 1m
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        wait: Option<Duration>,
        /// Only say how many entries each table of the kernel has
        #[arg(long, conflicts_with = "wait")]
        tables: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        socket: Socket,
    },
    /// Says whether a process, or an executable, user and cgroup, would be allowed a credential, and with it
    /// a destination, now; exit code 3 if not
    Explain {
        /// A running process
        #[arg(long, conflicts_with_all = ["executable", "user", "cgroup"], required_unless_present_any = ["executable", "cgroup"])]
        pid: Option<u32>,
        /// Path of an executable
        #[arg(long)]
        executable: Option<PathBuf>,
        /// User name or id
        #[arg(long)]
        user: Option<String>,
        /// cgroup path from the cgroup root, like /system.slice/backup.service
        #[arg(long)]
        cgroup: Option<String>,
        /// The credential's id in the bundle
        #[arg(long)]
        credential: String,
        /// Where it would be taken: ADDRESS:PORT or [ADDRESS]:PORT
        #[arg(long)]
        destination: Option<SocketAddr>,
        /// Protocol of the destination: tcp or udp
        #[arg(long, default_value = "tcp")]
        protocol: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        socket: Socket,
    },
    /// Keys, and bundles that are signed
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// The governance server, and what its operators ask of it
    #[command(subcommand)]
    Governance(governance::Command),
    /// Takes away what enforces without a daemon: its programs, and what they know. Only after the daemon has been
    /// stopped
    Cleanup,
    /// The canaries' child process
    #[command(hide = true)]
    Canary { read: PathBuf, send: PathBuf },
    /// The child process that permission events are tried on
    #[command(hide = true)]
    Trial,
}

/// What makes a node one of a governance server's.
#[derive(clap::Args)]
struct NodeOfGovernance {
    /// Take the bundle from this governance server, https://HOST:PORT, instead of a file
    #[arg(
        long,
        env = "ENFORCER_GOVERNANCE",
        value_name = "URL",
        conflicts_with = "bundle",
        requires = "governance_ca"
    )]
    governance: Option<String>,
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
    /// Where the node keeps its certificate, what is in force, and evidence that governance does not have yet
    #[arg(
        long,
        env = "ENFORCER_STATE",
        value_name = "DIRECTORY",
        default_value = "/var/lib/enforcer"
    )]
    state: PathBuf,
    /// Most bytes of evidence that wait for governance
    #[arg(long, value_name = "BYTES", default_value_t = 256 * 1024 * 1024)]
    evidence_bytes: u64,
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

    fn source(self, bundle: PathBuf) -> Source {
        match (self.governance, self.governance_ca) {
            (Some(url), Some(authority)) => Source::Governance(Governance {
                url,
                authority,
                trust: self.trust,
                join_token: self.join_token,
                state: self.state,
                evidence_bytes: self.evidence_bytes,
            }),
            _ => Source::File(std::path::absolute(&bundle).unwrap_or(bundle)),
        }
    }
}

#[derive(clap::Args)]
struct Socket {
    /// The daemon's control socket
    #[arg(long, env = "ENFORCER_SOCKET", default_value = control::SOCKET)]
    socket: PathBuf,
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

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
    /// For programs, as YAML
    Yaml,
}

impl Cli {
    /// Does what was asked. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 checked and found wanting.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Run {
                bundle,
                governance,
                require_bundle,
                event_log,
                tier,
                kernel,
                socket,
            } => start(Settings {
                node: governance.node(),
                labels: governance.labels.iter().cloned().collect(),
                source: governance.source(bundle),
                require_bundle,
                kernel: load::Options {
                    tier: tier.into(),
                    holders: kernel.holders,
                    ring_bytes: kernel.ring_bytes,
                },
                event_log,
                socket: socket.socket,
            }),
            Command::Check { bundle } => check(&bundle),
            Command::Probe { output } => show_probe(output),
            Command::Status {
                tables: true,
                output,
                socket,
                ..
            } => tables(&socket.socket, output),
            Command::Status {
                wait,
                output,
                socket,
                ..
            } => status(&socket.socket, wait, output),
            Command::Explain {
                pid,
                executable,
                user,
                cgroup,
                credential,
                destination,
                protocol,
                output,
                socket,
            } => {
                let uid = match user.map(|user| uid(&user)).transpose() {
                    Ok(uid) => uid,
                    Err(error) => return failed(&error),
                };
                let ask = Ask {
                    pid,
                    executable,
                    uid,
                    cgroup,
                    credential,
                    destination,
                    protocol,
                };
                explain(&socket.socket, ask, output)
            }
            Command::Bundle(command) => command.run(),
            Command::Governance(command) => command.run(),
            Command::Cleanup => clean_up(),
            Command::Canary { read, send } => match enforcer::canary::child(&read, &send) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            },
            Command::Trial => ExitCode::from(enforcer::fanotify::subject() as u8),
        }
    }
}

/// The daemon's log, on standard error.
fn log_to_stderr() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("ENFORCER_LOG")
                .unwrap_or_else(|_| "info".into()),
        )
        .init();
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
    match runtime.block_on(run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn clean_up() -> ExitCode {
    match pins::clean_up() {
        Ok(false) => println!("nothing enforces here"),
        Ok(true) => println!("nothing enforces here any more"),
        Err(error) => return failed(&enforcer::chain(&error)),
    }
    ExitCode::SUCCESS
}

fn check(path: &std::path::Path) -> ExitCode {
    match enforcer::bundle::load(path) {
        Ok(bundle) => {
            println!(
                "{}: version {}, {} credentials, {} workloads, {} entitlements: good",
                path.display(),
                bundle.metadata.version,
                bundle.credentials.len(),
                bundle.workloads.len(),
                bundle.entitlements.len()
            );
            ExitCode::SUCCESS
        }
        Err(LoadError::Mistakes(mistakes)) => {
            println!("{mistakes}");
            ExitCode::from(WANTING)
        }
        Err(error) => failed(&enforcer::chain(&error)),
    }
}

fn show_probe(output: Output) -> ExitCode {
    let found = probe::probe();
    match output {
        Output::Json => match serde_json::to_string_pretty(&found) {
            Ok(text) => println!("{text}"),
            Err(error) => return failed(&error.to_string()),
        },
        Output::Yaml => match serde_saphyr::to_string(&found) {
            Ok(text) => print!("{text}"),
            Err(error) => return failed(&error.to_string()),
        },
        Output::Text => {
            for it in &found {
                let word = if it.available { "yes" } else { "no" };
                println!("{:<16} {word:<4} {}", it.name, it.detail);
                if let Some(remedy) = it.remedy {
                    println!("{:<21} to have it: {remedy}", "");
                }
            }
        }
    }
    if probe::enforceable(&found) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WANTING)
    }
}

fn status(socket: &std::path::Path, wait: Option<Duration>, output: Output) -> ExitCode {
    let deadline = Instant::now() + wait.unwrap_or_default();
    loop {
        let answer = control::ask(socket, &Request::Status);
        let good = answer.as_ref().is_ok_and(enforces);
        if !good && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return failed(&error.to_string()),
        };
        show(&answer, output);
        return if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(WANTING)
        };
    }
}

/// Whether a status says that a bundle is in force and the canaries were refused.
fn enforces(status: &Value) -> bool {
    let state = status["state"].as_str().unwrap_or_default();
    state.starts_with("enforcing/") || state == "monitoring"
}

fn tables(socket: &std::path::Path, output: Output) -> ExitCode {
    match answer(socket, &Request::Tables) {
        Ok(answer) => {
            show(&answer, output);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

/// What the daemon answers, if it does not say that it cannot.
fn answer(socket: &std::path::Path, request: &Request) -> Result<Value, String> {
    let answer = control::ask(socket, request).map_err(|error| error.to_string())?;
    match answer["error"].as_str() {
        Some(error) => Err(error.to_owned()),
        None => Ok(answer),
    }
}

fn explain(socket: &std::path::Path, ask: Ask, output: Output) -> ExitCode {
    let answer = match answer(socket, &Request::Explain(ask)) {
        Ok(answer) => answer,
        Err(error) => return failed(&error),
    };
    show(&answer, output);
    if answer["verdict"] == "allow" {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WANTING)
    }
}

/// Prints an object: a line for each field, or as it is.
fn show(answer: &Value, output: Output) {
    match (output, answer) {
        (Output::Text, Value::Object(fields)) => {
            for (name, value) in fields {
                match value {
                    Value::Null => {}
                    Value::String(text) => println!("{name:<14} {text}"),
                    Value::Array(items) => {
                        for item in items {
                            println!("{name:<14} {}", item.as_str().unwrap_or_default());
                        }
                    }
                    other => println!("{name:<14} {other}"),
                }
            }
        }
        (Output::Yaml, _) => match serde_saphyr::to_string(answer) {
            Ok(text) => print!("{text}"),
            Err(error) => eprintln!("enforcer: the answer cannot be written as YAML: {error}"),
        },
        _ => println!("{answer}"),
    }
}

fn uid(user: &str) -> Result<u32, String> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let users = enforcer::node::users::users();
    match users.get(user) {
        Some(uid) => Ok(uid.0),
        None => Err(format!(
            "no user `{user}` in /etc/passwd; give the id instead"
        )),
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

/// A label with its value.
fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err(format!("`{text}`: expected NAME=VALUE")),
    }
}

/// A number with a unit: ms, s, m or h.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}`: expected a number and a unit, like 20s"))?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(60 * number)),
        "h" => Ok(Duration::from_secs(60 * 60 * number)),
        other => Err(format!("unit `{other}`: expected ms, s, m or h")),
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln!("enforcer: {message}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    /// Text that looks like something else in YAML must come back as text.
    #[test]
    fn yaml_says_what_json_says() {
        let answer = json!({
            "state": "enforcing/lsm", "reason": null, "generation": 3, "proven": true, "empty": [], "none": {},
            "texts": ["yes", "null", "12", "1e3", "a: b", "# no", "- x", "@agent", "", " ", "it's", "two\nlines", "0x1f"],
            "bundle": {"issuer": "iga.example.com", "version": 42, "expiresAt": "2026-11-29T00:00:00Z"},
        });
        let yaml = serde_saphyr::to_string(&answer).expect("can be written");
        let back: Value = serde_saphyr::from_str(&yaml).expect(&yaml);
        assert_eq!(back, answer, "{yaml}");
    }
}
