//! The `enforcer` daemon, as a library: everything but the command line.

pub use enforcer_bundle as bundle;
pub mod canary;
pub mod compile;
pub mod control;
pub mod engine;
pub mod fanotify;
pub mod kernel;
pub mod node;
pub mod record;

/// An error with everything that led to it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
