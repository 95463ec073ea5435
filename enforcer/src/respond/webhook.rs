//! Tells somebody of each denial, such as a secret store that rotates or revokes what was abused.
//!
//! Requests are as in Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature`, an HMAC-SHA256 over
//! both and the body. A thread of its own sends them; whoever decides or records only puts them into a queue that may
//! be full.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;
use ureq::Agent;
use zeroize::Zeroizing;

/// Denials that wait to be sent; what finds no room is counted.
const WAITING: usize = 1024;
/// Between the attempts to send one; after the last it is given up, and counted.
const PAUSES_S: [u64; 5] = [1, 2, 5, 15, 60];
/// An answer takes no longer.
const ANSWER: Duration = Duration::from_secs(10);
/// What a secret begins with, before its Base64.
const SECRET: &str = "whsec_";
/// A secret has at least so many bytes.
const SECRET_BYTES: usize = 24;

/// Where denials are told, and with what they are signed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://...`, or `http://` on this machine.
    pub url: String,
    /// A file with `whsec_` and the secret in Base64.
    pub key: PathBuf,
}

/// Why there is no webhook.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The secret cannot be read.
    #[error("cannot read the webhook's secret in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no secret.
    #[error(
        "{}: expected `whsec_` and at least {SECRET_BYTES} bytes in Base64, such as the output of `echo whsec_$(openssl rand -base64 32)`",
        path.display()
    )]
    Secret {
        /// The file.
        path: PathBuf,
    },
    /// It would go over the network in the clear.
    #[error("{url}: expected https://, or http:// to 127.0.0.1, [::1] or localhost")]
    Clear {
        /// The address.
        url: String,
    },
    /// No thread.
    #[error("cannot start the thread that sends")]
    Thread(#[source] io::Error),
}

/// The queue to the receiver.
#[derive(Debug)]
pub struct Webhook {
    queue: SyncSender<Denial>,
    counts: Arc<Counts>,
}

/// What became of denials.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    lost: AtomicU64,
}

struct Denial {
    id: String,
    body: String,
}

impl Webhook {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error`] if the secret or the address is no good.
    pub fn start(settings: &Settings) -> Result<Self, Error> {
        let secret = secret(&settings.key)?;
        if !is_private(&settings.url) {
            let url = settings.url.clone();
            return Err(Error::Clear { url });
        }
        let (queue, denials) = sync_channel(WAITING);
        let counts = Arc::<Counts>::default();
        let sender = Sender {
            agent: Agent::config_builder()
                .timeout_global(Some(ANSWER))
                .max_redirects(0)
                .build()
                .into(),
            url: settings.url.clone(),
            secret,
            counts: counts.clone(),
        };
        thread::Builder::new()
            .name("webhook".to_owned())
            .spawn(move || sender.run(&denials))
            .map_err(Error::Thread)?;
        Ok(Self { queue, counts })
    }

    /// Has a denial sent; its id stays the same however often that is tried.
    pub fn tell(&self, id: String, body: String) {
        if self.queue.try_send(Denial { id, body }).is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were received, and how many were given up, since the start.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.counts.sent), of(&self.counts.lost))
    }
}

/// The thread's side.
struct Sender {
    agent: Agent,
    url: String,
    secret: Zeroizing<Vec<u8>>,
    counts: Arc<Counts>,
}

impl Sender {
    fn run(&self, denials: &Receiver<Denial>) {
        while let Ok(denial) = denials.recv() {
            let count = match self.deliver(&denial) {
                true => &self.counts.sent,
                false => &self.counts.lost,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tries until it is received, or has been tried often enough.
    fn deliver(&self, denial: &Denial) -> bool {
        for pause in PAUSES_S.iter().map(Some).chain([None]) {
            match self.post(denial) {
                Ok(()) => return true,
                Err(error) => {
                    tracing::warn!(url = self.url, %error, "the webhook did not take a denial");
                }
            }
            if let Some(seconds) = pause {
                thread::sleep(Duration::from_secs(*seconds));
            }
        }
        false
    }

    fn post(&self, denial: &Denial) -> Result<(), ureq::Error> {
        let time = Timestamp::now().as_second().to_string();
        let signature = signature(&self.secret, &denial.id, &time, &denial.body);
        let request = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .header("webhook-id", &denial.id)
            .header("webhook-timestamp", &time)
            .header("webhook-signature", &signature);
        request.send(&denial.body).map(drop)
    }
}

/// `v1,` and the HMAC-SHA256 of `ID.TIMESTAMP.BODY`, in Base64.
fn signature(secret: &[u8], id: &str, time: &str, body: &str) -> String {
    // A key of any length will do.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else {
        return String::new();
    };
    mac.update(format!("{id}.{time}.").as_bytes());
    mac.update(body.as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

fn secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let text = Zeroizing::new(text);
    let bytes = text.trim().strip_prefix(SECRET);
    let bytes = bytes.and_then(|text| BASE64_STANDARD.decode(text).ok());
    match bytes.map(Zeroizing::new) {
        Some(bytes) if bytes.len() >= SECRET_BYTES => Ok(bytes),
        _ => Err(Error::Secret {
            path: path.to_owned(),
        }),
    }
}

/// Whether nobody on the network reads along.
fn is_private(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else {
        return url.starts_with("https://");
    };
    let host = rest.split('/').next().unwrap_or_default();
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => host,
        _ => host,
    };
    ["127.0.0.1", "[::1]", "localhost"].contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification (standardwebhooks.com).
    #[test]
    fn signatures_are_as_specified() {
        let secret = BASE64_STANDARD
            .decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
            .expect("Base64");
        let signed = signature(
            &secret,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_signed_does_not_go_in_the_clear() {
        for url in [
            "https://vault.example.com/hook",
            "http://127.0.0.1:8080/x",
            "http://[::1]:80",
            "http://[::1]",
            "http://localhost/",
        ] {
            assert!(is_private(url), "{url}");
        }
        for url in [
            "http://vault.example.com/hook",
            "http://127.0.0.1.example.com/",
            "http://127.0.0.1@example.com/",
            "http://localhost:80@example.com/",
            "ftp://localhost/",
            "",
        ] {
            assert!(!is_private(url), "{url}");
        }
    }
}
