//! The last decisions, and what they add up to: a pure sum over records, bounded whatever comes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;
use serde_json::Value;

use crate::shape::{Record, summary};

/// So many decisions are shown.
const RECENT: usize = 500;
/// Of so many pairs of workload and credential the use is kept; with more, those that come late are not.
const CELLS: usize = 10_000;
/// So many destinations of each pair.
const DESTINATIONS: usize = 100;
/// So many holders.
const HOLDERS: usize = 1000;

/// The sum.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Board {
    /// The last ones, the latest first.
    #[serde(skip)]
    pub recent: VecDeque<Line>,
    /// How many uses had which outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Who used what.
    #[serde(serialize_with = "cells")]
    pub matrix: BTreeMap<(String, String), Cell>,
    /// Who was seen reading a credential, and what; the cgroup, or a program outside of any.
    pub holders: BTreeMap<String, BTreeSet<String>>,
    /// Records that were lost, by where.
    pub losses: BTreeMap<String, u64>,
    /// What found no room here.
    pub left_out: u64,
}

/// A decision in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When.
    pub time: String,
    /// What came of it.
    pub outcome: &'static str,
    /// What was done.
    pub act: String,
    /// By whom.
    pub who: String,
    /// With which credential.
    pub credential: String,
    /// To which destination, or with which file.
    pub to: String,
    /// Why it was denied, and what did not fit.
    pub why: String,
}

/// What a workload did with a credential.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// How often.
    pub allowed: u64,
    /// How often it was denied, or would have been.
    pub denied: u64,
    /// The last time.
    pub last: String,
    /// Where to, and how often.
    pub destinations: BTreeMap<String, u64>,
}

impl Board {
    /// Adds a record.
    pub fn add(&mut self, record: &Value) {
        let record = Record(record);
        if record.kind() == "lost" {
            let stage = record
                .text("stage")
                .or(record.text("ring"))
                .unwrap_or("somewhere");
            let count = record.number("count").unwrap_or(1);
            *self.losses.entry(stage.to_owned()).or_default() += count;
        }
        if !record.is_decision() {
            return;
        }
        let count = record.number("count").unwrap_or(1);
        *self.outcomes.entry(summary::outcome(record)).or_default() += count;
        self.recent.push_front(Line::new(record));
        self.recent.truncate(RECENT);
        self.count(record, count);
        self.hold(record);
    }

    fn count(&mut self, record: Record<'_>, count: u64) {
        let Some(credential) = record.text("credential") else {
            return;
        };
        let key = (workload(record).to_owned(), credential.to_owned());
        if self.matrix.len() >= CELLS && !self.matrix.contains_key(&key) {
            self.left_out += count;
            return;
        }
        let cell = self.matrix.entry(key).or_default();
        match record.is_denied() {
            true => cell.denied += count,
            false => cell.allowed += count,
        }
        cell.last = cell.last.clone().max(record.time().to_string());
        if let Some(to) = summary::destination(record) {
            let is_known = cell.destinations.contains_key(&to);
            match is_known || cell.destinations.len() < DESTINATIONS {
                true => *cell.destinations.entry(to).or_default() += count,
                false => self.left_out += count,
            }
        }
    }

    fn hold(&mut self, record: Record<'_>) {
        let is_read = record.act() == "read" && !record.is_denied();
        if !is_read || record.get("trusted").is_some_and(|it| *it == true) {
            return;
        }
        let Some(credential) = record.text("credential") else {
            return;
        };
        let has_instance = ["instance.unit", "instance.container"]
            .into_iter()
            .any(|path| record.get(path).is_some());
        let place = if has_instance {
            "instance.cgroup"
        } else {
            "process.exe"
        };
        let holder = summary::container(record).or_else(|| record.text(place).map(str::to_owned));
        let Some(holder) = holder else {
            return;
        };
        if self.holders.len() < HOLDERS || self.holders.contains_key(&holder) {
            let held = self.holders.entry(holder).or_default();
            held.insert(credential.to_owned());
        }
    }
}

/// A workload of the bundle, or the program where it is none.
fn workload(record: Record<'_>) -> &str {
    let found = ["workload", "process.exe"]
        .into_iter()
        .find_map(|path| record.text(path));
    found.unwrap_or("unknown")
}

impl Line {
    /// Of a decision.
    #[must_use]
    pub fn new(record: Record<'_>) -> Self {
        let text = |path| record.text(path).unwrap_or_default().to_owned();
        let to = summary::destination(record);
        let why = match (record.text("reason"), record.text("misfit")) {
            (Some(reason), Some(misfit)) => format!("{reason}: {misfit}"),
            (reason, _) => reason.unwrap_or_default().to_owned(),
        };
        Self {
            time: record.time().to_string(),
            outcome: summary::outcome(record),
            act: record.act().to_owned(),
            who: summary::who(record),
            credential: text("credential"),
            to: to.unwrap_or_else(|| text("file")),
            why,
        }
    }
}

/// As a list: JSON has no pairs for keys.
fn cells<S: serde::Serializer>(
    matrix: &BTreeMap<(String, String), Cell>,
    to: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Named<'a> {
        workload: &'a str,
        credential: &'a str,
        #[serde(flatten)]
        cell: &'a Cell,
    }
    to.collect_seq(matrix.iter().map(|((workload, credential), cell)| Named {
        workload,
        credential,
        cell,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn used(workload: &str, verdict: &str, to: &str) -> Value {
        json!({"time": "2026-11-26T09:00:00Z", "kind": "reach", "verdict": verdict, "credential": "key",
            "workload": workload, "action": {"taken": "block"}, "process": {"exe": "/usr/bin/app", "pid": 7},
            "destination": {"address": to, "port": 443, "protocol": "tcp"}})
    }

    #[test]
    fn uses_add_up_by_workload_and_credential() {
        let mut board = Board::default();
        board.add(&used("billing", "allow", "192.0.2.1"));
        let mut many = used("billing", "allow", "192.0.2.1");
        many["count"] = json!(41);
        board.add(&many);
        board.add(&used("billing", "deny", "203.0.113.9"));
        board.add(&json!({"kind": "lost", "stage": "uses", "count": 3}));
        let cell = &board.matrix[&("billing".to_owned(), "key".to_owned())];
        assert_eq!((cell.allowed, cell.denied), (42, 1));
        assert_eq!(cell.destinations["192.0.2.1:443"], 42);
        assert_eq!(board.outcomes["denied"], 1);
        assert_eq!(board.losses["uses"], 3);
        assert_eq!(board.recent[0].outcome, "denied");
        assert_eq!(board.recent[0].who, "/usr/bin/app[7] as billing");
    }

    #[test]
    fn whoever_reads_is_a_holder_but_who_is_denied_or_trusted_is_none() {
        let mut board = Board::default();
        let read = |cgroup: &str, verdict: &str, trusted: bool| {
            json!({"kind": "read", "verdict": verdict, "credential": "key", "trusted": trusted,
                "instance": {"cgroup": cgroup, "unit": "a.service"}, "process": {"exe": "/x"}})
        };
        board.add(&read("/a.service", "allow", false));
        board.add(&read("/b.service", "deny", false));
        board.add(&read("/c.service", "allow", true));
        assert_eq!(board.holders.keys().collect::<Vec<_>>(), ["/a.service"]);
    }

    #[test]
    fn a_flood_stays_within_bounds() {
        let mut board = Board::default();
        for number in 0..20_000_u32 {
            let address = std::net::Ipv4Addr::from(number).to_string();
            board.add(&used(&number.to_string(), "deny", &address));
            board.add(&used("one", "deny", &address));
        }
        assert_eq!(board.matrix.len(), CELLS);
        assert_eq!(board.recent.len(), RECENT);
        let cell = &board.matrix[&("one".to_owned(), "key".to_owned())];
        assert_eq!(
            (cell.denied, cell.destinations.len()),
            (20_000, DESTINATIONS)
        );
        assert!(board.left_out > 0);
    }
}
