//! Governance servers and many nodes: how long a version and a revocation take to all of them, what the servers need for
//! it, and what it is when one of them dies.

mod node;
mod servers;

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer::bundle::Labels;
use enforcer_governance::{
    contract::{
        NodesRequest, RevokeRequest, administration_client::AdministrationClient, revoke_request,
    },
    held::{Held, Numbers},
    trust::TrustRoot,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::harness::spread;
use node::{Common, Has, Node};
use servers::Servers;

/// Connections that are made at the same time.
const AT_ONCE: usize = 100;
/// Records of evidence that each node has at a time.
const RECORDS: u64 = 20;
/// No step takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures with so many nodes, bundles of so many entitlements, and so many servers.
pub fn run(nodes: usize, entitlements: usize, servers: u16) -> Result<bool> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(nodes, entitlements, servers))?;
    Ok(true)
}

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

async fn measure(nodes: usize, entitlements: usize, servers: u16) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let mut fleet = Servers::start(servers, &authority, &bundle(1, entitlements))?;
    let root: TrustRoot = serde_json::from_slice(&fs::read(fleet.secret("trust.json"))?)?;
    let held = Arc::new(Held::new(root, Labels::new())?);
    let common = Common::default();
    let authority = Certificate::from_pem(fs::read(fleet.secret("ca.pem"))?);
    println!("without nodes: {}", fleet.use_of()?);

    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let start = Instant::now();
    let mut running = JoinSet::new();
    let mut all: Vec<watch::Receiver<Option<Has>>> = Vec::new();
    let records = watch::Sender::new(0);
    let mut evidence: Vec<watch::Receiver<u64>> = Vec::new();
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
        let endpoint = |url| -> Result<Endpoint> {
            let endpoint = Endpoint::from_shared(url)?.tls_config(tls.clone())?;
            Ok(endpoint.tcp_nodelay(true))
        };
        let mut urls = fleet.urls();
        let servers = urls.len();
        urls.rotate_left(number % servers);
        let (has, seen) = watch::channel(None);
        all.push(seen);
        let (stored, receipted) = watch::channel(0);
        evidence.push(receipted);
        let node = Node {
            name,
            endpoints: urls.into_iter().map(endpoint).collect::<Result<_>>()?,
            held: held.clone(),
            common: common.clone(),
            has,
            records: records.subscribe(),
            stored,
        };
        running.spawn(node.run(gate.clone()));
    }
    let made = start.elapsed();
    everybody(&mut all, "the first version", |it| it.version >= 1).await?;
    println!(
        "{nodes} nodes with {entitlements} entitlements connected and active after {:.1} s (of which {:.1} s making keys); {}",
        start.elapsed().as_secs_f64(),
        made.as_secs_f64(),
        fleet.use_of()?
    );

    let mut desk = fleet.desk(0).await?;
    let mut connected = 0;
    for _ in 0..60 {
        let known = desk.nodes(NodesRequest {}).await?.into_inner();
        connected = known.nodes.iter().filter(|it| it.connected).count();
        if connected == nodes {
            break;
        }
        // What the other servers know comes by the store, each five seconds.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ensure!(
        connected == nodes,
        "the first server knows {connected} of {nodes} nodes"
    );
    let second = bundle(2, entitlements);
    issue(&fleet, &mut all, 2, &second, "a new version").await?;
    for round in 1..=3 {
        revoke(&mut desk, &mut all, round, "a revocation").await?;
    }
    report_evidence(&records, &mut evidence, RECORDS).await?;
    println!("then {}", fleet.use_of()?);
    let mut last = RECORDS;
    if servers > 1 {
        // The one that has the documents stays, so that it can be asked.
        let dead = usize::from(servers) - 1;
        records.send_replace(2 * RECORDS);
        half(&evidence, 2 * RECORDS).await?;
        fleet.kill(dead);
        let killed = "right after a server and a part of NATS were killed";
        revoke(&mut desk, &mut all, 4, &format!("a revocation {killed}")).await?;
        let third = bundle(3, entitlements);
        issue(&fleet, &mut all, 3, &third, "a new version after that").await?;
        for round in 5..=7 {
            revoke(&mut desk, &mut all, round, "a revocation").await?;
        }
        last = 3 * RECORDS;
        report_evidence(&records, &mut evidence, last).await?;
        println!("at the end {}", fleet.use_of()?);
    }
    running.shutdown().await;
    println!(
        "{} times a connection was lost and made again",
        common.lost.load(Ordering::Relaxed)
    );
    let stored = fleet.stored(nodes, last).await?;
    println!("{stored} records of evidence are stored, each node's without a gap or a double one");
    Ok(())
}

/// Puts documents in the place of those before, and waits until all have this version in force.
async fn issue(
    fleet: &Servers,
    all: &mut [watch::Receiver<Option<Has>>],
    version: u64,
    documents: &str,
    what: &str,
) -> Result<()> {
    let new = fleet.path("documents/new");
    fs::write(&new, documents)?;
    let issued = Instant::now();
    fs::rename(new, fleet.path("documents/bundle.yaml"))?;
    let times = everybody(all, what, |it| it.version >= version).await?;
    let what = format!("{what}, from the change of the file to active");
    report(&what, issued, &times);
    Ok(())
}

/// Waits until half of the nodes have receipts up to this record.
async fn half(evidence: &[watch::Receiver<u64>], last: u64) -> Result<()> {
    let wait = async {
        while evidence.iter().filter(|it| *it.borrow() >= last).count() < evidence.len() / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let half = tokio::time::timeout(PATIENCE, wait).await;
    half.with_context(|| format!("record {last}: not half are receipted after {PATIENCE:?}"))
}

/// Has every node report up to this record, and waits until all is receipted.
async fn report_evidence(
    records: &watch::Sender<u64>,
    evidence: &mut [watch::Receiver<u64>],
    last: u64,
) -> Result<()> {
    let start = Instant::now();
    records.send_replace(last);
    let wait = async {
        for node in evidence.iter_mut() {
            node.wait_for(|stored| *stored >= last).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .with_context(|| format!("record {last}: not all are receipted after {PATIENCE:?}"))??;
    println!(
        "{} nodes' records up to {last} receipted after {:.1} s",
        evidence.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Revokes, and waits until all have it.
async fn revoke(
    desk: &mut AdministrationClient<Channel>,
    all: &mut [watch::Receiver<Option<Has>>],
    number: u64,
    what: &str,
) -> Result<()> {
    let request = RevokeRequest {
        target: Some(revoke_request::Target::Entitlement("E-1".to_owned())),
        reason: "a measurement".to_owned(),
        ticket: String::new(),
    };
    let asked = Instant::now();
    desk.revoke(request).await?;
    let times = everybody(all, what, |it| it.sequence >= number).await?;
    report(&format!("{what}, from the request to taken"), asked, &times);
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
    let spans = times.iter().map(|at| at.saturating_duration_since(start));
    let spans = spans.map(|span| span.as_secs_f64() * 1000.0).collect();
    println!("{what}: {}", spread(spans));
}
