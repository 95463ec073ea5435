//! Nodes and their governance: what they take, by themselves and over a wire.

mod archive;
mod bus;
mod fetch;
mod guard;
mod held;
mod hostile;
mod kept;
mod node;
mod office;
mod roots;
mod server;
mod shared;
mod signals;
mod stranger;
mod wire;
