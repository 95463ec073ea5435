//! The `enforcer` daemon, as a library: everything but the command line.

pub use enforcer_bundle as bundle;
pub use enforcer_bundle::chain;
pub mod canary;
pub mod client;
pub mod compile;
pub mod credentials;
pub mod engine;
pub mod explain;
pub mod fanotify;
pub mod kernel;
pub mod memory;
pub mod node;
pub mod record;
pub mod replay;
pub mod respond;
pub mod serve;
pub mod shape;
pub mod sink;
pub mod usage;
pub mod view;
