//! Several servers with one store: real nats-servers, and nodes that turn from one server to another.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::RawMessageErrorKind;
use enforcer_governance::contract;
use enforcer_governance::server::NatsLocation;
use enforcer_governance::statement::Target;
use nkeys::KeyPair;
use tonic_health::pb::health_check_response::ServingStatus;

use super::bus::Bus;
use super::guard;
use super::node::{Node, Place, append, journal, until, until_told};
use super::office::Office;
use super::server::{Server, documents};

/// What each server of a fleet has to be given.
const SECRETS: [&str; 4] = ["trust.json", "ca.pem", "ca.key", "governance.key"];

/// The first server's directory, with documents, and others' with its secrets.
async fn fleet(place: &Path, bus: &Bus, count: usize, entitlements: &[&str]) -> Vec<Server> {
    let directory = |number: usize| place.join(format!("server-{number}"));
    std::fs::create_dir_all(directory(0).join("documents")).expect("directory");
    let text = documents(entitlements);
    std::fs::write(directory(0).join("documents/bundle.yaml"), text).expect("written");
    let mut servers = Vec::new();
    for number in 0..count {
        if number > 0 {
            give_secrets(&directory(0), &directory(number));
        }
        let server = Server::start_on(&directory(number), &bus.location()).await;
        servers.push(server.expect("started"));
    }
    servers
}

fn give_secrets(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("server")).expect("directory");
    for name in SECRETS {
        let name = format!("server/{name}");
        std::fs::copy(from.join(&name), to.join(&name)).expect("copied");
    }
}

/// The servers as a node has them, beginning with one of them.
fn place(servers: &[Server], first: usize) -> Place {
    let mut urls: Vec<String> = servers.iter().map(|it| it.place().url).collect();
    urls.rotate_left(first);
    Place {
        url: urls.remove(0),
        others: urls,
        ..servers[0].place()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_can_ask_for_tls_and_credentials() {
    let own = tempfile::tempdir().expect("directory");
    let bus = Bus::start_guarded();
    let location = bus.location();
    let servers = fleet(own.path(), &bus, 2, &["E1"]).await;
    let admitted = servers[0].admit("n1", &[]).await;
    let node = Node::start(&servers[1].place(), "n1", &admitted, &[]);
    node.until_in_force("E1").await;
    servers[0].revoke("E1").await.expect("revoked");
    node.until_in_force("E1!").await;

    let stranger = own.path().join("stranger.creds");
    guard::credentials(&stranger, &KeyPair::new_account());
    let other = own.path().join("other");
    give_secrets(&servers[0].directory, &other);
    let refused = async |location: NatsLocation| {
        let refused = Server::start_on(&other, &location).await;
        refused.err().expect("refused")
    };
    let without_authority = NatsLocation {
        authority: None,
        ..location.clone()
    };
    let reason = refused(without_authority).await;
    assert!(reason.contains("UnknownIssuer"), "{reason}");
    for credentials in [None, Some(stranger)] {
        let strange = NatsLocation {
            credentials,
            ..location.clone()
        };
        let reason = refused(strange).await;
        assert!(reason.contains("authorization"), "{reason}");
    }
    for server in servers {
        server.stop().await;
    }
}

/// Waits until this is what is stored of a node's evidence, in order. The stream's leader is asked: a consumer may be on
/// a server that has just come back and does not have everything yet.
async fn until_stored(bus: &Bus, node: &str, expected: impl Iterator<Item = u64>) {
    let expected: Vec<u64> = expected.collect();
    let context = connected(bus).await;
    let subject = format!("enforcer.evidence.{node}.*");
    let stored = async || {
        let stream = context.get_stream("ENFORCER_EVIDENCE").await;
        let stream = stream.map_err(|error| error.to_string())?;
        let mut records = Vec::new();
        let mut from = 1;
        loop {
            let next = stream
                .get_first_raw_message_by_subject(&subject, from)
                .await;
            let message = match next {
                Ok(message) => message,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    return Ok(records);
                }
                Err(error) => return Err(error.to_string()),
            };
            let lines = std::str::from_utf8(&message.payload).expect("lines");
            let number = |line: &str| {
                let record: serde_json::Value = serde_json::from_str(line).expect("a record");
                record["number"].as_u64().expect("a number")
            };
            records.extend(lines.lines().map(number));
            from = message.sequence + 1;
        }
    };
    let what = format!("the evidence of {node}");
    let there = until_told(&what, stored, |it| it.as_ref() == Ok(&expected)).await;
    assert_eq!(there, Ok(expected));
}

async fn connected(bus: &Bus) -> jetstream::Context {
    let urls: Vec<String> = bus.location().url.split(',').map(str::to_owned).collect();
    jetstream::new(async_nats::connect(urls).await.expect("connected"))
}

/// Until it is done at last: a cluster elects leaders after one has died, and who comes back must catch up before the
/// next one's death leaves a majority.
async fn at_last<T: std::fmt::Debug, E: std::fmt::Debug>(
    what: &str,
    act: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let done = until_told(what, act, Result::is_ok).await;
    done.expect(what)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_server_serves_any_node() {
    let own = tempfile::tempdir().expect("directory");
    let bus = Bus::start(1);
    let servers = fleet(own.path(), &bus, 2, &["E1", "E2: activation: on-request"]).await;
    let [first, second] = servers.as_slice() else {
        panic!("two servers");
    };
    // A token of the one is good at the other, once.
    let admitted = first.admit("n.1", &[("zone", "a")]).await;
    let mut evidence_of = journal(&admitted);
    let node = Node::with_evidence(
        &place(&servers, 1),
        "n.1",
        &admitted,
        &[("zone", "a")],
        Some(evidence_of.reader()),
    );
    node.until_in_force("E1").await;
    let again = own.path().join("again");
    std::fs::create_dir(&again).expect("directory");
    std::fs::copy(admitted.join("token"), again.join("token")).expect("copied");
    let late = Node::start(&place(&servers, 0), "n.1", &again, &[("zone", "a")]);
    let reason = || late.link.borrow().reason.clone().unwrap_or_default();
    until("refused", reason, |it| {
        it.contains("this token is not good")
    })
    .await;
    drop(late);

    // What is done at the one counts at the other.
    first.revoke("E1").await.expect("revoked");
    node.until_in_force("E1!").await;
    first.grant("E2", 600, "").await.expect("granted");
    node.until_in_force("E1! E2").await;
    second.restore("E1").await.expect("restored");
    node.until_in_force("E1 E2").await;
    first.write(&["E1", "E2: activation: on-request", "E3"]);
    node.until_in_force("E1 E2 E3").await;
    // Who has the documents need not be there.
    let mut servers = servers;
    let first = servers.remove(0);
    let directory = first.directory.clone();
    first.stop().await;
    servers[0].revoke("E3").await.expect("revoked");
    node.until_in_force("E1 E2 E3!").await;

    append(&mut evidence_of, 1..=2500);
    let stored = || node.link.borrow().evidence_stored;
    until("stored", stored, |it| *it == 2500).await;
    until_stored(&bus, "n~1", 1..=2500).await;

    // It comes back and knows everything, also of the node that it has not seen.
    let first = Server::start_on(&directory, &bus.location()).await;
    let first = first.expect("started");
    let known = |it: &contract::Node| it.connected && it.evidence_stored == 2500;
    first.until_knows("n.1", known).await;
    first.revoke("E2").await.expect("revoked");
    node.until_in_force("E1 E2! E3!").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_act_at_once_lose_nothing() {
    let own = tempfile::tempdir().expect("directory");
    let bus = Bus::start(1);
    let ids: Vec<String> = (0..40).map(|number| format!("E{number:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let on_request: Vec<String> = (ids.iter().enumerate())
        .map(|(number, id)| match number % 4 {
            // No more than four for the same workload and credential.
            _ if number < 4 => (*id).to_owned(),
            _ => format!("{id}: activation: on-request"),
        })
        .collect();
    let on_request: Vec<&str> = on_request.iter().map(String::as_str).collect();
    let servers = Arc::new(fleet(own.path(), &bus, 3, &on_request[..4]).await);
    let admitted = servers[0].admit("n1", &[]).await;
    let node = Node::start(&place(&servers, 2), "n1", &admitted, &[]);
    node.until_in_force("E00 E01 E02 E03").await;
    let mut acting = tokio::task::JoinSet::new();
    for (number, id) in (0..24).map(|number| (number, ids[number % 4].to_owned())) {
        let servers = servers.clone();
        acting.spawn(async move {
            let done = servers[number % 3].revoke(&id).await.expect("revoked");
            done.revocation_sequence
        });
    }
    let mut numbers = BTreeSet::new();
    while let Some(number) = acting.join_next().await {
        numbers.insert(number.expect("done"));
    }
    // Each got a number of its own, and none is missing.
    assert_eq!(numbers, (1..=24).collect());
    node.until_in_force("E00! E01! E02! E03!").await;
    let sequence = || node.link.borrow().revocation_sequence;
    until("all of them", sequence, |it| *it == 24).await;

    let mut acting = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (servers, id) = (servers.clone(), ids[number].to_owned());
        acting.spawn(async move {
            let done = servers[number % 3].restore(&id).await.expect("restored");
            done.bundle_version
        });
    }
    let mut versions = BTreeSet::new();
    while let Some(version) = acting.join_next().await {
        versions.insert(version.expect("done"));
    }
    assert!(versions.len() > 1, "{versions:?}");
    node.until_in_force("E00 E01 E02 E03").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_and_a_part_of_nats_may_die() {
    let own = tempfile::tempdir().expect("directory");
    let mut bus = Bus::start(3);
    let mut servers = fleet(own.path(), &bus, 3, &["E1", "E2", "E3"]).await;
    let mut nodes = Vec::new();
    for number in 0..6 {
        let name = format!("n{number}");
        let admitted = servers[number % 3].admit(&name, &[]).await;
        let kept = journal(&admitted);
        let place = place(&servers, number % 3);
        let node = Node::with_evidence(&place, &name, &admitted, &[], Some(kept.reader()));
        nodes.push((node, kept, name));
    }
    for (node, ..) in &nodes {
        node.until_in_force("E1 E2 E3").await;
    }
    for killed in 0..3 {
        let id = format!("E{}", killed + 1);
        // Records come all the while.
        for (_, kept, _) in &mut nodes {
            let before = killed as u64 * 100;
            append(kept, before + 1..=before + 100);
        }
        bus.kill(killed);
        if killed == 1 {
            servers.remove(1).stop().await;
        }
        let revoked = async || servers[0].revoke(&id).await;
        at_last("the revocation", revoked).await;
        for (node, ..) in &nodes {
            let taken = format!("{id}!");
            until("revoked", || node.in_force(), |it| it.contains(&taken)).await;
        }
        bus.run(killed);
        bus.until_current(killed).await;
    }
    for (node, _, name) in &nodes {
        let stored = || node.link.borrow().evidence_stored;
        until("stored", stored, |it| *it == 300).await;
        until_stored(&bus, name, 1..=300).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_its_store_serves_nobody() {
    let own = tempfile::tempdir().expect("directory");
    let mut bus = Bus::start(1);
    let servers = fleet(own.path(), &bus, 1, &["E1"]).await;
    let admitted = servers[0].admit("n1", &[]).await;
    let node = Node::start(&servers[0].place(), "n1", &admitted, &[]);
    node.until_in_force("E1").await;
    assert_eq!(servers[0].health().await, [ServingStatus::Serving; 2]);
    bus.kill(0);
    let reason = || node.link.borrow().reason.clone().unwrap_or_default();
    until("sent away", reason, |it| {
        it.contains("does not reach its store")
    })
    .await;
    assert_eq!(servers[0].health().await, [ServingStatus::NotServing; 2]);
    // The node keeps what it has, and nothing can be taken back now: that is said, not promised.
    node.until_in_force("E1").await;
    let refused = servers[0].revoke("E1").await.expect_err("refused");
    assert!(refused.message().contains("NATS at"), "{refused}");
    bus.run(0);
    at_last("the revocation", async || servers[0].revoke("E1").await).await;
    node.until_in_force("E1!").await;
    let health = async || servers[0].health().await;
    let serving = [ServingStatus::Serving; 2];
    until_told("healthy", health, |it| *it == serving).await;
}

/// Somebody who can write to the bus.
struct Intruder(jetstream::Context);

impl Intruder {
    async fn put(&self, subject: &str, payload: Vec<u8>) {
        let acknowledged = self.0.publish(subject.to_owned(), payload.into()).await;
        acknowledged.expect("sent").await.expect("stored");
    }

    async fn get(&self, stream: &str, subject: &str) -> Vec<u8> {
        let stream = self.0.get_stream(stream).await.expect("the stream");
        let message = stream.get_last_raw_message_by_subject(subject).await;
        message.expect("a message").payload.to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_is_not_believed() {
    let own = tempfile::tempdir().expect("directory");
    let bus = Bus::start(1);
    let servers = fleet(own.path(), &bus, 2, &["E1"]).await;
    let intruder = Intruder(connected(&bus).await);
    let head = "$KV.enforcer_bundles.head";
    let older = intruder.get("KV_enforcer_bundles", head).await;
    servers[0].write(&["E1", "E2"]);
    let admitted = servers[0].admit("n1", &[]).await;
    let node = Node::start(&place(&servers, 1), "n1", &admitted, &[]);
    node.until_in_force("E1 E2").await;

    // Signed by somebody else, from before, and not at all.
    let stranger = Office::new(9).revocation(1, &[Target::Entitlement("E1".to_owned())]);
    let stranger = serde_json::to_vec(&stranger).expect("JSON");
    for forged in [stranger.clone(), older, b"{}".to_vec()] {
        intruder.put(head, forged).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.until_in_force("E1 E2").await;
    // Whoever starts anew does not believe it either.
    let third = own.path().join("server-2");
    give_secrets(&servers[0].directory, &third);
    let refused = Server::start_on(&third, &bus.location()).await;
    let reason = refused.err().expect("refused");
    assert!(reason.contains("was not written by"), "{reason}");

    // A revocation of a stranger's ends the servers' trust in the list, and is not handed on.
    intruder.put("enforcer.revocations.issued", stranger).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.until_in_force("E1 E2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_another_fleet_are_refused() {
    let own = tempfile::tempdir().expect("directory");
    let bus = Bus::start(1);
    let servers = fleet(own.path(), &bus, 1, &["E1"]).await;
    let other = own.path().join("other");
    std::fs::create_dir_all(other.join("documents")).expect("directory");
    let bundle = other.join("documents/bundle.yaml");
    std::fs::write(bundle, documents(&["E9"])).expect("written");
    let refused = Server::start_on(&other, &bus.location()).await;
    let reason = refused.err().expect("refused");
    assert!(reason.contains("was not written by"), "{reason}");
    let nothing: PathBuf = own.path().join("nothing");
    let refused = Server::start_on(&nothing, &bus.location()).await;
    let reason = refused.err().expect("refused");
    assert!(reason.contains("trust.json"), "{reason}");
    servers[0].revoke("E1").await.expect("revoked");
}
