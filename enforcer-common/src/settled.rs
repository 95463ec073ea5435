//! The words of the table in which a daemon notes what became of the records that it took out of the rings. No program
//! asks for them: the next daemon does.

use crate::event::Ring;

/// How many records were taken out of the rings of uses and are in the log, told as lost, or nobody's business.
pub const RECORDS: usize = 0;
/// How many records for which a ring had no room were told as lost: a word for each [`Ring`].
pub const LOST: usize = 1;
/// What a record of a use takes in its ring, in bytes.
pub const RECORD_BYTES: usize = LOST + Ring::ALL.len();
/// All of them.
pub const WORDS: u32 = RECORD_BYTES as u32 + 1;
/// The kernel puts so many bytes before each record of a ring.
pub const HEADER: usize = 8;
