//! Why a bundle cannot become tables.

use std::fmt;

use enforcer_common::capacity::{GRANTS_PER_PAIR, NODES_PER_WATCH, PATTERNS_PER_NODE};
use enforcer_common::verdict::Verdict;

/// A bundle that is right in itself, but more than the kernel's tables hold or compare.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Workloads that one task can belong to at once have too many entitlements to a credential.
    #[error(
        "got {} entitlements ({entitlements}) to credential {credential} for tasks that are at once {workloads}, expected at most {GRANTS_PER_PAIR}; merge some of them, or select the workloads more narrowly", entitlements.0.len()
    )]
    TooManyGrants {
        /// The workloads.
        workloads: Names,
        /// The credential.
        credential: String,
        /// The entitlements.
        entitlements: Names,
    },
    /// Too many wildcards within one directory.
    #[error(
        "got {got} patterns that go on in the same directory ({sources}), expected at most {PATTERNS_PER_NODE}; use one wider pattern, or `directory:`"
    )]
    TooManyPatterns {
        /// How many.
        got: usize,
        /// Sources with one of them.
        sources: Names,
    },
    /// One directory can be on the way of too many sources at once.
    #[error(
        "one directory can match {got} of these sources in different ways ({sources}), expected at most {NODES_PER_WATCH}; use fewer patterns that overlap"
    )]
    TooManyWays {
        /// How many.
        got: usize,
        /// The sources.
        sources: Names,
    },
    /// Too many `**` in one pattern.
    #[error("got {got} times `**` in {pattern}, expected at most {allowed}; use `directory:`")]
    TooManyStars {
        /// The pattern.
        pattern: String,
        /// How many.
        got: usize,
        /// How many can be followed.
        allowed: usize,
    },
    /// A character class that reaches over a `/`.
    #[error("the pattern {pattern} has a `/` within `[...]`; write one item for each alternative")]
    Class {
        /// The pattern.
        pattern: String,
        /// Why a part of it is no pattern.
        source: globset::Error,
    },
    /// The patterns together are too much.
    #[error("the patterns of all sources cannot be matched together; use fewer of them")]
    Patterns {
        /// Why.
        source: globset::Error,
    },
    /// A cgroup or unit whose name the kernel would cut off.
    #[error(
        "the name {name} has {} bytes, expected at most {allowed}; select a cgroup above it", name.len()
    )]
    NameTooLong {
        /// The path or unit.
        name: String,
        /// Longest name.
        allowed: usize,
    },
    /// A table would overflow.
    #[error(
        "the bundle needs {got} entries in the table of {table} on this node, expected at most {allowed}; give each node only what concerns it"
    )]
    Capacity {
        /// Which table.
        table: &'static str,
        /// Entries needed.
        got: usize,
        /// Entries there may be.
        allowed: usize,
    },
    /// Numbers are never used again, and these ran out.
    #[error(
        "more than {} {what} have been numbered since the daemon loaded its programs; restart it",
        Verdict::ID_MAX
    )]
    Exhausted {
        /// What is numbered.
        what: &'static str,
    },
}

/// Some names, of which only the first few are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let shown = self.0.get(..SHOWN).unwrap_or(&self.0);
        f.write_str(&shown.join(", "))?;
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl<T: Into<String>> FromIterator<T> for Names {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }
}
