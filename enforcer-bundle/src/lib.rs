//! The bundle: who may use which credential, where, and until when.
//!
//! [`load()`] reads it from a YAML (or JSON) file or a directory of them, [`parse`] from texts. What they return is
//! checked as a whole, or it is the list of all [`Mistakes`]: nothing is ever half applied.
//!
//! Text becomes a tree that knows its lines (`document`), the tree becomes a draft by the fields of the schema
//! (`decode`, `schema`, `values`), and the draft becomes a [`Bundle`] once its parts agree (`validate`).

mod catalogue;
mod chain;
mod decode;
mod document;
mod item;
mod known;
mod load;
mod mistake;
mod model;
mod parts;
mod schema;
mod settings;
mod validate;
mod values;

pub use catalogue::{
    Entry, Kind as CredentialKind, at_homes, catalogue, entries, escaped, home_patterns,
};
pub use chain::chain;
pub use item::Item;
pub use known::known;
pub use load::{MAX_BYTES, load, load_parts, parse};
pub use mistake::{LoadError, Mistake, Mistakes};
pub use model::{
    Action, Activation, Approval, Bundle, Container, Credential, Defaults, Destination,
    Entitlement, Executable, Inbound, Kubernetes, KubernetesSecret, Labels, Match, Metadata, Mode,
    OnExpiry, OnStale, PortRange, Protocols, Service, Source, Target, Unclassified, Unit, User,
    Workload,
};
pub use parts::{Change, Digest, Kind, Parts};
pub use settings::{Setting, settings};
pub use values::file as pattern;

/// Most entitlements for the same workload and credential: as many as the kernel compares.
pub const MAX_GRANTS: usize = enforcer_common::capacity::GRANTS_PER_PAIR as usize;

/// Most ports and port ranges of one destination or service.
pub const MAX_PORT_RANGES: usize = 8;
