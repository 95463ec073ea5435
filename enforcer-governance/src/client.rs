//! The node's side of the wire: connects, takes what comes, and reports.
//!
//! What is taken is acted on by the daemon, through [`Order`]s: an acknowledgement goes out only when the daemon says
//! that the kernel has it.

mod certificate;
mod connection;
mod pace;
mod report;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use enforcer_bundle::{Bundle, Labels};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::contract::NodeStatus;
use crate::held::{Held, Numbers};
use crate::journal::Reader;
use crate::state::State;

pub use certificate::{Error as CertificateError, Identity};
pub use pace::Pace;
pub use report::CURSOR as EVIDENCE_CURSOR;

/// Where governance is, and who this node is to it.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://HOST:PORT`.
    pub url: String,
    /// Other servers of the same fleet, to turn to when that one fails.
    pub others: VecDeque<String>,
    /// The server's authority, PEM.
    pub authority: PathBuf,
    /// This node's name.
    pub node: String,
    /// Its labels.
    pub labels: Labels,
    /// Where its key and certificate are kept.
    pub directory: PathBuf,
    /// A file with the token to enroll with, as long as there is no certificate that is good.
    pub join_token: Option<PathBuf>,
    /// Of this program.
    pub version: String,
    /// How soon to try again.
    pub pace: Pace,
}

/// What the daemon is asked to do.
#[derive(Debug)]
pub enum Order {
    /// To have this in force.
    Activate(Activate),
    /// To tell that something was refused.
    Refused(String),
}

/// What shall be in force.
#[derive(Debug)]
pub struct Activate {
    /// The bundle; `None` leaves the one that is.
    pub bundle: Option<Arc<Bundle>>,
    /// Until when it is known that nothing is newer.
    pub fresh_until: Timestamp,
    /// To be kept where no file can be put in its place.
    pub numbers: Numbers,
    /// Whether it is active in the kernel, or why not.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// How it is with governance, for `enforcer status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Whether there is a connection.
    pub connected: bool,
    /// Since when there is one, or there is none.
    pub since: Option<Timestamp>,
    /// Why there is none.
    pub reason: Option<String>,
    /// What was refused last.
    pub refused: Option<String>,
    /// Until when it is known that nothing is newer.
    pub fresh_until: Option<Timestamp>,
    /// The last revocation.
    pub revocation_sequence: u64,
    /// The last record of evidence that governance has.
    pub evidence_stored: u64,
}

/// What the client works with.
#[derive(Debug)]
pub struct Client {
    /// Where to connect.
    pub config: Config,
    /// Where it is kept what is held.
    pub state: State,
    /// What is held.
    pub held: Held,
    /// To the daemon.
    pub orders: mpsc::Sender<Order>,
    /// From the daemon.
    pub status: watch::Receiver<NodeStatus>,
    /// Evidence to report, if any is kept.
    pub evidence: Option<Reader>,
    /// For whoever asks how it is.
    pub link: watch::Sender<Link>,
}

/// Without a word from the server for so long, another connection is tried. It states at least each 12 minutes that
/// nothing is new.
const QUIET: Duration = Duration::from_secs(15 * 60);

impl Client {
    /// Follows governance until it is dropped.
    pub async fn run(mut self) {
        let mut backoff = self.config.pace.backoff();
        loop {
            let ended = connection::run(&mut self, &mut backoff).await;
            tracing::warn!(server = self.config.url, reason = %ended.reason, "governance cannot be followed; what is in force stays");
            self.tell(|link| {
                if link.connected || link.since.is_none() {
                    link.since = Some(Timestamp::now());
                }
                link.connected = false;
                link.reason = Some(ended.reason.clone());
            });
            let turned = self.turn();
            let asked = ended.retry_after.filter(|_| !turned);
            tokio::time::sleep(backoff.next(asked)).await;
        }
    }

    /// To the next server, if there are several.
    fn turn(&mut self) -> bool {
        let config = &mut self.config;
        let Some(next) = config.others.pop_front() else {
            return false;
        };
        let last = std::mem::replace(&mut config.url, next);
        config.others.push_back(last);
        true
    }

    fn tell(&self, change: impl FnOnce(&mut Link)) {
        let held = &self.held;
        self.link.send_modify(|link| {
            link.fresh_until = Some(held.fresh_until());
            link.revocation_sequence = held.numbers().sequence;
            change(link);
        });
    }

    /// Has what would be held put in force; only then it is held.
    async fn activate(&mut self, next: Held) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        let order = Order::Activate(Activate {
            bundle: next.bundle(),
            fresh_until: next.fresh_until(),
            numbers: next.numbers(),
            done,
        });
        let stopping = "the daemon is stopping";
        if self.orders.send(order).await.is_err() {
            return Err(stopping.to_owned());
        }
        answer.await.unwrap_or_else(|_| Err(stopping.to_owned()))?;
        self.held = next;
        self.keep();
        Ok(())
    }

    fn keep(&mut self) {
        if let Err(error) = self.state.keep(&self.held) {
            tracing::error!(
                "what is in force cannot be kept for the next start: {error}; see what is wrong with that place"
            );
        }
    }
}
