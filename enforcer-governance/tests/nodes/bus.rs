//! Real nats-servers on loopback addresses.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use enforcer_governance::server::NatsLocation;

use super::guard::Guard;
use super::node::until;

/// One server of NATS or a cluster of three, killed when dropped.
pub struct Bus {
    directory: tempfile::TempDir,
    addresses: Vec<Ipv4Addr>,
    children: Vec<Option<Child>>,
    guard: Option<Guard>,
}

/// On `PATH`, or where `cargo xtask setup` has put it.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cached = cache.or(home).map(|it| it.join("enforcer/programs"));
    std::env::split_paths(&path)
        .chain(cached)
        .map(|directory| directory.join("nats-server"))
        .find(|program| program.is_file())
        .expect("nats-server is not here; `cargo xtask setup --tests` fetches it")
}

const PORT: u16 = 4222;
const CLUSTER_PORT: u16 = 6222;
const HEALTH_PORT: u16 = 8222;

/// Nobody else's, so that a server that was killed finds its ports free.
fn own_address() -> Ipv4Addr {
    static LAST: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    Ipv4Addr::new(127, high | 0x80, low, number)
}

impl Bus {
    /// So many servers.
    pub fn start(count: usize) -> Self {
        let mut bus = Self {
            directory: tempfile::tempdir().expect("directory"),
            addresses: (0..count).map(|_| own_address()).collect(),
            children: (0..count).map(|_| None).collect(),
            guard: None,
        };
        (0..count).for_each(|number| bus.run(number));
        bus
    }

    /// One that speaks TLS, and lets nobody in without credentials.
    pub fn start_guarded() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let address = own_address();
        let guard = Guard::new(directory.path(), address);
        let mut bus = Self {
            directory,
            addresses: vec![address],
            children: vec![None],
            guard: Some(guard),
        };
        bus.run(0);
        bus
    }

    /// Starts a server that does not run.
    pub fn run(&mut self, number: usize) {
        let address = self.addresses[number];
        let directory = self.directory.path().join(number.to_string());
        let mut command = Command::new(program());
        command
            .args(["--addr", &address.to_string()])
            .args(["--port", &PORT.to_string()])
            .args(["--http_port", &HEALTH_PORT.to_string()])
            .arg("--jetstream")
            .arg("--store_dir")
            .arg(&directory);
        if let Some(guard) = &self.guard {
            command.arg("--config").arg(&guard.config);
        }
        if self.addresses.len() > 1 {
            let route = |it: &Ipv4Addr| format!("nats://{it}:{CLUSTER_PORT}");
            let routes: Vec<String> = self.addresses.iter().map(route).collect();
            command
                .args(["--name", &format!("bus-{number}"), "--cluster_name", "bus"])
                .args(["--cluster", &route(&address)])
                .args(["--routes", &routes.join(",")]);
        }
        let log = std::fs::File::create(directory.with_extension("log")).expect("a log");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("started");
        while TcpStream::connect((address, PORT)).is_err() {
            if let Some(status) = child.try_wait().expect("waited") {
                let log = std::fs::read_to_string(directory.with_extension("log"));
                panic!("NATS ends with {status}: {log:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.children[number] = Some(child);
    }

    /// Waits until a server that was started again has what the others have: until then, it does not make a majority with
    /// one of them.
    pub async fn until_current(&self, number: usize) {
        let address = (self.addresses[number], HEALTH_PORT);
        let ask = || -> std::io::Result<String> {
            let mut asked = TcpStream::connect(address)?;
            asked.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
            std::io::read_to_string(asked)
        };
        let ask = || ask().unwrap_or_else(|error| error.to_string());
        until("NATS", ask, |it| it.contains(r#""status":"ok""#)).await;
    }

    /// Kills a server.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.children[number].take() {
            child.kill().expect("killed");
            child.wait().expect("waited");
        }
    }

    pub fn location(&self) -> NatsLocation {
        let guard = self.guard.as_ref();
        let scheme = if guard.is_some() { "tls" } else { "nats" };
        let urls = self
            .addresses
            .iter()
            .map(|it| format!("{scheme}://{it}:{PORT}"));
        NatsLocation {
            url: urls.collect::<Vec<_>>().join(","),
            credentials: guard.map(|it| it.credentials.clone()),
            authority: guard.map(|it| it.authority.clone()),
            replicas: self.addresses.len(),
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        (0..self.children.len()).for_each(|number| self.kill(number));
    }
}
