//! What a server does by itself, all the time.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Shared;
use super::ledger::Ledger;
use super::sync::Nodes;
use crate::contract::governance_server::GovernanceServer;

/// How often the store is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// A server that has not reached its store for so long serves no nodes. Longer than the store takes to recover from
/// the death of one of its own servers.
const CUT_OFF_AFTER: Duration = Duration::from_secs(12);
/// How often what is known of the nodes is stored.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// After something failed.
const AGAIN: Duration = Duration::from_secs(1);

/// States again and again that nothing is newer.
pub async fn keep_fresh(ledger: Arc<Ledger>, every: Duration) {
    let mut interval = interval(every.max(Duration::from_millis(100)));
    loop {
        interval.tick().await;
        if let Err(error) = ledger.freshen().await {
            tracing::warn!("cannot tell nodes that nothing is newer: {}", error.chain());
        }
    }
}

/// Finds out whether the store is there, and what other servers have done, in case nothing tells of it.
pub async fn reach(shared: Arc<Shared>, reaching: watch::Sender<bool>, health: HealthReporter) {
    let mut last = Instant::now();
    let mut interval = interval(ASK_EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tell(&health, ServingStatus::Serving).await;
    loop {
        interval.tick().await;
        let started = Instant::now();
        let asked = async {
            shared.store.confirm().await?;
            shared.ledger.refresh_meanwhile().await
        };
        match timeout(CUT_OFF_AFTER, asked).await {
            Ok(Ok(())) => {
                last = started;
                if !reaching.send_replace(true) {
                    tracing::info!("the store is back: nodes are served again");
                    tell(&health, ServingStatus::Serving).await;
                }
            }
            Ok(Err(error)) => tracing::warn!("the store is not there: {}", error.chain()),
            Err(_) => tracing::warn!("the store does not answer"),
        }
        if last.elapsed() >= CUT_OFF_AFTER && reaching.send_replace(false) {
            tracing::error!(
                "cut off from the store: nodes are sent away, since they would not hear of revocations here"
            );
            tell(&health, ServingStatus::NotServing).await;
        }
    }
}

/// Of the server as a whole too, which is what probes ask for.
async fn tell(health: &HealthReporter, status: ServingStatus) {
    for service in ["", GovernanceServer::<Nodes>::NAME] {
        health.set_service_status(service, status).await;
    }
}

/// Takes what other servers commit, as soon as the store tells.
pub async fn follow(shared: Arc<Shared>) {
    let mut changes = shared.store.changes();
    while changes.changed().await.is_ok() {
        if let Err(error) = shared.ledger.refresh().await {
            tracing::error!("what the store has is not taken: {}", error.chain());
            sleep(AGAIN).await;
        }
    }
}

/// Stores what is known of the nodes.
pub async fn tell_of_nodes(shared: Arc<Shared>) {
    let mut interval = interval(TELL_EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = shared.registry.tell().await {
            tracing::warn!(
                "what is known of the nodes is not stored: {}",
                error.chain()
            );
        }
    }
}

/// Ends grants when their time is over.
pub async fn end_grants(ledger: Arc<Ledger>) {
    let mut changes = ledger.changes();
    loop {
        let left = ledger.next_end().map_or(Duration::MAX, |end| {
            Duration::try_from(end - Timestamp::now()).unwrap_or(Duration::ZERO)
        });
        // Until then, or until there is another one.
        let _ = timeout(left.min(Duration::from_secs(3600)), changes.changed()).await;
        if let Err(error) = ledger.end_grants().await {
            tracing::error!("a grant has ended and cannot be noted: {}", error.chain());
            sleep(AGAIN).await;
        }
    }
}
