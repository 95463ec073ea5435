//! The daemon's end of governance: what the client is started with, and its orders.

use std::collections::VecDeque;
use std::path::PathBuf;

use anyhow::Result;
use enforcer::bundle::{Digest, Labels};
use enforcer::engine::Engine;
use enforcer_governance::client::{Activate, Client, Config, Link, Order, Pace};
use enforcer_governance::contract::NodeStatus;
use enforcer_governance::journal::Reader;
use enforcer_governance::state::State;
use tokio::sync::{mpsc, oneshot, watch};

/// Where governance is, and whom to trust.
pub struct Governance {
    /// `https://HOST:PORT`.
    pub url: String,
    /// Other servers of the same fleet.
    pub others: VecDeque<String>,
    /// The server's authority, PEM.
    pub authority: PathBuf,
    /// The trust root.
    pub trust: PathBuf,
    /// A file with the token to enroll with.
    pub join_token: Option<PathBuf>,
    /// Where the node keeps what must outlive it.
    pub state: PathBuf,
}

impl Governance {
    /// Puts in force again what was, and follows the server from then on.
    pub async fn start(
        self,
        engine: &mut Engine,
        node: String,
        labels: Labels,
        evidence: Reader,
    ) -> Result<Governed> {
        let directory = self.state.join("governance");
        let (state, mut held, mut unused) = State::open(&directory, &self.trust, labels.clone())?;
        let anchor = state.anchor().clone();
        let before = engine.governed_before(&anchor)?;
        let was = held.numbers();
        held.has_seen(before);
        if was.version > 0 && held.bundle().is_none() && unused.is_none() {
            unused = Some(format!(
                "what was kept of governance is not used: it has version {}, revocation {} and trust root {}, and version {}, revocation {} and trust root {} were in force here; an older copy of {} was put there, or the last daemon died before it had written",
                was.version,
                was.sequence,
                was.root.version,
                before.version,
                before.sequence,
                before.root.version,
                directory.display()
            ));
        }
        if let Some(bundle) = held.bundle() {
            let restored = engine
                .activate(Some(bundle), held.fresh_until(), held.numbers(), &anchor)
                .await;
            if let Err(error) = restored
                && engine.outgrown().is_none()
            {
                unused = Some(enforcer::chain(&error));
            }
        }
        let link = watch::Sender::new(Link {
            refused: unused.clone(),
            ..Link::default()
        });
        if let Some(reason) = unused {
            engine.governance_refused(reason).await;
        }
        let (ordering, orders) = mpsc::channel(1);
        let status = watch::Sender::new(engine.node_status());
        let client = Client {
            config: Config {
                url: self.url,
                others: self.others,
                authority: self.authority,
                node,
                labels,
                directory,
                join_token: self.join_token,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pace: Pace::default(),
            },
            state,
            held,
            orders: ordering,
            status: status.subscribe(),
            evidence: Some(evidence),
            link: link.clone(),
        };
        tokio::spawn(client.run());
        Ok(Governed {
            orders,
            anchor,
            status,
            link,
            unanswered: None,
        })
    }
}

/// The daemon's side of a client that runs.
pub struct Governed {
    /// What it is asked to do.
    pub orders: mpsc::Receiver<Order>,
    anchor: Digest,
    status: watch::Sender<NodeStatus>,
    link: watch::Sender<Link>,
    /// Kept, so that nobody takes it for an answer.
    unanswered: Option<oneshot::Sender<Result<(), String>>>,
}

impl Governed {
    /// Does what governance says, and says what came of it.
    pub async fn obey(&mut self, engine: &mut Engine, order: Order) {
        match order {
            Order::Activate(Activate {
                bundle,
                fresh_until,
                numbers,
                done,
            }) => {
                let result = engine
                    .activate(bundle, fresh_until, numbers, &self.anchor)
                    .await;
                if engine.outgrown().is_some() {
                    // The daemon starts again with larger tables, and is asked again.
                    self.unanswered = Some(done);
                    return;
                }
                let _ = done.send(result.map_err(|error| enforcer::chain(&error)));
            }
            Order::Refused(reason) => engine.governance_refused(reason).await,
        }
    }

    /// Has governance told how this node is, if that is new.
    pub fn tell(&self, engine: &Engine) {
        let now = engine.node_status();
        self.status.send_if_modified(|last| {
            let changed = *last != now;
            if changed {
                *last = now;
            }
            changed
        });
    }

    /// How it is with governance.
    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }
}
