//! Recommendations and replays where workloads are pods.

use enforcer::bundle::parse;
use enforcer::replay::{Recorded, replay};
use enforcer::usage::{OfPod, Place, Row, document, recommend};
use serde_json::{Value, json};

use super::{BODY, bundle, ledger, parts, reach, read, seen};

/// What was seen of the containers of two deployments, of one of Docker's, and of one that nothing said anything of.
fn observed() -> [Row; 5] {
    let of = |label: &str, container: &str| {
        Place::Pod(OfPod {
            namespace: "shop".to_owned(),
            service_account: Some("billing".to_owned()),
            labels: [("app".to_owned(), label.to_owned())].into(),
            container: container.to_owned(),
        })
    };
    [
        (read(), of("billing", "main")),
        (reach("192.0.2.9", 443, None), of("billing", "main")),
        (read(), of("report", "report")),
        (read(), Place::Named("cache".to_owned())),
        (read(), Place::Container),
    ]
    .map(|(row, place)| Row {
        workload: None,
        entitlement: None,
        reason: Some("unclassified-workload".to_owned()),
        monitored: true,
        // A path within the container says nothing outside of it.
        executable: "app".to_owned(),
        place,
        ..row
    })
}

#[test]
fn pods_are_recommended_by_what_makes_them_what_they_are() {
    let mut ledger = ledger();
    for row in observed() {
        ledger.add(&row, seen(1));
    }
    let recommended = recommend(&bundle(BODY), &ledger);
    let new = parts(BODY).changed(&recommended.change);
    let text = document::yaml(&new.document(&json!({"issuer": "test", "version": 4})));
    let new = match parse(&[("recommended.yaml".into(), text.clone())]) {
        Ok(new) => new,
        Err(mistakes) => panic!("{mistakes}\n{text}"),
    };
    let workloads: Vec<_> = new.workloads.iter().map(|it| it.id.as_str()).collect();
    let expected = ["app", "cache", "shop-billing-main", "shop-report", "web"];
    assert_eq!(workloads, expected);
    let kubernetes = new.workloads[2].selectors.kubernetes.as_ref();
    let kubernetes = kubernetes.expect("a pod");
    assert_eq!(kubernetes.namespace, "shop");
    assert_eq!(kubernetes.service_account.as_deref(), Some("billing"));
    assert_eq!(kubernetes.pod_labels["app"], "billing");
    assert_eq!(kubernetes.container.as_deref(), Some("main"));
    let cache = new.workloads[1].selectors.container.as_ref();
    assert_eq!(cache.and_then(|it| it.name.as_deref()), Some("cache"));
    assert_eq!(recommended.left_out.len(), 1, "{recommended:?}");
    assert!(text.contains("192.0.2.9"), "{text}");
}

fn event(instance: &Value) -> Recorded {
    let line = json!({
        "time": "2026-11-20T10:00:00Z", "kind": "read", "verdict": "allow", "reason": null,
        "mode": {"requested": "enforce", "effective": "enforce"},
        "credential": "key", "workload": null, "instance": instance,
        "process": {"pid": 10, "uid": 0, "exe": "/app", "cgroup": 5},
    });
    Recorded::parse(&line.to_string()).expect("a use")
}

/// An event in a pod of billing.
fn in_pod() -> Value {
    json!({
        "cgroup": "/kubepods.slice/kubepods-podaa.slice/cri-containerd-0a.scope",
        "pod": {
            "namespace": "shop", "name": "billing-1", "uid": "aa", "serviceAccount": "billing",
            "labels": {"app": "billing", "tier": "back"},
        },
        "container": {"id": "0a", "name": "main", "image": "shop/billing:3@sha256:00"},
    })
}

/// How many of two uses in that pod `selectors` would still allow: one of its container, and one of `other`.
fn allowed(selectors: &str, other: &Value) -> u64 {
    let workload = format!("{{id: app, match: {{{selectors}}}}}");
    let body = BODY.replace(
        "{id: app, match: {executable: {path: /opt/app}}}",
        &workload,
    );
    assert!(body.contains(&workload));
    let replayed = replay(&bundle(&body), &[event(&in_pod()), event(other)]).expect("compiles");
    replayed.same
}

#[test]
fn a_replay_knows_pods_by_what_records_say() {
    for (selectors, field, value) in [
        ("namespace: shop", "/pod/namespace", json!("test")),
        (
            "namespace: shop, serviceAccount: billing",
            "/pod/serviceAccount",
            json!("default"),
        ),
        (
            "namespace: shop, podLabels: {app: billing}",
            "/pod/labels/app",
            json!("other"),
        ),
        (
            "namespace: shop, container: main",
            "/container/name",
            json!("sidecar"),
        ),
        (
            "namespace: shop, image: 'shop/billing:3'",
            "/container/image",
            json!("shop/billing:4"),
        ),
    ] {
        let mut other = in_pod();
        other["cgroup"] = json!("/kubepods.slice/kubepods-podaa.slice/cri-containerd-0b.scope");
        other["container"]["id"] = json!("0b");
        let selectors = format!("kubernetes: {{{selectors}}}");
        assert_eq!(allowed(&selectors, &other), 2, "{selectors}");
        *other.pointer_mut(field).expect("a field") = value;
        assert_eq!(allowed(&selectors, &other), 1, "{selectors}");
    }
}

#[test]
fn a_replay_knows_other_containers_by_name_and_labels() {
    let named = |name: &str, label: &str| {
        json!({
            "cgroup": format!("/system.slice/docker-{name}.scope"),
            "container": {"id": name, "name": name, "labels": {"team": label}},
        })
    };
    for (selectors, same) in [
        ("container: {name: cache}", 1),
        ("container: {labels: {team: a}}", 1),
        ("container: {labels: {team: b}}", 0),
    ] {
        assert_eq!(
            allowed(selectors, &named("cache", "a")),
            same,
            "{selectors}"
        );
    }
}
