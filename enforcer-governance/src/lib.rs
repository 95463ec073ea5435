//! Entitlements from governance to the nodes, and evidence back.
//!
//! What changes enforcement is signed: an [`Envelope`](envelope::Envelope) holds a [`Statement`](statement::Statement),
//! and who may sign which is said by a [`TrustRoot`](trust::TrustRoot) that the node was given with its
//! configuration. What a node has of them, and what it takes next, is [`Held`](held::Held): pure, so that tests can show
//! it everything a wire can bring. [`client`] is the node's side of the wire, [`server`] the other.

pub mod client;
pub mod envelope;
pub mod held;
pub mod journal;
pub mod keys;
pub mod server;
pub mod state;
pub mod statement;
pub mod trust;

/// The messages and services, generated from `proto/enforcer/governance/v1/governance.proto`.
#[allow(missing_docs, clippy::all)]
pub mod contract {
    tonic::include_proto!("enforcer.governance.v1");
}

pub mod files;
mod time;

/// 32 random bytes in hex.
fn random_hex() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
