//! Nodes and the real server, over TLS on a loopback address.

use super::node::{Node, append, journal, until};
use super::server::Server;
use enforcer_governance::contract::evidence_client::EvidenceClient;
use enforcer_governance::contract::governance_client::GovernanceClient;
use enforcer_governance::contract::{
    self, EvidenceBatch, FetchRequest, Hello, NodeMessage, node_message,
};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use x509_parser::pem::parse_x509_pem;

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

    let version = |node: &contract::Node| node.held.as_ref().map_or(0, |it| it.bundle_version);
    let known = server.until_knows("n1", |node| version(node) >= 3).await;
    assert!(known.connected && known.active_since.is_some());
    assert_eq!(known.held.unwrap_or_default().revocation_sequence, 1);
    assert_eq!(known.status.unwrap_or_default().state, "enforcing/lsm");
    drop(node);
    server.until_knows("n1", |node| !node.connected).await;
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
    let channel = server.endpoint(None).connect().await;
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

/// A certificate of the server's authority that is good from one day (after today) until another, with its key.
fn certificate(server: &Server, name: &str, days: [i64; 2]) -> (String, String) {
    let read = |file| std::fs::read_to_string(server.directory.join("server").join(file));
    let authority_key = KeyPair::from_pem(&read("ca.key").expect("there")).expect("a key");
    let authority = read("ca.pem").expect("there");
    let issuer = Issuer::from_ca_cert_pem(&authority, authority_key).expect("an authority");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let day = |days: i64| {
        let day = Timestamp::now() + SignedDuration::from_hours(24 * days);
        let day = day.to_zoned(TimeZone::UTC).date();
        rcgen::date_time_ymd(day.year().into(), day.month() as u8, day.day() as u8)
    };
    [params.not_before, params.not_after] = days.map(day);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_ended_is_none() {
    let place = directory();
    let server = Server::start(place.path(), &["E1"]).await;
    let own = server.admit("n1", &[]).await;
    let (certificate, key) = certificate(&server, "n1", [-60, -30]);
    let kept = own.join("state/node.pem");
    std::fs::create_dir(own.join("state")).expect("directory");
    std::fs::write(&kept, &certificate).expect("written");
    std::fs::write(own.join("state/node.key"), &key).expect("written");

    let token = std::fs::read(own.join("token")).expect("there");
    std::fs::remove_file(own.join("token")).expect("removed");
    let node = Node::start(&server.place(), "n1", &own, &[]);
    let reason = || node.link.borrow().reason.clone().unwrap_or_default();
    until("a reason", reason, |it| {
        it.contains("ended at ") && it.contains("`enforcer governance token`")
    })
    .await;
    assert_eq!(node.in_force(), "");
    // A token is found when it is tried again.
    std::fs::write(own.join("token"), token).expect("written");
    node.until_in_force("E1").await;
    assert_ne!(std::fs::read_to_string(&kept).expect("there"), certificate);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_when_half_of_its_time_is_over() {
    let place = directory();
    let server = Server::start(place.path(), &["E1: nodes: {zone: near}"]).await;
    let zone = [("zone", "near")];
    let own = server.admit("n1", &zone).await;
    // A connection comes after the renewal.
    let connect = async || {
        let node = Node::start(&server.place(), "n1", &own, &zone);
        until("connected", || node.link.borrow().connected, |it| *it).await;
    };
    let [kept, kept_key] = ["node.pem", "node.key"].map(|file| own.join("state").join(file));
    let read = |path| std::fs::read_to_string(path).expect("there");
    connect().await;
    // The token was for once: from now on there is only the certificate.
    std::fs::remove_file(own.join("token")).expect("removed");
    for (days, renewed) in [([-14, 17], false), ([-17, 14], true)] {
        let (certificate, key) = certificate(&server, "n1", days);
        std::fs::write(&kept, &certificate).expect("written");
        std::fs::write(&kept_key, &key).expect("written");
        connect().await;
        assert_eq!(read(&kept) != certificate, renewed);
        assert_eq!(read(&kept_key) != key, renewed);
    }
    let text = read(&kept);
    let (_, pem) = parse_x509_pem(text.as_bytes()).expect("PEM");
    let new = pem.parse_x509().expect("a certificate");
    let end = Timestamp::from_second(new.validity().not_after.timestamp()).expect("a moment");
    assert!(end > Timestamp::now() + SignedDuration::from_hours(24 * 29));
    // It is good, and for who it was.
    let node = Node::start(&server.place(), "n1", &own, &zone);
    node.until_in_force("E1").await;
    let audit = server.lines("audit.jsonl");
    let enrolled: Vec<_> = audit.iter().filter(|it| it["action"] == "enroll").collect();
    assert_eq!(enrolled.len(), 2);
    for enrolled in enrolled {
        let expected = json!({"node": "n1", "labels": {"zone": "near"}});
        assert_eq!(enrolled["what"], expected);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_an_authority_that_is_named_are_good() {
    let place = directory();
    let authority = || {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signed").pem();
        (certificate, Issuer::new(params, key))
    };
    let [(named, known), (_, unknown)] = [authority(), authority()];
    let file = place.path().join("nodes.pem");
    std::fs::write(&file, named).expect("written");
    let server = Server::start_trusting(place.path(), &file, &["E1"]).await;
    let node = |name: &str, issuer: &Issuer<'_, KeyPair>| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, issuer).expect("signed");
        let own = place.path().join(name);
        std::fs::create_dir_all(own.join("state")).expect("directory");
        std::fs::write(own.join("state/node.pem"), certificate.pem()).expect("written");
        std::fs::write(own.join("state/node.key"), key.serialize_pem()).expect("written");
        Node::start(&server.place(), name, &own, &[])
    };
    let (own, strange) = (node("own", &known), node("strange", &unknown));
    own.until_in_force("E1").await;
    let reason = || strange.link.borrow().reason.clone();
    until("refused", reason, Option::is_some).await;
    assert_eq!(strange.in_force(), "");
    assert_eq!(server.knows("strange").await, contract::Node::default());
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
    let known = server
        .until_knows("n1", |node| !node.refusal.is_empty())
        .await;
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
    // Nobody waits for the finding before nodes are told.
    let findings = || server.lines("findings.jsonl");
    until("a finding", findings, |found| !found.is_empty()).await;
    assert_eq!(findings().len(), 1);
    assert_eq!(findings()[0]["what"]["ticket"], "INC-7");
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
    server.until_acknowledged("n1", 1).await;
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
    let mut journal = journal(&own);
    append(&mut journal, 1..=2500);
    let reader = journal.reader();
    let node = Node::with_evidence(&server.place(), "n1", &own, &[], Some(reader.clone()));
    let stored = || node.link.borrow().evidence_stored;
    until("stored", stored, |it| *it == 2500).await;
    drop(node);
    // A receipt that was lost: everything comes again.
    std::fs::remove_file(own.join("log/cursors/governance")).expect("removed");
    append(&mut journal, 2501..=2600);
    let node = Node::with_evidence(&server.place(), "n1", &own, &[], Some(reader));
    let stored = || node.link.borrow().evidence_stored;
    until("stored", stored, |it| *it == 2600).await;
    let epoch = journal.head().epoch;
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
async fn evidence_that_cannot_be_written_is_to_come_later() {
    let place = directory();
    let server = Server::start(place.path(), &["E1"]).await;
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1").await;
    drop(node);
    let mut service = EvidenceClient::new(server.connect_as(&own).await);
    let (batches, requests) = mpsc::channel(1);
    let receipts = service.report(ReceiverStream::new(requests)).await;
    let mut receipts = receipts.expect("answered").into_inner();
    let mut report = async |first, count| {
        let batch = EvidenceBatch {
            epoch: "0".repeat(32),
            first,
            records: vec![b"{}".to_vec(); count],
        };
        batches.send(batch).await.expect("sent");
        let receipt = receipts.message().await.expect("heard").expect("a receipt");
        (receipt.stored, receipt.retry_after.is_some())
    };
    // No directory can take the place of a file.
    let kept = place.path().join("server/evidence");
    std::fs::write(&kept, "").expect("written");
    assert_eq!(report(1, 2).await, (0, true));
    assert_eq!(report(1, 2).await, (0, true));
    // It is the same stream still, and nothing of it is lost.
    std::fs::remove_file(&kept).expect("removed");
    assert_eq!(report(1, 2).await, (2, false));
    assert_eq!(report(3, 1).await, (3, false));
    let lines = server.lines(&format!("evidence/n1/{}-1.jsonl", "0".repeat(32)));
    assert_eq!(lines.len(), 3);
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
    server.until_acknowledged("n1", 260).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_says_when_to_come_back() {
    let place = directory();
    let server = Server::start(place.path(), &["E1"]).await;
    let own = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &own, &[]);
    node.until_in_force("E1").await;
    drop(node);

    let channel = server.connect_as(&own).await;
    let hello = node_message::Message::Hello(Hello {
        node: "n1".to_owned(),
        ..Hello::default()
    });
    let hello = NodeMessage {
        message: Some(hello),
    };
    let requests = tokio_stream::once(hello).chain(tokio_stream::pending());
    let mut service = GovernanceClient::new(channel);
    let stream = service.sync(requests).await;
    let mut stream = stream.expect("answered").into_inner();
    let first = stream.message().await.expect("heard").expect("a message");
    assert_eq!(first.retry_after, None);
    let asked = async move {
        loop {
            let heard = stream.message().await.expect("heard");
            let heard = heard.expect("a word before the end");
            if heard.retry_after.is_some() {
                break;
            }
        }
    };
    tokio::join!(asked, server.stop());
}
