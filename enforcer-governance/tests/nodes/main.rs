//! Nodes and their governance: what they take, by themselves and over a wire.

mod archive;
mod held;
mod hostile;
mod node;
mod office;
mod server;
mod signals;
mod stranger;
mod wire;
