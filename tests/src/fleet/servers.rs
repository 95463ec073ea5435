//! Governance servers as processes; several of them with a cluster of NATS as their store.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::stream::RawMessageErrorKind;
use enforcer_governance::contract::administration_client::AdministrationClient;
use tonic::transport::{Channel, Endpoint};

use crate::harness::wait_for;

/// The first server's; the others' follow.
const PORT: u16 = 7449;
/// The first NATS server's; its cluster's port is 100 further.
const NATS_PORT: u16 = 7521;
/// What each server of a fleet has to be given.
const SECRETS: [&str; 4] = ["trust.json", "ca.pem", "ca.key", "governance.key"];

/// A process, killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All of them, with their directory.
pub struct Servers {
    /// Of all of them.
    address: Ipv4Addr,
    nats: Vec<Option<Process>>,
    governance: Vec<Option<Process>>,
    /// Goes last, when nobody uses it any more.
    directory: tempfile::TempDir,
}

/// No other fleet's on this machine.
fn own_address() -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, low, 1)
}

/// On `PATH`, or where `cargo xtask setup` has put it.
fn nats_server() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cached = cache.or(home).map(|it| it.join("enforcer/programs"));
    std::env::split_paths(&path)
        .chain(cached)
        .map(|directory| directory.join("nats-server"))
        .find(|program| program.is_file())
        .context("nats-server is not here; `cargo xtask setup --tests` fetches it")
}

impl Servers {
    /// One server with a directory, or several with NATS. They take nodes with certificates of `authority`.
    pub fn start(count: u16, authority: &str, documents: &str) -> Result<Self> {
        let mut servers = Self {
            address: own_address(),
            directory: tempfile::tempdir()?,
            nats: Vec::new(),
            governance: Vec::new(),
        };
        fs::create_dir(servers.path("documents"))?;
        fs::write(servers.path("documents/bundle.yaml"), documents)?;
        fs::write(servers.path("nodes.pem"), authority)?;
        if count > 1 {
            servers.start_nats(count)?;
        }
        for number in 0..count {
            servers.start_governance(number)?;
        }
        Ok(servers)
    }

    fn start_nats(&mut self, count: u16) -> Result<()> {
        let address = self.address;
        let routes: Vec<String> = (0..count)
            .map(|number| format!("nats://{address}:{}", NATS_PORT + 100 + number))
            .collect();
        for (number, own) in routes.iter().enumerate() {
            let port = NATS_PORT + u16::try_from(number)?;
            let child = Command::new(nats_server()?)
                .args(["--addr", &address.to_string()])
                .args(["--port", &port.to_string()])
                .args(["--name", &format!("nats-{number}"), "--jetstream"])
                .arg("--store_dir")
                .arg(self.path(&format!("nats-{number}")))
                .args(["--cluster_name", "fleet", "--cluster", own])
                .args(["--routes", &routes.join(",")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("cannot start nats-server")?;
            self.nats.push(Some(Process(child)));
            wait_for("NATS", || TcpStream::connect((address, port)).ok())?;
        }
        // A cluster elects a leader before it makes streams.
        std::thread::sleep(Duration::from_secs(5));
        Ok(())
    }

    fn start_governance(&mut self, number: u16) -> Result<()> {
        let state = self.path(&format!("server-{number}"));
        let admin = self.admin(number.into());
        let mut command = Command::new("enforcer");
        command
            .args(["governance", "serve"])
            .arg("--state")
            .arg(&state)
            .arg("--node-authorities")
            .arg(self.path("nodes.pem"))
            .arg("--admin-socket")
            .arg(&admin)
            .args(["--listen", &format!("{}:{}", self.address, PORT + number)])
            .env("ENFORCER_LOG", "warn")
            .stdin(Stdio::null());
        if number == 0 {
            command.arg(self.path("documents"));
        } else {
            fs::create_dir(&state)?;
            for name in SECRETS {
                fs::copy(self.secret(name), state.join(name))?;
            }
        }
        if !self.nats.is_empty() {
            command.args(["--store", &self.nats_urls().join(",")]);
        }
        let child = command
            .spawn()
            .context("cannot start a governance server")?;
        self.governance.push(Some(Process(child)));
        wait_for("the server", || admin.exists().then_some(()))
    }

    /// Of the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Of what all servers have.
    pub fn secret(&self, name: &str) -> PathBuf {
        self.path("server-0").join(name)
    }

    fn admin(&self, number: usize) -> PathBuf {
        self.path(&format!("admin-{number}.sock"))
    }

    /// Where nodes connect.
    pub fn urls(&self) -> Vec<String> {
        (0..self.governance.len())
            .map(|number| format!("https://{}:{}", self.address, PORT as usize + number))
            .collect()
    }

    /// Kills one server and one of NATS.
    pub fn kill(&mut self, number: usize) {
        self.governance[number] = None;
        self.nats[number] = None;
    }

    /// What they use together: resident memory in KiB, and processor time so far.
    pub fn use_of(&self) -> Result<Use> {
        let mut sum = Use::default();
        for (processes, is_nats) in [(&self.governance, false), (&self.nats, true)] {
            for Process(child) in processes.iter().flatten() {
                let (memory, processor) = used(child.id())?;
                if is_nats {
                    sum.nats_memory += memory;
                } else {
                    sum.memory += memory;
                }
                sum.processor += processor;
            }
        }
        Ok(sum)
    }

    /// How many records of evidence are stored: of each of `nodes` nodes those up to `last`, once, in order.
    pub async fn stored(&self, nodes: usize, last: u64) -> Result<u64> {
        if self.nats.is_empty() {
            return self.in_files()?.whole(nodes, last);
        }
        // Where a server of NATS has died the others need a moment to read everything from.
        let mut left = 20;
        loop {
            let stored = self.in_nats().await;
            let whole = stored.and_then(|stored| stored.whole(nodes, last));
            if whole.is_ok() || left == 0 {
                return whole;
            }
            left -= 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn in_files(&self) -> Result<Stored> {
        let mut stored = Stored::default();
        for node in fs::read_dir(self.secret("evidence"))? {
            let node = node?;
            for epoch in fs::read_dir(node.path())? {
                let lines = fs::read_to_string(epoch?.path())?;
                stored.add(&node.file_name().to_string_lossy(), &lines)?;
            }
        }
        Ok(stored)
    }

    async fn in_nats(&self) -> Result<Stored> {
        let client = async_nats::connect(self.nats_urls()).await?;
        let stream = async_nats::jetstream::new(client)
            .get_stream("ENFORCER_EVIDENCE")
            .await?;
        // The stream's leader is asked: a consumer may be on the server that has died.
        let mut from = 1;
        let mut stored = Stored::default();
        loop {
            let next = stream.get_first_raw_message_by_subject("enforcer.evidence.>", from);
            let message = match next.await {
                Ok(message) => message,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    return Ok(stored);
                }
                Err(error) => return Err(error.into()),
            };
            from = message.sequence + 1;
            stored.add(&message.subject, std::str::from_utf8(&message.payload)?)?;
        }
    }

    fn nats_urls(&self) -> Vec<String> {
        (0..self.nats.len())
            .map(|it| format!("nats://{}:{}", self.address, NATS_PORT as usize + it))
            .collect()
    }

    /// For whoever runs a server.
    pub async fn desk(&self, number: usize) -> Result<AdministrationClient<Channel>> {
        let path = self.admin(number);
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display()))?;
        Ok(AdministrationClient::new(endpoint.connect().await?))
    }
}

/// Up to which record there is evidence, by node. What has a gap or something twice is none.
#[derive(Default)]
struct Stored(HashMap<String, u64>);

impl Stored {
    /// Lines that follow those before them.
    fn add(&mut self, node: &str, lines: &str) -> Result<()> {
        let end = self.0.entry(node.to_owned()).or_default();
        for line in lines.lines() {
            let number: u64 = line.parse()?;
            ensure!(number == *end + 1, "{node}: record {number} follows {end}");
            *end = number;
        }
        Ok(())
    }

    /// How many they are, if each of `nodes` nodes has those up to `last`.
    fn whole(&self, nodes: usize, last: u64) -> Result<u64> {
        let ends = self.0.values();
        let (first, end) = (ends.clone().min(), ends.clone().max());
        ensure!(
            self.0.len() == nodes && first == Some(&last) && end == Some(&last),
            "evidence of {} nodes up to {first:?} at least and {end:?} at most, expected {nodes} up to {last}",
            self.0.len()
        );
        Ok(ends.sum())
    }
}

/// What processes use.
#[derive(Default)]
pub struct Use {
    /// Resident, of the governance servers, in KiB.
    pub memory: u64,
    /// Resident, of NATS, in KiB.
    pub nats_memory: u64,
    /// Of all.
    pub processor: Duration,
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the servers have {} KiB", self.memory)?;
        if self.nats_memory > 0 {
            write!(f, ", NATS {} KiB", self.nats_memory)?;
        }
        write!(f, ", {:.1} s of processor", self.processor.as_secs_f64())
    }
}

fn used(pid: u32) -> Result<(u64, Duration)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|it| it.parse::<u64>().ok()).sum();
    let processor = Duration::from_millis(ticks * 10);
    Ok((memory.context("a server has gone")?, processor))
}
