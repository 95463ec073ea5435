//! Nodes and servers that mean them no good: what was in force stays, and both sides hear why.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::node::{Node, until, until_told};
use super::office::{Office, at};
use super::stranger::{Does, Heard, start};
use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::MAX_PAYLOAD;

/// A freshness statement that is good for as long as anybody tests.
const FOR_LONG: i64 = 1_000_000_000;

/// A node that has version 1 and knows it to be fresh, and follows a server that does this next.
async fn with_a_bundle(does: Does) -> (Node, Heard, tempfile::TempDir) {
    let office = Office::new(1);
    let directory = tempfile::tempdir().expect("directory");
    let good = Does::Sends(vec![
        office.snapshot(1, &["E1"]),
        office.freshness(1, 0, 0, FOR_LONG),
    ]);
    let (place, own, _) = start(directory.path(), &office, good).await;
    let node = Node::start(&place, "n1", &own, &[]);
    node.until_in_force("E1").await;
    let fresh_until = || node.link.borrow().fresh_until;
    until("fresh", fresh_until, |it| *it == Some(at(FOR_LONG))).await;
    drop(node);
    let (place, own, heard) = start(directory.path(), &office, does).await;
    let node = Node::start(&place, "n1", &own, &[]);
    assert_eq!(node.in_force(), "E1");
    (node, heard, directory)
}

fn huge() -> Envelope {
    Envelope {
        payload: vec![b' '; 200_000_000].into(),
        ..Office::new(1).snapshot(2, &["E2"])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_and_told() {
    let office = Office::new(1);
    let wrong = vec![
        Office::new(9).snapshot(2, &["E2"]),
        office.delta(2, &["E3"], &["E2"]),
        office.revocation(5, &[]),
        Envelope::sign("text/plain", b"hello".to_vec(), &office.keys),
    ];
    let (node, heard, _directory) = with_a_bundle(Does::Sends(wrong)).await;
    let refused = || heard.refused.load(Ordering::Relaxed);
    until("four refusals", refused, |it| *it == 4).await;
    assert_eq!(node.in_force(), "E1");
    let refusals = node.seen().refusals;
    for (refusal, words) in refusals.iter().zip([
        "0 of the keys",
        "a snapshot is needed",
        "the next one is 1",
        "text/plain",
    ]) {
        assert!(refusal.contains(words), "{refusals:?}");
    }
    assert_eq!(heard.acknowledged.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_envelope_is_refused_unread() {
    const { assert!(MAX_PAYLOAD < 200_000_000) };
    let (node, heard, _directory) = with_a_bundle(Does::Sends(vec![huge()])).await;
    node.until_refused("too large").await;
    assert_eq!(node.in_force(), "E1");
    // It could not be answered; the next connection says it.
    let streams = || heard.streams.load(Ordering::Relaxed);
    until("another connection", streams, |it| *it >= 2).await;
    let told = async || heard.before.lock().await.clone();
    until_told("the refusal", told, |it| it.contains("too large")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_what_is_refused_ends_the_connection() {
    let office = Office::new(1);
    let stranger = Office::new(9).snapshot(2, &["E2"]);
    let (node, heard, _directory) = with_a_bundle(Does::Floods(stranger)).await;
    let streams = || heard.streams.load(Ordering::Relaxed);
    until("several connections", streams, |it| *it >= 3).await;
    assert_eq!(node.in_force(), "E1");
    // Eight to a connection, and not all that were sent.
    let refused = heard.refused.load(Ordering::Relaxed);
    assert!(
        refused <= 8 * (streams() + 1),
        "{refused} in {} streams",
        streams()
    );
    drop(node);

    // One of what is good and known costs nothing but its answer.
    let known = office.snapshot(1, &["E1"]);
    let (node, heard, _directory) = with_a_bundle(Does::Floods(known)).await;
    let acknowledged = || heard.acknowledged.load(Ordering::Relaxed);
    until("many answers", acknowledged, |it| *it >= 100).await;
    assert_eq!(
        (node.in_force(), node.seen().refusals.len()),
        ("E1".to_owned(), 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_changes_nothing() {
    let (node, _, _directory) = with_a_bundle(Does::Stalls).await;
    let connected = || node.link.borrow().connected;
    until("connected", connected, |it| *it).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.in_force(), "E1");
    // How long that may go on is said by the freshness statement, which a connection does not renew.
    assert_eq!(node.link.borrow().fresh_until, Some(at(FOR_LONG)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_streams_the_node_fetches() {
    let office = Office::new(1);
    let directory = tempfile::tempdir().expect("directory");
    let does = Does::Fetches(vec![
        office.snapshot(1, &["E1"]),
        Office::new(9).snapshot(2, &["E2"]),
        office.delta(2, &["E1"], &["E1", "E2"]),
    ]);
    let (place, own, heard) = start(directory.path(), &office, does).await;
    let node = Node::start(&place, "n1", &own, &[]);
    node.until_in_force("E1 E2").await;
    let answered = || {
        let heard = &heard;
        (
            heard.acknowledged.load(Ordering::Relaxed),
            heard.refused.load(Ordering::Relaxed),
        )
    };
    until("answers", answered, |it| *it == (2, 1)).await;
}
