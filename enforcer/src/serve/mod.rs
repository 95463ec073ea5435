//! What the daemon answers: gRPC on its unix socket, and over TCP with certificates on both sides.

mod events;
mod filter;
pub mod metrics;
mod service;
mod values;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use enforcer_governance::client::Link;
use enforcer_governance::journal::Reader;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::engine::Engine;
use crate::sink::Health;
use contract::enforcer_server::EnforcerServer;
use service::{Allowed, Service};

pub use values::value;

/// The messages and the service, generated from `proto/enforcer/v1/enforcer.proto`.
#[allow(missing_docs, clippy::all)]
pub mod contract {
    tonic::include_proto!("enforcer.v1");
}

/// Where the daemon listens unless told otherwise.
pub const SOCKET: &str = "/run/enforcer/enforcer.sock";

/// Something that is asked of the engine, between its other work.
pub type Question = Box<dyn FnOnce(&mut Engine, Around) + Send>;

/// What there is to say besides what the engine knows.
#[derive(Clone, Debug)]
pub struct Around {
    /// How it is with governance.
    pub link: Option<Link>,
    /// How it is with each sink.
    pub sinks: Vec<Health>,
}

/// What `enforcer status` says.
pub fn status(engine: &mut Engine, around: Around) -> Value {
    let mut status = engine.status();
    status["governance"] = json!(around.link);
    status["sinks"] = json!(around.sinks);
    status
}

/// Where it listens besides the unix socket.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The address.
    pub listen: SocketAddr,
    /// The server's certificate and key, and the authority of those who may ask, PEM.
    pub certificate: PathBuf,
    /// See there.
    pub key: PathBuf,
    /// See there.
    pub client_authority: PathBuf,
    /// The names, in their certificates, of those who may ask.
    pub clients: Vec<String>,
}

/// Why it cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else does.
    #[error("another daemon answers on {}; stop it, or give --socket another path", .0.display())]
    Taken(PathBuf),
    /// A socket or file.
    #[error("cannot use {what}")]
    Io {
        /// Which.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates.
    #[error("the certificates to serve with cannot be used")]
    Tls(#[from] tonic::transport::Error),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    |source| Error::Io { what, source }
}

/// Listens, and answers from then on. What is asked of the engine goes into `asking`, one by one.
///
/// # Errors
/// If it cannot listen.
pub async fn serve(
    socket: &Path,
    remote: Option<Remote>,
    asking: mpsc::Sender<Question>,
    reader: Reader,
) -> Result<(), Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let near = Service::new(asking.clone(), reader.clone(), Allowed::Everything);
    health.set_serving::<EnforcerServer<Service>>().await;
    let listener = listen(socket)?;
    let near = Server::builder()
        .add_service(health_service.clone())
        .add_service(EnforcerServer::new(near));
    tokio::spawn(async move {
        let ended = near
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await;
        tracing::error!(?ended, "nobody answers on the unix socket any more");
    });
    let Some(remote) = remote else {
        return Ok(());
    };
    let read = |path: &Path| std::fs::read(path).map_err(io_error(path.display().to_string()));
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(
            read(&remote.certificate)?,
            read(&remote.key)?,
        ))
        .client_ca_root(Certificate::from_pem(read(&remote.client_authority)?));
    let listener = tokio::net::TcpListener::bind(remote.listen)
        .await
        .map_err(io_error(remote.listen.to_string()))?;
    let far = Service::new(asking, reader, Allowed::Looking(remote.clients.into()));
    let far = Server::builder()
        .tls_config(tls)?
        .add_service(health_service)
        .add_service(EnforcerServer::new(far));
    tokio::spawn(async move {
        let ended = far
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await;
        tracing::error!(?ended, "nobody answers over TCP any more");
    });
    Ok(())
}

fn listen(socket: &Path) -> Result<UnixListener, Error> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(Error::Taken(socket.to_owned()));
    }
    let _ = std::fs::remove_file(socket);
    let name = || socket.display().to_string();
    let listener = UnixListener::bind(socket).map_err(io_error(name()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
        .map_err(io_error(name()))?;
    Ok(listener)
}
