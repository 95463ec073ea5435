//! Servers that tests talk to: unpacked and not installed, so that no service starts.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::{apt::Apt, cmd, paths};

/// The oldest release of Debian whose servers serve.
const SUITE: &str = "bookworm";

/// A server, what it comes in, and what of that is kept.
struct Server {
    program: &'static str,
    packages: &'static [&'static str],
    /// From where to where; the program last, since the rest is there once it is.
    files: &'static [(&'static str, &'static str)],
}

const SERVERS: &[Server] = &[
    Server {
        program: "nats-server",
        packages: &["nats-server"],
        files: &[("usr/sbin/nats-server", "nats-server")],
    },
    Server {
        program: "rsyslogd",
        // What Debian's own apt has brought along is left out.
        packages: &["rsyslog", "libestr0", "libfastjson4", "liblognorm5"],
        files: &[
            ("usr/lib/x86_64-linux-gnu", "rsyslog"),
            ("usr/sbin/rsyslogd", "rsyslogd"),
        ],
    },
    // No server, but the server's tool.
    Server {
        program: "promtool",
        packages: &["prometheus"],
        files: &[("usr/bin/promtool", "promtool")],
    },
];

/// Fetches those that are not here. The tests look for them in the same places.
pub fn fetch() -> Result<bool> {
    let mut changed = false;
    for server in SERVERS {
        changed |= server.fetch().with_context(|| {
            let program = server.program;
            format!("cannot fetch {program} (elsewhere than on Debian, put it into PATH)")
        })?;
    }
    Ok(changed)
}

impl Server {
    fn fetch(&self) -> Result<bool> {
        let programs = paths::cache()?.join("programs");
        if cmd::which(self.program).is_some() || programs.join(self.program).is_file() {
            return Ok(false);
        }
        println!("setup: fetching {}", self.program);
        let apt = Apt::open(paths::cache()?.join("apt"))?;
        if !apt.is_fresh() {
            apt.update()?;
        }
        let scratch = paths::cache()?.join(format!(".{}-{}", self.program, std::process::id()));
        fs::create_dir_all(&scratch)
            .with_context(|| format!("cannot create {}", scratch.display()))?;
        let unpacked = self.unpack(&apt, &scratch, &programs);
        let _ = fs::remove_dir_all(&scratch);
        unpacked.map(|()| true)
    }

    fn unpack(&self, apt: &Apt, scratch: &Path, programs: &Path) -> Result<()> {
        fs::create_dir_all(programs)?;
        for package in self.packages {
            apt.unpack(&format!("{package}/{SUITE}"), scratch)?;
        }
        for (from, to) in self.files {
            let to = programs.join(to);
            // What an interrupted run has left.
            if to.is_dir() {
                fs::remove_dir_all(&to)?;
            }
            // In one step: another run may be at it, too.
            fs::rename(scratch.join(from), &to)
                .with_context(|| format!("cannot move it to {}", to.display()))?;
        }
        Ok(())
    }
}
