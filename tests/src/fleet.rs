//! One governance server and many nodes: how long a version and a revocation take to all of them, and what the server
//! needs for it. The nodes verify and acknowledge as real ones do, and have neither kernel nor disk.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer::bundle::Labels;
use enforcer_governance::{
    contract::{
        Acknowledgement, Hello, NodeMessage, NodesRequest, RevokeRequest,
        administration_client::AdministrationClient, governance_client::GovernanceClient,
        node_message, revoke_request, server_message,
    },
    envelope::Envelope,
    held::{Held, Numbers},
    trust::TrustRoot,
};
use jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::harness::wait_for;

/// Connections that are made at the same time.
const AT_ONCE: usize = 100;
/// All of it takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(300);
const PORT: u16 = 7449;

/// Measures with so many nodes, and bundles of so many entitlements.
pub fn run(nodes: usize, entitlements: usize) -> Result<bool> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(nodes, entitlements))?;
    Ok(true)
}

/// What a node has, and since when.
type Has = (Numbers, Instant);

fn bundle(version: u64, entitlements: usize) -> String {
    let mut text = format!(
        "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {{issuer: tests, version: {version}}}\ncredentials:\n"
    );
    for id in 0..entitlements {
        text += &format!("  - {{id: key-{id}, sources: [{{file: /etc/keys/{id}}}]}}\n");
    }
    text += "workloads: [{id: app, match: {executable: {path: /usr/bin/app}}}]\nentitlements:\n";
    for id in 0..entitlements {
        // One of them differs from version to version.
        let port = if id == 0 { version } else { 443 };
        text += &format!(
            "  - {{id: E-{id}, workload: app, credential: key-{id}, destinations: [{{cidr: 10.0.0.1/32, ports: [{port}]}}]}}\n"
        );
    }
    text
}

struct Server {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(authority: &str, entitlements: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("documents"))?;
        fs::write(path("documents/bundle.yaml"), bundle(1, entitlements))?;
        fs::write(path("nodes.pem"), authority)?;
        let child = Command::new("enforcer")
            .args(["governance", "serve"])
            .arg(path("documents"))
            .arg("--state")
            .arg(path("server"))
            .arg("--node-authorities")
            .arg(path("nodes.pem"))
            .arg("--admin-socket")
            .arg(path("admin.sock"))
            .args(["--listen", &format!("127.0.0.1:{PORT}")])
            .env("ENFORCER_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start the governance server")?;
        let server = Self { child, directory };
        wait_for("the server", || path_exists(&server.path("admin.sock")))?;
        Ok(server)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Resident memory, in KiB.
    fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.context("the server has gone")
    }

    /// Processor time so far.
    fn processor(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|it| it.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    async fn desk(&self) -> Result<AdministrationClient<Channel>> {
        let endpoint =
            Endpoint::from_shared(format!("unix:{}", self.path("admin.sock").display()))?;
        Ok(AdministrationClient::new(endpoint.connect().await?))
    }
}

fn path_exists(path: &Path) -> Option<()> {
    path.exists().then_some(())
}

async fn measure(nodes: usize, entitlements: usize) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let server = Server::start(&authority, entitlements)?;
    let root: TrustRoot = serde_json::from_slice(&fs::read(server.path("server/trust.json"))?)?;
    let held = Held::new(root, Labels::new())?;
    let authority = Certificate::from_pem(fs::read(server.path("server/ca.pem"))?);
    println!("the server alone: {} KiB", server.memory()?);

    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let start = Instant::now();
    let mut running = JoinSet::new();
    let mut all: Vec<watch::Receiver<Option<Has>>> = Vec::new();
    for number in 0..nodes {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let name = format!("node-{number}");
        params
            .distinguished_name
            .push(DnType::CommonName, name.clone());
        let certificate = params.signed_by(&key, &issuer)?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(authority.clone())
            .identity(Identity::from_pem(certificate.pem(), key.serialize_pem()));
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{PORT}"))?
            .tls_config(tls)?
            .tcp_nodelay(true);
        let (has, seen) = watch::channel(None);
        all.push(seen);
        let node = Node {
            name,
            endpoint,
            held: held.clone(),
            has,
        };
        running.spawn(node.run(gate.clone()));
    }
    let made = start.elapsed();
    everybody(&mut all, "the first version", |it| it.version >= 1).await?;
    println!(
        "{nodes} nodes with {entitlements} entitlements connected and active after {:.1} s (of which {:.1} s making keys); the server has {} KiB and used {:.1} s of processor",
        start.elapsed().as_secs_f64(),
        made.as_secs_f64(),
        server.memory()?,
        server.processor()?.as_secs_f64()
    );

    let mut desk = server.desk().await?;
    let before = desk.nodes(NodesRequest {}).await?.into_inner();
    ensure!(
        before.nodes.iter().filter(|it| it.connected).count() == nodes,
        "the server does not know all {nodes} nodes"
    );
    fs::write(server.path("documents/new"), bundle(2, entitlements))?;
    let issued = Instant::now();
    fs::rename(
        server.path("documents/new"),
        server.path("documents/bundle.yaml"),
    )?;
    let times = everybody(&mut all, "version 2", |it| it.version >= 2).await?;
    report(
        "a new version, from the change of the file to active",
        issued,
        &times,
    );

    for round in 1..=3 {
        let request = RevokeRequest {
            target: Some(revoke_request::Target::Entitlement("E-1".to_owned())),
            reason: "a measurement".to_owned(),
            ticket: String::new(),
        };
        let asked = Instant::now();
        desk.revoke(request).await?;
        let times = everybody(&mut all, "the revocation", |it| it.sequence >= round).await?;
        report("a revocation, from the request to taken", asked, &times);
    }
    running.shutdown().await;
    println!(
        "at the end the server has {} KiB and used {:.1} s of processor",
        server.memory()?,
        server.processor()?.as_secs_f64()
    );
    Ok(())
}

/// When each node had it.
async fn everybody(
    all: &mut [watch::Receiver<Option<Has>>],
    what: &str,
    holds: impl Fn(&Numbers) -> bool,
) -> Result<Vec<Instant>> {
    let mut times = Vec::new();
    let wait = async {
        for node in all.iter_mut() {
            let seen = node.wait_for(|has| has.as_ref().is_some_and(|(it, _)| holds(it)));
            let seen = seen.await.ok().and_then(|it| *it);
            let Some((_, at)) = seen else {
                bail!("a node has gone");
            };
            times.push(at);
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .with_context(|| format!("{what}: not all have it after {PATIENCE:?}"))??;
    Ok(times)
}

fn report(what: &str, start: Instant, times: &[Instant]) {
    let mut spans: Vec<f64> = times
        .iter()
        .map(|at| at.saturating_duration_since(start).as_secs_f64() * 1000.0)
        .collect();
    spans.sort_by(f64::total_cmp);
    let at = |part: f64| spans[((spans.len() - 1) as f64 * part) as usize];
    println!(
        "{what}: p50 {:.0} ms, p99 {:.0} ms, last {:.0} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// A node.
struct Node {
    name: String,
    endpoint: Endpoint,
    held: Held,
    has: watch::Sender<Option<Has>>,
}

impl Node {
    async fn run(mut self, gate: Arc<Semaphore>) {
        if let Err(error) = self.follow(&gate).await {
            eprintln!("{}: {error:#}", self.name);
        }
    }

    async fn follow(&mut self, gate: &Semaphore) -> Result<()> {
        let (outbound, requests) = mpsc::channel(4);
        let hello = Hello {
            node: self.name.clone(),
            held: Some(self.held.summary()),
            ..Hello::default()
        };
        let hello = node_message::Message::Hello(hello);
        outbound
            .send(NodeMessage {
                message: Some(hello),
            })
            .await?;
        let mut inbound = {
            let _turn = gate.acquire().await?;
            let channel = self.endpoint.connect().await?;
            let mut service = GovernanceClient::new(channel).max_decoding_message_size(usize::MAX);
            let stream = service.sync(ReceiverStream::new(requests)).await?;
            stream.into_inner()
        };
        while let Some(heard) = inbound.message().await? {
            use server_message::Message;
            let Some(
                Message::TrustRoot(envelope)
                | Message::Snapshot(envelope)
                | Message::Delta(envelope)
                | Message::Revocation(envelope)
                | Message::Freshness(envelope),
            ) = heard.message
            else {
                bail!("an empty message");
            };
            let envelope: Envelope = envelope.into();
            let (held, _) = self.held.take(&envelope, Timestamp::now())?;
            self.held = held;
            self.has
                .send_replace(Some((self.held.numbers(), Instant::now())));
            let acknowledgement = Acknowledgement {
                nonce: heard.nonce,
                held: Some(self.held.summary()),
                active_at: None,
            };
            let message = Some(node_message::Message::Acknowledgement(acknowledgement));
            outbound.send(NodeMessage { message }).await?;
        }
        bail!("the server has closed the stream")
    }
}
