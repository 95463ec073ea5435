//! What credentials and entitlements are used for: counted in the kernel, kept in a ledger, and what follows from it.
//! Everything but the keeping is pure: a bundle, a ledger and the time in, words out.

pub mod document;
pub mod findings;
pub mod ledger;
pub mod recommend;
pub mod summary;

pub use findings::{Findings, Thresholds, findings};
pub use ledger::{Coverage, Destination, Gap, Ledger, OfPod, Place, Row, Seen};
pub use recommend::recommend;
pub use summary::{Summary, summary};
