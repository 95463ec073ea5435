//! What somebody should look at. Pure: a bundle, a ledger, a few facts and the time in, findings out.
//!
//! That something is *not* used is only said where it would have been seen, had it been: [`Coverage::is_whole`].
//!
//! [`Coverage::is_whole`]: super::Coverage::is_whole

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::verdict::Reason;
use ipnet::IpNet;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::document;
use super::ledger::{Ledger, Place, Row, Seen};
use crate::bundle::{Activation, Bundle, Destination, Entitlement, Protocols, Target};

/// From when on something is worth a look.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Thresholds {
    /// Not used for so long is dormant, or more than is needed.
    pub unused: SignedDuration,
    /// A secret is changed at least so often.
    pub secret_age: SignedDuration,
    /// More addresses than this with one credential are unusual.
    pub fan_out: usize,
    /// From which hour of a working day to before which one (UTC) credentials are used; `None`: at any time.
    pub hours: Option<(u8, u8)>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            unused: SignedDuration::from_hours(30 * 24),
            secret_age: SignedDuration::from_hours(90 * 24),
            fan_out: 20,
            hours: None,
        }
    }
}

/// What there is to go by.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What is in force.
    pub bundle: &'a Bundle,
    /// What was seen.
    pub ledger: &'a Ledger,
    /// When what is in each credential's files last changed, by the credential's id.
    pub changed: &'a BTreeMap<String, Timestamp>,
    /// Now.
    pub now: Timestamp,
    /// From when on.
    pub thresholds: &'a Thresholds,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// To be tidied up.
    Low,
    /// To be reviewed.
    Medium,
    /// To be looked at now.
    High,
}

/// Declares the kinds of findings: name, severity, OWASP Non-Human Identities Top 10 (2025), NIST CSF 2.0, title.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $severity:ident, $owasp:literal, $nist:literal, $title:literal;)+) => {
        /// Kinds of findings.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $kind,)+ }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)+];

            /// The name in documents.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$kind => $name,)+ } }

            /// How bad it is.
            #[must_use]
            pub const fn severity(self) -> Severity { match self { $(Self::$kind => Severity::$severity,)+ } }

            /// The risk in OWASP's Non-Human Identities Top 10 of 2025.
            #[must_use]
            pub const fn owasp(self) -> &'static str { match self { $(Self::$kind => $owasp,)+ } }

            /// The subcategory of the NIST Cybersecurity Framework 2.0.
            #[must_use]
            pub const fn nist(self) -> &'static str { match self { $(Self::$kind => $nist,)+ } }

            /// For people.
            #[must_use]
            pub const fn title(self) -> &'static str { match self { $(Self::$kind => $title,)+ } }
        }
    };
}

kinds! {
    /// Nobody used it for long.
    Dormant = "dormant-entitlement", Medium, "NHI1:2025", "PR.AA-05", "Dormant entitlement";
    /// Some of its destinations were never reached.
    OverPrivileged = "over-privileged", Medium, "NHI5:2025", "PR.AA-05", "Over-privileged entitlement";
    /// Several workloads use one credential.
    Shared = "shared-credential", Medium, "NHI9:2025", "PR.AA-01", "Shared credential";
    /// A workload without an entitlement tried to use it, or did while that was only monitored.
    Unlisted = "unlisted-workload", High, "NHI2:2025", "DE.CM-09", "Credential used by an unlisted workload";
    /// It has not been changed for long.
    LongLived = "long-lived-secret", Medium, "NHI7:2025", "PR.AA-01", "Long-lived secret";
    /// The day by which it was to be reviewed has passed.
    ReviewOverdue = "review-overdue", Medium, "NHI1:2025", "PR.AA-05", "Review overdue";
    /// At night or on a weekend.
    OutsideHours = "outside-hours", Medium, "NHI2:2025", "DE.CM-03", "Use outside hours";
    /// To many addresses.
    FanOut = "unusual-fan-out", High, "NHI2:2025", "DE.CM-01", "Unusual fan-out";
    /// An emergency's entitlement was used.
    BreakGlass = "break-glass-use", High, "NHI10:2025", "PR.AA-05", "Break-glass use";
    /// From a login session.
    HumanUse = "human-use", High, "NHI10:2025", "DE.CM-03", "Human use of a machine credential";
    /// Over a protocol without encryption.
    Cleartext = "cleartext-destination", High, "NHI4:2025", "PR.DS-02", "Cleartext destination";
    /// Nobody answers for it.
    NoOwner = "no-owner", Low, "NHI1:2025", "GV.RR-02", "Credential with no owner";
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// How bad.
    pub severity: Severity,
    /// [`Kind::owasp`].
    pub owasp: [&'static str; 1],
    /// [`Kind::nist`].
    pub nist: [&'static str; 1],
    /// The credential, if it is about one.
    pub credential: Option<String>,
    /// The entitlement, if it is about one.
    pub entitlement: Option<String>,
    /// Who agreed to that.
    pub approver: Option<String>,
    /// And where that is written.
    pub ticket: Option<String>,
    /// What is the matter, in a sentence.
    pub message: String,
    /// What that was seen by, a line each.
    pub evidence: Vec<String>,
    /// What to have instead, as YAML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// All of them, and what could not be judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The worst first.
    pub findings: Vec<Finding>,
    /// Why nothing is said of what is unused; `null` if it is.
    pub undecided: Option<String>,
}

/// How many lines of evidence a finding has.
const EVIDENCE: usize = 10;
/// Ports on which what is sent can be read by everybody on the way.
const CLEARTEXT: &[(u16, &str)] = &[
    (21, "FTP"),
    (23, "Telnet"),
    (25, "SMTP"),
    (80, "HTTP"),
    (110, "POP3"),
    (143, "IMAP"),
    (389, "LDAP"),
    (512, "rexec"),
    (513, "rlogin"),
    (514, "rsh"),
    (1883, "MQTT"),
    (6379, "Redis"),
    (8080, "HTTP"),
    (11211, "memcached"),
];
/// Why a workload is not listed.
const UNLISTED: [Reason; 4] = [
    Reason::WrongExecutable,
    Reason::WrongWorkload,
    Reason::NoEntitlement,
    Reason::UnclassifiedWorkload,
];

/// Looks for everything.
#[must_use]
pub fn findings(facts: &Facts<'_>) -> Findings {
    let mut found = Vec::new();
    let since = facts.now - facts.thresholds.unused;
    let whole = facts.ledger.coverage.is_whole(since);
    for entitlement in &facts.bundle.entitlements {
        let rows = rows_of(facts.ledger, |row| {
            row.entitlement.as_deref() == Some(&entitlement.id)
        });
        of_entitlement(
            facts,
            entitlement,
            &rows,
            whole.then_some(since),
            &mut found,
        );
    }
    for credential in &facts.bundle.credentials {
        let rows = rows_of(facts.ledger, |row| row.credential == credential.id);
        if credential.owner.is_none() {
            found.push(finding(
                Kind::NoOwner,
                Some(&credential.id),
                None,
                format!("nobody answers for {}", credential.id),
                Vec::new(),
            ));
        }
        if let Some(changed) = facts.changed.get(&credential.id) {
            let age = facts.now.duration_since(*changed);
            if age > facts.thresholds.secret_age {
                let message = format!(
                    "{} has not been changed for {} days",
                    credential.id,
                    days(age)
                );
                let evidence = vec![format!("last changed {changed}")];
                found.push(finding(
                    Kind::LongLived,
                    Some(&credential.id),
                    None,
                    message,
                    evidence,
                ));
            }
        }
        of_uses(facts, &credential.id, &rows, &mut found);
    }
    for finding in &mut found {
        let mut all = facts.bundle.entitlements.iter();
        let of = all.find(|it| Some(&it.id) == finding.entitlement.as_ref());
        if let Some(approval) = of.and_then(|it| it.approval.as_ref()) {
            finding.approver.clone_from(&approval.approver);
            finding.ticket.clone_from(&approval.ticket);
        }
    }
    found.sort_by(|a, b| {
        let order = |it: &Finding| {
            (
                std::cmp::Reverse(it.severity),
                it.kind,
                it.credential.clone(),
                it.entitlement.clone(),
            )
        };
        order(a).cmp(&order(b))
    });
    let undecided = (!whole).then(|| {
        let coverage = &facts.ledger.coverage;
        format!(
            "of the last {} days, uses were seen for {}: what is unused cannot be told",
            days(facts.thresholds.unused),
            span(coverage.covered(since))
        )
    });
    Findings {
        findings: found,
        undecided,
    }
}

type Seens<'a> = Vec<(&'a Row, Seen)>;

fn rows_of(ledger: &Ledger, which: impl Fn(&Row) -> bool) -> Seens<'_> {
    let all = ledger.rows.iter().filter(|(row, _)| which(row));
    all.map(|(row, seen)| (row, *seen)).collect()
}

fn of_entitlement(
    facts: &Facts<'_>,
    it: &Entitlement,
    rows: &Seens<'_>,
    seen_since: Option<Timestamp>,
    found: &mut Vec<Finding>,
) {
    let (id, credential) = (Some(it.id.as_str()), Some(it.credential.as_str()));
    let used: Vec<_> = rows
        .iter()
        .filter(|(row, _)| row.reason.is_none())
        .collect();
    let review = it.approval.as_ref().and_then(|it| it.review_by);
    let today = facts.now.to_zoned(TimeZone::UTC).date();
    if let Some(review_by) = review.filter(|day| *day < today) {
        let message = format!("{} was to be reviewed by {review_by}", it.id);
        let approval = it.approval.as_ref();
        let evidence = [
            ("approved by", approval.and_then(|it| it.approver.as_ref())),
            ("ticket", approval.and_then(|it| it.ticket.as_ref())),
        ];
        let evidence = evidence
            .into_iter()
            .filter_map(|(what, who)| Some(format!("{what} {}", who?)));
        found.push(finding(
            Kind::ReviewOverdue,
            credential,
            id,
            message,
            evidence.collect(),
        ));
    }
    if it.activation == Activation::BreakGlass && !used.is_empty() {
        let message = format!("{}, which is for emergencies, was used", it.id);
        found.push(finding(
            Kind::BreakGlass,
            credential,
            id,
            message,
            lines(&used),
        ));
    }
    let cleartext: Vec<String> = (it.destinations.iter())
        .flat_map(|to| {
            cleartext_ports(to).map(move |name| {
                format!(
                    "granted: {} ({name})",
                    document::yaml(&document::destination(to))
                        .replace('\n', " ")
                        .trim()
                )
            })
        })
        .collect();
    if !cleartext.is_empty() {
        let message = format!("{} allows destinations without encryption", it.id);
        found.push(finding(Kind::Cleartext, credential, id, message, cleartext));
    }
    let Some(since) = seen_since else { return };
    let in_force_since = it.valid_from.unwrap_or(Timestamp::MIN);
    let is_over = it.valid_until.is_some_and(|end| end <= facts.now);
    if it.activation != Activation::Always || it.revoked || is_over || in_force_since > since {
        return;
    }
    let lately: Vec<_> = used.iter().filter(|(_, seen)| seen.last >= since).collect();
    let unused_days = days(facts.thresholds.unused);
    if lately.is_empty() {
        let last = used.iter().map(|(_, seen)| seen.last).max();
        let evidence = last.map_or("never used since uses are seen".to_owned(), |last| {
            format!("last used {last}")
        });
        let message = format!("{} has not been used for {unused_days} days", it.id);
        found.push(finding(
            Kind::Dormant,
            credential,
            id,
            message,
            vec![evidence],
        ));
        return;
    }
    let reached = |to: &&Destination| lately.iter().any(|(row, _)| covers(to, row));
    let (needed, unneeded): (Vec<_>, Vec<_>) = it.destinations.iter().partition(reached);
    if unneeded.is_empty() {
        return;
    }
    let mut smaller = it.clone();
    smaller.destinations = needed.into_iter().cloned().collect();
    let message = format!(
        "{} allows {} destinations of which {} were not reached in {unused_days} days",
        it.id,
        it.destinations.len(),
        unneeded.len()
    );
    let evidence = unneeded.iter().map(|to| {
        let text = document::yaml(&document::destination(to));
        format!("not reached: {}", text.trim().replace('\n', ", "))
    });
    let mut finding = finding(
        Kind::OverPrivileged,
        credential,
        id,
        message,
        evidence.collect(),
    );
    finding.remedy = Some(document::yaml(&document::entitlement(&smaller)));
    found.push(finding);
}

fn of_uses(facts: &Facts<'_>, id: &str, rows: &Seens<'_>, found: &mut Vec<Finding>) {
    let used = |row: &Row| row.reason.is_none() && !row.trusted;
    let happened = |row: &Row| (row.reason.is_none() || row.monitored) && !row.trusted;
    let mut push = |kind, message: String, evidence: Vec<&(&Row, Seen)>| {
        found.push(finding(kind, Some(id), None, message, lines(&evidence)));
    };
    let by_workload: BTreeSet<&str> = (rows.iter())
        .filter(|(row, _)| used(row))
        .filter_map(|(row, _)| row.workload.as_deref())
        .collect();
    if by_workload.len() > 1 {
        let names: Vec<&str> = by_workload.into_iter().collect();
        let message = format!(
            "{id} is used by {} workloads: {}",
            names.len(),
            names.join(", ")
        );
        let evidence = rows
            .iter()
            .filter(|(row, _)| used(row) && row.verb == "read");
        push(Kind::Shared, message, evidence.collect());
    }
    let is_unlisted = |row: &Row| {
        let reason = row.reason.as_deref();
        UNLISTED.iter().any(|it| Some(it.name()) == reason)
    };
    let unlisted: Vec<_> = rows.iter().filter(|(row, _)| is_unlisted(row)).collect();
    if !unlisted.is_empty() {
        let got = unlisted.iter().any(|(row, _)| row.monitored);
        let what = if got {
            "was used (it is only monitored)"
        } else {
            "was tried"
        };
        let message = format!("{id} {what} by who is not listed for it");
        push(Kind::Unlisted, message, unlisted);
    }
    let scheduled = Some(Reason::OutsideSchedule.name());
    let late = |row: &Row, seen: &Seen| {
        row.reason.as_deref() == scheduled
            || happened(row)
                && facts
                    .thresholds
                    .hours
                    .is_some_and(|hours| seen.hours & !working(hours) != 0)
    };
    let late: Vec<_> = rows.iter().filter(|(row, seen)| late(row, seen)).collect();
    if !late.is_empty() {
        push(
            Kind::OutsideHours,
            format!("{id} is used outside hours"),
            late,
        );
    }
    let reaches = |row: &Row| row.verb == "reach";
    let to: BTreeSet<_> = (rows.iter())
        .filter(|(row, _)| reaches(row) && happened(row))
        .filter_map(|(row, _)| row.destination.as_ref().map(|to| to.address))
        .collect();
    let exceeded = Some(Reason::FanOutExceeded.name());
    let exceeded = |row: &Row| row.reason.as_deref() == exceeded;
    if to.len() > facts.thresholds.fan_out || rows.iter().any(|(row, _)| exceeded(row)) {
        let message = format!("with {id}, {} addresses were reached", to.len());
        let evidence = rows.iter().filter(|(row, _)| reaches(row)).collect();
        push(Kind::FanOut, message, evidence);
    }
    let by_hand = |row: &Row| row.place == Place::Session && !row.trusted;
    let by_hand: Vec<_> = rows.iter().filter(|(row, _)| by_hand(row)).collect();
    if !by_hand.is_empty() {
        let message = format!("{id} is used from login sessions");
        push(Kind::HumanUse, message, by_hand);
    }
    let in_the_clear = |row: &Row| {
        let to = row
            .destination
            .as_ref()
            .filter(|_| reaches(row) && happened(row));
        to.is_some_and(|to| {
            !to.address.is_loopback() && to.protocol == "tcp" && cleartext(to.port).is_some()
        })
    };
    let clear: Vec<_> = rows.iter().filter(|(row, _)| in_the_clear(row)).collect();
    if !clear.is_empty() {
        let message = format!("holders of {id} connect without encryption");
        push(Kind::Cleartext, message, clear);
    }
}

fn finding(
    kind: Kind,
    credential: Option<&str>,
    entitlement: Option<&str>,
    message: String,
    evidence: Vec<String>,
) -> Finding {
    Finding {
        kind,
        severity: kind.severity(),
        owasp: [kind.owasp()],
        nist: [kind.nist()],
        credential: credential.map(str::to_owned),
        entitlement: entitlement.map(str::to_owned),
        approver: None,
        ticket: None,
        message,
        evidence,
        remedy: None,
    }
}

/// The latest rows, a line each.
fn lines(rows: &[&(&Row, Seen)]) -> Vec<String> {
    let mut rows: Vec<_> = rows.to_vec();
    rows.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.last));
    let more = rows.len().saturating_sub(EVIDENCE);
    let line = |(row, seen): &&(&Row, Seen)| {
        let to = row.destination.as_ref().map(|to| format!(" to {to}"));
        let why = row.reason.as_ref().map(|reason| match row.monitored {
            true => format!(", would be denied: {reason}"),
            false => format!(", denied: {reason}"),
        });
        format!(
            "{} by {} (uid {}, {}){}{}: {}, last {}",
            row.verb,
            row.executable,
            row.uid,
            row.place.name(),
            to.unwrap_or_default(),
            why.unwrap_or_default(),
            match seen.count {
                1 => "once".to_owned(),
                count => format!("{count} times"),
            },
            seen.last
        )
    };
    let mut lines: Vec<String> = rows.iter().take(EVIDENCE).map(line).collect();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// Whether a use was to a destination that this covers.
#[must_use]
pub fn covers(granted: &Destination, row: &Row) -> bool {
    let Some(to) = &row.destination else {
        return false;
    };
    let is_there = match &granted.target {
        Target::Cidr(net) => net.contains(&to.address),
        Target::Host(host) => to.host.as_ref() == Some(host),
    };
    let protocol = match to.protocol.as_str() {
        "tcp" => Protocols::TCP,
        "udp" => Protocols::UDP,
        "icmp" => Protocols::ICMP,
        _ => Protocols::ANY,
    };
    let mut ports = granted.ports.iter();
    is_there
        && granted.protocols.contains(protocol)
        && (granted.ports.is_empty() || ports.any(|it| (it.first..=it.last).contains(&to.port)))
}

/// What is spoken in the clear on this port.
fn cleartext(port: u16) -> Option<&'static str> {
    let mut known = CLEARTEXT.iter();
    known.find(|(it, _)| *it == port).map(|(_, name)| *name)
}

/// What is spoken in the clear on the ports that this names one by one, unless that is on this host.
fn cleartext_ports(to: &Destination) -> impl Iterator<Item = &'static str> {
    let local = match &to.target {
        Target::Cidr(IpNet::V4(net)) => net.addr().is_loopback() || net.addr().is_link_local(),
        Target::Cidr(IpNet::V6(net)) => net.addr().is_loopback(),
        Target::Host(_) => false,
    };
    let single = to.ports.iter().filter(|it| it.first == it.last);
    let remote = !local && to.protocols.contains(Protocols::TCP);
    single
        .filter(move |_| remote)
        .filter_map(|it| cleartext(it.first))
}

/// The bits of [`Seen::hours`] for these hours of working days.
fn working((from, to): (u8, u8)) -> u64 {
    let hour = |hour: &u8| match from <= to {
        true => (from..to).contains(hour),
        false => *hour >= from || *hour < to,
    };
    (0..24).filter(hour).fold(0, |bits, hour| bits | 1 << hour)
}

fn days(duration: SignedDuration) -> i64 {
    duration.as_hours() / 24
}

fn span(duration: SignedDuration) -> String {
    match days(duration) {
        0 => format!("{} hours", duration.as_hours()),
        days => format!("{days} days"),
    }
}
