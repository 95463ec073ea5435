//! A node that does nothing but report: numbered records, as fast as they are taken, until it is killed.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use enforcer::bundle::Labels;
use enforcer_governance::{
    client::{Client, Config, EVIDENCE_CURSOR, Link, Order, Pace},
    contract::NodeStatus,
    journal::{Journal, Limits},
    state::State,
};
use tokio::sync::{mpsc, watch};

/// Between two records.
const PAUSE: Duration = Duration::from_micros(500);
/// While there is this file in the node's directory, nothing is added.
const ENOUGH: &str = "enough";

/// Reports what is in `directory`, to the server of which it has the files.
pub fn run(directory: &Path, url: &str, node: &str) -> Result<bool> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(report(directory, url, node))?;
    Ok(true)
}

async fn report(directory: &Path, url: &str, node: &str) -> Result<()> {
    let own = directory.join("reporter");
    let limits = Limits {
        bytes: u64::MAX,
        age: Duration::MAX,
        keep_for: Some(EVIDENCE_CURSOR),
    };
    let mut journal = Journal::new(&own.join("log"), limits);
    journal.open().context("no log")?;
    let server = directory.join("server");
    let (state, held, _) = State::open(
        &own.join("governance"),
        &server.join("trust.json"),
        Labels::new(),
    )?;
    let (orders, mut ordered) = mpsc::channel(1);
    let status = watch::Sender::new(NodeStatus::default());
    let client = Client {
        config: Config {
            url: url.to_owned(),
            others: Default::default(),
            authority: server.join("ca.pem"),
            node: node.to_owned(),
            labels: Labels::new(),
            directory: own.join("governance"),
            join_token: Some(own.join("token")),
            version: "test".to_owned(),
            pace: Pace {
                first: Duration::from_millis(20),
                most: Duration::from_millis(100),
            },
        },
        state,
        held,
        orders,
        status: status.subscribe(),
        evidence: Some(journal.reader()),
        link: watch::Sender::new(Link::default()),
    };
    tokio::spawn(client.run());
    tokio::spawn(async move {
        let _status = status;
        while let Some(order) = ordered.recv().await {
            if let Order::Activate(it) = order {
                let _ = it.done.send(Ok(()));
            }
        }
    });
    tokio::task::spawn_blocking(move || -> Result<()> {
        loop {
            if !own.join(ENOUGH).exists() {
                let number = journal.head().sequence + 1;
                journal.append(&serde_json::json!({"number": number}))?;
                journal.commit()?;
            }
            thread::sleep(PAUSE);
        }
    })
    .await?
}
