//! The node's key and certificate: by a join token once, and renewed from then on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use x509_parser::pem::parse_x509_pem;

use super::Config;
use crate::contract::EnrollRequest;
use crate::contract::enrollment_client::EnrollmentClient;
use crate::files;

/// Between two attempts to renew one.
const RETRY: Duration = Duration::from_secs(60 * 60);

/// Why the node has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot read or write {}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key or certificate cannot be made or read.
    #[error("{what}: {reason}")]
    Certificate {
        /// Which.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// There is none, and no token.
    #[error("this node has no certificate in {}, and no token to get one; `enforcer governance token` on the server makes one for --join-token", .0.display())]
    NoToken(PathBuf),
    /// There is one that has ended, and no token.
    #[error("this node's certificate in {} ended at {at}, and there is no token to get another; `enforcer governance token` on the server makes one for --join-token", directory.display())]
    Ended {
        /// Where it is kept.
        directory: PathBuf,
        /// When.
        at: Timestamp,
    },
    /// The server does not give one.
    #[error("the server does not enroll this node: {0}")]
    Refused(String),
    /// The server cannot be reached.
    #[error("{url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
}

/// What the node proves itself with, PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    certificate: String,
    key: String,
}

fn broken(what: &'static str) -> impl FnOnce(rcgen::Error) -> Error {
    move |error| Error::Certificate {
        what,
        reason: error.to_string(),
    }
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    let bytes = files::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    files::replace(path, text.as_bytes()).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// A connection, once it is needed.
pub(super) fn channel(config: &Config, identity: Option<&Identity>) -> Result<Channel, Error> {
    let unreachable = |error: &dyn std::fmt::Display| Error::Unreachable {
        url: config.url.clone(),
        reason: error.to_string(),
    };
    let authority = read(&config.authority)?.ok_or_else(|| Error::Io {
        path: config.authority.clone(),
        source: io::ErrorKind::NotFound.into(),
    })?;
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    if let Some(Identity { certificate, key }) = identity {
        tls = tls.identity(tonic::transport::Identity::from_pem(certificate, key));
    }
    Endpoint::from_shared(config.url.clone())
        .and_then(|endpoint| endpoint.tls_config(tls))
        .map(|endpoint| {
            endpoint
                .connect_timeout(super::connection::PATIENCE)
                .http2_keep_alive_interval(super::connection::PING_EVERY)
                .keep_alive_timeout(super::connection::PONG_WITHIN)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
                .connect_lazy()
        })
        .map_err(|error| unreachable(&error))
}

impl Identity {
    /// The one that is kept; by a token, if there is none or it has ended.
    pub(super) async fn load(config: &Config) -> Result<Self, Error> {
        let directory = config.directory.clone();
        let (key, certificate) = Self::places(config);
        let without_token = match (read(&key)?, read(&certificate)?) {
            (Some(key), Some(certificate)) => {
                let kept = Self { certificate, key };
                match kept.ended() {
                    Some(at) => Error::Ended { directory, at },
                    None => return Ok(kept),
                }
            }
            _ => Error::NoToken(directory),
        };
        let token = match &config.join_token {
            Some(path) => read(path)?,
            None => None,
        };
        let token = token.ok_or(without_token)?;
        Self::enroll(config, None, token.trim()).await
    }

    fn places(config: &Config) -> (PathBuf, PathBuf) {
        let directory = &config.directory;
        (directory.join("node.key"), directory.join("node.pem"))
    }

    /// A new key and a certificate for it.
    async fn enroll(config: &Config, old: Option<&Self>, token: &str) -> Result<Self, Error> {
        let pair = KeyPair::generate().map_err(broken("a new key"))?;
        let request = CertificateParams::default()
            .serialize_request(&pair)
            .and_then(|request| request.pem())
            .map_err(broken("a certificate request"))?;
        let mut client = EnrollmentClient::new(channel(config, old)?);
        let enrolled = client
            .enroll(EnrollRequest {
                token: token.to_owned(),
                certificate_request: request,
            })
            .await
            .map_err(|status| Error::Refused(super::connection::words(&status)))?
            .into_inner();
        if enrolled.node != config.node {
            return Err(Error::Refused(format!(
                "the token is for the node {:?}, and this is {:?}; give --node, or a token for this one",
                enrolled.node, config.node
            )));
        }
        let new = Self {
            certificate: enrolled.certificate,
            key: pair.serialize_pem(),
        };
        let (key, certificate) = Self::places(config);
        // The certificate last: without it the key is as good as not there.
        let _ = std::fs::remove_file(&certificate);
        write(&key, &new.key)?;
        write(&certificate, &new.certificate)?;
        tracing::info!(node = enrolled.node, "enrolled");
        Ok(new)
    }

    /// The same with a new certificate, if half of this one's time is over.
    pub(super) async fn renewed(self, config: &Config) -> Self {
        if !self.is_old() {
            return self;
        }
        match Self::enroll(config, Some(&self), "").await {
            Ok(new) => new,
            Err(error) => {
                tracing::warn!(%error, "the node's certificate is not renewed yet");
                self
            }
        }
    }

    fn is_old(&self) -> bool {
        self.renewal().is_none_or(|at| Timestamp::now() >= at)
    }

    /// When it has ended, if it has.
    fn ended(&self) -> Option<Timestamp> {
        let (_, until) = self.validity()?;
        let end = Timestamp::from_second(until).ok()?;
        (end < Timestamp::now()).then_some(end)
    }

    /// When half of its time is over.
    fn renewal(&self) -> Option<Timestamp> {
        let (from, until) = self.validity()?;
        Timestamp::from_second(from + (until - from) / 2).ok()
    }

    /// From when until when it is good, in seconds since 1970.
    fn validity(&self) -> Option<(i64, i64)> {
        let (_, pem) = parse_x509_pem(self.certificate.as_bytes()).ok()?;
        let validity = pem.parse_x509().ok()?.validity().clone();
        Some((
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        ))
    }

    /// How long a connection may last, so that the certificate does not end before the next one.
    pub(super) fn lasts(&self) -> Duration {
        let left = self.renewal().map(|at| at - Timestamp::now());
        let left = left.and_then(|left| Duration::try_from(left).ok());
        // What could not be renewed is tried again.
        left.unwrap_or_default().max(RETRY)
    }
}
