//! The real server's answers to who cannot stream.

use std::time::{Duration, Instant};

use enforcer_bundle::Labels;
use enforcer_governance::contract::governance_client::GovernanceClient;
use enforcer_governance::contract::{
    self, Acknowledgement, FetchRequest, Hello, Refusal, ServerMessage, server_message,
};
use enforcer_governance::held::Held;
use jiff::Timestamp;
use server_message::Message;
use tonic::transport::Channel;

use super::node::Node;
use super::server::Server;

/// A node that only fetches.
struct Fetcher {
    service: GovernanceClient<Channel>,
    held: Held,
    acknowledgements: Vec<Acknowledgement>,
}

impl Fetcher {
    /// With the certificate of a node that has enrolled.
    async fn start(server: &Server) -> Self {
        let own = server.admit("n1", &[]).await;
        let node = Node::start(&server.place(), "n1", &own, &[]);
        node.until_in_force("E1 E2").await;
        drop(node);
        server.until_knows("n1", |node| !node.connected).await;
        let channel = server.connect_as(&own).await;
        let trust = std::fs::read(server.place().trust).expect("there");
        let root = serde_json::from_slice(&trust).expect("a trust root");
        Self {
            service: GovernanceClient::new(channel),
            held: Held::new(root, Labels::new()).expect("sound"),
            acknowledgements: Vec::new(),
        }
    }

    fn summary(&self) -> contract::Held {
        self.held.summary()
    }

    /// Asks, with this besides what is always said.
    async fn ask(&mut self, seconds: i64, more: FetchRequest) -> Vec<ServerMessage> {
        let request = FetchRequest {
            hello: Some(Hello {
                node: "n1".to_owned(),
                held: Some(self.summary()),
                ..Hello::default()
            }),
            acknowledgements: std::mem::take(&mut self.acknowledgements),
            wait: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..more
        };
        let answer = self.service.fetch(request).await;
        answer.expect("answered").into_inner().messages
    }

    /// Asks, and takes what there is; says what that is.
    async fn take(&mut self, seconds: i64, more: FetchRequest) -> String {
        let mut kinds = Vec::new();
        for heard in self.ask(seconds, more).await {
            let (kind, envelope) = match heard.message.expect("a message") {
                Message::TrustRoot(it) => ("root", it),
                Message::Snapshot(it) => ("snapshot", it),
                Message::Delta(it) => ("delta", it),
                Message::Revocation(it) => ("revocation", it),
                Message::Freshness(it) => ("freshness", it),
            };
            kinds.push(kind);
            let taken = self.held.take(&envelope.into(), Timestamp::now());
            self.held = taken.expect("good").0;
            self.acknowledgements.push(Acknowledgement {
                nonce: heard.nonce,
                held: Some(self.held.summary()),
                active_at: None,
            });
        }
        kinds.join(" ")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fetches_gets_everything_and_waits_for_more() {
    let own = tempfile::tempdir().expect("directory");
    let server = Server::start(own.path(), &["E1", "E2"]).await;
    let mut node = Fetcher::start(&server).await;
    let nothing = FetchRequest::default;
    assert_eq!(node.take(0, nothing()).await, "snapshot");
    // That nothing is newer is no reason to answer before the time is over.
    let start = Instant::now();
    assert_eq!(node.take(1, nothing()).await, "freshness");
    assert!(start.elapsed() >= Duration::from_secs(1));
    // What is new is.
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.revoke("E1").await.expect("revoked");
    };
    let start = Instant::now();
    let (kinds, ()) = tokio::join!(node.take(120, nothing()), revoke);
    assert_eq!(kinds, "revocation");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    assert!(waited < Duration::from_secs(60), "{waited:?}");
    server.restore("E1").await.expect("restored");
    assert_eq!(node.take(120, nothing()).await, "delta");
    assert_eq!(node.held.numbers().version, 2);

    // What it answers is known, with the next question.
    let refusal = Refusal {
        reason: "it does not fit".to_owned(),
        held: Some(node.summary()),
        ..Refusal::default()
    };
    let more = FetchRequest {
        refusals: vec![refusal],
        ..nothing()
    };
    node.take(0, more).await;
    let known = server.knows("n1").await;
    assert_eq!(known.refusal, "it does not fit");
    assert_eq!(known.held, Some(node.summary()));
    let more = FetchRequest {
        want_snapshot: true,
        ..nothing()
    };
    assert!(node.take(0, more).await.starts_with("snapshot"));
    server.stop().await;
}
