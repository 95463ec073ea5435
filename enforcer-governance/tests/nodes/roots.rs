//! Trust roots that follow the first one, put beside a server that runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use enforcer_governance::contract;
use enforcer_governance::envelope::Envelope;
use enforcer_governance::keys::SigningKey;
use enforcer_governance::server::NatsLocation;
use enforcer_governance::statement::Statement as _;
use enforcer_governance::trust::{Signers, TrustRoot};

use super::bus::Bus;
use super::node::{Node, until};
use super::office::Office;
use super::server::{Server, documents};
use super::stranger::{self, Does};

/// What is put there comes whole, from beside its place.
fn put(path: &Path, text: &[u8]) {
    let new = path.with_file_name(".new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, path).expect("renamed");
}

fn json(envelope: &Envelope) -> Vec<u8> {
    serde_json::to_vec(envelope).expect("JSON")
}

fn signers(office: &Office) -> Signers {
    office.root().root
}

fn root_version(node: &contract::Node) -> u64 {
    node.held.as_ref().map_or(0, |it| it.trust_root_version)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_reaches_the_nodes_and_a_bad_one_nobody() {
    let own = tempfile::tempdir().expect("directory");
    let mut ids = vec!["E1"];
    let server = Server::start(own.path(), &ids).await;
    let admitted = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &admitted, &[]);
    node.until_in_force("E1").await;

    let state = own.path().join("server");
    let file = |name: &str| state.join("roots").join(name);
    let key = [SigningKey::load(&state.join("governance.key")).expect("a key")];
    let text = std::fs::read(state.join("trust.json")).expect("read");
    let first: TrustRoot = serde_json::from_slice(&text).expect("a root");
    let office = Office::new(5);
    // From this one on, roots are signed elsewhere.
    let second = TrustRoot {
        version: 2,
        root: signers(&office),
        ..first.clone()
    };
    let by_both = |root: &TrustRoot| root.sign(&[&key[..], &office.keys].concat());
    let third = TrustRoot {
        version: 3,
        ..second.clone()
    };
    let deaf = TrustRoot {
        revocation: signers(&office),
        ..second.clone()
    };
    let mute = TrustRoot {
        bundle: signers(&office),
        ..second.clone()
    };
    let bad = [
        b"{".to_vec(),
        json(&office.snapshot(2, &["E1"])),
        json(&second.sign(&office.keys)),
        json(&second.sign(&key)),
        json(&by_both(&third)),
        json(&by_both(&deaf)),
        json(&by_both(&mute)),
    ];
    let more = ["E2", "E3", "E4"];
    for (number, text) in bad.iter().enumerate() {
        put(&file("next.dsse.json"), text);
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The server goes on as before.
        let revoked = format!("{}!", ids.join(" "));
        server.revoke(ids[ids.len() - 1]).await.expect("revoked");
        node.until_in_force(&revoked).await;
        server.restore(ids[ids.len() - 1]).await.expect("restored");
        if let Some(id) = more.get(number) {
            ids.push(id);
            server.write(&ids);
        }
        node.until_in_force(&ids.join(" ")).await;
        assert_eq!(root_version(&server.knows("n1").await), 1);
    }
    // Beside a bad one a good one does not count either.
    put(&file("2.dsse.json"), &json(&by_both(&second)));
    put(&file("next.dsse.json"), &json(&third.sign(&key)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(root_version(&server.knows("n1").await), 1);
    std::fs::remove_file(file("next.dsse.json")).expect("removed");
    server.until_knows("n1", |it| root_version(it) == 2).await;
    // The first one's keys do not make the third.
    put(&file("3.dsse.json"), &json(&third.sign(&key)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(root_version(&server.knows("n1").await), 2);
    put(&file("3.dsse.json"), &json(&third.sign(&office.keys)));
    server.until_knows("n1", |it| root_version(it) == 3).await;
    assert_eq!(node.seen().refusals, [""; 0]);
    server.revoke("E1").await.expect("revoked");
    node.until_in_force("E1! E2 E3 E4").await;

    // What nodes have stays, and a server that starts says what is missing.
    std::fs::rename(file("2.dsse.json"), own.path().join("kept")).expect("renamed");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let admitted = server.admit("n2", &[]).await;
    let late = Node::start(&server.place(), "n2", &admitted, &[]);
    server.until_knows("n2", |it| root_version(it) == 3).await;
    drop(late);
    server.stop().await;
    let refused = Server::start_at(own.path(), "127.0.0.1:0", None).await;
    let reason = refused.err().expect("refused");
    assert!(reason.contains("0 of the keys for `root`"), "{reason}");
    std::fs::rename(own.path().join("kept"), file("2.dsse.json")).expect("renamed");
    let server = Server::start_at(own.path(), "127.0.0.1:0", None).await;
    server.expect("started").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_is_noted_at_once() {
    let own = tempfile::tempdir().expect("directory");
    let [old, new] = [1, 2].map(Office::new);
    let second = TrustRoot {
        version: 2,
        ..new.root()
    };
    let second = second.sign(&[old.keys.clone(), new.keys.clone()].concat());
    // Nothing comes after it that would be noted too.
    let sends = Does::Sends(vec![old.snapshot(1, &["E1"]), second]);
    let (place, directory, _) = stranger::start(own.path(), &old, sends).await;
    let node = Node::start(&place, "n1", &directory, &[]);
    let version = || node.seen().numbers.root.version;
    until("noted", version, |it| *it == 2).await;
}

/// From the first trust root with the old key to the next one with the new key.
async fn change_keys(store: Option<&NatsLocation>) {
    let own = tempfile::tempdir().expect("directory");
    let documents_of = own.path().join("documents");
    std::fs::create_dir_all(&documents_of).expect("directory");
    let text = documents(&["E1", "E2"]);
    std::fs::write(documents_of.join("bundle.yaml"), text).expect("written");
    let [old, new] = [1, 2].map(Office::new);
    let [old_key, new_key] = [(&old, "old.key"), (&new, "new.key")].map(|(office, name)| {
        let path = own.path().join(name);
        office.keys[0].store(&path).expect("stored");
        path
    });
    let second = TrustRoot {
        version: 2,
        ..new.root()
    };
    let second = json(&second.sign(&[old.keys.clone(), new.keys.clone()].concat()));
    let start = async |keys: &[PathBuf]| Server::start_signing(own.path(), keys, store).await;

    let server = start(std::slice::from_ref(&old_key)).await;
    let admitted = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &admitted, &[]);
    node.until_in_force("E1 E2").await;
    server.revoke("E1").await.expect("revoked");
    node.until_in_force("E1! E2").await;
    server.until_acknowledged("n1", 1).await;
    drop(node);
    server.stop().await;

    let kept = admitted.join("state/state.json");
    let older = std::fs::read(&kept).expect("there");
    let server = start(&[old_key, new_key.clone()]).await;
    let node = Node::start(&server.place(), "n1", &admitted, &[]);
    put(&own.path().join("server/roots/2.dsse.json"), &second);
    server.until_knows("n1", |it| root_version(it) == 2).await;
    let numbers = node.seen().numbers;
    assert_eq!((numbers.sequence, numbers.root.version), (1, 2));
    drop(node);
    server.stop().await;

    // Who has followed, and who comes now, believes the new key, and what the old one took back.
    let server = start(&[new_key]).await;
    let node = Node::start(&server.place(), "n1", &admitted, &[]);
    assert_eq!(node.in_force(), "E1! E2");
    // An older copy of its files is not used before the server has brought the root that is missing there.
    drop(node);
    std::fs::write(&kept, older).expect("written");
    let node = Node::start_after(&server.place(), "n1", &admitted, numbers);
    assert_eq!(node.in_force(), "");
    node.until_in_force("E1! E2").await;
    let admitted = server.admit("n2", &[]).await;
    let late = Node::start(&server.place(), "n2", &admitted, &[]);
    late.until_in_force("E1! E2").await;
    server.revoke("E2").await.expect("revoked");
    for node in [&node, &late] {
        node.until_in_force("E1! E2!").await;
        assert_eq!(node.seen().refusals, [""; 0]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change() {
    change_keys(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change_where_servers_share_a_store() {
    let bus = Bus::start(1);
    change_keys(Some(&bus.location())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_counts_once_the_root_names_its_key() {
    let own = tempfile::tempdir().expect("directory");
    let state = own.path().join("server");
    let documents = own.path().join("documents");
    for directory in [&state, &documents] {
        std::fs::create_dir_all(directory).expect("directory");
    }
    let key = SigningKey::load_or_make(&state.join("governance.key")).expect("a key");
    let own_key = Signers {
        threshold: 1,
        keys: vec![key.public()],
    };
    let [old, new] = [1, 2].map(Office::new);
    let first = TrustRoot {
        revocation: own_key.clone(),
        freshness: own_key,
        ..old.root()
    };
    let second = TrustRoot {
        version: 2,
        bundle: signers(&new),
        ..first.clone()
    };
    let bundle: PathBuf = documents.join("bundle.dsse.json");
    put(&bundle, &json(&old.snapshot(1, &["E1"])));
    let text = serde_json::to_vec(&first).expect("JSON");
    put(&state.join("trust.json"), &text);
    let server = Server::start_at(own.path(), "127.0.0.1:0", None).await;
    let server = server.expect("started");
    let admitted = server.admit("n1", &[]).await;
    let node = Node::start(&server.place(), "n1", &admitted, &[]);
    node.until_in_force("E1").await;

    put(&bundle, &json(&new.snapshot(2, &["E1", "E2"])));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node.in_force(), "E1");
    put(
        &state.join("roots/2.dsse.json"),
        &json(&second.sign(&old.keys)),
    );
    node.until_in_force("E1 E2").await;
    assert_eq!(node.seen().refusals, [""; 0]);
    server.stop().await;
}
