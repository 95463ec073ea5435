//! The programs of all tiers: what they share is in the library.
//!
//! Above each stands the kernel's prototype. On the `modify-return` tier the program of an LSM hook sits on the
//! function `security_HOOK`, which has the same first arguments.
#![no_std]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied, and 512 bytes of stack must do"
)]
#![no_main]
#![allow(
    missing_docs,
    reason = "the program macros make public functions without the docs of ours"
)]

mod at_root;
mod following;
mod iterators;
mod lifecycle;
mod names;
mod reads;
mod sockets;
mod tamper;
