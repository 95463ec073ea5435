//! `enforcer log ...`: what the log has, and whether somebody has changed it, without a daemon.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use enforcer::shape::{Shape, convert};
use enforcer_governance::journal::{self, KEY};
use enforcer_governance::keys::{PublicKey, SigningKey};

use super::{Output, WANTING, failed};

#[derive(Subcommand)]
pub enum Command {
    /// Prints records in another shape, one on each line
    Convert {
        /// A file of records, the log's directory, or `-` for standard input
        #[arg(default_value = "/var/lib/enforcer/log")]
        from: PathBuf,
        /// The shape
        #[arg(short, long, value_enum, default_value_t)]
        output: Shape,
    },
    /// Finds what was edited, cut out or put in another order: exit code 3 if something was. Needs no daemon
    Verify {
        /// The log's directory, or a file with lines of it
        #[arg(default_value = "/var/lib/enforcer/log")]
        path: PathBuf,
        /// The public key of the node's checkpoints, in base64, as `enforcer log key` prints it there [default: that of the
        /// key in the directory]
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Prints the public key of this node's checkpoints: note it elsewhere, to verify with
    Key {
        /// The log's directory
        #[arg(default_value = "/var/lib/enforcer/log")]
        path: PathBuf,
    },
}

impl Command {
    pub fn run(self) -> ExitCode {
        match self {
            Self::Convert { from, output } => match print(&from, output) {
                Ok(()) => ExitCode::SUCCESS,
                // Whoever reads has enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
                Err(error) => failed(&format!("{}: {error}", from.display())),
            },
            Self::Key { path } => match key_in(&path) {
                Ok(key) => {
                    println!("{key}");
                    ExitCode::SUCCESS
                }
                Err(error) => failed(&error),
            },
            Self::Verify { path, key, output } => {
                let key = match key.map_or_else(|| key_in(&path), |key| key.parse()) {
                    Ok(key) => key,
                    Err(error) => return failed(&error),
                };
                match journal::verify(&path, &key) {
                    Ok(report) => show(&report, output),
                    Err(error) => failed(&format!("{}: {error}", path.display())),
                }
            }
        }
    }
}

fn key_in(directory: &Path) -> Result<PublicKey, String> {
    let key = SigningKey::load(&directory.join(KEY)).map_err(|error| enforcer::chain(&error))?;
    Ok(key.public())
}

fn show(report: &journal::Report, output: Output) -> ExitCode {
    match output {
        Output::Json => match serde_json::to_string_pretty(report) {
            Ok(text) => println!("{text}"),
            Err(error) => return failed(&error.to_string()),
        },
        Output::Yaml => match serde_saphyr::to_string(report) {
            Ok(text) => print!("{text}"),
            Err(error) => return failed(&error.to_string()),
        },
        Output::Text => {
            for fault in &report.faults {
                println!("{fault}");
            }
            for span in &report.spans {
                println!(
                    "epoch {}: records {} to {}, {} checkpoints, signed through {}",
                    span.epoch, span.first, span.last, span.checkpoints, span.signed_through
                );
            }
        }
    }
    match report.faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(WANTING),
    }
}

fn print(from: &Path, shape: Shape) -> io::Result<()> {
    let out = io::BufWriter::new(io::stdout().lock());
    let log: Box<dyn BufRead> = if from == Path::new("-") {
        Box::new(io::stdin().lock())
    } else if from.is_dir() {
        directory(from)?
    } else {
        Box::new(BufReader::new(File::open(from)?))
    };
    convert(log, shape, out)
}

/// Its files, which have names that sort as they were written.
fn directory(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|it| it == "jsonl"));
    files.sort();
    let mut all: Box<dyn BufRead> = Box::new(io::empty());
    for file in files {
        let next = BufReader::new(File::open(file)?);
        all = Box::new(io::Read::chain(all, next));
    }
    Ok(all)
}
