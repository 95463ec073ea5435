//! The `enforcer` daemon, as a library: everything but the command line.

pub mod bundle;
pub mod compile;
pub mod kernel;
