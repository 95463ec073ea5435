//! A record, as the shapes read it.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

/// A record of the log: a JSON object, which may lack any field.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a>(pub &'a Value);

/// What a record is known by, everywhere and for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The node that wrote it.
    pub node: String,
    /// The log on that node.
    pub epoch: String,
    /// Its number there, from 1 without a gap.
    pub sequence: u64,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.node, self.epoch, self.sequence)
    }
}

/// How much it matters; from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What is meant to happen.
    Informational = 1,
    /// What an operator should know.
    Low = 2,
    /// What was not meant to happen, and did: only monitored, or lost.
    Medium = 3,
    /// What was refused.
    High = 4,
    /// The enforcer itself is attacked, or does not enforce.
    Critical = 5,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Informational => "Informational",
            Self::Low => "Low",
            Self::Medium => "Medium",
            Self::High => "High",
            Self::Critical => "Critical",
        }
    }
}

impl<'a> Record<'a> {
    /// What is at a path like `process.exe`.
    #[must_use]
    pub fn get(self, path: &str) -> Option<&'a Value> {
        let found = path
            .split('.')
            .try_fold(self.0, |value, name| value.get(name));
        found.filter(|value| !value.is_null())
    }

    /// A text that is not empty.
    #[must_use]
    pub fn text(self, path: &str) -> Option<&'a str> {
        self.get(path)?.as_str().filter(|text| !text.is_empty())
    }

    /// A number from 0 on.
    #[must_use]
    pub fn number(self, path: &str) -> Option<u64> {
        self.get(path)?.as_u64()
    }

    /// A number of 31 bits, which is what shapes have for process ids and ports.
    #[must_use]
    pub fn small(self, path: &str) -> Option<i32> {
        self.number(path)?.try_into().ok()
    }

    /// A port.
    #[must_use]
    pub fn port(self, path: &str) -> Option<u16> {
        self.number(path)?.try_into().ok()
    }

    /// An address.
    #[must_use]
    pub fn address(self, path: &str) -> Option<IpAddr> {
        self.text(path)?.parse().ok()
    }

    /// A moment.
    #[must_use]
    pub fn moment(self, path: &str) -> Option<Timestamp> {
        self.text(path)?.parse().ok()
    }

    /// The texts of a list.
    pub fn texts(self, path: &str) -> impl Iterator<Item = &'a str> {
        let list = self.get(path).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str)
    }

    /// The parts of a list.
    pub fn list(self, path: &str) -> impl Iterator<Item = Record<'a>> {
        let list = self.get(path).and_then(Value::as_array);
        list.into_iter().flatten().map(Record)
    }

    /// When it happened; the beginning of time, if the record does not say.
    #[must_use]
    pub fn time(self) -> Timestamp {
        self.moment("time").unwrap_or_default()
    }

    /// What it is about.
    #[must_use]
    pub fn kind(self) -> &'a str {
        self.text("kind").unwrap_or("unknown")
    }

    /// What was done: `read`, `reach`, ..., also where many uses are told together.
    #[must_use]
    pub fn act(self) -> &'a str {
        match self.kind() {
            "usage" => self.text("verb").unwrap_or("usage"),
            kind => kind,
        }
    }

    /// The node.
    #[must_use]
    pub fn node(self) -> &'a str {
        self.text("node").unwrap_or("unknown")
    }

    /// What it is known by.
    #[must_use]
    pub fn key(self) -> Key {
        Key {
            node: self.node().to_owned(),
            epoch: self.text("epoch").unwrap_or("0").to_owned(),
            sequence: self.number("sequence").unwrap_or(0),
        }
    }

    /// Whether it tells of an act that was decided about.
    #[must_use]
    pub fn is_decision(self) -> bool {
        self.text("verdict").is_some()
    }

    /// Whether the act was outside what is approved.
    #[must_use]
    pub fn is_denied(self) -> bool {
        self.text("verdict") == Some("deny")
    }

    /// Whether it was kept from happening, too.
    #[must_use]
    pub fn is_refused(self) -> bool {
        self.is_denied()
            && self
                .text("action.taken")
                .is_some_and(|taken| taken != "none")
    }

    /// Whether a destination is one that hands out credentials of the cloud.
    #[must_use]
    pub fn is_metadata_service(self) -> bool {
        matches!(
            self.text("destination.address"),
            Some("169.254.169.254" | "fd00:ec2::254" | "169.254.170.2" | "169.254.170.23")
        )
    }

    /// How much it matters.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self.kind() {
            "tamper" if self.is_denied() => Severity::Critical,
            "finding" => match self.text("severity") {
                Some("critical") => Severity::Critical,
                Some("high") => Severity::High,
                Some("low") => Severity::Low,
                _ => Severity::Medium,
            },
            "state" | "mode-changed" => match self.text("state") {
                Some("degraded" | "no-bundle") => Severity::Critical,
                _ => Severity::Low,
            },
            "lost" | "throttled" | "table-full" | "unaccounted" | "passed-over"
            | "bundle-refused" | "no-bundle" | "action-withheld" => Severity::Medium,
            "stopped" => Severity::Low,
            _ if self.is_refused() => Severity::High,
            _ if self.is_denied() => Severity::Medium,
            _ => Severity::Informational,
        }
    }
}
