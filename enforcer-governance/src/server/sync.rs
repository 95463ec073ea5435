//! Entitlements to the nodes.

use std::sync::Arc;
use std::time::Duration;

use enforcer_bundle::Labels;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use super::ledger::Sent;
use crate::contract::governance_server::Governance;
use crate::contract::{
    self, Acknowledgement, FetchRequest, FetchResponse, Hello, NodeMessage, Refusal, ServerMessage,
    node_message,
};
use crate::time::{span_from_wire, span_to_wire};

/// A node that connects says who it is by then.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// The longest that a fetch waits.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The service.
pub struct Nodes(pub Arc<Shared>);

impl Nodes {
    /// The node's labels, and what it was sent, by what it says of itself.
    async fn greet(&self, name: &str, hello: &Hello) -> Result<(Labels, Sent), Status> {
        if !*self.0.reachable.borrow() {
            return Err(cut_off());
        }
        if hello.node != name {
            return Err(Status::permission_denied(format!(
                "the node says it is {:?}, and its certificate says {name:?}",
                hello.node
            )));
        }
        let labels: Labels = hello.labels.clone().into_iter().collect();
        let enrolled = self.0.registry.labels(name).await;
        let enrolled = enrolled.map_err(|error| Status::unavailable(error.chain()))?;
        if let Some(enrolled) = enrolled
            && enrolled != labels
        {
            return Err(Status::permission_denied(format!(
                "the node {name} says it has the labels {labels:?}, and enrolled with {enrolled:?}; give it a new token"
            )));
        }
        self.0.registry.hello(hello);
        let held = hello.held.clone().unwrap_or_default();
        let sent = Sent {
            root: held.trust_root_version.max(1),
            version: held.bundle_version,
            digest: held.bundle_digest,
            sequence: held.revocation_sequence,
            has: (held.bundle_version, held.revocation_sequence),
            ..Sent::default()
        };
        Ok((labels, sent))
    }
}

fn cut_off() -> Status {
    Status::unavailable("this server does not reach its store; try another")
}

/// Once the store is out of reach.
async fn lost(reachable: &mut watch::Receiver<bool>) {
    let _ = reachable.wait_for(|reachable| !reachable).await;
}

/// That the node shall come back after this time.
fn later(after: Duration) -> ServerMessage {
    ServerMessage {
        retry_after: Some(span_to_wire(after)),
        ..ServerMessage::default()
    }
}

fn numbered(shared: &Shared, message: contract::server_message::Message) -> ServerMessage {
    ServerMessage {
        nonce: shared.nonce(),
        message: Some(message),
        retry_after: None,
    }
}

fn acknowledged(shared: &Shared, node: &str, it: Acknowledgement) {
    shared.registry.note(node, |node| {
        let held = |held: &Option<contract::Held>| held.clone().unwrap_or_default().bundle_version;
        if held(&node.held) != held(&it.held) {
            node.active_since = it.active_at;
            node.refusal.clear();
        }
        node.held = it.held;
    });
}

fn refused(shared: &Shared, node: &str, it: Refusal) {
    tracing::warn!(
        node,
        reason = it.reason,
        "a node refuses what it was sent, and keeps what it had"
    );
    shared.registry.note(node, |node| {
        node.refusal = it.reason;
        node.held = it.held;
    });
}

#[tonic::async_trait]
impl Governance for Nodes {
    type SyncStream = ReceiverStream<Result<ServerMessage, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let name = super::node_of(&request)?;
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(HELLO_WITHIN, inbound.message()).await;
        let Ok(Ok(Some(NodeMessage {
            message: Some(node_message::Message::Hello(hello)),
        }))) = first
        else {
            return Err(Status::invalid_argument(
                "expected `hello` first, within 10 s",
            ));
        };
        let (labels, sent) = self.greet(&name, &hello).await?;
        let (outbound, stream) = mpsc::channel(16);
        if let Err(after) = self.0.gate.admit(&name) {
            let _ = outbound.send(Ok(later(after))).await;
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        let session = Session {
            shared: self.0.clone(),
            name,
            labels,
            sent,
            outbound,
        };
        tokio::spawn(session.run(inbound));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        let name = super::node_of(&request)?;
        let request = request.into_inner();
        let hello = request.hello.unwrap_or_default();
        let (labels, mut sent) = self.greet(&name, &hello).await?;
        for it in request.acknowledgements {
            acknowledged(&self.0, &name, it);
        }
        for it in request.refusals {
            sent.refused = Some(self.0.ledger.committed().version);
            refused(&self.0, &name, it);
        }
        sent.wants_snapshot = request.want_snapshot;
        let wait = request.wait.as_ref().map_or(Duration::ZERO, span_from_wire);
        let deadline = tokio::time::Instant::now() + wait.min(LONGEST_WAIT);
        let mut changes = self.0.ledger.changes();
        loop {
            changes.mark_unchanged();
            let messages = self.0.ledger.lacking(&labels, &mut sent);
            let only_fresh = messages
                .iter()
                .all(|it| matches!(it, contract::server_message::Message::Freshness(_)));
            // A statement that nothing is new is worth telling when the time is over.
            let over = tokio::time::Instant::now() >= deadline;
            if !messages.is_empty() && (!only_fresh || over || wait.is_zero()) || over {
                let messages = messages.into_iter().map(|it| numbered(&self.0, it));
                return Ok(Response::new(FetchResponse {
                    messages: messages.collect(),
                }));
            }
            sent.fresh = None;
            let _ = tokio::time::timeout_at(deadline, changes.changed()).await;
        }
    }
}

/// One node's stream.
struct Session {
    shared: Arc<Shared>,
    name: String,
    labels: Labels,
    sent: Sent,
    outbound: mpsc::Sender<Result<ServerMessage, Status>>,
}

impl Session {
    async fn run(mut self, mut inbound: Streaming<NodeMessage>) {
        let mut changes = self.shared.ledger.changes();
        let mut closing = self.shared.closing.subscribe();
        let mut reachable = self.shared.reachable.clone();
        if self.push().await.is_ok() {
            loop {
                tokio::select! {
                    changed = changes.changed() => {
                        if changed.is_err() || self.push().await.is_err() {
                            break;
                        }
                    }
                    message = inbound.message() => match message {
                        Ok(Some(NodeMessage { message: Some(message) })) => {
                            if self.heard(message).await.is_err() {
                                break;
                            }
                        }
                        Ok(Some(_)) => {}
                        Ok(None) | Err(_) => break,
                    },
                    () = lost(&mut reachable) => {
                        let _ = self.outbound.send(Err(cut_off())).await;
                        break;
                    }
                    _ = closing.changed() => {
                        let after = self.shared.gate.spread(self.shared.registry.connected());
                        let _ = self.outbound.send(Ok(later(after))).await;
                        break;
                    }
                }
            }
        }
        self.shared
            .registry
            .note(&self.name, |node| node.connected = false);
    }

    /// Sends what the node lacks.
    async fn push(&mut self) -> Result<(), ()> {
        for message in self.shared.ledger.lacking(&self.labels, &mut self.sent) {
            let message = numbered(&self.shared, message);
            self.outbound.send(Ok(message)).await.map_err(|_| ())?;
        }
        Ok(())
    }

    async fn heard(&mut self, message: node_message::Message) -> Result<(), ()> {
        match message {
            node_message::Message::Acknowledgement(it) => {
                let held = it.held.clone().unwrap_or_default();
                self.sent.has = (held.bundle_version, held.revocation_sequence);
                acknowledged(&self.shared, &self.name, it);
                self.push().await?;
            }
            node_message::Message::Refusal(it) => {
                let held = it.held.clone().unwrap_or_default();
                // Until there is a newer one, this node has what it has.
                self.sent.refused = Some(self.sent.version);
                self.sent.version = held.bundle_version;
                self.sent.digest = held.bundle_digest;
                self.sent.sequence = held.revocation_sequence;
                refused(&self.shared, &self.name, it);
            }
            node_message::Message::Status(status) => {
                let note = |node: &mut contract::Node| node.status = Some(status);
                self.shared.registry.note(&self.name, note);
            }
            node_message::Message::Want(_) => {
                self.sent.wants_snapshot = true;
                self.sent.refused = None;
                self.push().await?;
            }
            node_message::Message::Hello(_) => {}
        }
        Ok(())
    }
}
