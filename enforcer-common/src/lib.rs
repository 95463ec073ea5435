//! What kernel and user space of `enforcer` share: ids, facts, table layouts, event records, and the
//! decision itself.
//!
//! Invariant: this crate does no I/O, allocates nothing and uses no `std`. The eBPF programs, the
//! daemon, `enforcer explain`, replay and the tests all compile the same [`decide`] functions.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod address;
pub mod branchless;
pub mod capacity;
pub mod decide;
pub mod event;
pub mod facts;
pub mod ids;
pub mod instance;
pub mod iterate;
pub mod layout;
pub mod origin;
pub mod presence;
pub mod replay;
pub mod seal;
pub mod settled;
pub mod tables;
pub mod tier;
pub mod verdict;
pub mod watch;
