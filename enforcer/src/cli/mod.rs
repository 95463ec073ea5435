//! The command line: what can be asked for, and how the answer looks.

mod ask;
mod bundle;
mod check;
pub mod config;
mod credentials;
mod events;
mod evidence;
mod governance;
mod lists;
mod log;
mod run;
mod uninstall;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use enforcer::kernel::pins;
use enforcer::serve::SOCKET;
use enforcer::view::top;
use serde_json::Value;

use crate::run::page_file;
use config::{ConfigCommand, Failure};
use run::RunArgs;

/// Exit code: done, and found wanting.
const WANTING: u8 = 3;

/// Enforces credential entitlements at the moment of use.
#[derive(Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon in the foreground: events on standard output, its own log on standard error. What it puts into
    /// the kernel goes on enforcing when it ends, until the next one takes over, or `enforcer cleanup`
    Run(Box<RunArgs>),
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
    Status(ask::StatusArgs),
    /// Says whether a process, or an executable, user and cgroup, would be allowed a credential, and with it
    /// a destination, now; exit code 3 if not
    Explain(ask::ExplainArgs),
    /// Tells what happened on this node: who used which credential, what was denied and why
    Events(Box<events::Events>),
    /// Sets whether denials take effect, until the daemon ends: for when something must go on. It is recorded
    Mode(ask::ModeArgs),
    /// Says what each entitlement and each credential is used for on this node: by whom, where to, how often, first
    /// and last, and for which times that is known
    Usage(evidence::UsageArgs),
    /// Says what somebody should look at, with OWASP Non-Human Identities (2025) and NIST CSF 2.0 references; exit
    /// code 3 if there is anything
    Findings(evidence::FindingsArgs),
    /// Prints the bundle with what was seen in monitor mode entitled, for review
    Recommend(evidence::RecommendArgs),
    /// Says what another bundle would have answered to the uses in an event log; exit code 3 if anything else
    Replay(evidence::ReplayArgs),
    /// Writes what is used, and what somebody should look at, to standard output
    Report(evidence::ReportArgs),
    /// The log of what happened
    #[command(subcommand)]
    Log(log::Command),
    /// Lists the credentials of the bundle in force; `scan` looks for others
    #[command(args_conflicts_with_subcommands = true)]
    Credentials {
        #[command(subcommand)]
        command: Option<credentials::Command>,
        #[command(flatten)]
        list: lists::ListArgs,
    },
    /// Lists the workloads of the bundle in force
    Workloads(lists::ListArgs),
    /// Lists the entitlements of the bundle in force: who approved what, until when
    Entitlements(lists::ListArgs),
    /// Lists who holds which credentials now
    Holders(lists::ListArgs),
    /// Shows decisions as they are taken, who uses and holds what, and losses. Keys: q, d, / and space
    Top {
        /// The log's directory
        #[arg(long, default_value = "/var/lib/enforcer/log")]
        log: PathBuf,
        #[command(flatten)]
        socket: Socket,
    },
    /// Says where the page is, and how it is opened; exit code 3 if none is served
    Page {
        #[command(flatten)]
        socket: Socket,
    },
    /// Keys, and bundles that are signed
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// The daemon's configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The governance server, and what its operators ask of it
    #[command(subcommand)]
    Governance(governance::Command),
    /// Takes away what enforces without a daemon: its programs, and what they know. Only after the daemon has been
    /// stopped
    Cleanup,
    /// Takes away what enforces, and what the daemon has on disk but its configuration. Only after the daemon has
    /// been stopped
    Uninstall(uninstall::Uninstall),
    /// Writes manual pages: the first to standard output, or all into a directory
    Man {
        /// A directory that is there
        directory: Option<PathBuf>,
    },
    /// Prints the completions of a shell
    Completions { shell: clap_complete::Shell },
    /// The canaries' child process
    #[command(hide = true)]
    Canary { read: PathBuf, send: PathBuf },
    /// The child process that permission events are tried on
    #[command(hide = true)]
    Trial,
}

#[derive(clap::Args)]
struct Socket {
    /// The daemon's control socket
    #[arg(long, env = "ENFORCER_SOCKET", default_value = SOCKET)]
    socket: PathBuf,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
    /// For programs, as YAML
    Yaml,
}

/// Does what the command line asks. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 checked and found wanting.
pub fn main() -> ExitCode {
    end_with_who_reads();
    match config::read(&words()) {
        Ok((cli, settings)) => cli.run(settings),
        Err(Failure::Usage(error)) => error.exit(),
        Err(Failure::Configuration(reason)) => {
            eprintln!("enforcer: {reason}");
            ExitCode::from(WANTING)
        }
    }
}

/// Who stops reading, as `head` does, ends what is printed, as with other tools; a full disk is told. Not by SIGPIPE, which
/// a connection to a daemon that has gone would raise too.
fn end_with_who_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>();
        // What `println!` says; there is no other way to know.
        match said.and_then(|it| it.strip_prefix("failed printing to stdout: ")) {
            Some(reason) if reason.starts_with("Broken pipe") => {
                std::process::exit(128 + libc::SIGPIPE);
            }
            Some(reason) => {
                eprintln!("enforcer: cannot write to standard output: {reason}");
                std::process::exit(1);
            }
            None => usual(panic),
        }
    }));
}

fn words() -> Vec<OsString> {
    std::env::args_os().collect()
}

impl Cli {
    fn run(self, settings: config::Settings) -> ExitCode {
        match self.command {
            Command::Run(run) => run.run(settings),
            Command::Check { bundle } => check::bundle(&bundle),
            Command::Probe { output } => check::kernel(output),
            Command::Status(status) => status.run(),
            Command::Explain(explain) => explain.run(),
            Command::Events(events) => events.run(),
            Command::Mode(mode) => mode.run(),
            Command::Log(command) => command.run(),
            Command::Credentials {
                command: Some(command),
                ..
            } => command.run(),
            Command::Credentials {
                command: None,
                list,
            } => lists::credentials(&list),
            Command::Workloads(list) => lists::workloads(&list),
            Command::Entitlements(list) => lists::entitlements(&list),
            Command::Holders(list) => lists::holders(&list),
            Command::Usage(usage) => usage.run(),
            Command::Findings(findings) => findings.run(),
            Command::Recommend(recommend) => recommend.run(),
            Command::Replay(replay) => replay.run(),
            Command::Report(report) => report.run(),
            Command::Config(ConfigCommand::View {
                show_origin,
                output,
                ..
            }) => match config::view(&settings, show_origin, output) {
                Ok(text) => {
                    print!("{text}");
                    ExitCode::SUCCESS
                }
                Err(error) => failed(&error),
            },
            Command::Top { log, socket } => match top::run(&log, &socket.socket) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&format!("{}: {error}", log.display())),
            },
            Command::Page { socket } => show_page(&socket.socket),
            Command::Bundle(command) => command.run(),
            Command::Governance(command) => command.run(),
            Command::Cleanup => clean_up(),
            Command::Uninstall(uninstall) => match uninstall.run() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            },
            Command::Man { directory } => match manual(directory.as_deref()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&format!("cannot write the manual: {error}")),
            },
            Command::Completions { shell } => {
                let mut command = Cli::command();
                clap_complete::generate(shell, &mut command, "enforcer", &mut std::io::stdout());
                ExitCode::SUCCESS
            }
            Command::Canary { read, send } => match enforcer::canary::child(&read, &send) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            },
            Command::Trial => ExitCode::from(enforcer::fanotify::subject() as u8),
        }
    }
}

fn show_page(socket: &Path) -> ExitCode {
    let file = page_file(socket);
    match std::fs::read_to_string(&file) {
        Ok(address) => {
            print!("{address}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!(
                "enforcer: no page is served (cannot read {}: {error}); start the daemon with `page: 127.0.0.1:9479` \
                 in its configuration",
                file.display()
            );
            ExitCode::from(WANTING)
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

fn clean_up() -> ExitCode {
    match pins::clean_up() {
        Ok(false) => println!("nothing enforces here"),
        Ok(true) => println!("nothing enforces here any more"),
        Err(error) => return failed(&enforcer::chain(&error)),
    }
    ExitCode::SUCCESS
}

fn manual(directory: Option<&std::path::Path>) -> std::io::Result<()> {
    match directory {
        Some(directory) => clap_mangen::generate_to(Cli::command(), directory),
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()),
    }
}

/// Prints an object: a line for each field, or as it is.
fn show(answer: &Value, output: Output) {
    match (output, answer) {
        (Output::Text, Value::Object(_)) => {
            let mut lines = Vec::new();
            flatten(String::new(), answer, &mut lines);
            let width = lines.iter().map(|(name, _)| name.len()).max();
            for (name, text) in &lines {
                println!("{name:<0$}  {text}", width.unwrap_or(0));
            }
        }
        (Output::Yaml, _) => match serde_saphyr::to_string(answer) {
            Ok(text) => print!("{text}"),
            Err(error) => eprintln!("enforcer: the answer cannot be written as YAML: {error}"),
        },
        _ => println!("{answer}"),
    }
}

/// A line for each value, by the names on the way to it with dots between.
fn flatten(name: String, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::String(text) => lines.push((name, text.clone())),
        Value::Array(items) => {
            for item in items {
                flatten(name.clone(), item, lines);
            }
        }
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = match name.as_str() {
                    "" => field.clone(),
                    above => format!("{above}.{field}"),
                };
                flatten(name, value, lines);
            }
        }
        other => lines.push((name, other.to_string())),
    }
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
