//! Nodes and the real server, over TLS on a loopback address.

use std::time::Duration;

use super::node::{Node, spool, until};
use super::server::Server;
use enforcer_governance::contract::governance_client::GovernanceClient;
use enforcer_governance::contract::{FetchRequest, Hello};
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("directory")
}

/// How many envelopes the node's bundle was made of: a snapshot, and deltas.
fn chain(node: &std::path::Path) -> usize {
    // It is kept a moment after it is in force.
    let Ok(text) = std::fs::read(node.join("state/bundle.json")) else {
        return 0;
    };
    let chain: Vec<serde_json::Value> = serde_json::from_slice(&text).expect("JSON");
    chain.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_enrolls_and_follows() {
    let place = directory();
    let server = Server::start(place.path(), &["E1"]).await;
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1").await;
    until("a snapshot", || chain(&own), |it| *it == 1).await;

    server.write(&["E1", "E2"]);
    node.until_in_force("E1 E2").await;
    until("a delta", || chain(&own), |it| *it == 2).await;

    server.revoke("E1").await.expect("revoked");
    node.until_in_force("E1! E2").await;
    // What nobody knows cannot be revoked.
    let unknown = server.revoke("E9").await.expect_err("unknown");
    assert!(unknown.message().contains("no such thing"), "{unknown}");
    server.restore("E1").await.expect("restored");
    node.until_in_force("E1 E2").await;

    let mut known = server.knows("n1").await;
    while known.held.clone().unwrap_or_default().bundle_version < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        known = server.knows("n1").await;
    }
    assert!(known.connected && known.active_since.is_some());
    assert_eq!(known.held.unwrap_or_default().revocation_sequence, 1);
    assert_eq!(known.status.unwrap_or_default().state, "enforcing/lsm");
    drop(node);
    until("away", || (), |()| true).await;
    while server.knows("n1").await.connected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let actions = server.lines("audit.jsonl");
    let actions: Vec<_> = actions
        .iter()
        .map(|it| it["action"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(actions, ["token", "enroll", "revoke", "restore"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing() {
    let place = directory();
    let server = Server::start(place.path(), &["E1"]).await;
    let own = server.admit("n1", &[]).await;
    let first = Node::start(&server.place(), "n1", &own, &[]);
    first.until_in_force("E1").await;
    drop(first);

    // The token was for once.
    let again = server.directory.join("again");
    std::fs::create_dir(&again).expect("directory");
    std::fs::copy(own.join("token"), again.join("token")).expect("copied");
    let second = Node::start(&server.place(), "n1", &again, &[]);
    let reason = || second.link.borrow().reason.clone().unwrap_or_default();
    until("refused", reason, |it| {
        it.contains("this token is not good")
    })
    .await;

    // A certificate is for one name.
    let other = server.admit("n2", &[]).await;
    let misnamed = Node::start(&server.place(), "n3", &other, &[]);
    let reason = || misnamed.link.borrow().reason.clone().unwrap_or_default();
    until("refused", reason, |it| it.contains("\"n2\"")).await;
    drop(misnamed);
    std::fs::create_dir_all(server.directory.join("n4/state")).expect("directory");
    for file in ["node.key", "node.pem"] {
        let to = server.directory.join("n4/state").join(file);
        std::fs::copy(own.join("state").join(file), to).expect("copied");
    }
    let stolen = Node::start(&server.place(), "n4", &server.directory.join("n4"), &[]);
    let reason = || stolen.link.borrow().reason.clone().unwrap_or_default();
    until("refused", reason, |it| {
        it.contains("its certificate says \"n1\"")
    })
    .await;
    assert_eq!(
        (second.in_force(), stolen.in_force()),
        (String::new(), String::new())
    );

    // And without one there is nothing but enrolling.
    let authority = std::fs::read(server.place().authority).expect("there");
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    let endpoint = Endpoint::from_shared(server.place().url).expect("a URL");
    let channel = endpoint.tls_config(tls).expect("TLS").connect().await;
    let request = FetchRequest {
        hello: Some(Hello {
            node: "n1".to_owned(),
            ..Hello::default()
        }),
        ..FetchRequest::default()
    };
    let fetched = GovernanceClient::new(channel.expect("connected"))
        .fetch(request)
        .await;
    assert_eq!(fetched.expect_err("refused").code(), Code::Unauthenticated);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_gets_what_concerns_it() {
    let place = directory();
    let server = Server::start(place.path(), &["E1", "E2: nodes: {zone: far}"]).await;
    let near = server.admit("near", &[("zone", "near")]).await;
    let far = server.admit("far", &[("zone", "far")]).await;
    let liar = server.admit("liar", &[("zone", "near")]).await;
    let near = Node::start(&server.place(), "near", &near, &[("zone", "near")]);
    let far = Node::start(&server.place(), "far", &far, &[("zone", "far")]);
    let liar = Node::start(&server.place(), "liar", &liar, &[("zone", "far")]);
    near.until_in_force("E1").await;
    far.until_in_force("E1 E2").await;
    let reason = || liar.link.borrow().reason.clone().unwrap_or_default();
    until("refused", reason, |it| it.contains("enrolled with")).await;
    assert_eq!(liar.in_force(), "");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_and_told() {
    let place = directory();
    let server = Server::start(place.path(), &["E1"]).await;
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1").await;
    node.does_not_take("E2");
    server.write(&["E1", "E2"]);
    node.until_refused("does not fit").await;
    assert_eq!(node.in_force(), "E1");
    while server.knows("n1").await.refusal.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let known = server.knows("n1").await;
    assert!(known.refusal.contains("does not fit"), "{known:?}");
    assert_eq!(known.held.unwrap_or_default().bundle_version, 1);
    // A mistake in the documents changes nothing, and the next good version is taken.
    server.write(&["E1", "E1"]);
    server.write(&["E1", "E3"]);
    node.until_in_force("E1 E3").await;
    assert_eq!(node.seen().refusals.len(), 1, "{:?}", node.seen().refusals);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entitlements_are_granted_for_a_time() {
    let place = directory();
    let entitlements = [
        "E1",
        "E2: activation: on-request",
        "E3: activation: break-glass",
    ];
    let server = Server::start(place.path(), &entitlements).await;
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1").await;
    for (id, seconds, ticket, words) in [
        ("E1", 60, "", "in force by itself"),
        ("E9", 60, "", "no entitlement"),
        ("E2", 0, "", "more than nothing"),
        ("E2", 90_000, "", "at most"),
        ("E3", 60, "", "a ticket is needed"),
    ] {
        let refused = server.grant(id, seconds, ticket).await.expect_err(id);
        assert!(refused.message().contains(words), "{refused}");
    }
    server.grant("E2", 60, "").await.expect("granted");
    node.until_in_force("E1 E2").await;
    let bundle = node.seen().bundle.expect("a bundle");
    let granted = &bundle.entitlements[1];
    let (from, until_then) = (
        granted.valid_from.expect("set"),
        granted.valid_until.expect("set"),
    );
    assert_eq!((until_then - from).get_seconds(), 60);
    assert_eq!(granted.on_stale, Some(enforcer_bundle::OnStale::Deny));

    server.grant("E3", 1, "INC-7").await.expect("granted");
    node.until_in_force("E1 E2 E3").await;
    let approval = node.seen().bundle.expect("a bundle").entitlements[2]
        .approval
        .clone();
    assert_eq!(
        approval.unwrap_or_default().ticket.as_deref(),
        Some("INC-7")
    );
    node.until_in_force("E1 E2").await;
    let findings = server.lines("findings.jsonl");
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0]["what"]["ticket"], "INC-7");
    server.revoke("E2").await.expect("revoked");
    node.until_in_force("E1 E2!").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_either_loses_nothing() {
    let place = directory();
    let server = Server::start(place.path(), &["E1", "E2"]).await;
    let address = server.address.to_string();
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1 E2").await;
    server.revoke("E2").await.expect("revoked");
    node.until_in_force("E1 E2!").await;
    // It is acknowledged when it is on disk.
    while server
        .knows("n1")
        .await
        .held
        .unwrap_or_default()
        .revocation_sequence
        < 1
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let place_of_server = server.place();
    drop(node);
    server.stop().await;
    // Without the server: what was in force.
    let node = Node::start(&place_of_server, "n1", &own, &[]);
    assert_eq!(node.in_force(), "E1 E2!");
    let away = || node.link.borrow().clone();
    until("away", away, |it| !it.connected && it.reason.is_some()).await;
    let more: &[&str] = &["E1", "E2", "E3"];
    let server = Server::start_at(place.path(), &address, Some(more))
        .await
        .expect("started");
    // The server knows that E2 is revoked; the node catches up by a delta.
    node.until_in_force("E1 E2! E3").await;
    until("a delta", || chain(&own), |it| *it == 2).await;
    drop(node);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_arrives_once() {
    let place = directory();
    let server = Server::start(place.path(), &["E1"]).await;
    let own = server.admit("n1", &[]).await;
    let mut spool = spool(&own);
    let mut append = |number: u64| {
        let record = format!("{{\"number\":{number}}}");
        assert!(spool.append(&record).expect("written"));
    };
    (1..=2500).for_each(&mut append);
    let directory = own.clone();
    let spool_reader = spool.reader();
    let node = Node::with_evidence(&server.place(), "n1", &own, &[], Some(spool_reader.clone()));
    let stored = || node.link.borrow().evidence_stored;
    until("stored", stored, |it| *it == 2500).await;
    drop(node);
    // A receipt that was lost: everything comes again.
    std::fs::remove_file(directory.join("evidence/stored")).expect("removed");
    for number in 2501..=2600 {
        spool
            .append(&format!("{{\"number\":{number}}}"))
            .expect("written");
    }
    let node = Node::with_evidence(&server.place(), "n1", &own, &[], Some(spool_reader));
    let stored = || node.link.borrow().evidence_stored;
    until("stored", stored, |it| *it == 2600).await;
    let epoch = spool.reader().epoch().to_owned();
    let lines = server.lines(&format!("evidence/n1/{epoch}-1.jsonl"));
    let numbers: Vec<u64> = lines
        .iter()
        .filter_map(|it| it["number"].as_u64())
        .collect();
    assert_eq!(numbers, (1..=2600).collect::<Vec<_>>());
    assert_eq!(server.knows("n1").await.evidence_stored, 2600);
    drop(node);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_revocations_become_a_version() {
    let place = directory();
    let server = Server::start(place.path(), &["E1", "E2"]).await;
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1 E2").await;
    for _ in 0..260 {
        server.revoke("E1").await.expect("revoked");
    }
    while server
        .knows("n1")
        .await
        .held
        .unwrap_or_default()
        .revocation_sequence
        < 260
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.until_in_force("E1! E2").await;
    let held = server.knows("n1").await.held.unwrap_or_default();
    assert_eq!((held.bundle_version, held.revocation_sequence), (2, 260));
    // A node that comes now needs four of them, and knows of all.
    let own = server.admit("n2", &[]).await;
    let late = Node::start(&server.place(), "n2", &own, &[]);
    late.until_in_force("E1! E2").await;
    let kept = || {
        let text = std::fs::read(own.join("state/state.json")).unwrap_or_default();
        let kept: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        kept["rest"].as_array().map_or(0, Vec::len)
    };
    until("four revocations and a freshness statement", kept, |it| {
        *it == 5
    })
    .await;
    server.stop().await;
}
