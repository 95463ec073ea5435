//! What is on this node now: cgroups, environments, files, executables, users, names, processes.

pub mod cgroups;
pub mod dumps;
pub mod environment;
pub mod executables;
pub mod files;
pub mod mapped;
pub mod mounts;
pub mod names;
pub mod users;
