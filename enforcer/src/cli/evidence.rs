//! `enforcer usage`, `findings`, `recommend`, `replay` and `report`: what is used, and what follows from it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Error, Result, bail};
use enforcer::bundle::{self, LoadError};
use enforcer::client;
use enforcer::replay::{Recorded, replay};
use enforcer::serve::contract::{FindingsRequest, Hours};
use enforcer::usage::{self, Ledger, document};
use serde_json::{Value, json};

use super::{Output, Socket, WANTING, failed, show};

mod page;

/// From when on something is worth a look.
#[derive(clap::Args)]
pub struct Worth {
    /// An entitlement that was not used, or a destination not reached, for so many days is a finding
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    unused_days: u32,
    /// A secret that has not been changed for so many days is one
    #[arg(long, value_name = "DAYS", default_value_t = 90)]
    secret_days: u32,
    /// More addresses than this with one credential are one
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    fan_out: u32,
    /// Use outside these hours of Monday to Friday, UTC, is one: 7-19
    #[arg(long, value_name = "FROM-TO", value_parser = hours)]
    hours: Option<Hours>,
}

impl Worth {
    fn request(&self) -> FindingsRequest {
        FindingsRequest {
            unused_days: self.unused_days,
            secret_days: self.secret_days,
            fan_out: self.fan_out,
            hours: self.hours,
        }
    }
}

#[derive(clap::Args)]
pub struct UsageArgs {
    /// Only of this entitlement
    #[arg(long)]
    entitlement: Option<String>,
    /// Only of this credential
    #[arg(long, conflicts_with = "entitlement")]
    credential: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

#[derive(clap::Args)]
pub struct FindingsArgs {
    #[command(flatten)]
    worth: Worth,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

#[derive(clap::Args)]
pub struct RecommendArgs {
    /// The bundle that is in force: a YAML file, or a directory of them
    #[arg(
        long,
        env = "ENFORCER_BUNDLE",
        default_value = "/etc/enforcer/bundle.yaml"
    )]
    bundle: PathBuf,
    /// A usage ledger (`/var/lib/enforcer/usage.json` of a node), instead of the running daemon's
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    socket: Socket,
}

#[derive(clap::Args)]
pub struct ReplayArgs {
    /// An event log (JSON lines), or - for standard input
    #[arg(long, value_name = "FILE")]
    events: PathBuf,
    /// Another bundle: a YAML file, or a directory of them
    #[arg(long)]
    bundle: PathBuf,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(clap::Args)]
pub struct ReportArgs {
    /// As one page that needs nothing else
    #[arg(long, required = true)]
    html: bool,
    #[command(flatten)]
    worth: Worth,
    #[command(flatten)]
    socket: Socket,
}

fn finish(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| failed(&format!("{error:#}")))
}

impl UsageArgs {
    pub fn run(self) -> ExitCode {
        finish(self.tell())
    }

    fn tell(&self) -> Result<ExitCode> {
        let mut usage = client::usage(&self.socket.socket).map_err(Error::msg)?;
        for (list, only) in [
            ("entitlements", &self.entitlement),
            ("credentials", &self.credential),
        ] {
            let Some(id) = only else { continue };
            let all = usage[list].as_array().cloned().unwrap_or_default();
            let of: Vec<Value> = all.into_iter().filter(|it| it["id"] == **id).collect();
            if of.is_empty() {
                bail!(
                    "nothing is known of `{id}`: neither is it in the bundle in force, nor was it used here"
                );
            }
            usage = json!({"coverage": usage["coverage"], list: of});
        }
        match self.output {
            Output::Text => print_usage(&usage),
            other => show(&usage, other),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// "12 times, first ... , last ...", or "never".
fn seen(value: &Value) -> String {
    match value["count"].as_u64() {
        None => "never".to_owned(),
        Some(1) => format!("once, {}", text(&value["last"])),
        Some(count) => format!(
            "{count} times, first {}, last {}",
            text(&value["first"]),
            text(&value["last"])
        ),
    }
}

fn print_usage(usage: &Value) {
    let coverage = &usage["coverage"];
    println!(
        "seen since {}, until {}",
        text(&coverage["since"]),
        text(&coverage["until"])
    );
    for gap in list(&coverage["gaps"]) {
        println!(
            "  not from {} to {}: {}",
            text(&gap["from"]),
            text(&gap["to"]),
            text(&gap["reason"])
        );
    }
    for kind in ["entitlements", "credentials"] {
        for of in list(&usage[kind]) {
            println!();
            let what = kind.trim_end_matches('s');
            let gone = if of["inForce"] == true {
                ""
            } else {
                " (not in the bundle in force)"
            };
            println!(
                "{what} {}{gone}: used {}",
                text(&of["id"]),
                seen(&of["used"])
            );
            if of["denied"]["count"].is_u64() {
                println!("  denied {}", seen(&of["denied"]));
            }
            for by in list(&of["by"]) {
                println!(
                    "  {:<5} by {} {} (uid {}, {}): {}",
                    text(&by["verdict"]),
                    text(&by["workload"]),
                    text(&by["executable"]),
                    by["uid"],
                    text(&by["place"]),
                    seen(by)
                );
            }
            for to in list(&of["destinations"]) {
                let host = to["host"].as_str().map(|host| format!("{host} "));
                println!(
                    "  {:<5} to {}{} port {} {}: {}",
                    text(&to["verdict"]),
                    host.unwrap_or_default(),
                    text(&to["address"]),
                    to["port"],
                    text(&to["protocol"]),
                    seen(to)
                );
            }
        }
    }
}

impl FindingsArgs {
    pub fn run(self) -> ExitCode {
        finish(self.tell())
    }

    fn tell(&self) -> Result<ExitCode> {
        let found =
            client::findings(&self.socket.socket, self.worth.request()).map_err(Error::msg)?;
        match self.output {
            Output::Text => print_findings(&found),
            other => show(&found, other),
        }
        Ok(match list(&found["findings"]).is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(WANTING),
        })
    }
}

fn print_findings(found: &Value) {
    for it in list(&found["findings"]) {
        println!(
            "{:<6} {:<22} {} [OWASP {}, NIST CSF {}]",
            text(&it["severity"]),
            text(&it["kind"]),
            text(&it["message"]),
            text(&it["owasp"][0]),
            text(&it["nist"][0])
        );
        for line in list(&it["evidence"]) {
            println!("         {}", text(line));
        }
        for line in it["remedy"].as_str().unwrap_or_default().lines() {
            println!("       | {line}");
        }
    }
    match found["undecided"].as_str() {
        Some(undecided) => println!("{undecided}"),
        None if list(&found["findings"]).is_empty() => println!("nothing to look at"),
        None => {}
    }
}

impl RecommendArgs {
    pub fn run(self) -> ExitCode {
        finish(self.tell())
    }

    fn tell(&self) -> Result<ExitCode> {
        let (bundle, parts) = match bundle::load_parts(&self.bundle) {
            Ok(loaded) => loaded,
            Err(LoadError::Mistakes(mistakes)) => {
                println!("{mistakes}");
                return Ok(ExitCode::from(WANTING));
            }
            Err(error) => return Err(error.into()),
        };
        let ledger = match &self.ledger {
            Some(path) => Ledger::load(path)
                .and_then(|it| it.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
                .with_context(|| format!("cannot read the usage ledger {}", path.display()))?,
            None => {
                let ledger = client::ledger(&self.socket.socket).map_err(Error::msg)?;
                Ledger::parse(&serde_json::to_vec(&ledger)?)?
            }
        };
        let recommendation = usage::recommend(&bundle, &ledger);
        let metadata = json!({
            "issuer": bundle.metadata.issuer,
            "version": bundle.metadata.version + 1,
        });
        let new = parts.changed(&recommendation.change);
        new.bundle("recommended", &metadata)
            .context("what would be recommended is no good bundle; please report this")?;
        println!(
            "# For review: what was seen in monitor mode is entitled here, whether it should be or not."
        );
        for kind in bundle::Kind::ALL {
            let items = recommendation.change.upsert.get(&kind);
            for id in items.into_iter().flatten().map(|(id, _)| id) {
                println!("# {}: {id}", kind.name());
            }
        }
        for line in &recommendation.left_out {
            println!("# left out: {line}");
        }
        print!("{}", document::yaml(&new.document(&metadata)));
        Ok(ExitCode::SUCCESS)
    }
}

impl ReplayArgs {
    pub fn run(self) -> ExitCode {
        finish(self.tell())
    }

    fn tell(&self) -> Result<ExitCode> {
        let bundle = match bundle::load(&self.bundle) {
            Ok(bundle) => bundle,
            Err(LoadError::Mistakes(mistakes)) => {
                println!("{mistakes}");
                return Ok(ExitCode::from(WANTING));
            }
            Err(error) => return Err(error.into()),
        };
        let read = || format!("cannot read the events in {}", self.events.display());
        let lines: Box<dyn io::BufRead> = match self.events.as_os_str() == "-" {
            true => Box::new(io::stdin().lock()),
            false => Box::new(BufReader::new(File::open(&self.events).with_context(read)?)),
        };
        let mut records = Vec::new();
        for line in lines.lines() {
            records.extend(Recorded::parse(&line.with_context(read)?));
        }
        let replayed = replay(&bundle, &records)?;
        match self.output {
            Output::Text => {
                for (it, count) in &replayed.different {
                    let to = it.destination.as_ref().map(|to| format!(" to {to}"));
                    println!(
                        "{} of {} by {} (uid {}){}: {} becomes {} ({count} times)",
                        it.verb,
                        it.credential,
                        it.executable,
                        it.uid,
                        to.unwrap_or_default(),
                        it.before.text(),
                        it.after.text()
                    );
                }
                println!(
                    "{} of {} uses would be answered otherwise",
                    replayed.uses - replayed.same,
                    replayed.uses
                );
            }
            other => show(&serde_json::to_value(&replayed)?, other),
        }
        Ok(match replayed.different.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(WANTING),
        })
    }
}

impl ReportArgs {
    pub fn run(self) -> ExitCode {
        finish(self.tell())
    }

    fn tell(&self) -> Result<ExitCode> {
        let socket = &self.socket.socket;
        let status = client::status(socket).map_err(Error::msg)?;
        let usage = client::usage(socket).map_err(Error::msg)?;
        let found = client::findings(socket, self.worth.request()).map_err(Error::msg)?;
        print!(
            "{}",
            page::page(&status, &usage, &found, jiff::Timestamp::now())
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// `FROM-TO`, two hours.
fn hours(text: &str) -> Result<Hours, String> {
    let parsed = text.split_once('-').and_then(|(from, to)| {
        let hour = |text: &str| text.parse().ok().filter(|hour| *hour <= 24);
        Some(Hours {
            from: hour(from)?,
            to: hour(to)?,
        })
    });
    parsed.ok_or_else(|| format!("`{text}`: expected two hours from 0 to 24, like 7-19"))
}
