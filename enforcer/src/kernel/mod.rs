//! The kernel: loading programs, writing tables, reading rings.

mod at_once;
pub mod at_root;
pub mod btf;
pub mod capture;
pub mod clock;
pub mod fill;
pub mod holders;
pub mod iterate;
pub mod legacy;
pub mod load;
pub mod maps;
pub mod modify_return;
pub mod own;
pub mod passed_over;
pub mod pins;
pub mod presence;
pub mod probe;
mod programs;
pub mod protected;
pub mod replay;
pub mod rings;
pub mod settled;
mod shared;
mod sys;
pub mod take_over;
pub mod tier;
