//! `enforcer events`: what happened on this node, a line each.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use enforcer::client::{Client, ask};
use enforcer::record::model::{Record, Told, Used, Verdict};
use enforcer::serve::contract::events_request::From;
use enforcer::serve::contract::events_response::Event;
use enforcer::serve::contract::{EventsRequest, Filter, Missed};
use serde_json::Value;
use tonic::Status;

use super::{Output, Socket, duration, failed};

/// So many are shown if nothing is said.
const LAST: u64 = 20;

#[derive(clap::Args)]
pub struct Events {
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Begin with the record of this number; 1 is the oldest
    #[arg(long, value_name = "SEQUENCE", conflicts_with_all = ["last", "since"])]
    from: Option<u64>,
    /// Begin with the last so many [default: 20]
    #[arg(long, value_name = "COUNT", conflicts_with = "since")]
    last: Option<u64>,
    /// Begin with those of this long ago: 10m, 2h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// Only these; repeated or with commas between: one of them. A value that ends with * stands for all that begin so
    #[arg(long, value_delimiter = ',')]
    verdict: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    kind: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    reason: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    credential: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    entitlement: Vec<String>,
    #[arg(short, long, value_delimiter = ',')]
    namespace: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pod: Vec<String>,
    /// Path of the executable
    #[arg(long, value_delimiter = ',')]
    executable: Vec<String>,
    /// Host name or address, each with or without :PORT
    #[arg(long, value_delimiter = ',')]
    destination: Vec<String>,
    /// None of these, by the names of the options above: --exclude kind=checkpoint
    #[arg(long, value_name = "FIELD=VALUE", value_parser = excluded)]
    exclude: Vec<Filter>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    socket: Socket,
}

fn excluded(text: &str) -> Result<Filter, String> {
    let (field, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}`: expected FIELD=VALUE"))?;
    let mut filter = Filter::default();
    let list = match field {
        "verdict" => &mut filter.verdict,
        "kind" => &mut filter.kind,
        "reason" => &mut filter.reason,
        "workload" => &mut filter.workload,
        "credential" => &mut filter.credential,
        "entitlement" => &mut filter.entitlement,
        "namespace" => &mut filter.namespace,
        "pod" => &mut filter.pod,
        "executable" => &mut filter.executable,
        "destination" => &mut filter.destination,
        other => {
            return Err(format!(
                "no field `{other}`: expected verdict, kind, reason, workload, credential, entitlement, namespace, pod, executable or destination"
            ));
        }
    };
    list.push(value.to_owned());
    Ok(filter)
}

impl Events {
    pub fn run(self) -> ExitCode {
        let socket = self.socket.socket.clone();
        let output = self.output;
        let request = self.request();
        let ended = ask(&socket, async move |mut client: Client| {
            let mut stream = client.events(request).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                let shown = match answer.event {
                    Some(Event::Record(line)) => show(&line, output),
                    Some(Event::Missed(missed)) => show_missed(&missed, output),
                    None => Ok(()),
                };
                if let Err(error) = shown {
                    return match error.kind() {
                        io::ErrorKind::BrokenPipe => Ok(()),
                        _ => Err(Status::internal(error.to_string())),
                    };
                }
            }
            Ok(())
        });
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        }
    }

    fn request(self) -> EventsRequest {
        let from = match (self.from, self.since, self.last) {
            (Some(sequence), ..) => Some(From::Sequence(sequence)),
            (_, Some(ago), _) => Some(From::Since((SystemTime::now() - ago).into())),
            (.., Some(count)) => Some(From::Last(count)),
            _ => Some(From::Last(LAST)),
        };
        let allow = Filter {
            verdict: self.verdict,
            kind: self.kind,
            workload: self.workload,
            credential: self.credential,
            entitlement: self.entitlement,
            namespace: self.namespace,
            pod: self.pod,
            executable: self.executable,
            destination: self.destination,
            reason: self.reason,
        };
        let allow = if allow == Filter::default() {
            Vec::new()
        } else {
            vec![allow]
        };
        let mut deny = self.exclude;
        if self.output == Output::Text && allow.iter().all(|it| it.kind.is_empty()) {
            // They tell a person nothing.
            deny.push(Filter {
                kind: vec!["checkpoint".to_owned()],
                ..Filter::default()
            });
        }
        EventsRequest {
            from,
            follow: self.follow,
            allow,
            deny,
        }
    }
}

fn show(line: &str, output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{line}")?,
        Output::Yaml => {
            let record: Value = serde_json::from_str(line)?;
            let text = serde_saphyr::to_string(&record).map_err(io::Error::other)?;
            write!(out, "---\n{text}")?;
        }
        Output::Text => match serde_json::from_str::<Record>(line) {
            Ok(record) => writeln!(out, "{}", readable(&record, is_coloured()))?,
            Err(_) => writeln!(out, "{line}")?,
        },
    }
    out.flush()
}

fn show_missed(missed: &Missed, output: Output) -> io::Result<()> {
    let Missed { epoch, first, last } = missed;
    let mut out = io::stdout().lock();
    match output {
        Output::Text => writeln!(
            out,
            "records {first} to {last} were gone before they could be sent"
        )?,
        _ => writeln!(
            out,
            "{}",
            serde_json::json!({"kind": "missed", "epoch": epoch, "first": first, "last": last})
        )?,
    }
    out.flush()
}

fn is_coloured() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
}

/// Where a record stands, which says nothing to a person.
const CHAIN: [&str; 4] = ["epoch", "sequence", "previous", "hash"];

/// One line for a person.
fn readable(record: &Record, coloured: bool) -> String {
    let time = record.time.strftime("%Y-%m-%d %H:%M:%S%.3f");
    let rest = match &record.told {
        Told::Use(used) => of_use(&record.kind, used, coloured),
        Told::Node(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .filter(|(name, _)| !CHAIN.contains(&name.as_str()))
                .map(|(name, value)| match value {
                    Value::String(text) => format!("{name}={}", text.escape_debug()),
                    other => format!("{name}={other}"),
                })
                .collect();
            format!("{:<7} {}", record.kind, fields.join(" "))
        }
    };
    format!("{time} {rest}")
}

fn of_use(kind: &str, used: &Used, coloured: bool) -> String {
    let (word, colour) = match (used.verdict, &*used.mode.effective, &*used.action.taken) {
        (Verdict::Allow, ..) => ("allow", "32"),
        (Verdict::Deny, "monitor", _) => ("would-deny", "33"),
        (Verdict::Deny, _, "kill") => ("deny+kill", "31"),
        (Verdict::Deny, ..) => ("deny", "31"),
    };
    let word = format!("{word:<10}");
    let word = match coloured {
        true => format!("\x1b[{colour}m{word}\x1b[0m"),
        false => word,
    };
    let object = match (&used.file, &used.destination, &used.what) {
        (_, Some(to), _) => {
            let name = to
                .host
                .as_ref()
                .map(|it| format!(" ({it})"))
                .unwrap_or_default();
            format!("{}:{}/{}{name}", to.address, to.port, to.protocol)
        }
        (Some(file), ..) => file.clone(),
        (_, _, Some(what)) => what.clone(),
        _ => used.gate.to_string(),
    };
    let who = used.workload.as_deref().unwrap_or("-");
    let place = used.instance.as_ref();
    let place = place.and_then(|it| {
        let container = it.container.as_ref().and_then(|it| it.name.as_deref());
        match (&it.pod, container, &it.unit) {
            (Some(pod), Some(name), _) => Some(format!("{}/{}/{name}", pod.namespace, pod.name)),
            (Some(pod), None, _) => Some(format!("{}/{}", pod.namespace, pod.name)),
            (None, Some(name), _) => Some(format!("container {name}")),
            (None, None, unit) => unit.clone(),
        }
    });
    let place = place.map(|it| format!(" in {it}")).unwrap_or_default();
    let credential = used.credential.as_deref().unwrap_or("-");
    let process = &used.process;
    let mut line = format!(
        "{word} {kind:<7} {credential} {object} by {} (pid {}, uid {}, workload {who}{place})",
        process.exe, process.pid, process.uid
    );
    if let Some(reason) = &used.reason {
        line.push_str(&format!(" {reason}"));
        if let Some(misfit) = &used.misfit {
            line.push_str(&format!(": {misfit}"));
        }
    }
    // What a process calls itself may have any characters.
    line.chars()
        .map(|c| {
            if c.is_control() && c != '\x1b' {
                '?'
            } else {
                c
            }
        })
        .collect()
}
