//! The service account of a pod, by the token that kubelet gives it.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

/// What a token says of whom it is for.
#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    pod: Named,
    serviceaccount: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: String,
}

/// The service account of the pod with this uid, if kubelet has put a token into one of its volumes: there only kubelet
/// writes. The token itself is not kept.
pub fn service_account(kubelet: &Path, uid: &str, namespace: &str) -> Option<String> {
    let volumes = kubelet
        .join("pods")
        .join(uid)
        .join("volumes/kubernetes.io~projected");
    let volumes = std::fs::read_dir(volumes).ok()?.flatten();
    let tokens = volumes.filter_map(|volume| std::fs::read(volume.path().join("token")).ok());
    let mut claims = tokens.filter_map(|token| claims(&token));
    let own = claims.find(|it| it.pod.uid == uid && it.namespace == namespace);
    own.map(|it| it.serviceaccount.name)
}

fn claims(token: &[u8]) -> Option<Bound> {
    let payload = token.split(|byte| *byte == b'.').nth(1)?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    Some(claims.kubernetes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(namespace: &str, pod: &str) -> String {
        let claims = serde_json::json!({"kubernetes.io": {
            "namespace": namespace,
            "pod": {"name": "billing-7", "uid": pod},
            "serviceaccount": {"name": "billing", "uid": "s"},
        }});
        let payload = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
        format!("e30.{payload}.c2ln")
    }

    #[test]
    fn a_token_of_the_pod_says_it() {
        let kubelet = tempfile::tempdir().expect("a directory");
        let volume = |name: &str, token: &str| {
            let volumes = kubelet
                .path()
                .join("pods/u1/volumes/kubernetes.io~projected");
            std::fs::create_dir_all(volumes.join(name)).expect("made");
            std::fs::write(volumes.join(name).join("token"), token).expect("written");
        };
        let account = || service_account(kubelet.path(), "u1", "payments");
        assert_eq!(account(), None);
        volume("a", "nonsense");
        volume("b", &token("payments", "u2"));
        volume("c", &token("other", "u1"));
        assert_eq!(account(), None);
        volume("d", &token("payments", "u1"));
        assert_eq!(account().as_deref(), Some("billing"));
    }
}
