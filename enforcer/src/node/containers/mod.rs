//! The containers of the node: where they are, and what their runtimes say that they are.

mod cri;
mod docker;
mod exempt;
mod place;
mod root;
mod starting;
mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

pub use exempt::Exempt;
pub use place::{Place, is_pod, place_of};
pub use root::root_of;
pub use starting::{Ended, Starting};

use crate::compile::Container;
use cri::Cri;
use docker::Docker;

/// Where runtimes have their sockets, unless somebody says otherwise.
pub const SOCKETS: [&str; 6] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/cri-dockerd.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
];

/// A runtime that does not answer in this time is taken to be away.
const PATIENCE: Duration = Duration::from_secs(5);

/// A runtime does not say what a container is.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the container runtime at {socket} does not answer: {reason}")]
pub struct Error {
    socket: PathBuf,
    reason: String,
}

impl Error {
    fn of(socket: &Path, reason: impl fmt::Display) -> Self {
        Self {
            socket: socket.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Speaks to one of them.
#[derive(Clone, Debug)]
enum Client {
    Cri(Box<Cri>),
    Docker(Docker),
}

/// The runtimes of the node.
#[derive(Clone, Debug)]
pub struct Runtimes {
    clients: Vec<(PathBuf, Client)>,
    kubelet: PathBuf,
}

impl Runtimes {
    /// Those behind these sockets, which need not be there yet. `kubelet` is its directory.
    ///
    /// # Errors
    /// A socket is no path that can be connected to.
    pub fn at(sockets: &[PathBuf], kubelet: &Path) -> Result<Self, Error> {
        let client = |socket: &PathBuf| {
            let name = socket.file_name().unwrap_or_default().to_string_lossy();
            let client = match name.contains("docker.sock") || name.contains("podman") {
                true => Client::Docker(Docker::at(socket)),
                false => Client::Cri(Box::new(Cri::at(socket)?)),
            };
            Ok((socket.clone(), client))
        };
        Ok(Self {
            clients: sockets.iter().map(client).collect::<Result<_, _>>()?,
            kubelet: kubelet.to_owned(),
        })
    }

    /// The clients whose sockets are there.
    fn present(&self) -> impl Iterator<Item = (&Path, Client)> {
        let all = self.clients.iter().filter(|(socket, _)| socket.exists());
        all.map(|(socket, client)| (socket.as_path(), client.clone()))
    }

    /// What the container at this place is; `None` if no runtime knows it.
    ///
    /// # Errors
    /// No runtime knew it, and one did not answer.
    pub async fn find(&self, place: &Place) -> Result<Option<Container>, Error> {
        let mut failure = None;
        for (socket, client) in self.present() {
            let asked = async {
                match client {
                    Client::Cri(mut client) => (client.find(&place.id).await)
                        .map_err(|status| Error::of(socket, status.message())),
                    Client::Docker(client) => client.find(&place.id).await,
                }
            };
            match within(socket, asked).await {
                Ok(Some(found)) => return Ok(self.checked(place, found)),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// What the containers at these places are, as far as runtimes know; and which of those did not answer.
    pub async fn all(&self, places: &[Place]) -> (BTreeMap<String, Container>, Vec<Error>) {
        let mut found = BTreeMap::new();
        let mut failures = Vec::new();
        for (socket, client) in self.present() {
            let asked = async {
                match client {
                    Client::Cri(mut client) => {
                        (client.all().await).map_err(|status| Error::of(socket, status.message()))
                    }
                    Client::Docker(client) => client.all().await,
                }
            };
            let containers = match within(socket, asked).await {
                Ok(containers) => containers,
                Err(error) => {
                    failures.push(error);
                    continue;
                }
            };
            let mut by_id: BTreeMap<String, Container> = containers
                .into_iter()
                .map(|it| (it.id.clone(), it))
                .collect();
            for place in places {
                if let Some(container) = by_id.remove(&place.id)
                    && let Some(container) = self.checked(place, container)
                {
                    found.insert(place.path.clone(), container);
                }
            }
        }
        (found, failures)
    }

    /// With what kubelet has put on disk. `None` if the cgroup is another pod's: then the name is all it has of the
    /// container.
    fn checked(&self, place: &Place, mut container: Container) -> Option<Container> {
        if let Some(pod) = &mut container.pod {
            let uid = place.pod.as_deref().map(without_dashes);
            if uid != Some(without_dashes(&pod.uid)) {
                tracing::warn!(
                    cgroup = place.path,
                    pod = pod.uid,
                    "the runtime says that this container is of another pod: it is not taken for what it is said to be"
                );
                return None;
            }
            pod.service_account = token::service_account(&self.kubelet, &pod.uid, &pod.namespace);
        }
        Some(container)
    }

    /// Which there are, for `status`.
    #[must_use]
    pub fn status(&self) -> Vec<Value> {
        let present = self.present();
        present
            .map(|(socket, client)| {
                let interface = match client {
                    Client::Cri(_) => "cri",
                    Client::Docker(_) => "docker",
                };
                json!({"socket": socket, "interface": interface})
            })
            .collect()
    }
}

fn without_dashes(uid: &str) -> String {
    uid.replace('-', "")
}

async fn within<T>(
    socket: &Path,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::of(
            socket,
            format!("nothing came within {} s", PATIENCE.as_secs()),
        )),
    }
}
