//! Records into a JetStream of NATS, a message each; what comes again within the stream's window for duplicates is
//! known by its id and kept once.

use std::time::Duration;

use async_nats::header::{HeaderMap, NATS_MESSAGE_ID};
use async_nats::jetstream::{Context, ContextBuilder};

use super::place::Remote;
use super::{Failure, Outlet, Parcel};

/// How long one answer is waited for.
const WITHIN: Duration = Duration::from_secs(5);

/// The stream's subject, and the connection to it.
pub struct Nats {
    remote: Remote,
    subject: String,
    context: Option<Context>,
}

impl Nats {
    /// Connects when there is something to deliver. The URL's path is the subject; a stream that takes it must be there.
    pub fn new(remote: Remote) -> Self {
        let subject = remote.url.path().trim_matches('/').replace('/', ".");
        Self {
            remote,
            subject,
            context: None,
        }
    }

    async fn context(&mut self) -> Result<Context, String> {
        if let Some(context) = &self.context {
            return Ok(context.clone());
        }
        let mut options = async_nats::ConnectOptions::new()
            .name("enforcer")
            .connection_timeout(WITHIN)
            .request_timeout(Some(WITHIN))
            .require_tls(self.remote.tls);
        if let Some(path) = &self.remote.token {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            options = options
                .credentials(&text)
                .map_err(|error| error.to_string())?;
        }
        if let Some(path) = &self.remote.ca {
            options = options.add_root_certificates(path.clone());
        }
        let host = self.remote.url.host_str().unwrap_or_default();
        let port = self.remote.url.port().unwrap_or(4222);
        let client = options.connect(format!("nats://{host}:{port}")).await;
        let client = client.map_err(|error| crate::chain(&error))?;
        let context = ContextBuilder::new()
            .timeout(WITHIN)
            .ack_timeout(WITHIN)
            .build(client);
        self.context = Some(context.clone());
        Ok(context)
    }

    /// All are sent before the first is waited for. They are delivered as far as each before them is, too.
    async fn publish(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        let context = self.context().await.map_err(Failure::new)?;
        let mut sent = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, parcel.key.to_string());
            let payload = parcel.line.clone().into();
            let ack = context
                .publish_with_headers(self.subject.clone(), headers, payload)
                .await;
            sent.push(ack.map_err(|error| Failure::new(crate::chain(&error)))?);
        }
        for (delivered, ack) in sent.into_iter().enumerate() {
            ack.await.map_err(|error| Failure {
                delivered,
                ..Failure::new(crate::chain(&error))
            })?;
        }
        Ok(())
    }
}

impl Outlet for Nats {
    async fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        self.publish(parcels).await.map_err(|failure| {
            // A connection that only this thread keeps is not worth keeping once it fails.
            self.context = None;
            Failure {
                reason: format!("{}: {}", self.remote, failure.reason),
                ..failure
            }
        })
    }
}
