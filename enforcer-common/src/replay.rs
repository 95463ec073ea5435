//! How a case travels to the kernel and its verdict back, for comparing kernel and host.

use crate::address::Destination;
use crate::facts::Task;
use crate::ids::{BootNs, CredentialId};
use crate::verdict::Verdict;

/// Where the case begins in the packet: after an Ethernet header, which `BPF_PROG_TEST_RUN` takes off
/// and a classifier sees again, and padding.
pub const CASE_OFFSET: usize = 16;

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

/// A verdict in 31 bits: reason, mode, action, flags, and the low bits of entitlement and credential.
#[inline(always)]
pub fn encode(verdict: &Verdict) -> u32 {
    let reason = match verdict.denied {
        Some(reason) => reason as u32,
        None => 0,
    };
    reason
        | (verdict.governed as u32) << 4
        | (verdict.trusted as u32) << 5
        | (verdict.mode as u32) << 6
        | (verdict.action as u32) << 7
        | (verdict.entitlement.0 & 0xfff) << 8
        | (verdict.credential.0 & 0x7ff) << 20
}
