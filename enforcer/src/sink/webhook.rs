//! Records by HTTP: a POST for each batch.
//!
//! As CloudEvents a batch is `application/cloudevents-batch+json`, and one alone is in structured mode; other shapes of
//! JSON come as lines (`application/x-ndjson`), one alone as JSON.

use std::time::Duration;

use jiff::Timestamp;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::place::Remote;
use super::{Failure, Outlet, Parcel, tls};
use crate::shape::Shape;

/// How long one answer is waited for.
const WITHIN: Duration = Duration::from_secs(10);

/// The receiver.
pub struct Webhook {
    remote: Remote,
    shape: Shape,
    /// Whether more than one may come at once.
    batches: bool,
    agent: Option<Agent>,
}

impl Webhook {
    /// Connects when there is something to deliver.
    pub fn new(remote: Remote, shape: Shape, batch: usize) -> Self {
        Self {
            remote,
            shape,
            batches: batch > 1,
            agent: None,
        }
    }

    /// Whom to trust is read when it is first needed, and again after a failure.
    fn agent(&mut self) -> Result<Agent, String> {
        if let Some(agent) = &self.agent {
            return Ok(agent.clone());
        }
        let mut config = Agent::config_builder()
            .timeout_global(Some(WITHIN))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("enforcer/", env!("CARGO_PKG_VERSION")));
        if self.remote.tls {
            let roots = tls::certificates(self.remote.ca.as_deref())?;
            let roots = roots.iter().map(|it| Certificate::from_der(it).to_owned());
            let roots = RootCerts::new_with_certs(&roots.collect::<Vec<_>>());
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        let agent = config.build().new_agent();
        self.agent = Some(agent.clone());
        Ok(agent)
    }

    fn post(&mut self, parcels: &[Parcel]) -> Result<Response<Body>, String> {
        let (media, body) = body(parcels, self.shape, self.batches);
        let mut request = self
            .agent()?
            .post(self.remote.url.as_str())
            .header("content-type", media);
        if let Some(path) = &self.remote.token {
            let token = std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        request.send(body).map_err(|error| error.to_string())
    }
}

impl Outlet for Webhook {
    /// Holds up its own thread, which has nothing else to do.
    async fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        let answer = self.post(parcels).map_err(|reason| {
            self.agent = None;
            Failure::new(format_args!("{}: {reason}", self.remote))
        })?;
        let status = answer.status().as_u16();
        if (200..300).contains(&status) {
            return Ok(());
        }
        let after = answer.headers().get("retry-after");
        let after = after.and_then(|it| retry_after(it.to_str().ok()?, Timestamp::now()));
        Err(Failure {
            // What it says of what was sent, not of who sent it or where to: that may be mended.
            refused: matches!(status, 400 | 413 | 415 | 422),
            after,
            ..Failure::new(format_args!("{}: status {status}", self.remote))
        })
    }
}

/// Seconds, or a date.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(at.duration_since(now).try_into().unwrap_or(Duration::ZERO))
}

fn body(parcels: &[Parcel], shape: Shape, batches: bool) -> (&'static str, String) {
    let lines: Vec<&str> = parcels.iter().map(|it| it.line.as_str()).collect();
    match (lines.as_slice(), batches, shape) {
        (_, true, Shape::CloudEvents) => (
            "application/cloudevents-batch+json",
            format!("[{}]", lines.join(",")),
        ),
        ([one], false, _) => (shape.media_type(), (*one).to_owned()),
        (_, _, Shape::Cef) => (shape.media_type(), lines.join("\n") + "\n"),
        _ => ("application/x-ndjson", lines.join("\n") + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-26T09:00:00Z".parse().expect("a moment");
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        let date = "Thu, 26 Nov 2026 09:00:30 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(30)));
        let past = "Thu, 26 Nov 2026 08:00:30 GMT";
        assert_eq!(retry_after(past, now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }
}
