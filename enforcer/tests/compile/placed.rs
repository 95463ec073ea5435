//! Sources that only the node can place.

use std::collections::BTreeMap;
use std::path::Path;

use enforcer::compile::{Numbering, Pod, Pods, Policy, Projection, SecretFiles, Volume, compile};
use enforcer_common::tables::EndpointKey;

use crate::support::{bundle, compiled, node};

fn credential_at<'a>(policy: &'a Policy, path: &str) -> Option<&'a str> {
    let id = policy.credential_of(Path::new(path))?;
    Some(policy.credential_info[&id].id.as_str())
}

fn uncovered(policy: &Policy) -> Vec<(&str, &str)> {
    let all = policy.uncovered.iter();
    all.map(|it| (it.credential.as_str(), it.source.as_str()))
        .collect()
}

#[test]
fn the_catalogue_is_at_every_home() {
    let policy = compiled(
        "credentials:
  - {id: special, sources: [{file: /home/ada/.aws/credentials}]}
  - {id: aws, sources: [{catalogue: aws}]}
  - {id: ssh, sources: [{catalogue: ssh.user-key}, {catalogue: container-runtime}]}",
    );
    for (path, expected) in [
        ("/root/.aws/credentials", Some("aws")),
        ("/home/eve/.aws/sso/cache/0a.json", Some("aws")),
        // A home of its own, from the node's users.
        ("/srv/people/eve/.aws/credentials", Some("aws")),
        ("/srv/people/bob/.aws/credentials", None),
        // What the bundle says before counts.
        ("/home/ada/.aws/credentials", Some("special")),
        ("/home/ada/.aws/cli/cache/1.json", Some("aws")),
        ("/home/ada/.aws/models/1.json", None),
        ("/home/ada/.ssh/id_ed25519", Some("ssh")),
        ("/home/ada/.ssh/known_hosts", None),
        ("/home/ada/sub/.ssh/id_ed25519", None),
        ("/run/containerd/containerd.sock", Some("ssh")),
        ("/run/user/1000/podman/podman.sock", Some("ssh")),
    ] {
        assert_eq!(credential_at(&policy, path), expected, "{path}");
    }
    let id = |name: &str| {
        let mut all = policy.credential_info.iter();
        all.find(|(_, info)| info.id == name).map(|(id, _)| *id)
    };
    assert_eq!(
        policy.variables.get("AWS_SECRET_ACCESS_KEY").copied(),
        id("aws")
    );
    assert!(!policy.variables.contains_key("AWS_PROFILE"));
    let to = crate::support::destination("tcp", "169.254.170.2:80");
    let key = EndpointKey::new(&to.address, to.port());
    assert_eq!(policy.endpoints.get(&key).copied(), id("aws"));
    // In containers not all of it is protected, and that is said; a socket of the host is not there.
    assert_eq!(
        uncovered(&policy),
        [("aws", "catalogue aws"), ("ssh", "catalogue ssh.user-key")]
    );
}

#[test]
fn the_whole_catalogue_fits() {
    let groups: std::collections::BTreeSet<&str> = enforcer::bundle::catalogue()
        .iter()
        .filter_map(|entry| entry.id.split('.').next())
        .collect();
    let credentials: String = groups
        .iter()
        .map(|id| format!("  - {{id: {id}, sources: [{{catalogue: {id}}}]}}\n"))
        .collect();
    let mut facts = node();
    // As many as a node of many services has.
    let homes = (0..100).map(|number| format!("/var/lib/service-{number}").into());
    facts.homes = enforcer::bundle::home_patterns(&homes.collect());
    let bundle = bundle(&format!("credentials:\n{credentials}"));
    let policy = compile(&bundle, &facts, &mut Numbering::default(), &[]).expect("fits");
    for path in [
        "/var/lib/service-99/.ssh/id_rsa",
        "/home/x/.npmrc",
        "/etc/shadow",
        "/home/x/.config/google-chrome/Default/Login Data",
    ] {
        assert!(credential_at(&policy, path).is_some(), "{path}");
    }
    assert_eq!(policy.credentials.len(), groups.len());
}

const VOLUMES: &str = "/var/lib/kubelet/pods/uid-1/volumes";

/// A pod with a volume of every shape.
fn pods() -> Pods {
    let secret = |name: &str, items: &[(&str, &str)]| SecretFiles {
        name: name.to_owned(),
        items: items
            .iter()
            .map(|(key, path)| ((*key).to_owned(), (*path).to_owned()))
            .collect(),
    };
    let token = |audience: Option<&str>, path: &str| Projection::ServiceAccountToken {
        audience: audience.map(str::to_owned),
        path: path.to_owned(),
    };
    let volume = |name: &str, volume| (name.to_owned(), volume);
    let pod = |namespace: &str, uid: &str| Pod {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        volumes: BTreeMap::from([
            volume("all", Volume::Secret(secret("stripe", &[]))),
            volume(
                "some",
                Volume::Secret(secret("stripe", &[("key", "deep/name")])),
            ),
            volume("other", Volume::Secret(secret("other", &[]))),
            volume(
                "api",
                Volume::Projected(vec![
                    token(None, "token"),
                    token(Some("vault"), "vault/token"),
                ]),
            ),
            volume(
                "mixed",
                Volume::Projected(vec![
                    Projection::Secret(secret("stripe", &[("key", "stripe-key"), ("id", "id")])),
                    Projection::Secret(secret("other", &[("key", "other-key")])),
                ]),
            ),
        ]),
    };
    Pods {
        kubelet: "/var/lib/kubelet".into(),
        pods: vec![pod("payments", "uid-1"), pod("shop", "uid-2")],
    }
}

const KUBERNETES: &str = "credentials:
  - {id: key, sources: [{kubernetesSecret: {namespace: payments, name: stripe, keys: [key]}}]}
  - {id: all, sources: [{kubernetesSecret: {namespace: payments, name: stripe}}]}
  - {id: vault, sources: [{serviceAccountToken: {audience: vault}}]}
  - {id: api, sources: [{serviceAccountToken: {}}]}";

#[test]
fn secrets_of_pods_are_where_kubelet_puts_them() {
    let mut facts = node();
    facts.pods = Some(pods());
    let numbering = &mut Numbering::default();
    let policy = compile(&bundle(KUBERNETES), &facts, numbering, &[]).expect("compiles");
    assert_eq!(uncovered(&policy), []);
    for (file, expected) in [
        (
            "kubernetes.io~secret/all/..2026_11_23_01_02_03.1/key",
            Some("key"),
        ),
        (
            "kubernetes.io~secret/all/..2026_11_23_01_02_03.1/id",
            Some("all"),
        ),
        (
            "kubernetes.io~secret/all/..2026_11_23_09_09_09.2/key",
            Some("key"),
        ),
        (
            "kubernetes.io~secret/some/..2026_11_23_01_02_03.1/deep/name",
            Some("key"),
        ),
        (
            "kubernetes.io~secret/other/..2026_11_23_01_02_03.1/key",
            None,
        ),
        (
            "kubernetes.io~projected/api/..2026_11_23_01_02_03.1/token",
            Some("api"),
        ),
        (
            "kubernetes.io~projected/api/..2026_11_23_01_02_03.1/vault/token",
            Some("vault"),
        ),
        (
            "kubernetes.io~projected/api/..2026_11_23_01_02_03.1/ca.crt",
            None,
        ),
        (
            "kubernetes.io~projected/mixed/..2026_11_23_01_02_03.1/stripe-key",
            Some("key"),
        ),
        (
            "kubernetes.io~projected/mixed/..2026_11_23_01_02_03.1/id",
            Some("all"),
        ),
        (
            "kubernetes.io~projected/mixed/..2026_11_23_01_02_03.1/other-key",
            None,
        ),
    ] {
        let path = format!("{VOLUMES}/{file}");
        assert_eq!(credential_at(&policy, &path), expected, "{path}");
        // The same names in another namespace are other secrets.
        if file.starts_with("kubernetes.io~secret") {
            let elsewhere = path.replace("uid-1", "uid-2");
            assert_eq!(credential_at(&policy, &elsewhere), None, "{elsewhere}");
        }
    }
}

#[test]
fn a_secret_keeps_its_number_when_pods_come_and_go() {
    let numbering = &mut Numbering::default();
    let mut facts = node();
    let mut next = |pods| {
        facts.pods = pods;
        let policy = compile(&bundle(KUBERNETES), &facts, numbering, &[]).expect("compiles");
        let ids = policy.credential_info.iter();
        ids.map(|(id, info)| (info.id.clone(), *id))
            .collect::<Vec<_>>()
    };
    let first = next(Some(pods()));
    let mut fewer = pods();
    fewer.pods.remove(0);
    assert_eq!(next(Some(fewer)), first);
    assert_eq!(next(None), first);
}

#[test]
fn without_pods_it_is_said_what_is_not_covered() {
    let policy = compiled(KUBERNETES);
    assert_eq!(
        uncovered(&policy),
        [
            ("key", "kubernetesSecret payments/stripe key"),
            ("all", "kubernetesSecret payments/stripe"),
            ("vault", "serviceAccountToken for vault"),
            ("api", "serviceAccountToken"),
        ]
    );
    assert!(policy.uncovered[0].reason.contains("pods"));
}
