//! `enforcer credentials`: which there are, and never what they say.

use std::process::ExitCode;

use clap::Subcommand;
use enforcer::credentials::{scan, text};
use jiff::Timestamp;

use super::{Output, failed};

#[derive(Subcommand)]
pub enum Command {
    /// Lists every known credential on this node and in its containers: where it is, whose, how old, until when it is good,
    /// its id where that is no secret, who may read it, and where else it is. As root; what the daemon denies is listed
    /// without its id, unless the bundle trusts this program
    Scan {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

impl Command {
    pub fn run(self) -> ExitCode {
        let Self::Scan { output } = self;
        let report = scan();
        let text = match output {
            Output::Text => Ok(text(&report, Timestamp::now())),
            Output::Json => {
                serde_json::to_string_pretty(&report).map_err(|error| error.to_string())
            }
            Output::Yaml => serde_saphyr::to_string(&report).map_err(|error| error.to_string()),
        };
        match text {
            Ok(text) => println!("{}", text.trim_end()),
            Err(error) => return failed(&error),
        }
        ExitCode::SUCCESS
    }
}
