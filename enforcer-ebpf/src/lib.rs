//! The kernel side of `enforcer`: what the programs share.
//!
//! Invariant: a hook gathers facts, asks [`enforcer_common::decide`], emits, and turns the verdict into a
//! number in one place ([`respond`]). Nothing in this crate decides.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied, and 512 bytes of stack must do"
)]

pub mod capture;
pub mod copy_up;
pub mod emit;
pub mod environment;
pub mod family;
pub mod file;
pub mod forward;
pub mod gate;
pub mod holders;
pub mod iterate;
pub mod kernel;
pub mod lifecycle;
pub mod maps;
pub mod memory;
pub mod origin;
pub mod packet;
pub mod presence;
pub mod respond;
pub mod socket;
pub mod tables;
pub mod tamper;
pub mod task;
pub mod unix;
pub mod usage;
pub mod watch;

/// The verifier proves that no panic is reachable; a reachable one would loop and be refused.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets programs of a compatible licence call helpers marked as GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
