//! What people look at: the page, and the terminal.

pub mod board;
pub mod page;
pub mod top;
