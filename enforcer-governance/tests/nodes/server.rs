//! The real server on a loopback address.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enforcer_governance::contract::administration_client::AdministrationClient;
use enforcer_governance::contract::{
    Done, GrantRequest, Node, NodesRequest, RevokeRequest, TokenRequest, revoke_request,
};
use enforcer_governance::server::{NatsLocation, Options, Source, Transmitter, serve};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::node::{Place, until, until_told};

/// One server and its directory.
pub struct Server {
    pub directory: PathBuf,
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

/// A bundle of entitlements: each of them is `ID` or `ID: more fields`.
pub fn documents(entitlements: &[&str]) -> String {
    let mut text = "apiVersion: enforcer.dev/v1
kind: Bundle
metadata: {issuer: iga.example.com, version: 1}
credentials: [{id: key, sources: [{file: /etc/key}]}]
workloads: [{id: app, match: {executable: {path: /bin/app}}}]
entitlements:
"
    .to_owned();
    for entitlement in entitlements {
        let (id, more) = entitlement.split_once(": ").unwrap_or((entitlement, ""));
        text.push_str(&format!(
            "  - {{id: {id}, workload: app, credential: key, destinations: none, {more}}}\n"
        ));
    }
    text
}

/// All but what is served.
fn options(directory: &Path, listen: &str) -> Options {
    Options {
        documents: None,
        state: directory.join("server"),
        store: None,
        listen: listen.parse().expect("an address"),
        names: Vec::new(),
        admin: directory.join("admin.sock"),
        keys: Vec::new(),
        node_authorities: None,
        signals: None,
        freshness: Duration::from_secs(300),
    }
}

impl Server {
    pub async fn start(directory: &Path, entitlements: &[&str]) -> Self {
        let server = Self::start_at(directory, "127.0.0.1:0", Some(entitlements)).await;
        server.expect("started")
    }

    /// With what is in the directory.
    pub async fn start_at(
        directory: &Path,
        listen: &str,
        entitlements: Option<&[&str]>,
    ) -> Result<Self, String> {
        Self::start_from(directory, listen, entitlements, None, None).await
    }

    /// With documents from elsewhere.
    pub async fn start_from(
        directory: &Path,
        listen: &str,
        entitlements: Option<&[&str]>,
        source: Option<Source>,
        signals: Option<Transmitter>,
    ) -> Result<Self, String> {
        let write = directory.join("documents");
        std::fs::create_dir_all(&write).expect("directory");
        if let Some(entitlements) = entitlements {
            std::fs::write(write.join("bundle.yaml"), documents(entitlements)).expect("written");
        }
        let options = Options {
            documents: Some(source.unwrap_or(Source::Path(write))),
            signals,
            ..options(directory, listen)
        };
        Self::serve(directory, options).await
    }

    /// One that signs with these keys, with the documents and the store that are given.
    pub async fn start_signing(
        directory: &Path,
        keys: &[PathBuf],
        store: Option<&NatsLocation>,
    ) -> Self {
        let options = Options {
            documents: Some(Source::Path(directory.join("documents"))),
            keys: keys.to_vec(),
            store: store.cloned(),
            ..options(directory, "127.0.0.1:0")
        };
        Self::serve(directory, options).await.expect("started")
    }

    /// One that takes certificates of this authority too.
    pub async fn start_trusting(directory: &Path, authority: &Path, entitlements: &[&str]) -> Self {
        let write = directory.join("documents");
        std::fs::create_dir_all(&write).expect("directory");
        std::fs::write(write.join("bundle.yaml"), documents(entitlements)).expect("written");
        let options = Options {
            documents: Some(Source::Path(write)),
            node_authorities: Some(authority.to_owned()),
            ..options(directory, "127.0.0.1:0")
        };
        Self::serve(directory, options).await.expect("started")
    }

    /// One of several with this store, with the documents in the directory if there are any.
    pub async fn start_on(directory: &Path, store: &NatsLocation) -> Result<Self, String> {
        let documents = directory.join("documents");
        let options = Options {
            documents: documents.exists().then_some(Source::Path(documents)),
            store: Some(store.clone()),
            ..options(directory, "127.0.0.1:0")
        };
        Self::serve(directory, options).await
    }

    async fn serve(directory: &Path, options: Options) -> Result<Self, String> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stop = async {
                let _ = stopped.await;
            };
            let mut ready = Some(ready);
            let told = |address| {
                let _ = ready.take().map(|ready| ready.send(Ok(address)));
            };
            if let Err(error) = serve(options, stop, told).await {
                eprintln!("the server: {}", error.chain());
                let _ = ready.map(|ready| ready.send(Err(error.chain())));
            }
        });
        let address = is_ready
            .await
            .unwrap_or(Err("it did not start".to_owned()))?;
        Ok(Self {
            directory: directory.to_owned(),
            address,
            stop,
            serving,
        })
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.serving.await.expect("stopped");
        // What serves a connection has the directory a moment longer.
        let lock = self.directory.join("server/lock");
        let free = || File::open(&lock).map_or(true, |lock| lock.try_lock().is_ok());
        until("its directory is free", free, |it| *it).await;
    }

    pub fn write(&self, entitlements: &[&str]) {
        let path = self.directory.join("documents/bundle.yaml");
        std::fs::write(path, documents(entitlements)).expect("written");
    }

    pub fn place(&self) -> Place {
        Place {
            url: format!("https://{}", self.address),
            others: Vec::new(),
            authority: self.directory.join("server/ca.pem"),
            trust: self.directory.join("server/trust.json"),
        }
    }

    /// Where nodes connect, for who has this certificate or none.
    pub fn endpoint(&self, identity: Option<Identity>) -> Endpoint {
        let authority = std::fs::read(self.place().authority).expect("there");
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        let endpoint = Endpoint::from_shared(self.place().url).expect("a URL");
        endpoint.tls_config(tls).expect("TLS")
    }

    /// A connection of a node that has enrolled, for who does not go on to try again as a client would.
    pub async fn connect_as(&self, node: &Path) -> Channel {
        let read = |file| std::fs::read_to_string(node.join("state").join(file)).expect("there");
        let identity = Identity::from_pem(read("node.pem"), read("node.key"));
        let channel = self.endpoint(Some(identity)).connect().await;
        channel.expect("connected")
    }

    /// What its health service says of the whole and of the service for nodes.
    pub async fn health(&self) -> [ServingStatus; 2] {
        let channel = self.endpoint(None).connect().await.expect("connected");
        let mut client = HealthClient::new(channel);
        let mut ask = async |service: &str| {
            let service = service.to_owned();
            let answer = client.check(HealthCheckRequest { service }).await;
            answer.expect("told").into_inner().status()
        };
        [
            ask("").await,
            ask("enforcer.governance.v1.Governance").await,
        ]
    }

    pub async fn desk(&self) -> AdministrationClient<Channel> {
        let path = self.directory.join("admin.sock");
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).expect("a path");
        AdministrationClient::new(endpoint.connect().await.expect("connected"))
    }

    /// A node's directory with a token in it.
    pub async fn admit(&self, name: &str, labels: &[(&str, &str)]) -> PathBuf {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let request = TokenRequest {
            node: name.to_owned(),
            labels: labels.collect(),
            valid_for: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
        };
        let token = self.desk().await.token(request).await.expect("a token");
        let directory = self.directory.join(name);
        std::fs::create_dir_all(&directory).expect("directory");
        std::fs::write(directory.join("token"), token.into_inner().token).expect("written");
        directory
    }

    pub async fn grant(&self, id: &str, seconds: i64, ticket: &str) -> Result<Done, Status> {
        let request = GrantRequest {
            entitlement: id.to_owned(),
            duration: Some(prost_types::Duration { seconds, nanos: 0 }),
            reason: "a test".to_owned(),
            ticket: ticket.to_owned(),
        };
        Ok(self.desk().await.grant(request).await?.into_inner())
    }

    fn request(id: &str) -> RevokeRequest {
        RevokeRequest {
            target: Some(revoke_request::Target::Entitlement(id.to_owned())),
            reason: "a test".to_owned(),
            ticket: String::new(),
        }
    }

    pub async fn revoke(&self, id: &str) -> Result<Done, Status> {
        Ok(self
            .desk()
            .await
            .revoke(Self::request(id))
            .await?
            .into_inner())
    }

    pub async fn restore(&self, id: &str) -> Result<Done, Status> {
        Ok(self
            .desk()
            .await
            .restore(Self::request(id))
            .await?
            .into_inner())
    }

    /// What is known of a node.
    pub async fn knows(&self, name: &str) -> Node {
        let all = self
            .desk()
            .await
            .nodes(NodesRequest {})
            .await
            .expect("told");
        let mut all = all.into_inner().nodes.into_iter();
        all.find(|node| node.name == name).unwrap_or_default()
    }

    /// Waits until this is known of a node.
    pub async fn until_knows(&self, name: &str, holds: impl Fn(&Node) -> bool) -> Node {
        let what = format!("what the server knows of {name}");
        until_told(&what, async || self.knows(name).await, holds).await
    }

    /// Waits until a node has acknowledged this revocation, and so has it on disk.
    pub async fn until_acknowledged(&self, name: &str, revocation: u64) {
        let sequence = |node: &Node| node.held.as_ref().map_or(0, |it| it.revocation_sequence);
        self.until_knows(name, |node| sequence(node) >= revocation)
            .await;
    }

    /// The audit trail, or another file of lines.
    pub fn lines(&self, name: &str) -> Vec<serde_json::Value> {
        let path = self.directory.join("server").join(name);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}
