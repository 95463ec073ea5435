//! The pods of the node, by kubelet's own list: which secrets are in their volumes, and their service accounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Notify, mpsc};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::compile::{self, Projection, SecretFiles, Volume};
use crate::sink::tls;

/// An answer takes no longer.
const ANSWER: Duration = Duration::from_secs(5);
/// How often it is asked when nothing seems to happen.
const EVERY: Duration = Duration::from_secs(10);
/// How soon after a pod was made, and how many times: kubelet may list a pod a moment after it has made its cgroup.
const SOON: Duration = Duration::from_millis(100);
const SOON_TIMES: u32 = 5;
/// No list is larger.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// Where kubelet is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its address, such as `https://127.0.0.1:10250`.
    pub url: String,
    /// Whose certificates it has; needed for `https`.
    pub authority: Option<PathBuf>,
    /// A file with the token that it knows us by, read each time: it is changed while we run.
    pub token: Option<PathBuf>,
    /// Its directory.
    pub directory: PathBuf,
}

/// Kubelet does not say which pods there are.
#[derive(Clone, Debug, thiserror::Error)]
#[error("kubelet at {url} does not list its pods: {reason}")]
pub struct Error {
    url: String,
    reason: String,
}

/// What it lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The volumes.
    pub pods: compile::Pods,
    /// The service accounts, by the uids of pods.
    pub accounts: BTreeMap<String, String>,
}

/// Asks kubelet whenever `made` says that there is another pod, and from time to time. What is new comes by the channel.
///
/// # Errors
/// The authority is missing or cannot be read.
pub fn follow(
    settings: Settings,
    made: Arc<Notify>,
) -> Result<mpsc::UnboundedReceiver<Result<Listed, Error>>, Error> {
    let kubelet = Arc::new(Kubelet::at(settings)?);
    let (to, listed) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut last = None;
        let mut soon = 0_u32;
        loop {
            let asked = kubelet.clone();
            let list = tokio::task::spawn_blocking(move || asked.list()).await;
            let Ok(list) = list else { return };
            let known = list.as_ref().map_err(ToString::to_string).cloned();
            if last.as_ref() != Some(&known) {
                last = Some(known);
                if to.send(list).is_err() {
                    return;
                }
            }
            let pause = if soon == 0 { EVERY } else { SOON };
            soon = soon.saturating_sub(1);
            tokio::select! {
                () = made.notified() => soon = SOON_TIMES,
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
    Ok(listed)
}

struct Kubelet {
    settings: Settings,
    agent: Agent,
}

impl Kubelet {
    fn at(settings: Settings) -> Result<Self, Error> {
        let failed = |reason| Error {
            url: settings.url.clone(),
            reason,
        };
        let certificates = match (settings.url.starts_with("https:"), &settings.authority) {
            (false, _) => Vec::new(),
            (true, Some(authority)) => tls::certificates(Some(authority)).map_err(failed)?,
            (true, None) => {
                let reason = "whose certificate it has is not known; give `kubeletCa`";
                return Err(failed(reason.to_owned()));
            }
        };
        let certificates = certificates
            .iter()
            .map(|it| Certificate::from_der(it).to_owned());
        let roots = RootCerts::new_with_certs(&certificates.collect::<Vec<_>>());
        let agent = Agent::config_builder()
            .timeout_global(Some(ANSWER))
            .max_redirects(0)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .into();
        Ok(Self { settings, agent })
    }

    fn list(&self) -> Result<Listed, Error> {
        let failed = |error: &dyn std::fmt::Display| Error {
            url: self.settings.url.clone(),
            reason: error.to_string(),
        };
        let mut request = self.agent.get(format!("{}/pods", self.settings.url));
        if let Some(file) = &self.settings.token {
            let token = std::fs::read_to_string(file)
                .map_err(|error| failed(&format!("{}: {error}", file.display())))?;
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        let mut answer = request.call().map_err(|error| failed(&error))?;
        let text = answer.body_mut().with_config().limit(MOST_BYTES);
        let text = text.read_to_string().map_err(|error| failed(&error))?;
        read(&text, &self.settings.directory).map_err(|error| failed(&error))
    }
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Option<Vec<Pod>>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    #[serde(default)]
    volumes: Vec<PodVolume>,
}

#[derive(Deserialize)]
struct PodVolume {
    name: String,
    secret: Option<Secret>,
    projected: Option<Projected>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    secret_name: String,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Projected {
    #[serde(default)]
    sources: Vec<Source>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    secret: Option<ProjectedSecret>,
    service_account_token: Option<Token>,
}

#[derive(Deserialize)]
struct ProjectedSecret {
    name: String,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Token {
    audience: Option<String>,
    path: String,
}

#[derive(Deserialize)]
struct Item {
    key: String,
    path: String,
}

/// A PodList of Kubernetes.
fn read(text: &str, kubelet: &Path) -> Result<Listed, serde_json::Error> {
    let list: List = serde_json::from_str(text)?;
    let mut pods = Vec::new();
    let mut accounts = BTreeMap::new();
    for pod in list.items.unwrap_or_default() {
        let Metadata { uid, namespace } = pod.metadata;
        if let Some(account) = pod.spec.service_account_name {
            accounts.insert(uid.clone(), account);
        }
        let volumes = pod.spec.volumes.into_iter();
        pods.push(compile::Pod {
            uid,
            namespace,
            volumes: volumes.filter_map(volume).collect(),
        });
    }
    Ok(Listed {
        pods: compile::Pods {
            kubelet: kubelet.to_owned(),
            pods,
        },
        accounts,
    })
}

/// Those with secrets or tokens.
fn volume(volume: PodVolume) -> Option<(String, Volume)> {
    let what = match (volume.secret, volume.projected) {
        (Some(secret), _) => Volume::Secret(files(secret.secret_name, secret.items)),
        (None, Some(projected)) => {
            let sources = projected.sources.into_iter();
            Volume::Projected(sources.filter_map(projection).collect())
        }
        (None, None) => return None,
    };
    Some((volume.name, what))
}

fn projection(source: Source) -> Option<Projection> {
    match (source.secret, source.service_account_token) {
        (Some(secret), _) => Some(Projection::Secret(files(secret.name, secret.items))),
        (None, Some(token)) => Some(Projection::ServiceAccountToken {
            audience: token.audience,
            path: token.path,
        }),
        (None, None) => None,
    }
}

fn files(name: String, items: Vec<Item>) -> SecretFiles {
    let items = items.into_iter().map(|it| (it.key, it.path));
    SecretFiles {
        name,
        items: items.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_as_kubelet_gives_it() {
        let text = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[
            {"metadata":{"name":"billing-7","namespace":"payments","uid":"u1","labels":{"app":"billing"}},
             "spec":{"serviceAccountName":"billing","nodeName":"n1","containers":[],"volumes":[
                {"name":"key","secret":{"secretName":"stripe","defaultMode":420}},
                {"name":"some","secret":{"secretName":"tls","items":[{"key":"tls.key","path":"own.key"}]}},
                {"name":"settings","configMap":{"name":"c"}},
                {"name":"access","projected":{"sources":[
                    {"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},
                    {"configMap":{"name":"kube-root-ca.crt"}},
                    {"secret":{"name":"extra"}}]}}]},
             "status":{"phase":"Running"}},
            {"metadata":{"name":"static","namespace":"kube-system","uid":"h"},"spec":{"containers":[]}}]}"#;
        let listed = read(text, Path::new("/var/lib/kubelet")).expect("a list");
        assert_eq!(listed.accounts["u1"], "billing");
        assert!(!listed.accounts.contains_key("h"));
        let pod = &listed.pods.pods[0];
        assert_eq!(
            (pod.uid.as_str(), pod.namespace.as_str()),
            ("u1", "payments")
        );
        let names: Vec<&str> = pod.volumes.keys().map(String::as_str).collect();
        assert_eq!(names, ["access", "key", "some"]);
        let Volume::Secret(some) = &pod.volumes["some"] else {
            panic!("{:?}", pod.volumes)
        };
        assert_eq!(some.items, [("tls.key".to_owned(), "own.key".to_owned())]);
        let Volume::Projected(parts) = &pod.volumes["access"] else {
            panic!("{:?}", pod.volumes)
        };
        assert_eq!(parts.len(), 2);
        assert!(listed.pods.pods[1].volumes.is_empty());
        assert!(read("{\"items\":[{}]}", Path::new("/")).is_err());
        assert!(read("{\"items\":null}", Path::new("/")).is_ok());
    }
}
