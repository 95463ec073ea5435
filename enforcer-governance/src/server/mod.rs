//! `enforcer governance serve`: entitlements from a directory of documents to the nodes, and their evidence.
//!
//! All that matters is in the store before anybody hears of it (`store`): versions, revocations and grants (`ledger`),
//! tokens, labels and what is known of each node (`registry`), evidence. Several servers may have one store.

mod administration;
mod authority;
mod changes;
mod content;
mod documents;
mod enrollment;
mod evidence;
mod gate;
mod grants;
mod issued;
mod json;
mod ledger;
mod registry;
mod remote;
mod roots;
mod signals;
mod store;
mod sync;
mod tasks;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use enforcer_bundle::{Digest, LoadError, Mistakes};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Status};

use crate::contract::administration_server::AdministrationServer;
use crate::contract::enrollment_server::EnrollmentServer;
use crate::contract::evidence_server::EvidenceServer;
use crate::contract::governance_server::GovernanceServer;
use crate::keys::{self, SigningKey};
use crate::trust::TrustRoot;
use authority::Authority;
use changes::Changes;
use gate::Gate;
use json::{read_json, write_json};
use ledger::{Ledger, Signer};
use registry::Registry;
pub use remote::Location;
use remote::Remote;
use roots::Roots;
use signals::Receiver;
pub use signals::Transmitter;
pub use store::Location as NatsLocation;
use store::{Directory, Nats, Seal, Store};

/// What is behind the wire, for the fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    use crate::contract::EvidenceBatch;

    pub use super::signals::Listener;

    /// What of a batch would be stored after the record of this number; nothing of one that is refused.
    #[must_use]
    pub fn stored_of(batch: &EvidenceBatch, last: u64) -> &[Vec<u8>] {
        match super::evidence::check(batch) {
            Ok(()) => super::store::new_of(batch, last),
            Err(_) => &[],
        }
    }
}

/// Most bytes of a message from a node.
const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// A connection that says nothing is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(30);

/// Why the server does not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was asked for something that cannot be.
    #[error("{0}")]
    Refused(String),
    /// The documents cannot be read, or are no bundle.
    #[error(transparent)]
    Documents(#[from] LoadError),
    /// What was issued is no bundle for this version.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
    /// A file cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is something else than expected.
    #[error("{} is not what this server wrote there: {reason}", path.display())]
    Content {
        /// Which one.
        path: PathBuf,
        /// Where it goes wrong.
        reason: String,
    },
    /// NATS does not do what is asked of it.
    #[error("NATS at {url}: {reason}")]
    Nats {
        /// Where it is.
        url: String,
        /// What it said.
        reason: String,
    },
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// A certificate cannot be made or used.
    #[error("certificate: {0}")]
    Certificate(String),
    /// The connections cannot be served.
    #[error("cannot serve")]
    Transport(#[from] tonic::transport::Error),
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    fn content(path: &Path, error: &serde_json::Error) -> Self {
        Self::Content {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }

    fn gone(path: &Path) -> Self {
        Self::Io {
            path: path.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        }
    }

    /// With everything that led to it, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        enforcer_bundle::chain(self)
    }
}

/// Where documents are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In a directory, or in one file.
    Path(PathBuf),
    /// On a web server.
    Remote(Location),
}

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the documents are: YAML, or one bundle signed elsewhere. `None`: another server of the store has them.
    pub documents: Option<Source>,
    /// The server's keys and authority; all it keeps, if no store is given.
    pub state: PathBuf,
    /// Where several servers keep what they have in common.
    pub store: Option<NatsLocation>,
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// The names and addresses that nodes know the server by.
    pub names: Vec<String>,
    /// The socket for whoever runs the server.
    pub admin: PathBuf,
    /// Keys to sign with instead of the server's own.
    pub keys: Vec<PathBuf>,
    /// Authorities, PEM, whose certificates nodes may have besides the server's own.
    pub node_authorities: Option<PathBuf>,
    /// Whose security events become revocations.
    pub signals: Option<Transmitter>,
    /// How long a freshness statement is good; a new one is made each fifth of it.
    pub freshness: Duration,
}

/// What the services share.
struct Shared {
    store: Arc<dyn Store>,
    ledger: Arc<Ledger>,
    registry: Registry,
    authority: Authority,
    gate: Gate,
    nonces: AtomicU64,
    closing: watch::Sender<()>,
    /// Whether the store is: without it a server would not hear of revocations.
    reachable: watch::Receiver<bool>,
}

impl Shared {
    fn nonce(&self) -> String {
        self.nonces.fetch_add(1, Ordering::Relaxed).to_string()
    }
}

/// Of the node's certificate.
#[allow(clippy::result_large_err)]
fn node_of<T>(request: &Request<T>) -> Result<String, Status> {
    let certificates = request.peer_certs();
    let first = certificates.as_deref().and_then(|all| all.first());
    first
        .and_then(|certificate| authority::node_of(certificate))
        .filter(|node| registry::is_name(node))
        .ok_or_else(|| {
            Status::unauthenticated("expected a node's certificate; `enforcer governance token` and `enforcer run --join-token` make one")
        })
}

/// Serves until `stop` is done. `ready` is told the address, once nodes can connect.
///
/// # Errors
/// If what is needed cannot be read, or the addresses not be had.
pub async fn serve(
    options: Options,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let state = &options.state;
    std::fs::create_dir_all(state).map_err(Error::io(state))?;
    let authority = Authority::load_or_make(state)?;
    let keys = match options.keys.as_slice() {
        [] => vec![SigningKey::load_or_make(&state.join("governance.key"))?],
        paths => {
            (paths.iter().map(|path| SigningKey::load(path))).collect::<Result<Vec<_>, _>>()?
        }
    };
    let next = state.join("roots");
    std::fs::create_dir_all(&next).map_err(Error::io(&next))?;
    let next_changes = Changes::of(&next)?;
    let known = read_json(&state.join("trust.json"))?
        .map(|first| Roots::new(first).read(&next))
        .transpose()?;
    let (documents, remote) = match &options.documents {
        None => (None, None),
        Some(Source::Path(path)) => (Some(path.clone()), None),
        Some(Source::Remote(location)) => {
            let root = known.as_ref().map(|it| it.last().clone());
            let remote = fetched(Remote::new(location.clone(), state)?, root).await?;
            (Some(remote.place().to_owned()), Some(remote))
        }
    };
    let roots = match known {
        Some(known) => known,
        None => Roots::new(first_root(state, documents.as_deref(), &keys)?).read(&next)?,
    };
    let roots = watch::Sender::new(roots);
    let root = roots.borrow().last().clone();
    let store: Arc<dyn Store> = match &options.store {
        None => Arc::new(Directory::open(state)?),
        Some(location) => {
            let seal = Seal {
                keys: keys.clone(),
                roots: roots.subscribe(),
            };
            Arc::new(Nats::open(location, seal).await?)
        }
    };
    let signer = Signer {
        keys,
        issuer: root.issuer.clone(),
        trust: Digest::of_bytes(&serde_json::to_vec(roots.borrow().first()).unwrap_or_default()),
        roots: roots.subscribe(),
        freshness: options.freshness,
    };
    let ledger = Arc::new(Ledger::open(store.clone(), signer).await?);
    ledger.stand_under(&root).await?;
    let changes = match &documents {
        None => None,
        Some(path) => {
            let changes = Changes::of(path)?;
            let loaded = documents::load(path, &root)?;
            ledger.set_documents(loaded).await?;
            Some((changes, path.clone()))
        }
    };

    let names = Some(options.listen.ip().to_string())
        .into_iter()
        .chain(options.names.clone());
    let (certificate, key) = authority.server(&names.collect::<Vec<_>>())?;
    let mut trusted = authority.certificate.clone();
    if let Some(path) = &options.node_authorities {
        trusted.push_str(&std::fs::read_to_string(path).map_err(Error::io(path))?);
    }
    // Without a certificate a node can enroll, and nothing else.
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(trusted))
        .client_auth_optional(true);
    let closing = watch::Sender::new(());
    let reaching = watch::Sender::new(true);
    let shared = Arc::new(Shared {
        registry: Registry::new(store.clone()),
        store,
        ledger: ledger.clone(),
        authority,
        gate: Gate::default(),
        nonces: AtomicU64::new(u64::from(rand::random::<u32>()) << 32),
        closing: closing.clone(),
        reachable: reaching.subscribe(),
    });
    let signals = match options.signals.clone() {
        Some(transmitter) => {
            Receiver::open(transmitter, ledger.clone(), shared.store.clone())?.router()
        }
        None => axum::Router::new(),
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    let nodes = Server::builder()
        .tls_config(tls)?
        .http2_keepalive_interval(Some(PING_EVERY))
        .tcp_nodelay(true)
        .accept_http1(options.signals.is_some())
        .add_routes(Routes::from(signals))
        .add_service(health_service)
        .add_service(
            GovernanceServer::new(sync::Nodes(shared.clone()))
                .max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            EvidenceServer::new(evidence::Collector(shared.clone()))
                .max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(EnrollmentServer::new(enrollment::Enroller(shared.clone())));
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(Error::io(Path::new(&options.listen.to_string())))?;
    let address = listener.local_addr().map_err(Error::io(Path::new("tcp")))?;
    let desk = Server::builder().add_service(AdministrationServer::new(administration::Desk(
        shared.clone(),
    )));
    let admin = admin_socket(&options.admin)?;

    let mut tasks = vec![
        tokio::spawn(tasks::keep_fresh(ledger.clone(), options.freshness / 5)),
        tokio::spawn(tasks::reach(shared.clone(), reaching, health)),
        tokio::spawn(tasks::follow(shared.clone())),
        tokio::spawn(tasks::tell_of_nodes(shared.clone())),
        tokio::spawn(tasks::end_grants(ledger.clone())),
    ];
    let trusted = roots.subscribe();
    tasks.extend(match (remote, changes) {
        (Some(remote), _) => Some(tokio::spawn(remote.follow(trusted, ledger.clone()))),
        (None, Some((changes, path))) => {
            let following = documents::follow(changes, path, trusted, ledger.clone());
            Some(tokio::spawn(following))
        }
        (None, None) => None,
    });
    tasks.push(tokio::spawn(roots::follow(
        next_changes,
        next,
        roots,
        ledger,
    )));
    ready(address);
    let mut closed = [closing.subscribe(), closing.subscribe()];
    let [nodes_closed, desk_closed] = &mut closed;
    let serving = async {
        tokio::try_join!(
            nodes.serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                let _ = nodes_closed.changed().await;
            }),
            desk.serve_with_incoming_shutdown(UnixListenerStream::new(admin), async {
                let _ = desk_closed.changed().await;
            }),
        )
    };
    let stopping = async {
        stop.await;
        closing.send_replace(());
    };
    let (served, ()) = tokio::join!(serving, stopping);
    for task in tasks {
        task.abort();
    }
    if let Err(error) = shared.registry.tell().await {
        tracing::warn!(
            "what is known of the nodes is not stored: {}",
            error.chain()
        );
    }
    let _ = std::fs::remove_file(&options.admin);
    served?;
    Ok(())
}

/// With documents in its place: new ones, or, if there are none to be had, the last ones.
async fn fetched(mut remote: Remote, root: Option<TrustRoot>) -> Result<Remote, Error> {
    let asked = tokio::task::spawn_blocking(move || (remote.fetch(root.as_ref()), remote));
    let (fetched, remote) = asked
        .await
        .map_err(|error| Error::Refused(error.to_string()))?;
    match fetched {
        Err(error) if remote.place().exists() => {
            tracing::warn!("the last documents are used: {}", error.chain());
            Ok(remote)
        }
        Err(error) => Err(error),
        Ok(_) => Ok(remote),
    }
}

/// A root with the server's key for everything, if none is configured. It is written where nodes' operators find it,
/// beside the authority's certificate.
fn first_root(
    state: &Path,
    documents: Option<&Path>,
    keys: &[SigningKey],
) -> Result<TrustRoot, Error> {
    let path = state.join("trust.json");
    let Some(documents) = documents else {
        return Err(Error::Refused(format!(
            "{}: there is none; a server without documents needs the trust.json, ca.pem, ca.key and keys of the one that has them",
            path.display()
        )));
    };
    let [key] = keys else {
        return Err(Error::Refused(format!(
            "with several keys, write {} first: which roles they have, and how many must sign",
            path.display()
        )));
    };
    let issuer = enforcer_bundle::load(documents)?.metadata.issuer;
    let root = TrustRoot::of_one_key(&issuer, key.public());
    write_json(&path, &root)?;
    Ok(root)
}

fn admin_socket(path: &Path) -> Result<UnixListener, Error> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::Refused(format!(
            "another server answers on {}; stop it, or give --admin-socket another path",
            path.display()
        )));
    }
    let _ = std::fs::remove_file(path);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(Error::io(directory))?;
    }
    let listener = UnixListener::bind(path).map_err(Error::io(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(Error::io(path))?;
    Ok(listener)
}
