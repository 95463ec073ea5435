//! The kernel: loading programs, writing tables, reading rings.

pub mod btf;


pub mod load;

