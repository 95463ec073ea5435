//! The containers of the node, as plain data, and which selectors they match.

use std::collections::BTreeSet;

use crate::bundle::{self, Labels, Match};

/// A container, as its runtime and Kubernetes know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Its name: in its pod, if it is of one.
    pub name: String,
    /// Its own labels.
    pub labels: Labels,
    /// The names of its image: as it was asked for, and with tags.
    pub images: BTreeSet<String>,
    /// The digests of its image, as `sha256:` and 64 hex digits: of the manifest and of the configuration.
    pub digests: BTreeSet<String>,
    /// The pod that it is of.
    pub pod: Option<PodOfContainer>,
}

/// What is known of a container's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodOfContainer {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its service account; `None` if nothing told.
    pub service_account: Option<String>,
}

impl Container {
    /// Whether it is what `selectors` ask for of containers, and they do. The node's labels are not looked at.
    #[must_use]
    pub fn is_meant_by(&self, selectors: &Match) -> bool {
        selectors.is_about_containers()
            && selectors.kubernetes.iter().all(|it| self.is_in_pod(it))
            && selectors.container.iter().all(|it| self.is(it))
    }

    /// Whether a pod's container is what a selector asks for. The node's labels are not looked at.
    pub(super) fn is_in_pod(&self, wanted: &bundle::Kubernetes) -> bool {
        self.pod.as_ref().is_some_and(|pod| {
            pod.namespace == wanted.namespace
                && (wanted.service_account.is_none()
                    || wanted.service_account == pod.service_account)
                && has(&pod.labels, &wanted.pod_labels)
                && wanted.container.iter().all(|name| *name == self.name)
                && wanted.image.iter().all(|image| self.images.contains(image))
                && self.has_digest(wanted.image_digest.as_ref())
        })
    }

    /// Whether it is what a selector asks for.
    pub(super) fn is(&self, wanted: &bundle::Container) -> bool {
        wanted.name.iter().all(|name| *name == self.name)
            && has(&self.labels, &wanted.labels)
            && self.has_digest(wanted.image_digest.as_ref())
    }

    fn has_digest(&self, wanted: Option<&String>) -> bool {
        wanted.is_none_or(|digest| self.digests.contains(digest))
    }
}

/// Whether all of `wanted` are among `labels`.
pub(super) fn has(labels: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}
