//! From what was seen in monitor mode to a bundle that allows it, and nothing else. Pure.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::verdict::Reason;
use serde_json::{Map, Value, json};

use super::document;
use super::findings::covers;
use super::ledger::{Destination, Ledger, OfPod, Place, Row};
use crate::bundle::{Bundle, Change, Entitlement, Kind, MAX_GRANTS, MAX_PORT_RANGES};

/// What to have besides what there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recommendation {
    /// New workloads and entitlements, and entitlements with more destinations than before.
    pub change: Change,
    /// What was seen and is not in it, and why; a line each.
    pub left_out: BTreeSet<String>,
}

/// Denials that an entitlement would make good.
const MISSING: [Reason; 6] = [
    Reason::OutsideDestination,
    Reason::LocalPeer,
    Reason::WrongExecutable,
    Reason::WrongWorkload,
    Reason::NoEntitlement,
    Reason::UnclassifiedWorkload,
];

/// Who, in the terms of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who<'a> {
    /// One of its workloads.
    Listed(&'a str),
    /// A program in a unit.
    InUnit(&'a str, &'a str),
    /// A program of a user.
    OfUser(&'a str, u32),
    /// A container of pods of a kind.
    OfPod(&'a OfPod),
    /// A container of no pod, by its name.
    Container(&'a str),
}

/// What the bundle would have to say, so that everything that was only monitored is allowed.
#[must_use]
pub fn recommend(bundle: &Bundle, ledger: &Ledger) -> Recommendation {
    let mut recommendation = Recommendation::default();
    let known: BTreeSet<&str> = bundle.credentials.iter().map(|it| it.id.as_str()).collect();
    let mut wanted: BTreeMap<(Who<'_>, &str), BTreeSet<&Destination>> = BTreeMap::new();
    for row in ledger.rows.keys() {
        if !is_missing(row) || !known.contains(row.credential.as_str()) {
            continue;
        }
        match who(bundle, row) {
            Ok(who) => {
                let to = wanted.entry((who, &row.credential)).or_default();
                to.extend(row.destination.iter().filter(|_| row.verb == "reach"));
            }
            Err(why) => {
                recommendation.left_out.insert(format!(
                    "{} of {} by {} (uid {}): {why}",
                    row.verb, row.credential, row.executable, row.uid
                ));
            }
        }
    }
    let mut names = Names::of(bundle);
    let mut workloads: BTreeMap<Who<'_>, String> = BTreeMap::new();
    for ((who, credential), to) in wanted {
        let workload = workloads.entry(who.clone()).or_insert_with(|| match &who {
            Who::Listed(id) => (*id).to_owned(),
            new => {
                let (id, item) = names.workload(new);
                let items = recommendation.change.upsert.entry(Kind::Workloads);
                items.or_default().insert(id.clone(), item.into());
                id
            }
        });
        let existing = |it: &&Entitlement| it.workload == *workload && it.credential == credential;
        let of_pair: Vec<_> = bundle.entitlements.iter().filter(existing).collect();
        let (id, item) = match of_pair.first() {
            // More than this the kernel does not compare.
            Some(first) if of_pair.len() == MAX_GRANTS => extended(first, &to),
            _ => {
                let id = names.entitlement(workload, credential);
                let item = json!({
                    "id": id,
                    "workload": workload,
                    "credential": credential,
                    "destinations": destinations(&to),
                });
                (id, item)
            }
        };
        let items = recommendation.change.upsert.entry(Kind::Entitlements);
        items.or_default().insert(id, item.into());
    }
    recommendation
}

fn is_missing(row: &Row) -> bool {
    let reason = row.reason.as_deref();
    row.monitored && MISSING.iter().any(|it| Some(it.name()) == reason)
}

/// Whether a bundle can select by it.
fn is_path(executable: &str) -> bool {
    let Some(rest) = executable.strip_prefix('/') else {
        return false;
    };
    let mut parts = rest.split('/');
    parts.all(|part| !["", ".", ".."].contains(&part))
        && !executable.ends_with(" (deleted)")
        && !executable.contains(char::is_control)
}

fn who<'a>(bundle: &'a Bundle, row: &'a Row) -> Result<Who<'a>, &'static str> {
    let mut listed = bundle.workloads.iter();
    if let Some(workload) = listed.find(|it| Some(&it.id) == row.workload.as_ref()) {
        return Ok(Who::Listed(&workload.id));
    }
    match &row.place {
        Place::Pod(pod) => Ok(Who::OfPod(pod)),
        Place::Named(name) => Ok(Who::Container(name)),
        Place::Container => Err("it was in a container, and nothing said what that is"),
        Place::Units(_) => Err(
            "it was in many units whose names somebody makes up: give them a slice, and select that by `cgroup`",
        ),
        Place::Session => {
            Err("it was in a login session; who may do this by hand is for you to say")
        }
        Place::Unit(_) | Place::Nowhere if !is_path(&row.executable) => {
            Err("the program's path is not known, or it has been replaced since")
        }
        Place::Unit(unit) => Ok(Who::InUnit(unit, &row.executable)),
        Place::Nowhere => Ok(Who::OfUser(&row.executable, row.uid)),
    }
}

/// An entitlement with these destinations too.
fn extended(of: &Entitlement, to: &BTreeSet<&Destination>) -> (String, Value) {
    let mut item = document::entitlement(of);
    let missing: BTreeSet<&Destination> = (to.iter().copied())
        .filter(|to| !of.destinations.iter().any(|it| covers_one(it, to)))
        .collect();
    if let (Value::Array(more), all) = (destinations(&missing), &mut item["destinations"]) {
        match all {
            Value::Array(all) => all.extend(more),
            other => *other = Value::Array(more),
        }
    }
    (of.id.clone(), item)
}

fn covers_one(granted: &crate::bundle::Destination, to: &Destination) -> bool {
    let row = Row {
        credential: String::new(),
        entitlement: None,
        workload: None,
        executable: String::new(),
        uid: 0,
        place: Place::Nowhere,
        verb: String::new(),
        destination: Some(to.clone()),
        reason: None,
        monitored: false,
        trusted: false,
    };
    covers(granted, &row)
}

/// By name where there is one, ports together.
fn destinations(all: &BTreeSet<&Destination>) -> Value {
    if all.is_empty() {
        return json!("none");
    }
    let mut ports: BTreeMap<(&str, String, &str), BTreeSet<u16>> = BTreeMap::new();
    for to in all {
        let (kind, target) = match &to.host {
            Some(host) => ("host", host.clone()),
            None => ("cidr", to.address.to_string()),
        };
        let known = ["tcp", "udp", "icmp"].contains(&to.protocol.as_str());
        let protocol = if known { to.protocol.as_str() } else { "any" };
        let ports = ports.entry((kind, target, protocol)).or_default();
        ports.extend(Some(to.port).filter(|port| *port != 0));
    }
    let mut list = Vec::new();
    for ((kind, target, protocol), ports) in ports {
        let ports: Vec<u16> = ports.into_iter().collect();
        let mut one = Map::new();
        one.insert(kind.to_owned(), json!(target));
        one.insert("protocol".to_owned(), json!(protocol));
        if ports.is_empty() {
            list.push(Value::Object(one));
            continue;
        }
        for ports in ports.chunks(MAX_PORT_RANGES) {
            let mut one = one.clone();
            one.insert("ports".to_owned(), json!(ports));
            list.push(Value::Object(one));
        }
    }
    Value::Array(list)
}

/// Ids that are free.
struct Names {
    taken: BTreeSet<String>,
}

/// Longest id.
const LONGEST: usize = 63;

impl Names {
    fn of(bundle: &Bundle) -> Self {
        let workloads = bundle.workloads.iter().map(|it| it.id.clone());
        let entitlements = bundle.entitlements.iter().map(|it| it.id.clone());
        Self {
            taken: workloads.chain(entitlements).collect(),
        }
    }

    fn workload(&mut self, who: &Who<'_>) -> (String, Value) {
        let program = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let (name, selectors) = match who {
            Who::Listed(id) => ((*id).to_owned(), json!({})),
            Who::InUnit(unit, path) => {
                let stem = unit.rsplit_once('.').map_or(*unit, |(stem, _)| stem);
                let program = program(path);
                let name = if program == stem {
                    program
                } else {
                    format!("{stem}-{program}")
                };
                (
                    name,
                    json!({"systemdUnit": unit, "executable": {"path": path}}),
                )
            }
            Who::OfUser(path, uid) => (
                format!("{}-{uid}", program(path)),
                json!({"executable": {"path": path}, "user": uid}),
            ),
            Who::OfPod(pod) => {
                let kind = pod.labels.values().next().unwrap_or(&pod.container);
                let mut selectors = Map::new();
                selectors.insert("namespace".to_owned(), json!(pod.namespace));
                if let Some(account) = &pod.service_account {
                    selectors.insert("serviceAccount".to_owned(), json!(account));
                }
                if !pod.labels.is_empty() {
                    selectors.insert("podLabels".to_owned(), json!(pod.labels));
                }
                selectors.insert("container".to_owned(), json!(pod.container));
                let name = match *kind == pod.container {
                    true => format!("{}-{kind}", pod.namespace),
                    false => format!("{}-{kind}-{}", pod.namespace, pod.container),
                };
                (name, json!({"kubernetes": selectors}))
            }
            Who::Container(name) => ((*name).to_owned(), json!({"container": {"name": name}})),
        };
        let id = self.free(&name);
        let item = json!({"id": id, "match": selectors});
        (id, item)
    }

    fn entitlement(&mut self, workload: &str, credential: &str) -> String {
        self.free(&format!("{workload}-{credential}"))
    }

    /// An id like this text that nothing has yet.
    fn free(&mut self, text: &str) -> String {
        let letters = text.chars().map(|c| match c {
            c if c.is_ascii_alphanumeric() || ".-_".contains(c) => c,
            _ => '-',
        });
        let clean: String = letters.collect();
        let clean = clean.trim_start_matches(['.', '-', '_']);
        let clean = clean.strip_prefix("enforcer-").unwrap_or(clean);
        let clean = if clean.is_empty() { "workload" } else { clean };
        let mut number = 1;
        loop {
            let suffix = if number == 1 {
                String::new()
            } else {
                format!("-{number}")
            };
            let room = LONGEST - suffix.len();
            let id = format!("{}{suffix}", &clean[..clean.len().min(room)]);
            if self.taken.insert(id.clone()) {
                return id;
            }
            number += 1;
        }
    }
}
