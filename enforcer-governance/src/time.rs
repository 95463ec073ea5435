//! Moments and spans as the contract has them.

use std::time::Duration;

use jiff::Timestamp;

/// For the wire.
pub fn to_wire(moment: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: moment.as_second(),
        nanos: moment.subsec_nanosecond(),
    }
}

/// For the wire.
pub fn span_to_wire(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: span.as_secs().min(i64::MAX as u64) as i64,
        nanos: span.subsec_nanos() as i32,
    }
}

/// From the wire; what is negative is nothing.
pub fn span_from_wire(span: &prost_types::Duration) -> Duration {
    Duration::try_from(*span).unwrap_or_default()
}
