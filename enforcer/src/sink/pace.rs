//! How long a sink waits after a failure: exponential, with full jitter, so that a receiver that comes back is not
//! met by all nodes at once.

use std::time::Duration;

/// The first wait is at most this long.
const SHORTEST: Duration = Duration::from_millis(500);
/// And no wait is longer.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The wait after so many failures in a row; `lot` is from 0 to 1. What the receiver asks for is kept to, and the
/// jitter comes on top of it.
pub fn wait(failures: u32, asked: Option<Duration>, lot: f64) -> Duration {
    let doubled = SHORTEST.saturating_mul(
        1_u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX),
    );
    let jitter = doubled.min(LONGEST).mul_f64(lot.clamp(0.0, 1.0));
    match asked {
        Some(asked) => asked.min(LONGEST * 60) + jitter.min(SHORTEST),
        None => jitter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_minute_and_are_drawn_by_lot() {
        let longest = |failures| wait(failures, None, 1.0);
        assert_eq!(longest(1), SHORTEST);
        assert_eq!(longest(2), SHORTEST * 2);
        assert_eq!(longest(8), LONGEST);
        assert_eq!(longest(1000), LONGEST);
        assert_eq!(wait(5, None, 0.0), Duration::ZERO);
        assert_eq!(wait(1, None, 0.5), SHORTEST / 2);
    }

    #[test]
    fn what_the_receiver_asks_for_is_kept_to() {
        let asked = Duration::from_secs(30);
        assert_eq!(wait(1, Some(asked), 0.0), asked);
        assert_eq!(wait(9, Some(asked), 1.0), asked + SHORTEST);
        // But nobody is waited for for a day.
        assert!(wait(1, Some(Duration::from_secs(86_400)), 0.0) <= LONGEST * 60);
    }
}
