//! How a node is gated, as a number that programs are told at load time.

/// Programs on LSM hooks.
pub const LSM: u32 = 0;
/// BPF_MODIFY_RETURN programs on the functions that call the hooks.
pub const MODIFY_RETURN: u32 = 1;
/// Permission events, answered by the daemon.
pub const FANOTIFY: u32 = 2;
