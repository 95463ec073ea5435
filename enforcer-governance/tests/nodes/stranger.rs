//! A server that has a certificate, and no good intentions.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use enforcer_governance::contract::governance_server::{Governance, GovernanceServer};
use enforcer_governance::contract::{
    FetchRequest, FetchResponse, NodeMessage, ServerMessage, node_message, server_message,
};
use enforcer_governance::envelope::Envelope;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::node::Place;
use super::office::Office;

/// What it does to each stream.
#[derive(Clone)]
pub enum Does {
    /// Sends these, and then nothing more.
    Sends(Vec<Envelope>),
    /// Sends this without end.
    Floods(Envelope),
    /// Answers, and says nothing.
    Stalls,
    /// Knows no streams; sends these to who fetches.
    Fetches(Vec<Envelope>),
}

/// What it heard from the node.
#[derive(Clone, Default)]
pub struct Heard {
    pub acknowledged: Arc<AtomicU64>,
    pub refused: Arc<AtomicU64>,
    pub streams: Arc<AtomicU64>,
    /// What the node says that it refused on an earlier stream.
    pub before: Arc<Mutex<String>>,
}

struct Hostile {
    does: Does,
    heard: Heard,
}

fn message(nonce: usize, envelope: Envelope) -> ServerMessage {
    ServerMessage {
        nonce: nonce.to_string(),
        // Which of them it is said to be makes no difference: its own type is signed.
        message: Some(server_message::Message::Snapshot(envelope.into())),
        retry_after: None,
    }
}

#[tonic::async_trait]
impl Governance for Hostile {
    type SyncStream = ReceiverStream<Result<ServerMessage, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        self.heard.streams.fetch_add(1, Ordering::Relaxed);
        let mut inbound = request.into_inner();
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(NodeMessage { message })) = inbound.message().await {
                match message {
                    Some(node_message::Message::Acknowledgement(_)) => {
                        heard.acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(node_message::Message::Refusal(_)) => {
                        heard.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(node_message::Message::Hello(hello)) => {
                        *heard.before.lock().await = hello.last_refusal;
                    }
                    _ => {}
                }
            }
        });
        let (outbound, stream) = mpsc::channel(4);
        let does = self.does.clone();
        tokio::spawn(async move {
            let mut nonce = 0;
            match does {
                Does::Sends(envelopes) => {
                    for envelope in envelopes {
                        nonce += 1;
                        let _ = outbound.send(Ok(message(nonce, envelope))).await;
                    }
                }
                Does::Floods(envelope) => loop {
                    nonce += 1;
                    if outbound
                        .send(Ok(message(nonce, envelope.clone())))
                        .await
                        .is_err()
                    {
                        return;
                    }
                },
                Does::Stalls | Does::Fetches(_) => {}
            }
            outbound.closed().await;
        });
        if matches!(self.does, Does::Fetches(_)) {
            return Err(Status::unimplemented("no streams here"));
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        let request = request.into_inner();
        let count = request.acknowledgements.len() as u64;
        self.heard.acknowledged.fetch_add(count, Ordering::Relaxed);
        let refused = request.refusals.len() as u64;
        self.heard.refused.fetch_add(refused, Ordering::Relaxed);
        let version = request
            .hello
            .and_then(|it| it.held)
            .map_or(0, |it| it.bundle_version);
        let Does::Fetches(envelopes) = &self.does else {
            return Err(Status::unimplemented("streams only"));
        };
        if version > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            return Ok(Response::new(FetchResponse::default()));
        }
        let messages = envelopes.iter().cloned().enumerate();
        Ok(Response::new(FetchResponse {
            messages: messages.map(|(nonce, it)| message(nonce, it)).collect(),
        }))
    }
}

/// Starts one, for a node that has its certificate already. The node's directory is `node` in `directory`.
pub async fn start(directory: &Path, office: &Office, does: Does) -> (Place, PathBuf, Heard) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).expect("an authority");
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
    let server = server.signed_by(&server_key, &issuer).expect("signed");
    let node = directory.join("node");
    let kept = node.join("state");
    std::fs::create_dir_all(&kept).expect("directory");
    let write = |path: PathBuf, text: String| std::fs::write(path, text).expect("written");
    let node_key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::default()
        .signed_by(&node_key, &issuer)
        .expect("signed");
    write(kept.join("node.key"), node_key.serialize_pem());
    write(kept.join("node.pem"), certificate.pem());
    write(directory.join("ca.pem"), authority.pem());
    let root = serde_json::to_string(&office.root()).expect("JSON");
    write(directory.join("trust.json"), root);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address: SocketAddr = listener.local_addr().expect("an address");
    let heard = Heard::default();
    let hostile = Hostile {
        does,
        heard: heard.clone(),
    };
    let identity = Identity::from_pem(server.pem(), server_key.serialize_pem());
    let serving = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .expect("TLS")
        .add_service(GovernanceServer::new(hostile).max_encoding_message_size(usize::MAX))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    let place = Place {
        url: format!("https://{address}"),
        others: Vec::new(),
        authority: directory.join("ca.pem"),
        trust: directory.join("trust.json"),
    };
    (place, node, heard)
}
