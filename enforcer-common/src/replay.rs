//! How a case travels to the kernel and its verdict back, for comparing kernel and host.

use crate::address::Destination;
use crate::facts::Task;
use crate::ids::{BootNs, CredentialId};

/// Where the case begins in the packet: after an Ethernet header, which `BPF_PROG_TEST_RUN` takes off
/// and a classifier sees again, and padding.
pub const CASE_OFFSET: usize = 16;

/// Where the kernel leaves the verdict, as the bytes of its word: in the packet, after the case.
pub const VERDICT_OFFSET: usize = CASE_OFFSET + size_of::<Case>();

/// The facts of one decision.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Case {
    /// The moment.
    pub now: BootNs,
    /// The task.
    pub task: Task,
    /// The destination of a reach.
    pub destination: Destination,
    /// The credential of a read.
    pub credential: CredentialId,
    /// 1 for a reach, 0 for a read.
    pub is_reach: u32,
}

const _: () = assert!(size_of::<Case>() == 104);
