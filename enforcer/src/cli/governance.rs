//! `enforcer governance`: the server, and what its operators ask of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use enforcer_governance::contract::administration_client::AdministrationClient;
use enforcer_governance::contract::{
    Done, GrantRequest, Node, NodesRequest, RevokeRequest, TokenRequest, revoke_request,
};
use enforcer_governance::server::{self, Location, NatsLocation, Options, Source, Transmitter};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::{Channel, Endpoint};

use super::{Output, duration, failed, label, log_to_stderr, show};

#[derive(Subcommand)]
pub enum Command {
    /// Serves a directory of bundle documents to nodes, each what concerns it; keeps their evidence
    Serve {
        /// A directory of YAML documents, or one file; or a bundle that was signed elsewhere (*.dsse.json); or the URL of
        /// an archive of them (tar.gz), as OPA's bundles are distributed. Of several servers with one store, one is
        /// enough to have them
        #[arg(required_unless_present = "store")]
        documents: Option<String>,
        /// A file with a token for that URL
        #[arg(long, value_name = "FILE")]
        documents_token: Option<PathBuf>,
        /// Where the server keeps its keys; and what it has issued and evidence, unless there is a store
        #[arg(
            long,
            value_name = "DIRECTORY",
            default_value = "/var/lib/enforcer-governance"
        )]
        state: PathBuf,
        #[command(flatten)]
        store: Box<Store>,
        /// Where nodes connect
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7443")]
        listen: SocketAddr,
        /// A name or address that nodes know the server by, besides the one it listens on; may be repeated
        #[arg(long = "name", value_name = "NAME")]
        names: Vec<String>,
        /// A private key to sign with, instead of the server's own; may be repeated
        #[arg(long = "key", value_name = "FILE")]
        keys: Vec<PathBuf>,
        /// Authorities, PEM, whose certificates nodes may have besides the server's own
        #[arg(long, value_name = "FILE")]
        node_authorities: Option<PathBuf>,
        /// Take security events of this issuer (OpenID Shared Signals, pushed to https://SERVER/ssf/events): revoked
        /// sessions and credentials become revocations
        #[arg(long, value_name = "ISSUER", requires_all = ["signals_audience", "signals_keys"])]
        signals_from: Option<String>,
        /// What they call this server
        #[arg(long, value_name = "AUDIENCE")]
        signals_audience: Option<String>,
        /// Their keys, a JSON Web Key Set
        #[arg(long, value_name = "FILE")]
        signals_keys: Option<PathBuf>,
        /// How long nodes may go on without hearing that nothing is newer: 5s to 1h
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = freshness)]
        freshness: Duration,
        #[command(flatten)]
        admin: Admin,
    },
    /// Puts an entitlement that is given on request in force, for a time; with a ticket, if it is for emergencies
    Grant {
        /// Its id
        entitlement: String,
        /// For how long: 60s, 10m, 8h
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        how_long: Duration,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        admin: Admin,
    },
    /// Takes back, at once, on all nodes
    Revoke(Revocation),
    /// Lets a revocation go
    Restore(Revocation),
    /// Makes a token that one node may enroll with, once
    Token {
        /// The node's name
        node: String,
        /// A label of the node, NAME=VALUE; may be repeated
        #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// How long the token is good
        #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = duration)]
        how_long: Duration,
        #[command(flatten)]
        admin: Admin,
    },
    /// Lists the nodes: what each has in force, since when, what it can do, and what it refused
    Nodes {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        admin: Admin,
    },
}

/// Where several servers keep what they have in common.
#[derive(clap::Args)]
pub struct Store {
    /// NATS with JetStream, where several servers keep what they have in common: nats://HOST:PORT, tls:// for TLS,
    /// several with commas between
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// A file with the credentials for NATS (.creds)
    #[arg(long, value_name = "FILE", requires = "store")]
    store_credentials: Option<PathBuf>,
    /// The authority of NATS' certificates, PEM
    #[arg(long, value_name = "FILE", requires = "store")]
    store_ca: Option<PathBuf>,
    /// On how many servers of NATS everything is; counts when the first server starts
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=5)
    )]
    store_replicas: u8,
}

impl Store {
    fn location(self) -> Option<NatsLocation> {
        Some(NatsLocation {
            url: self.store?,
            credentials: self.store_credentials,
            authority: self.store_ca,
            replicas: self.store_replicas.into(),
        })
    }
}

#[derive(clap::Args)]
pub struct Admin {
    /// The server's socket for its operators
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/run/enforcer/governance.sock"
    )]
    admin_socket: PathBuf,
}

#[derive(clap::Args)]
pub struct Why {
    /// Why, for the audit trail
    #[arg(long)]
    reason: String,
    /// Where the decision is written down
    #[arg(long, default_value = "")]
    ticket: String,
}

#[derive(clap::Args)]
pub struct Revocation {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    admin: Admin,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// An entitlement
    entitlement: Option<String>,
    /// All entitlements to a credential
    #[arg(long)]
    credential: Option<String>,
    /// All entitlements of a workload
    #[arg(long)]
    workload: Option<String>,
}

impl Command {
    pub fn run(self) -> ExitCode {
        if matches!(self, Self::Serve { .. }) {
            log_to_stderr();
        }
        let runtime = match tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => return failed(&format!("cannot start: {error}")),
        };
        match runtime.block_on(self.execute()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("{error:#}")),
        }
    }

    async fn execute(self) -> Result<()> {
        match self {
            Self::Serve {
                documents,
                documents_token,
                state,
                store,
                listen,
                names,
                keys,
                node_authorities,
                signals_from,
                signals_audience,
                signals_keys,
                freshness,
                admin,
            } => {
                let signals = signals_from.zip(signals_audience).zip(signals_keys);
                serve(Options {
                    documents: documents.map(|it| source(it, documents_token)),
                    state,
                    store: store.location(),
                    listen,
                    names,
                    admin: admin.admin_socket,
                    keys,
                    node_authorities,
                    signals: signals.map(|((issuer, audience), keys)| Transmitter {
                        issuer,
                        audience,
                        keys,
                    }),
                    freshness,
                })
                .await
            }
            Self::Grant {
                entitlement,
                how_long,
                why,
                admin,
            } => {
                let request = GrantRequest {
                    entitlement,
                    duration: Some(how_long.try_into()?),
                    reason: why.reason,
                    ticket: why.ticket,
                };
                done(admin.connect().await?.grant(request).await)
            }
            Self::Revoke(revocation) => {
                let mut desk = revocation.admin.connect().await?;
                done(desk.revoke(revocation.request()).await)
            }
            Self::Restore(revocation) => {
                let mut desk = revocation.admin.connect().await?;
                done(desk.restore(revocation.request()).await)
            }
            Self::Token {
                node,
                labels,
                how_long,
                admin,
            } => {
                let request = TokenRequest {
                    node,
                    labels: labels.into_iter().collect(),
                    valid_for: Some(how_long.try_into()?),
                };
                let response = admin.connect().await?.token(request).await;
                println!("{}", response.map_err(refused)?.into_inner().token);
                Ok(())
            }
            Self::Nodes { output, admin } => {
                let response = admin.connect().await?.nodes(NodesRequest {}).await;
                let response = response.map_err(refused)?.into_inner();
                let nodes: Vec<Value> = response.nodes.iter().map(described).collect();
                match output {
                    Output::Text => nodes.iter().for_each(|node| println!("{}", line(node))),
                    _ => show(
                        &json!({
                            "version": response.bundle_version,
                            "revocationSequence": response.revocation_sequence,
                            "nodes": nodes,
                        }),
                        output,
                    ),
                }
                Ok(())
            }
        }
    }
}

fn freshness(text: &str) -> Result<Duration, String> {
    let good = Duration::from_secs(5)..=Duration::from_secs(60 * 60);
    let span = duration(text)?;
    if good.contains(&span) {
        Ok(span)
    } else {
        Err("expected 5s to 1h".to_owned())
    }
}

fn source(documents: String, token: Option<PathBuf>) -> Source {
    if documents.contains("://") {
        return Source::Remote(Location {
            url: documents,
            token,
        });
    }
    let path = PathBuf::from(documents);
    Source::Path(std::path::absolute(&path).unwrap_or(path))
}

async fn serve(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let state = options.state.clone();
    server::serve(options, stop, |address| {
        tracing::info!(
            %address,
            trust = %state.join("trust.json").display(),
            ca = %state.join("ca.pem").display(),
            "serving; nodes need these two files, and a token each"
        );
    })
    .await
    .map_err(|error| anyhow::anyhow!(error.chain()))
}

impl Admin {
    async fn connect(&self) -> Result<AdministrationClient<Channel>> {
        let path = std::path::absolute(&self.admin_socket)?;
        let channel = Endpoint::from_shared(format!("unix:{}", path.display()))?
            .connect()
            .await
            .with_context(|| {
                format!(
                    "{}: no server there; is `enforcer governance serve` running?",
                    path.display()
                )
            })?;
        Ok(AdministrationClient::new(channel))
    }
}

impl Revocation {
    fn request(self) -> RevokeRequest {
        let Target {
            entitlement,
            credential,
            workload,
        } = self.target;
        let target = match (entitlement, credential, workload) {
            (Some(id), ..) => Some(revoke_request::Target::Entitlement(id)),
            (_, Some(id), _) => Some(revoke_request::Target::Credential(id)),
            (.., id) => id.map(revoke_request::Target::Workload),
        };
        RevokeRequest {
            target,
            reason: self.why.reason,
            ticket: self.why.ticket,
        }
    }
}

fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

fn done(response: Result<tonic::Response<Done>, tonic::Status>) -> Result<()> {
    let done = response.map_err(refused)?.into_inner();
    println!(
        "committed at {}: version {}, revocation {}",
        done.committed_at.map(moment).unwrap_or_default(),
        done.bundle_version,
        done.revocation_sequence
    );
    Ok(())
}

fn moment(moment: prost_types::Timestamp) -> String {
    Timestamp::new(moment.seconds, moment.nanos).map_or_else(|_| String::new(), |it| it.to_string())
}

fn described(node: &Node) -> Value {
    let held = node.held.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    json!({
        "name": node.name,
        "labels": node.labels,
        "connected": node.connected,
        "lastSeen": node.last_seen.map(moment),
        "version": held.bundle_version,
        "digest": held.bundle_digest,
        "revocationSequence": held.revocation_sequence,
        "trustRootVersion": held.trust_root_version,
        "activeSince": node.active_since.map(moment),
        "state": status.state,
        "mode": {"requested": status.requested_mode, "effective": status.effective_mode},
        "notCovered": status.not_covered,
        "reason": Some(status.reason).filter(|it| !it.is_empty()),
        "agentVersion": node.agent_version,
        "refused": Some(&node.refusal).filter(|it| !it.is_empty()),
        "evidenceStored": node.evidence_stored,
    })
}

fn line(node: &Value) -> String {
    let text = |value: &Value| match value.as_str() {
        Some("") | None => "-".to_owned(),
        Some(text) => text.to_owned(),
    };
    let connected = node["connected"] == true;
    let mut line = format!(
        "{:<24} {:<12} version {:<6} revocation {:<4} root {:<3} {:<24} {} -> {}",
        text(&node["name"]),
        if connected { "connected" } else { "away" },
        node["version"],
        node["revocationSequence"],
        node["trustRootVersion"],
        text(&node["state"]),
        text(&node["mode"]["requested"]),
        text(&node["mode"]["effective"]),
    );
    if !connected {
        line.push_str(&format!("  last seen {}", text(&node["lastSeen"])));
    }
    if let Some(refused) = node["refused"].as_str() {
        line.push_str(&format!("  refused: {refused}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use enforcer_governance::contract::Held;

    use super::super::Cli;
    use super::*;

    #[test]
    fn a_node_is_shown_with_what_it_holds() {
        let node = Node {
            name: "n1".to_owned(),
            connected: true,
            held: Some(Held {
                bundle_version: 7,
                revocation_sequence: 5,
                trust_root_version: 2,
                ..Held::default()
            }),
            ..Node::default()
        };
        let shown = line(&described(&node));
        let words: Vec<&str> = shown.split_whitespace().collect();
        assert_eq!(
            words[..8],
            [
                "n1",
                "connected",
                "version",
                "7",
                "revocation",
                "5",
                "root",
                "2"
            ]
        );
    }

    #[test]
    fn freshness_has_bounds() {
        let parse = |span| {
            let words = [
                "enforcer",
                "governance",
                "serve",
                "/tmp",
                "--freshness",
                span,
            ];
            Cli::try_parse_from(words).map_err(|error| error.to_string())
        };
        for good in ["5s", "5000ms", "60m", "1h"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["0s", "4999ms", "61m", "2h"] {
            let Err(error) = parse(bad) else {
                panic!("{bad} is taken");
            };
            assert!(error.contains(bad) && error.contains("5s to 1h"), "{error}");
        }
    }
}
