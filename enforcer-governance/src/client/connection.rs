//! One connection, from its first word to its end.

use std::error::Error as _;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::certificate::{self, Identity};
use super::pace::Backoff;
use super::{Client, Order, QUIET, report};
use crate::contract::governance_client::GovernanceClient;
use crate::contract::{
    Acknowledgement, FetchRequest, Hello, NodeMessage, Refusal, ServerMessage, Want, node_message,
    server_message,
};
use crate::envelope::Envelope;
use crate::held::{Changed, MAX_PAYLOAD};
use crate::time::{span_from_wire, span_to_wire, to_wire};

/// For a connection, and for the first answer on it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
pub(super) const PING_EVERY: Duration = Duration::from_secs(30);
pub(super) const PONG_WITHIN: Duration = Duration::from_secs(10);
/// How long a fetch asks the server to wait for something new.
const FETCH_WAIT: Duration = Duration::from_secs(60);
/// After so many refusals in a row a server is not listened to for a while.
const MOST_REFUSALS: u32 = 8;

/// Why a connection is over.
#[derive(Debug)]
pub(super) struct Ended {
    pub reason: String,
    /// How long the server asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Streams may not get through here.
    streams_fail: bool,
}

impl Ended {
    fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry_after: None,
            streams_fail: false,
        }
    }
}

/// What a status says, with what lies under it.
pub(super) fn words(status: &Status) -> String {
    let text = format!("{}: {}", status.code(), status.message());
    match status.source() {
        Some(source) => format!("{text}: {}", enforcer_bundle::chain(source)),
        None => text,
    }
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::because(words(&status))
    }
}

impl Ended {
    /// As something between here and the server ends streams, and an unreachable server does not.
    fn without_a_word(status: &Status) -> Self {
        Self {
            streams_fail: matches!(
                status.code(),
                Code::Unimplemented | Code::Internal | Code::Unknown
            ),
            ..Self::because(words(status))
        }
    }
}

/// Connects and follows, until something ends it.
pub(super) async fn run(client: &mut Client, backoff: &mut Backoff) -> Ended {
    let identity = match Identity::load(&client.config).await {
        Ok(identity) => identity.renewed(&client.config).await,
        Err(error) => return Ended::because(error.to_string()),
    };
    let channel = match certificate::channel(&client.config, Some(&identity)) {
        Ok(channel) => channel,
        Err(error) => return Ended::because(error.to_string()),
    };
    let evidence = report::run(
        client.evidence.clone(),
        channel.clone(),
        client.link.clone(),
    );
    let follow = async {
        let ended = stream(client, channel.clone(), backoff).await;
        if !ended.streams_fail {
            return ended;
        }
        tracing::info!(reason = ended.reason, "no stream: fetching instead");
        fetch(client, channel, backoff).await
    };
    tokio::select! {
        ended = follow => ended,
        () = tokio::time::sleep(identity.lasts()) => {
            Ended::because("it is time to renew the node's certificate")
        }
        never = evidence => match never {},
    }
}

fn governance(channel: Channel) -> GovernanceClient<Channel> {
    // The payload, what is around it, and signatures.
    GovernanceClient::new(channel).max_decoding_message_size(MAX_PAYLOAD + 64 * 1024)
}

fn hello(client: &Client) -> Hello {
    let config = &client.config;
    Hello {
        node: config.node.clone(),
        labels: config.labels.clone().into_iter().collect(),
        agent_version: config.version.clone(),
        status: Some(client.status.borrow().clone()),
        held: Some(client.held.summary()),
        epoch: (client.evidence.as_ref()).map_or_else(String::new, |it| it.head().epoch),
        last_refusal: client.link.borrow().refused.clone().unwrap_or_default(),
    }
}

fn is_connected(client: &Client, backoff: &mut Backoff) {
    tracing::info!(server = client.config.url, "following governance");
    backoff.connected();
    client.tell(|link| {
        link.connected = true;
        link.since = Some(Timestamp::now());
        link.reason = None;
    });
}

fn message(message: node_message::Message) -> NodeMessage {
    NodeMessage {
        message: Some(message),
    }
}

async fn stream(client: &mut Client, channel: Channel, backoff: &mut Backoff) -> Ended {
    let (outbound, requests) = mpsc::channel(16);
    let first = message(node_message::Message::Hello(hello(client)));
    let _ = outbound.send(first).await;
    let mut service = governance(channel);
    let requests = ReceiverStream::new(requests);
    let mut inbound = match tokio::time::timeout(PATIENCE, service.sync(requests)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Ended::without_a_word(&status),
        Err(_) => return Ended::because("the server does not answer"),
    };
    is_connected(client, backoff);
    let mut silent = true;
    let mut taking = Taking::default();
    let mut status = client.status.clone();
    loop {
        tokio::select! {
            heard = tokio::time::timeout(QUIET, inbound.message()) => {
                let heard = match heard {
                    Ok(Ok(Some(heard))) => heard,
                    Ok(Ok(None)) => return Ended::because("the server has closed the stream"),
                    Ok(Err(status)) => {
                        taking.too_large(client, &status).await;
                        return if silent {
                            Ended::without_a_word(&status)
                        } else {
                            status.into()
                        };
                    }
                    Err(_) => return Ended::because("the server says nothing any more"),
                };
                silent = false;
                if let Some(span) = &heard.retry_after {
                    let retry_after = Some(span_from_wire(span));
                    return Ended { retry_after, ..Ended::because("the server asks to come back later") };
                }
                for answer in taking.take(client, heard).await {
                    if outbound.send(message(answer)).await.is_err() {
                        return Ended::because("the server does not listen any more");
                    }
                }
                if taking.refusals >= MOST_REFUSALS {
                    return Ended::because("the server sends nothing but what has to be refused");
                }
            }
            changed = status.changed() => {
                if changed.is_err() {
                    return Ended::because("the daemon is stopping");
                }
                let now = status.borrow_and_update().clone();
                let now = message(node_message::Message::Status(now));
                if outbound.send(now).await.is_err() {
                    return Ended::because("the server does not listen any more");
                }
            }
        }
    }
}

async fn fetch(client: &mut Client, channel: Channel, backoff: &mut Backoff) -> Ended {
    let mut service = governance(channel);
    let mut taking = Taking::default();
    let mut answers = Vec::new();
    loop {
        let mut request = FetchRequest {
            hello: Some(hello(client)),
            wait: Some(span_to_wire(FETCH_WAIT)),
            ..FetchRequest::default()
        };
        for answer in answers.drain(..) {
            match answer {
                node_message::Message::Acknowledgement(it) => request.acknowledgements.push(it),
                node_message::Message::Refusal(it) => request.refusals.push(it),
                node_message::Message::Want(Want {}) => request.want_snapshot = true,
                _ => {}
            }
        }
        let fetched = tokio::time::timeout(FETCH_WAIT + PATIENCE, service.fetch(request)).await;
        let messages = match fetched {
            Ok(Ok(response)) => response.into_inner().messages,
            Ok(Err(status)) => {
                taking.too_large(client, &status).await;
                return status.into();
            }
            Err(_) => return Ended::because("the server does not answer"),
        };
        if !client.link.borrow().connected {
            is_connected(client, backoff);
        }
        for heard in messages {
            if let Some(span) = &heard.retry_after {
                let retry_after = Some(span_from_wire(span));
                return Ended {
                    retry_after,
                    ..Ended::because("the server asks to come back later")
                };
            }
            answers.extend(taking.take(client, heard).await);
        }
        if taking.refusals >= MOST_REFUSALS {
            return Ended::because("the server sends nothing but what has to be refused");
        }
    }
}

/// What was heard and is not answered yet.
#[derive(Default)]
struct Taking {
    /// Held, and not in force before more has come.
    pending: Vec<String>,
    /// In a row.
    refusals: u32,
}

impl Taking {
    /// Takes a message, and says what to answer.
    async fn take(
        &mut self,
        client: &mut Client,
        heard: ServerMessage,
    ) -> Vec<node_message::Message> {
        use server_message::Message;
        let nonce = heard.nonce;
        let envelope: Envelope = match heard.message {
            Some(
                Message::TrustRoot(it)
                | Message::Snapshot(it)
                | Message::Delta(it)
                | Message::Revocation(it)
                | Message::Freshness(it),
            ) => it.into(),
            None => {
                let reason = "the message has nothing in it that this version knows".to_owned();
                return self.refuse(client, nonce, reason, false).await;
            }
        };
        let (next, changed) = match client.held.take(&envelope, Timestamp::now()) {
            Ok(taken) => taken,
            Err(refusal) => {
                let wants = refusal.wants_snapshot();
                return self.refuse(client, nonce, refusal.to_string(), wants).await;
            }
        };
        self.pending.push(nonce.clone());
        let is_complete = next.bundle().is_some();
        if changed != Changed::Nothing && !is_complete {
            client.held = next;
            client.keep();
        } else if changed != Changed::Nothing
            && let Err(reason) = client.activate(next).await
        {
            self.pending.pop();
            return self.refuse(client, nonce, reason, false).await;
        }
        self.refusals = 0;
        client.tell(|_| {});
        if !is_complete {
            return Vec::new();
        }
        let at = to_wire(Timestamp::now());
        let acknowledge = |nonce| {
            node_message::Message::Acknowledgement(Acknowledgement {
                nonce,
                held: Some(client.held.summary()),
                active_at: Some(at),
            })
        };
        self.pending.drain(..).map(acknowledge).collect()
    }

    async fn refuse(
        &mut self,
        client: &mut Client,
        nonce: String,
        reason: String,
        wants_snapshot: bool,
    ) -> Vec<node_message::Message> {
        self.refusals += 1;
        tell_refused(client, &reason).await;
        let mut answers = vec![node_message::Message::Refusal(Refusal {
            nonce,
            reason,
            held: Some(client.held.summary()),
        })];
        if wants_snapshot {
            answers.push(node_message::Message::Want(Want {}));
        }
        answers
    }

    /// A message that is too large never gets here: the connection ends, and the next one says why.
    async fn too_large(&mut self, client: &mut Client, status: &Status) {
        if status.code() == Code::OutOfRange {
            tell_refused(client, status.message()).await;
        }
    }
}

async fn tell_refused(client: &mut Client, reason: &str) {
    client.tell(|link| link.refused = Some(reason.to_owned()));
    let _ = client.orders.send(Order::Refused(reason.to_owned())).await;
}
