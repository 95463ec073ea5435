//! What a container is, by the Container Runtime Interface of Kubernetes.

use std::collections::BTreeSet;
use std::path::Path;

use tonic::transport::{Channel, Endpoint};

use super::Error;
use crate::compile::{Container, PodOfContainer};

#[allow(
    missing_docs,
    reason = "the interface's own words, which are explained where it is defined"
)]
mod contract {
    tonic::include_proto!("runtime.v1");
}

use contract::image_service_client::ImageServiceClient;
use contract::runtime_service_client::RuntimeServiceClient;
use contract::{
    ContainerFilter, ImageSpec, ImageStatusRequest, ListContainersRequest, ListPodSandboxRequest,
    PodSandbox, PodSandboxFilter,
};

/// A runtime behind a socket; it connects when it is asked.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Cri {
    pub fn at(socket: &Path) -> Result<Self, Error> {
        let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .map_err(|source| Error::of(socket, source))?
            .connect_lazy();
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
        })
    }

    /// The container with this id, which may be the one that stands for its pod.
    pub async fn find(&mut self, id: &str) -> Result<Option<Container>, tonic::Status> {
        let filter = Some(ContainerFilter { id: id.to_owned() });
        let request = ListContainersRequest { filter };
        let found = self.runtime.list_containers(request).await?.into_inner();
        let Some(found) = found.containers.into_iter().find(|it| it.id == id) else {
            return Ok(self.pods(id).await?.into_iter().next().map(stands_for));
        };
        let pods = self.pods(&found.pod_sandbox_id).await?;
        let pod = pods.into_iter().find(|it| it.id == found.pod_sandbox_id);
        self.described(found, pod.as_ref()).await.map(Some)
    }

    /// All containers, and those that stand for pods.
    pub async fn all(&mut self) -> Result<Vec<Container>, tonic::Status> {
        let request = ListContainersRequest { filter: None };
        let found = self.runtime.list_containers(request).await?.into_inner();
        let pods = self.pods("").await?;
        let mut all = Vec::with_capacity(found.containers.len() + pods.len());
        for container in found.containers {
            let pod = pods.iter().find(|it| it.id == container.pod_sandbox_id);
            all.push(self.described(container, pod).await?);
        }
        all.extend(pods.into_iter().map(stands_for));
        Ok(all)
    }

    /// The pods with this id; all for none.
    async fn pods(&mut self, id: &str) -> Result<Vec<PodSandbox>, tonic::Status> {
        let filter = (!id.is_empty()).then(|| PodSandboxFilter { id: id.to_owned() });
        let request = ListPodSandboxRequest { filter };
        let found = self.runtime.list_pod_sandbox(request).await?.into_inner();
        Ok(found.items)
    }

    async fn described(
        &mut self,
        found: contract::Container,
        pod: Option<&PodSandbox>,
    ) -> Result<Container, tonic::Status> {
        let asked_for = found.image.unwrap_or_default();
        let mut images = BTreeSet::from([asked_for.image, asked_for.user_specified_image]);
        let mut digests: BTreeSet<String> = digest(&found.image_ref).into_iter().collect();
        let image = Some(ImageSpec {
            image: found.image_ref.clone(),
            ..ImageSpec::default()
        });
        let status = self.images.image_status(ImageStatusRequest { image });
        if let Some(image) = status.await?.into_inner().image {
            digests.extend(digest(&image.id));
            digests.extend(image.repo_digests.iter().filter_map(|it| digest(it)));
            images.extend(image.repo_tags);
        }
        images.retain(|it| !it.is_empty());
        Ok(Container {
            id: found.id,
            name: found.metadata.unwrap_or_default().name,
            labels: found.labels.into_iter().collect(),
            images,
            digests,
            pod: pod.map(pod_of),
        })
    }
}

/// The container that keeps a pod's namespaces.
fn stands_for(pod: PodSandbox) -> Container {
    Container {
        pod: Some(pod_of(&pod)),
        id: pod.id,
        ..Container::default()
    }
}

fn pod_of(pod: &PodSandbox) -> PodOfContainer {
    let metadata = pod.metadata.clone().unwrap_or_default();
    PodOfContainer {
        uid: metadata.uid,
        namespace: metadata.namespace,
        name: metadata.name,
        labels: pod.labels.clone().into_iter().collect(),
        service_account: None,
    }
}

/// The digest at the end of `repository@sha256:...` or `sha256:...`.
fn digest(text: &str) -> Option<String> {
    let start = text.rfind("sha256:")?;
    Some(text[start..].to_owned())
}
