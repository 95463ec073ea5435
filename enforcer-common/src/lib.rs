//! Types shared by kernel and user space, and the decision.
#![no_std]
