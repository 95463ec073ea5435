//! What is on this node now: cgroups, containers, environments, files, executables, users, names, processes.

pub mod cgroups;
pub mod containers;
pub mod dumps;
pub mod environment;
pub mod executables;
pub mod files;
pub mod mapped;
pub mod mounts;
pub mod names;
pub mod pods;
pub mod users;
