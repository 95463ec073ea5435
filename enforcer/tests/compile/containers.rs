//! Which containers belong to which workloads.

use std::collections::BTreeSet;

use enforcer::compile::{Contained, Container, Facts, Numbering, PodOfContainer, Policy, compile};
use enforcer_common::facts::Task;
use enforcer_common::ids::{CgroupId, ExecutableKey, IdentityId};

use crate::support::{bundle, node, program};

const DIGEST: &str = "sha256:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f";

fn labels(pairs: &[(&str, &str)]) -> enforcer::bundle::Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// `app` of a pod of `billing` in `payments`.
fn app() -> Container {
    Container {
        id: "c1".to_owned(),
        name: "app".to_owned(),
        labels: labels(&[("tier", "back")]),
        images: BTreeSet::from(["registry.example.com/billing:1".to_owned()]),
        digests: BTreeSet::from([DIGEST.to_owned()]),
        pod: Some(PodOfContainer {
            uid: "u1".to_owned(),
            namespace: "payments".to_owned(),
            name: "billing-7".to_owned(),
            labels: labels(&[("app", "billing")]),
            service_account: Some("billing".to_owned()),
        }),
    }
}

fn with(change: impl FnOnce(&mut Container, &mut PodOfContainer)) -> Container {
    let mut container = app();
    let mut pod = container.pod.take().expect("it has one");
    change(&mut container, &mut pod);
    Container {
        pod: Some(pod),
        ..container
    }
}

fn policy(selectors: &str, facts: &Facts) -> Policy {
    let text = format!(
        "credentials: [{{id: key, sources: [{{file: /key}}]}}]
workloads: [{{id: w, match: {{{selectors}}}}}]
entitlements: [{{id: E, workload: w, credential: key, destinations: none}}]"
    );
    compile(&bundle(&text), facts, &mut Numbering::default(), &[]).expect("compiles")
}

/// Whether the container at this path belongs to the workload; `None` if it is the first of its kind.
fn belongs(policy: &Policy, path: &str, container: &Container) -> Option<bool> {
    let task = Task {
        identity: policy.identity_of_container(path, container)?,
        cgroup: CgroupId(9),
        classified: 1,
        ..Task::default()
    };
    Some(!policy.workloads_of(&task).is_empty())
}

#[test]
fn everything_that_is_asked_for_must_be_so() {
    let mut facts = node();
    facts.labels = labels(&[("zone", "a")]);
    let path = "/kubepods/podu1/c1";
    let others = [
        with(|it, _| it.name = "sidecar".to_owned()),
        with(|_, pod| pod.namespace = "other".to_owned()),
        with(|_, pod| pod.labels.clear()),
        with(|_, pod| pod.service_account = None),
        with(|_, pod| pod.service_account = Some("default".to_owned())),
        with(|it, _| it.images = BTreeSet::from(["registry.example.com/billing:2".to_owned()])),
        with(|it, _| it.digests.clear()),
        with(|it, _| it.labels.clear()),
    ];
    // By the places of those above that do not fit.
    for (selectors, not) in [
        ("kubernetes: {namespace: payments}", &[1][..]),
        ("kubernetes: {namespace: payments, container: app}", &[0, 1]),
        (
            "kubernetes: {namespace: payments, podLabels: {app: billing}}",
            &[1, 2],
        ),
        (
            "kubernetes: {namespace: payments, serviceAccount: billing}",
            &[1, 3, 4],
        ),
        (
            "kubernetes: {namespace: payments, image: 'registry.example.com/billing:1'}",
            &[1, 5],
        ),
        (
            &format!("kubernetes: {{namespace: payments, imageDigest: '{DIGEST}'}}"),
            &[1, 6],
        ),
        (
            "kubernetes: {namespace: payments, nodeLabels: {zone: a}}",
            &[1],
        ),
        ("container: {name: app}", &[0]),
        ("container: {labels: {tier: back}}", &[7]),
        (&format!("container: {{imageDigest: '{DIGEST}'}}"), &[6]),
        (
            "kubernetes: {namespace: payments}, container: {labels: {tier: back}}",
            &[1, 7],
        ),
    ] {
        let policy = policy(selectors, &facts);
        let known = |container: &Container| {
            // As after another compilation, where it is the first of its kind.
            belongs(&policy, path, container).unwrap_or_else(|| {
                let mut facts = facts.clone();
                facts.containers.insert(path.to_owned(), container.clone());
                let policy = self::policy(selectors, &facts);
                belongs(&policy, path, container).expect("it is known")
            })
        };
        assert!(known(&app()), "{selectors}");
        for (index, other) in others.iter().enumerate() {
            assert_eq!(known(other), !not.contains(&index), "{selectors}: {index}");
        }
    }
    let elsewhere = policy(
        "kubernetes: {namespace: payments, nodeLabels: {zone: b}}",
        &facts,
    );
    assert_eq!(belongs(&elsewhere, path, &app()), Some(false));
}

#[test]
fn a_container_of_a_known_kind_needs_no_compilation() {
    let of_pod = policy("kubernetes: {namespace: payments}", &node());
    assert!(of_pod.asks_for_containers());
    assert_eq!(belongs(&of_pod, "/kubepods/podu1/c1", &app()), Some(true));
    let other = with(|_, pod| pod.namespace = "other".to_owned());
    assert_eq!(belongs(&of_pod, "/kubepods/podu2/c2", &other), Some(false));
    // What two selectors match together has no number before there is one.
    let both = "kubernetes: {namespace: payments}, cgroup: /kubepods";
    let mut facts = node();
    let path = "/kubepods/podu1/c1";
    assert_eq!(belongs(&policy(both, &facts), path, &app()), None);
    facts.containers.insert(path.to_owned(), app());
    assert_eq!(belongs(&policy(both, &facts), path, &app()), Some(true));
    let none = policy("cgroup: /kubepods", &facts);
    assert!(!none.asks_for_containers());
    assert_eq!(belongs(&none, path, &app()), Some(true));
}

/// The program is one of the container: neither one of the host with its path, nor that of other containers.
#[test]
fn a_program_in_a_container_is_its_own() {
    let path = "/kubepods/podu1/c1";
    let pods = "kubernetes: {namespace: payments, container: app}";
    let selectors = format!("executable: {{path: /bin/restic}}, {pods}");
    let asked = |text: &str| {
        let text = format!("workloads: [{{id: w, match: {{{text}}}}}]");
        Contained::of(&bundle(&text).workloads[0].selectors)
    };
    let inside = program(77);
    let mut facts = node();
    facts.containers.insert(path.to_owned(), app());
    let of_others = asked("executable: {path: /bin/restic}, container: {name: app}");
    for contained in [asked(&selectors), of_others]
        .into_iter()
        .flatten()
        .zip([inside, program(78)])
    {
        facts.contained.insert(contained.0, vec![contained.1]);
    }
    assert_eq!(facts.contained.len(), 2);
    assert_eq!(asked("executable: {path: /bin/restic}"), None);
    let policy = policy(&selectors, &facts);
    let identity = policy.identity_of_container(path, &app()).expect("known");
    let belongs = |executable, identity| {
        let task = Task {
            executable,
            identity,
            cgroup: CgroupId(9),
            classified: 1,
            ..Task::default()
        };
        !policy.workloads_of(&task).is_empty()
    };
    assert!(belongs(inside, identity));
    // 1 is the host's of this path.
    for other in [program(1), program(78), ExecutableKey::default()] {
        assert!(!belongs(other, identity), "{other:?}");
    }
    assert!(!belongs(inside, IdentityId(0)));
}
