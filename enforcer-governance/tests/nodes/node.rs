//! A node without a kernel: what it is to have in force it notes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use enforcer_bundle::{Bundle, Labels};
use enforcer_governance::client::{Activate, Client, Config, EVIDENCE_CURSOR, Link, Order, Pace};
use enforcer_governance::contract::NodeStatus;
use enforcer_governance::held::Numbers;
use enforcer_governance::journal::{Journal, Limits, Reader};
use enforcer_governance::state::State;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// What came of a node.
#[derive(Clone, Default)]
pub struct Seen {
    pub bundle: Option<Arc<Bundle>>,
    /// What a kernel would have of it.
    pub numbers: Numbers,
    pub refusals: Vec<String>,
}

/// A node that follows a server as long as it lives.
pub struct Node {
    pub link: watch::Receiver<Link>,
    seen: Arc<Mutex<Seen>>,
    /// Bundles with this entitlement do not fit here.
    unfit: Arc<Mutex<Option<String>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What to connect to.
#[derive(Clone)]
pub struct Place {
    pub url: String,
    /// Other servers to turn to.
    pub others: Vec<String>,
    pub authority: PathBuf,
    pub trust: PathBuf,
}

impl Node {
    /// `directory` is the node's own; its token is in `token` there.
    pub fn start(place: &Place, name: &str, directory: &Path, labels: &[(&str, &str)]) -> Self {
        Self::with_evidence(place, name, directory, labels, None)
    }

    /// Where this was in force already, whatever the directory says.
    pub fn start_after(place: &Place, name: &str, directory: &Path, numbers: Numbers) -> Self {
        Self::run(place, name, directory, &[], None, numbers)
    }

    pub fn with_evidence(
        place: &Place,
        name: &str,
        directory: &Path,
        labels: &[(&str, &str)],
        evidence: Option<Reader>,
    ) -> Self {
        let before = Numbers::default();
        Self::run(place, name, directory, labels, evidence, before)
    }

    fn run(
        place: &Place,
        name: &str,
        directory: &Path,
        labels: &[(&str, &str)],
        evidence: Option<Reader>,
        before: Numbers,
    ) -> Self {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let labels: Labels = labels.collect();
        let (state, mut held, unused) =
            State::open(&directory.join("state"), &place.trust, labels.clone()).expect("opened");
        held.has_seen(before);
        let seen = Arc::new(Mutex::new(Seen {
            bundle: held.bundle(),
            numbers: before,
            refusals: unused.into_iter().collect(),
        }));
        let unfit = Arc::new(Mutex::new(None::<String>));
        let (orders, mut ordered) = mpsc::channel(1);
        let link = watch::Sender::new(Link::default());
        let following = link.subscribe();
        let status = watch::Sender::new(NodeStatus {
            state: "enforcing/lsm".to_owned(),
            ..NodeStatus::default()
        });
        let client = Client {
            config: Config {
                url: place.url.clone(),
                others: place.others.clone().into(),
                authority: place.authority.clone(),
                node: name.to_owned(),
                labels,
                directory: directory.join("state"),
                join_token: Some(directory.join("token")),
                version: "test".to_owned(),
                pace: Pace {
                    first: Duration::from_millis(20),
                    most: Duration::from_millis(200),
                },
            },
            state,
            held,
            orders,
            status: status.subscribe(),
            evidence,
            link,
        };
        let obeying = {
            let (seen, unfit) = (seen.clone(), unfit.clone());
            tokio::spawn(async move {
                let _status = status;
                while let Some(order) = ordered.recv().await {
                    match order {
                        Order::Activate(Activate {
                            bundle,
                            numbers,
                            done,
                            ..
                        }) => {
                            let unfit = unfit.lock().expect("unfit").clone();
                            let has = |bundle: &Arc<Bundle>| {
                                bundle
                                    .entitlements
                                    .iter()
                                    .any(|it| Some(&it.id) == unfit.as_ref())
                            };
                            let result = match bundle {
                                Some(bundle) if has(&bundle) => {
                                    Err("it does not fit the kernel's tables".to_owned())
                                }
                                bundle => {
                                    let mut seen = seen.lock().expect("seen");
                                    (seen.bundle, seen.numbers) = (bundle, numbers);
                                    Ok(())
                                }
                            };
                            let _ = done.send(result);
                        }
                        Order::Refused(reason) => {
                            seen.lock().expect("seen").refusals.push(reason);
                        }
                    }
                }
            })
        };
        Self {
            link: following,
            seen,
            unfit,
            tasks: vec![tokio::spawn(client.run()), obeying],
        }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("seen").clone()
    }

    pub fn does_not_take(&self, entitlement: &str) {
        *self.unfit.lock().expect("unfit") = Some(entitlement.to_owned());
    }

    /// The entitlements in force, those that are revoked with an `!`.
    pub fn in_force(&self) -> String {
        let bundle = self.seen().bundle;
        let all = bundle.iter().flat_map(|it| &it.entitlements);
        let ids = all.map(|it| format!("{}{}", it.id, if it.revoked { "!" } else { "" }));
        ids.collect::<Vec<_>>().join(" ")
    }

    pub async fn until_in_force(&self, expected: &str) {
        until(
            &format!("{expected:?} in force"),
            || self.in_force(),
            |it| it == expected,
        )
        .await;
    }

    pub async fn until_refused(&self, words: &str) {
        let refusals = || self.seen().refusals.join("; ");
        until(&format!("refused with {words:?}"), refusals, |it| {
            it.contains(words)
        })
        .await;
    }
}

/// Long enough for a busy machine; only what fails takes it.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits for something to become true of something.
pub async fn until<T: std::fmt::Debug>(
    what: &str,
    mut look: impl FnMut() -> T,
    holds: impl Fn(&T) -> bool,
) {
    until_told(what, async || look(), holds).await;
}

/// The same of what has to be asked for; returns it.
pub async fn until_told<T: std::fmt::Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> T,
    holds: impl Fn(&T) -> bool,
) -> T {
    let start = Instant::now();
    loop {
        let seen = ask().await;
        if holds(&seen) {
            return seen;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: after {PATIENCE:?} it is {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Evidence of a node.
pub fn journal(directory: &Path) -> Journal {
    let limits = Limits {
        bytes: u64::MAX,
        age: Duration::MAX,
        keep_for: Some(EVIDENCE_CURSOR),
    };
    let mut journal = Journal::new(&directory.join("log"), limits);
    journal.open().expect("opened");
    journal
}

/// Appends these records, a number each.
pub fn append(journal: &mut Journal, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let record = serde_json::json!({"number": number});
        journal.append(&record).expect("appended");
    }
    journal.commit().expect("on disk");
}
