//! What each entitlement and each credential was used for. Pure: a bundle and a ledger in, words out.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ledger::{Coverage, Destination, Ledger, Place, Row, Seen};
use crate::bundle::Bundle;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// For which times it is known.
    pub coverage: Coverage,
    /// Every entitlement of the bundle, and those of earlier ones that were used.
    pub entitlements: Vec<Of>,
    /// Every credential, likewise.
    pub credentials: Vec<Of>,
}

/// What one of them was used for.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Of {
    /// Its id.
    pub id: String,
    /// Of an entitlement: the credential's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Of an entitlement: the workload's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Of a credential: who answers for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Of an entitlement: who agreed to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approver: Option<String>,
    /// Of an entitlement: where that is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Of an entitlement: the day by which it is to be reviewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub review_by: Option<String>,
    /// Whether it is in the bundle in force.
    pub in_force: bool,
    /// How often it was used, first and last; `null` if never.
    pub used: Option<Seen>,
    /// How often a use was denied, or would have been.
    pub denied: Option<Seen>,
    /// By whom.
    pub by: Vec<By>,
    /// Where to.
    pub destinations: Vec<To>,
    /// As many of these were left out ([`Of::shortened`]).
    #[serde(skip_serializing_if = "Omitted::is_nothing")]
    pub omitted: Omitted,
}

/// How many a list had beyond those that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Omitted {
    /// Of [`Of::by`].
    pub by: usize,
    /// Of [`Of::destinations`].
    pub destinations: usize,
}

impl Omitted {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Of {
    /// With at most so many in each list, those with the most uses: jobs that come and go are others each time, and a record
    /// must not grow with them.
    #[must_use]
    pub fn shortened(mut self, most: usize) -> Self {
        self.omitted = Omitted {
            by: shorten(&mut self.by, most, |it| it.seen),
            destinations: shorten(&mut self.destinations, most, |it| it.seen),
        };
        self
    }
}

/// Returns how many went.
fn shorten<T>(list: &mut Vec<T>, most: usize, seen: impl Fn(&T) -> Seen) -> usize {
    let omitted = list.len().saturating_sub(most);
    if omitted > 0 {
        list.sort_by_key(|it| std::cmp::Reverse(seen(it).count));
        list.truncate(most);
    }
    omitted
}

/// Who used it.
#[derive(Clone, Debug, Serialize)]
pub struct By {
    /// The workload's id.
    pub workload: Option<String>,
    /// The program.
    pub executable: String,
    /// The user.
    pub uid: u32,
    /// What it ran in.
    pub place: String,
    /// `allow` or `deny`, which includes what only would have been denied.
    pub verdict: &'static str,
    /// How often, and when.
    #[serde(flatten)]
    pub seen: Seen,
}

/// Where it was used.
#[derive(Clone, Debug, Serialize)]
pub struct To {
    /// Where.
    #[serde(flatten)]
    pub destination: Destination,
    /// As in [`By`].
    pub verdict: &'static str,
    /// How often, and when.
    #[serde(flatten)]
    pub seen: Seen,
}

/// What the rows of one entitlement or credential say together.
#[derive(Default)]
struct Sum<'a> {
    used: Option<Seen>,
    denied: Option<Seen>,
    by: BTreeMap<(Option<&'a str>, &'a str, u32, &'a Place, &'static str), Seen>,
    to: BTreeMap<(&'a Destination, &'static str), Seen>,
}

fn join<K: Ord>(map: &mut BTreeMap<K, Seen>, key: K, seen: Seen) {
    map.entry(key)
        .and_modify(|known| *known = known.and(seen))
        .or_insert(seen);
}

impl<'a> Sum<'a> {
    fn add(&mut self, row: &'a Row, seen: Seen) {
        let (verdict, sum) = match row.reason {
            None => ("allow", &mut self.used),
            Some(_) => ("deny", &mut self.denied),
        };
        *sum = Some(sum.map_or(seen, |known| known.and(seen)));
        let workload = row.workload.as_deref();
        let by = (
            workload,
            row.executable.as_str(),
            row.uid,
            &row.place,
            verdict,
        );
        join(&mut self.by, by, seen);
        if let Some(destination) = &row.destination {
            join(&mut self.to, (destination, verdict), seen);
        }
    }

    fn told(self, id: &str, in_force: bool) -> Of {
        let by = |((workload, executable, uid, place, verdict), seen): (
            (Option<&str>, &str, u32, &Place, &'static str),
            Seen,
        )| By {
            workload: workload.map(str::to_owned),
            executable: executable.to_owned(),
            uid,
            place: place.name().into_owned(),
            verdict,
            seen,
        };
        let to = |((destination, verdict), seen): ((&Destination, &'static str), Seen)| To {
            destination: destination.clone(),
            verdict,
            seen,
        };
        Of {
            id: id.to_owned(),
            credential: None,
            workload: None,
            owner: None,
            approver: None,
            ticket: None,
            review_by: None,
            in_force,
            used: self.used,
            denied: self.denied,
            by: self.by.into_iter().map(by).collect(),
            destinations: self.to.into_iter().map(to).collect(),
            omitted: Omitted::default(),
        }
    }
}

/// What was seen of a bundle.
#[must_use]
pub fn summary(bundle: Option<&Bundle>, ledger: &Ledger) -> Summary {
    let (mut entitlements, mut credentials) = (BTreeMap::new(), BTreeMap::new());
    let (mut granted, mut known) = (BTreeMap::new(), BTreeMap::new());
    for it in bundle.iter().flat_map(|it| &it.entitlements) {
        entitlements.insert(it.id.as_str(), Sum::default());
        granted.insert(it.id.as_str(), it);
    }
    for it in bundle.iter().flat_map(|it| &it.credentials) {
        credentials.insert(it.id.as_str(), Sum::default());
        known.insert(it.id.as_str(), it);
    }
    for (row, seen) in &ledger.rows {
        credentials
            .entry(&row.credential)
            .or_default()
            .add(row, *seen);
        if let Some(id) = &row.entitlement {
            entitlements.entry(id).or_default().add(row, *seen);
        }
    }
    let entitlement = |(id, sum): (&str, Sum<'_>)| {
        let mut of = sum.told(id, granted.contains_key(id));
        if let Some(it) = granted.get(id) {
            of.credential = Some(it.credential.clone());
            of.workload = Some(it.workload.clone());
            let approval = it.approval.as_ref();
            of.approver = approval.and_then(|it| it.approver.clone());
            of.ticket = approval.and_then(|it| it.ticket.clone());
            of.review_by = approval.and_then(|it| Some(it.review_by?.to_string()));
        }
        of
    };
    let credential = |(id, sum): (&str, Sum<'_>)| {
        let mut of = sum.told(id, known.contains_key(id));
        of.owner = known.get(id).and_then(|it| it.owner.clone());
        of
    };
    Summary {
        coverage: ledger.coverage.clone(),
        entitlements: entitlements.into_iter().map(entitlement).collect(),
        credentials: credentials.into_iter().map(credential).collect(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_record_has_those_with_the_most_uses() {
        let now = Timestamp::UNIX_EPOCH;
        let mut ledger = Ledger::new(now);
        for job in 0..300_u64 {
            let row = Row {
                credential: "key".to_owned(),
                entitlement: Some("E".to_owned()),
                workload: None,
                executable: "/bin/job".to_owned(),
                uid: 0,
                place: Place::Named(format!("job-{job}")),
                verb: "read".to_owned(),
                destination: None,
                reason: None,
                monitored: false,
                trusted: false,
            };
            ledger.add(&row, Seen::times(1 + job, now, now));
        }
        let of = summary(None, &ledger).entitlements.remove(0);
        assert_eq!((of.by.len(), of.omitted), (300, Omitted::default()));
        let uses = of.used;
        let of = of.shortened(100);
        assert_eq!(
            (of.by.len(), of.omitted.by, of.omitted.destinations),
            (100, 200, 0)
        );
        assert_eq!(
            (of.by[0].place.as_str(), of.by[99].seen.count),
            ("container job-299", 201)
        );
        assert_eq!(of.used, uses);
    }
}
