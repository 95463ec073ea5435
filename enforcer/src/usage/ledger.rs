//! The usage ledger: who used what, where to, how often, first and last; and for which times that is known.
//!
//! One JSON file, replaced as a whole. It keeps what was seen over restarts and reboots; nothing is decided by it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use enforcer_common::instance::classify_name;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::record::model::Instance;

/// Different uses that are kept. A node with more than that sees some of them not at all, and says so
/// ([`Coverage::unkept`]).
pub const ROWS: usize = 50_000;
/// Units that are told apart whose names differ only in numbers, for one kind of use. Of more, somebody makes up the names
/// (`run-1234.service`), and they are one: they would fill the ledger.
const UNITS_OF_A_KIND: usize = 16;
/// Gaps that are kept; of more, the oldest two become one, with what lies between.
const GAPS: usize = 100;
/// The file's format.
const FORMAT: u32 = 1;

/// A kind of use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Row {
    /// The credential's id.
    pub credential: String,
    /// The entitlement that decided, or the nearest.
    pub entitlement: Option<String>,
    /// The workload.
    pub workload: Option<String>,
    /// The program's path, or its name where the path is not known.
    pub executable: String,
    /// The user.
    pub uid: u32,
    /// What it ran in.
    pub place: Place,
    /// `read` or `reach`.
    pub verb: String,
    /// Where to, of a reach, and of a read at an endpoint.
    pub destination: Option<Destination>,
    /// `None` was allowed; else why it was denied, or would have been.
    pub reason: Option<String>,
    /// Whether a denial only would have been one.
    pub monitored: bool,
    /// Whether it was allowed because the workload is trusted with everything.
    pub trusted: bool,
}

impl Row {
    /// Whether it is about the same program's uses of the same credential by the same entitlement, wherever it ran.
    fn is_by_the_same(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.credential == other.credential
            && self.entitlement == other.entitlement
            && self.workload == other.workload
            && self.executable == other.executable
    }
}

/// What a process ran in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// A systemd unit.
    Unit(String),
    /// Many units whose names differ only in the words that have a `*` here.
    Units(String),
    /// A login session: somebody's own hands.
    Session,
    /// A container of a pod.
    Pod(OfPod),
    /// A container of no pod, by its name.
    Named(String),
    /// A container of which nothing is known, or another scope.
    Container,
    /// None of these.
    Nowhere,
}

/// A container as all pods of its kind have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OfPod {
    /// The namespace.
    pub namespace: String,
    /// The pod's service account, if it is known.
    pub service_account: Option<String>,
    /// Of the pod's labels those that say what it is, by Kubernetes' conventions.
    pub labels: BTreeMap<String, String>,
    /// The container's name.
    pub container: String,
}

/// Labels that are the same for all pods of a kind, by Kubernetes' conventions.
const KIND_LABELS: [&str; 4] = [
    "app.kubernetes.io/name",
    "app.kubernetes.io/component",
    "app",
    "k8s-app",
];

impl Place {
    /// Of what is known of a cgroup.
    #[must_use]
    pub fn of(instance: &Instance) -> Self {
        let name = instance.container.as_ref().and_then(|it| it.name.clone());
        match (&instance.pod, name) {
            (Some(pod), Some(container)) if !pod.namespace.is_empty() => {
                let is_of_kind =
                    |(name, _): &(&String, &String)| KIND_LABELS.contains(&name.as_str());
                let labels = pod.labels.iter().filter(is_of_kind);
                Self::Pod(OfPod {
                    namespace: pod.namespace.clone(),
                    service_account: pod.service_account.clone(),
                    labels: labels
                        .map(|(name, value)| (name.clone(), value.clone()))
                        .collect(),
                    container,
                })
            }
            (None, Some(name)) => Self::Named(name),
            _ => Self::of_path(&instance.cgroup),
        }
    }

    fn of_path(path: &str) -> Self {
        let mut names = path.split('/');
        let instance = names.find(|name| classify_name(name.as_bytes()).is_instance());
        match instance {
            Some(name) if name.ends_with(".service") => Self::Unit(name.to_owned()),
            Some(name) if name.starts_with("session-") => Self::Session,
            Some(_) => Self::Container,
            None => Self::Nowhere,
        }
    }

    /// What all units are whose names differ from this one's only in numbers; `None` if this is no unit, or its name has none.
    fn kind(&self) -> Option<Self> {
        const BETWEEN_WORDS: [char; 5] = ['-', '.', '@', '_', ':'];
        let Self::Unit(name) = self else {
            return None;
        };
        let mut kind = String::with_capacity(name.len());
        for word in name.split_inclusive(BETWEEN_WORDS) {
            let bare = word.trim_end_matches(BETWEEN_WORDS);
            let is_made_up = bare.contains(|c: char| c.is_ascii_digit());
            kind += if is_made_up { "*" } else { bare };
            kind += &word[bare.len()..];
        }
        (kind != *name).then_some(Self::Units(kind))
    }

    /// For people.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Unit(name) | Self::Units(name) => name.into(),
            Self::Session => "login session".into(),
            Self::Pod(it) => match it.labels.values().next() {
                Some(kind) => format!("{}/{kind}/{}", it.namespace, it.container).into(),
                None => format!("{}/{}", it.namespace, it.container).into(),
            },
            Self::Named(name) => format!("container {name}").into(),
            Self::Container => "container".into(),
            Self::Nowhere => "no unit".into(),
        }
    }
}

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Destination {
    /// An address.
    pub address: std::net::IpAddr,
    /// 0 where the protocol has none.
    pub port: u16,
    /// `tcp`, `udp`, `icmp` or a number.
    pub protocol: String,
    /// The name that the address was resolved from.
    pub host: Option<String>,
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}:{} ({})", self.port, self.protocol),
            None => {
                let socket = std::net::SocketAddr::new(self.address, self.port);
                write!(f, "{socket} ({})", self.protocol)
            }
        }
    }
}

/// How often, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// How often.
    pub count: u64,
    /// The first time.
    pub first: Timestamp,
    /// The last time.
    pub last: Timestamp,
    /// In which hours, UTC: bit 0 to 23 those of Monday to Friday, 24 to 47 those of weekends.
    pub hours: u64,
}

impl Seen {
    /// So often in the time from `first` to `last`, most of it at the end.
    #[must_use]
    pub fn times(count: u64, first: Timestamp, last: Timestamp) -> Self {
        let utc = last.to_zoned(TimeZone::UTC);
        let is_weekend = utc.weekday().to_monday_zero_offset() >= 5;
        let hour = utc.hour() as u32 + if is_weekend { 24 } else { 0 };
        Self {
            count,
            first,
            last,
            hours: 1 << hour,
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            hours: self.hours | other.hours,
        }
    }
}

/// A time for which nothing is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// When it began.
    pub from: Timestamp,
    /// When it ended.
    pub to: Timestamp,
    /// Why.
    pub reason: String,
}

/// Since when uses are seen, and when they were not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Coverage {
    /// Since when gates have stood here.
    pub since: Timestamp,
    /// Until when it is known that they did.
    pub until: Timestamp,
    /// When they did not in between.
    pub gaps: Vec<Gap>,
    /// Records of denials that were lost. (Where one of an allowed use is, there is a gap.)
    pub lost: u64,
    /// Kinds of use for which this ledger had no room.
    pub unkept: u64,
}

impl Coverage {
    /// For how long in all, in the time from `from` on, it is known what was used.
    #[must_use]
    pub fn covered(&self, from: Timestamp) -> SignedDuration {
        let from = from.max(self.since);
        let missing = self.gaps.iter().map(|gap| {
            let within = gap.to.duration_since(gap.from.max(from));
            within.max(SignedDuration::ZERO)
        });
        let all = self.until.duration_since(from).max(SignedDuration::ZERO);
        missing.fold(all, |all, gap| all.saturating_sub(gap))
    }

    /// Whether it would have been seen, had something been used in the time from `from` on.
    #[must_use]
    pub fn is_whole(&self, from: Timestamp) -> bool {
        from >= self.since && self.unkept == 0 && !self.gaps.iter().any(|gap| gap.to > from)
    }
}

/// Everything that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// When.
    pub coverage: Coverage,
    /// What.
    pub rows: BTreeMap<Row, Seen>,
    /// The ids of entitlements by their numbers in the kernel's tables, for the next daemon that takes those over.
    pub numbers: BTreeMap<u32, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    coverage: Coverage,
    rows: Vec<(Row, Seen)>,
    numbers: BTreeMap<u32, String>,
}

impl Ledger {
    /// One that begins now.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            coverage: Coverage {
                since: now,
                until: now,
                gaps: Vec::new(),
                lost: 0,
                unkept: 0,
            },
            rows: BTreeMap::new(),
            numbers: BTreeMap::new(),
        }
    }

    /// Reads one; `None` if there is none yet.
    ///
    /// # Errors
    /// If it cannot be read or is none.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Self::parse(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The ledger behind what [`Ledger::bytes`] gave, or what `enforcer usage -o json --ledger` did.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let stored: Stored = serde_json::from_slice(bytes)?;
        if stored.format != FORMAT {
            return Err(io::Error::other(format!(
                "a usage ledger of format {}; this version reads format {FORMAT}",
                stored.format
            )));
        }
        Ok(Self {
            coverage: stored.coverage,
            rows: stored.rows.into_iter().collect(),
            numbers: stored.numbers,
        })
    }

    /// For a file.
    ///
    /// # Errors
    /// None that anybody has seen.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let rows = self.rows.iter().map(|(row, seen)| (row.clone(), *seen));
        let stored = Stored {
            format: FORMAT,
            coverage: self.coverage.clone(),
            rows: rows.collect(),
            numbers: self.numbers.clone(),
        };
        Ok(serde_json::to_vec(&stored)?)
    }

    /// Adds what was seen.
    pub fn add(&mut self, row: &Row, seen: Seen) {
        if let Some(known) = self.rows.get_mut(row) {
            *known = known.and(seen);
            return;
        }
        let of_a_kind = row.place.kind().map(|place| Row {
            place,
            ..row.clone()
        });
        if let Some(of_a_kind) = of_a_kind
            && (self.rows.contains_key(&of_a_kind) || self.become_one(row, &of_a_kind))
        {
            let known = self.rows.get_mut(&of_a_kind);
            known.into_iter().for_each(|it| *it = it.and(seen));
        } else if self.rows.len() < ROWS {
            self.rows.insert(row.clone(), seen);
        } else {
            self.coverage.unkept += 1;
        }
    }

    /// Makes one row of those of the units that are like `row`'s, if there are many. Returns whether there are.
    fn become_one(&mut self, row: &Row, of_a_kind: &Row) -> bool {
        let with = |place: Place| Row {
            place,
            ..row.clone()
        };
        // Rows that are the same up to the place follow each other.
        let alike: Vec<Row> = (self.rows.range(with(Place::Unit(String::new()))..))
            .map(|(other, _)| other)
            .take_while(|other| matches!(other.place, Place::Unit(_)) && other.is_by_the_same(row))
            .filter(|other| other.place.kind().as_ref() == Some(&of_a_kind.place))
            .filter(|other| **other == with(other.place.clone()))
            .cloned()
            .collect();
        if alike.len() < UNITS_OF_A_KIND {
            return false;
        }
        let seen = alike.iter().filter_map(|row| self.rows.remove(row));
        if let Some(all) = seen.reduce(Seen::and) {
            self.rows.insert(of_a_kind.clone(), all);
        }
        true
    }

    /// Nothing is known from `from` to `to`.
    pub fn missed(&mut self, from: Timestamp, to: Timestamp, reason: &str) {
        if to <= from {
            return;
        }
        let gaps = &mut self.coverage.gaps;
        match gaps.last_mut() {
            Some(last) if last.to >= from && last.reason == reason => last.to = to,
            _ => gaps.push(Gap {
                from,
                to,
                reason: reason.to_owned(),
            }),
        }
        if gaps.len() > GAPS {
            let oldest = gaps.remove(0);
            gaps[0].from = oldest.from;
        }
        self.coverage.until = self.coverage.until.max(to);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    pub fn row(credential: &str) -> Row {
        Row {
            credential: credential.to_owned(),
            entitlement: None,
            workload: None,
            executable: "/usr/bin/app".to_owned(),
            uid: 0,
            place: Place::Unit("app.service".to_owned()),
            verb: "read".to_owned(),
            destination: None,
            reason: None,
            monitored: false,
            trusted: false,
        }
    }

    #[test]
    fn it_is_the_same_when_read_again() {
        let mut ledger = Ledger::new(at("2026-11-01T00:00:00Z"));
        let mut reach = row("key");
        reach.destination = Some(Destination {
            address: "2001:db8::1".parse().expect("an address"),
            port: 443,
            protocol: "tcp".to_owned(),
            host: Some("api.example.com".to_owned()),
        });
        let [monday, sunday] = ["2026-11-02T09:30:00Z", "2026-11-08T10:00:00Z"].map(at);
        ledger.add(&reach, Seen::times(1, monday, monday));
        ledger.add(&reach, Seen::times(4, monday, sunday));
        ledger.missed(
            at("2026-11-04T00:00:00Z"),
            at("2026-11-05T00:00:00Z"),
            "no daemon",
        );
        assert_eq!(ledger.rows[&reach].count, 5);
        assert_eq!(ledger.rows[&reach].hours, 1 << 9 | 1 << 34);
        let bytes = ledger.bytes().expect("it can be written");
        assert_eq!(Ledger::parse(&bytes).expect("it can be read"), ledger);
        assert!(Ledger::parse(b"{\"format\":9,\"coverage\":{},\"rows\":[]}").is_err());
    }

    #[test]
    fn gaps_are_not_covered() {
        let mut ledger = Ledger::new(at("2026-11-01T00:00:00Z"));
        ledger.missed(
            at("2026-11-03T00:00:00Z"),
            at("2026-11-04T00:00:00Z"),
            "off",
        );
        ledger.coverage.until = at("2026-11-11T00:00:00Z");
        let days = |text| ledger.coverage.covered(at(text)).as_hours() / 24;
        assert_eq!(days("2026-10-01T00:00:00Z"), 9);
        assert_eq!(days("2026-11-03T12:00:00Z"), 7);
        assert_eq!(days("2026-11-04T00:00:00Z"), 7);
        assert_eq!(days("2026-11-12T00:00:00Z"), 0);
        assert!(ledger.coverage.is_whole(at("2026-11-04T00:00:00Z")));
        assert!(!ledger.coverage.is_whole(at("2026-11-03T23:00:00Z")));
        assert!(!ledger.coverage.is_whole(at("2026-10-31T00:00:00Z")));
    }

    #[test]
    fn many_gaps_become_fewer_and_never_shorter() {
        let mut ledger = Ledger::new(at("2026-01-01T00:00:00Z"));
        for hour in 0..300 {
            let from = at("2026-01-01T00:00:00Z") + SignedDuration::from_hours(2 * hour);
            ledger.missed(from, from + SignedDuration::from_hours(1), "off");
        }
        assert_eq!(ledger.coverage.gaps.len(), GAPS);
        assert_eq!(ledger.coverage.gaps[0].from, at("2026-01-01T00:00:00Z"));
    }

    #[test]
    fn without_room_it_says_so() {
        let mut ledger = Ledger::new(at("2026-01-01T00:00:00Z"));
        let since = ledger.coverage.since;
        let once = Seen::times(1, since, since);
        for number in 0..ROWS + 2 {
            let mut row = row("key");
            row.uid = number as u32;
            ledger.add(&row, once);
        }
        assert_eq!((ledger.rows.len(), ledger.coverage.unkept), (ROWS, 2));
    }

    #[test]
    fn many_units_with_made_up_names_are_one() {
        let mut ledger = Ledger::new(at("2026-01-01T00:00:00Z"));
        let since = ledger.coverage.since;
        let mut add = |unit: String, executable: &str, verb: &str| {
            let row = Row {
                place: Place::Unit(unit),
                executable: executable.to_owned(),
                verb: verb.to_owned(),
                ..row("key")
            };
            ledger.add(&row, Seen::times(1, since, since));
        };
        for number in 0..1000 {
            add(format!("run-u{number}.service"), "/usr/bin/app", "read");
            add(format!("job-{number}@eu.service"), "/usr/bin/app", "read");
        }
        for number in 0..UNITS_OF_A_KIND {
            add(format!("run-u{number}.service"), "/usr/bin/app", "reach");
            add(
                format!("pg@{number}-main.service"),
                "/usr/bin/other",
                "read",
            );
        }
        add("app.service".to_owned(), "/usr/bin/app", "read");
        let found = |place: &Place| -> Vec<u64> {
            let rows = ledger.rows.iter().filter(|(row, _)| row.place == *place);
            rows.map(|(_, seen)| seen.count).collect()
        };
        let units = |name: &str| Place::Units(name.to_owned());
        assert_eq!(found(&units("run-*.service")), [1000]);
        assert_eq!(found(&units("job-*@eu.service")), [1000]);
        assert_eq!(found(&Place::Unit("app.service".to_owned())), [1]);
        // As many as are told apart.
        assert_eq!(ledger.rows.len(), 2 + 1 + 2 * UNITS_OF_A_KIND);
        let bytes = ledger.bytes().expect("it can be written");
        assert_eq!(Ledger::parse(&bytes).expect("it can be read"), ledger);
    }

    #[test]
    fn places_come_from_paths() {
        for (path, place) in [
            (
                "/system.slice/app.service/sub",
                Place::Unit("app.service".to_owned()),
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                Place::Session,
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
                Place::Unit("a.service".to_owned()),
            ),
            ("/system.slice/docker-0a1b.scope", Place::Container),
            ("/", Place::Nowhere),
        ] {
            let instance = Instance {
                cgroup: path.to_owned(),
                ..Instance::default()
            };
            assert_eq!(Place::of(&instance), place, "{path}");
        }
    }

    #[test]
    fn pods_of_a_kind_are_one_place() {
        let place = |pod: &str, hash: &str| {
            let told = serde_json::json!({
                "cgroup": format!("/kubepods.slice/{pod}/cri-containerd-{hash}.scope"),
                "pod": {
                    "namespace": "shop", "name": pod, "uid": hash, "serviceAccount": "billing",
                    "labels": {"app": "billing", "pod-template-hash": hash},
                },
                "container": {"id": hash, "name": "main", "image": "shop/billing:3"},
            });
            Place::of(&serde_json::from_value(told).expect("an instance"))
        };
        assert_eq!(place("billing-1", "0a"), place("billing-2", "0b"));
        assert_eq!(place("billing-1", "0a").name(), "shop/billing/main");
    }
}
