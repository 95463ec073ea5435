//! How a case travels to the kernel and its verdict back, for comparing kernel and host.

use crate::address::Destination;
use crate::decide;
use crate::event::Kind;
use crate::facts::Task;
use crate::ids::{BootNs, CredentialId};
use crate::tables::Tables;
use crate::verdict::Verdict;

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
    /// What is asked, a [`Kind`].
    pub kind: u32,
}

/// Asks what the case asks.
#[inline(always)]
pub fn answer<T: Tables>(tables: &T, case: &Case) -> Verdict {
    if case.kind == Kind::Reach as u32 {
        decide::reach(tables, case.now, &case.task, &case.destination)
    } else if case.kind == Kind::Tamper as u32 {
        decide::tamper(tables, case.now, &case.task)
    } else {
        decide::read(tables, case.now, &case.task, case.credential)
    }
}

const _: () = assert!(size_of::<Case>() == 104);
