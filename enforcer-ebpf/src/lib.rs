//! The kernel side.
#![no_std]
