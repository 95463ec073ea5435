//! Namespaces whose containers nobody waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Place;

/// Where CRI-O keeps what it gives to its runtime's program.
const CRI_O: &str = "/run/containers/storage/overlay-containers";
/// How containerd and CRI-O write down a container's namespace in that.
const NAMESPACE: [&str; 2] = [
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.pod.namespace",
];

/// The namespaces, and where it is written down which one a container is of: the runtime need not answer for that.
#[derive(Debug, Default)]
pub struct Exempt {
    namespaces: BTreeSet<String>,
    states: Vec<PathBuf>,
}

/// As much of what a runtime gives to its program as matters here.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Exempt {
    /// These, of the runtimes behind these sockets.
    #[must_use]
    pub fn new(namespaces: Vec<String>, sockets: &[PathBuf]) -> Self {
        // containerd has its socket in its directory.
        let beside = sockets.iter().filter_map(|socket| socket.parent());
        Self {
            namespaces: namespaces.into_iter().collect(),
            states: beside.map(Path::to_owned).collect(),
        }
    }

    /// Whether the container at this place is of one of them.
    #[must_use]
    pub fn has(&self, place: &Place) -> bool {
        if self.namespaces.is_empty() || place.pod.is_none() {
            return false;
        }
        let of_containerd = self.states.iter().map(|state| {
            let of_all = state.join("io.containerd.runtime.v2.task/k8s.io");
            of_all.join(&place.id)
        });
        let of_cri_o = Path::new(CRI_O).join(&place.id).join("userdata");
        let namespace = of_containerd
            .chain([of_cri_o])
            .find_map(|directory| namespace_in(&directory.join("config.json")));
        namespace.is_some_and(|it| self.namespaces.contains(&it))
    }
}

fn namespace_in(path: &Path) -> Option<String> {
    let mut config: Config = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    NAMESPACE
        .iter()
        .find_map(|name| config.annotations.remove(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_what_the_runtime_wrote_down() {
        let state = tempfile::tempdir().expect("a directory");
        let socket = state.path().join("containerd.sock");
        let container = |id: &str, text: &str| {
            let tasks = "io.containerd.runtime.v2.task/k8s.io";
            let directory = state.path().join(tasks).join(id);
            fs::create_dir_all(&directory).expect("can be made");
            fs::write(directory.join("config.json"), text).expect("can be written");
            Place {
                path: format!("/kubepods/podu/{id}"),
                id: id.to_owned(),
                pod: Some("u".to_owned()),
            }
        };
        let of = |namespace: &str| {
            format!(
                r#"{{"ociVersion": "1.1.0", "annotations": {{"a": "b", "{}": "{namespace}"}}}}"#,
                NAMESPACE[0]
            )
        };
        let exempt = Exempt::new(
            vec!["kube-system".to_owned()],
            std::slice::from_ref(&socket),
        );
        let own = container("a", &of("kube-system"));
        assert!(exempt.has(&own));
        assert!(!exempt.has(&container("b", &of("kube-system-2"))));
        assert!(!exempt.has(&container("c", "{}")));
        assert!(!exempt.has(&container("d", "no JSON")));
        let no_pod = Place {
            pod: None,
            ..own.clone()
        };
        assert!(!exempt.has(&no_pod));
        assert!(!Exempt::new(Vec::new(), &[socket]).has(&own));
    }
}
