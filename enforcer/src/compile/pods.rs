//! The pods of the node, as plain data, and where kubelet puts what they mount.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::bundle::{KubernetesSecret, Source, escaped, pattern};

/// The pods on this node, and the place of their volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pods {
    /// Kubelet's directory, mostly `/var/lib/kubelet`.
    pub kubelet: PathBuf,
    /// In any order.
    pub pods: Vec<Pod>,
}

/// A pod, as far as its volumes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its uid, as in the name of its directory.
    pub uid: String,
    /// The namespace that it and its secrets are in.
    pub namespace: String,
    /// By name, those with secrets or tokens in them.
    pub volumes: BTreeMap<String, Volume>,
}

/// What kubelet keeps up to date in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// One secret.
    Secret(SecretFiles),
    /// Several things.
    Projected(Vec<Projection>),
}

/// One of the things in a projected volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Projection {
    /// A secret.
    Secret(SecretFiles),
    /// A token of the pod's service account.
    ServiceAccountToken {
        /// For whom; `None`: for the API server.
        audience: Option<String>,
        /// Under which path in the volume.
        path: String,
    },
}

/// A secret in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFiles {
    /// The secret's name.
    pub name: String,
    /// Keys and their paths in the volume. Empty: all of them, under their own names.
    pub items: Vec<(String, String)>,
}

impl Pods {
    /// The files of a secret.
    pub(super) fn secret(&self, secret: &KubernetesSecret) -> Vec<Source> {
        let pods = self
            .pods
            .iter()
            .filter(|it| it.namespace == secret.namespace);
        pods.flat_map(|pod| {
            pod.volumes
                .iter()
                .map(move |(name, volume)| (pod, name, volume))
        })
        .flat_map(|(pod, name, volume)| {
            let directory = self.directory(pod, name, volume);
            let of_secret = |files: &&SecretFiles| files.name == secret.name;
            match volume {
                Volume::Secret(files) => Some(files)
                    .filter(of_secret)
                    .map(|files| files.sources(&directory, secret, true))
                    .unwrap_or_default(),
                Volume::Projected(parts) => {
                    let secrets = parts.iter().filter_map(|part| match part {
                        Projection::Secret(files) => Some(files),
                        Projection::ServiceAccountToken { .. } => None,
                    });
                    secrets
                        .filter(of_secret)
                        .flat_map(|files| files.sources(&directory, secret, false))
                        .collect()
                }
            }
        })
        .collect()
    }

    /// The files with tokens for an audience.
    pub(super) fn tokens(&self, wanted: Option<&str>) -> Vec<Source> {
        let mut sources = Vec::new();
        for pod in &self.pods {
            for (name, volume) in &pod.volumes {
                let Volume::Projected(parts) = volume else {
                    continue;
                };
                let directory = self.directory(pod, name, volume);
                for part in parts {
                    if let Projection::ServiceAccountToken { audience, path } = part
                        && audience.as_deref() == wanted
                    {
                        sources.extend(in_each_version(&directory, path));
                    }
                }
            }
        }
        sources
    }

    fn directory(&self, pod: &Pod, name: &str, volume: &Volume) -> PathBuf {
        let plugin = match volume {
            Volume::Secret(_) => "kubernetes.io~secret",
            Volume::Projected(_) => "kubernetes.io~projected",
        };
        let volumes = self.kubelet.join("pods").join(&pod.uid).join("volumes");
        volumes.join(plugin).join(name)
    }
}

impl SecretFiles {
    /// The files in a volume that are of `secret`, which this is; `alone`, if nothing else is in the volume. Where it is
    /// not known which files those are, all are meant.
    fn sources(&self, directory: &Path, secret: &KubernetesSecret, alone: bool) -> Vec<Source> {
        let wanted = |key: &String| secret.keys.is_empty() || secret.keys.contains(key);
        let all = secret.keys.is_empty() && (alone || self.items.is_empty());
        if all {
            return vec![Source::Directory(directory.to_owned())];
        }
        let paths: Vec<&String> = if self.items.is_empty() {
            secret.keys.iter().collect()
        } else {
            let items = self.items.iter().filter(|(key, _)| wanted(key));
            items.map(|(_, path)| path).collect()
        };
        let files = paths.into_iter();
        files
            .filter_map(|path| in_each_version(directory, path))
            .collect()
    }
}

/// A file in each of the directories that kubelet makes for a new version, before the link `..data` leads there.
fn in_each_version(directory: &Path, path: &str) -> Option<Source> {
    let directory = escaped(directory.to_str()?);
    pattern(&format!("{directory}/..*/{}", escaped(path))).ok()
}
