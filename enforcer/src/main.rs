//! The `enforcer` daemon and command line.
fn main() {}
