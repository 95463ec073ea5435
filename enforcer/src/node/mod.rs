//! What is on this node now: cgroups, files, executables, users, names, processes.

pub mod cgroups;
pub mod dumps;
pub mod executables;
pub mod files;
pub mod mapped;
pub mod names;

pub mod users;
