//! Which known credentials are on this node and in its containers, and never what they say.
//!
//! Everything below a container's root is under the container's control: paths are resolved within that root, only
//! regular files are read and only their beginning, and the work on each root is bounded in entries and in time.

mod access;
mod environment;
mod material;
mod search;
mod text;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::bundle::{CredentialKind, Entry};
pub use material::{Item, inspect};
pub use search::locations;
pub use text::text;
pub use view::View;

/// How long one root may take: a file system in user space may answer when it likes, or never.
const TIME_PER_VIEW: Duration = Duration::from_secs(20);

/// What a scan found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Each file, socket and variable once.
    pub credentials: Vec<Found>,
    /// What could not be looked at, or not to its end, and why.
    pub incomplete: Vec<String>,
}

/// A known credential.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// Its id in the catalogue.
    pub catalogue: &'static str,
    /// Whose it is.
    pub provider: &'static str,
    /// What it is.
    pub kind: CredentialKind,
    /// Where it is; every place after the first is the same file seen from elsewhere.
    pub places: Vec<Place>,
    /// The user it belongs to.
    pub owner: String,
    /// The group it belongs to.
    pub group: String,
    /// Permission bits, in octal.
    pub mode: String,
    /// When its content last changed.
    pub modified: Option<Timestamp>,
    /// Who may read it by owner and mode; with a socket, connect to it.
    pub readers: Vec<String>,
    /// Whether it has an access control list, by which others may too.
    pub acl: bool,
    /// Why its content was not looked at.
    pub unread: Option<String>,
    /// What its content tells without being secret.
    pub items: Vec<Item>,
    /// Where else something of the same id is.
    pub shared_with: Vec<Place>,
    /// Device and inode, or none for what is no file.
    #[serde(skip)]
    file: Option<(u64, u64)>,
}

/// A path, and whose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// `host`, or the cgroup and a process of those whose root it is.
    pub view: String,
    /// The path there, printable.
    pub path: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.view.as_str() {
            "host" => f.write_str(&self.path),
            view => write!(f, "{} in {view}", self.path),
        }
    }
}

impl Found {
    fn new(entry: &'static Entry, place: Place) -> Self {
        Self {
            catalogue: &entry.id,
            provider: &entry.provider,
            kind: entry.kind,
            places: vec![place],
            owner: String::new(),
            group: String::new(),
            mode: String::new(),
            modified: None,
            readers: Vec::new(),
            acl: false,
            unread: None,
            items: Vec::new(),
            shared_with: Vec::new(),
            file: None,
        }
    }

    /// The first time at which something of it ends.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        self.items.iter().filter_map(|item| item.expires).min()
    }
}

/// Looks at the host, at every other root that a process has, and at the environments of processes.
#[must_use]
pub fn scan() -> Report {
    let mut report = Report::default();
    let (views, refused) = view::all();
    if refused > 0 {
        report.incomplete.push(format!(
            "{refused} processes cannot be looked into: permission denied"
        ));
    }
    for view in views {
        let name = view.name.clone();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(scan_view(&view)));
        match receiver.recv_timeout(TIME_PER_VIEW) {
            Ok(part) => report.add(part),
            Err(_) => report.incomplete.push(format!(
                "{name}: given up after {} s: a file system there does not answer",
                TIME_PER_VIEW.as_secs()
            )),
        }
    }
    report.add(environment::scan());
    report.share();
    report
}

fn scan_view(view: &View) -> Report {
    let mut report = Report::default();
    search::search(view, &mut report);
    report
}

/// Looks below one directory, as if it were the root of a host or, if not, of a container.
///
/// # Errors
/// If it cannot be opened.
pub fn scan_root(root: &Path, name: &str, host: bool) -> std::io::Result<Report> {
    let mut report = scan_view(&View::at(root, name.to_owned(), host)?);
    report.share();
    Ok(report)
}

impl Report {
    /// Adds what another view has; the same files are other places of what is known.
    fn add(&mut self, other: Self) {
        let known = self.credentials.iter().enumerate();
        let known: HashMap<(u64, u64), usize> = known
            .filter_map(|(index, found)| Some((found.file?, index)))
            .collect();
        for found in other.credentials {
            match found.file.and_then(|file| known.get(&file)) {
                Some(index) => self.credentials[*index].places.extend(found.places),
                None => self.credentials.push(found),
            }
        }
        self.incomplete.extend(other.incomplete);
    }

    /// Says of each where else its id is.
    fn share(&mut self) {
        let mut places: BTreeMap<(&str, String), Vec<(usize, Place)>> = BTreeMap::new();
        for (index, found) in self.credentials.iter().enumerate() {
            for item in &found.items {
                let Some(id) = &item.id else { continue };
                let all = places.entry((item.what, id.clone())).or_default();
                all.push((index, found.places[0].clone()));
            }
        }
        for all in places.values() {
            for (index, own) in all {
                let others = all.iter().map(|(_, place)| place);
                let others = others.filter(|place| *place != own).cloned();
                self.credentials[*index].shared_with.extend(others);
            }
        }
        for found in &mut self.credentials {
            found.shared_with.sort();
            found.shared_with.dedup();
        }
    }
}
