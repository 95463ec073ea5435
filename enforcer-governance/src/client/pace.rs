//! How soon to try again.

use std::time::{Duration, Instant};

/// The first wait, and the longest.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// At most this long after the first failure; twice that after each more.
    pub first: Duration,
    /// Never longer, unless the server asks for it.
    pub most: Duration,
}

/// Between 0 and 1 s first, and between 0 and 4 minutes at last.
impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            most: Duration::from_secs(240),
        }
    }
}

/// A connection that lasted so long was a good one.
const HEALTHY: Duration = Duration::from_secs(60);

impl Pace {
    pub(super) fn backoff(self) -> Backoff {
        Backoff {
            pace: self,
            failures: 0,
            connected: None,
        }
    }
}

/// Failures so far.
#[derive(Debug)]
pub(super) struct Backoff {
    pace: Pace,
    failures: u32,
    connected: Option<Instant>,
}

impl Backoff {
    /// There is a connection.
    pub fn connected(&mut self) {
        self.connected = Some(Instant::now());
    }

    /// How long to wait now: anything up to the most (full jitter), so that nodes that lost the server together do not
    /// come back together.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let lasted = self.connected.take().map(|since| since.elapsed());
        if lasted.is_some_and(|lasted| lasted >= HEALTHY) {
            self.failures = 0;
        }
        let longest = (self.pace.first)
            .saturating_mul(1 << self.failures.min(16))
            .min(self.pace.most);
        self.failures += 1;
        let jitter = |longest: Duration| longest.mul_f64(rand::random::<f64>());
        match asked {
            Some(asked) => asked + jitter(asked),
            None => jitter(longest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_most_and_are_spread() {
        let mut longest = Vec::new();
        for failures in 0..12 {
            let mut some = Vec::new();
            for _ in 0..500 {
                let mut backoff = Pace::default().backoff();
                backoff.failures = failures;
                some.push(backoff.next(None).as_secs_f64());
            }
            let most = some.iter().copied().fold(0.0, f64::max);
            let least = some.iter().copied().fold(f64::MAX, f64::min);
            assert!(least < most * 0.1, "{least} to {most}");
            longest.push(most);
        }
        assert!(longest[0] <= 1.0 && longest[0] > 0.8, "{longest:?}");
        assert!(longest[3] <= 8.0 && longest[3] > 6.4, "{longest:?}");
        assert!(longest[11] <= 240.0 && longest[11] > 192.0, "{longest:?}");
    }

    #[test]
    fn the_server_can_ask_for_more() {
        let mut backoff = Pace::default().backoff();
        let asked = Duration::from_secs(1000);
        assert!(backoff.next(Some(asked)) >= asked);
    }

    #[test]
    fn a_connection_that_lasted_begins_anew() {
        let mut backoff = Pace::default().backoff();
        for _ in 0..20 {
            backoff.next(None);
        }
        backoff.connected = Instant::now().checked_sub(HEALTHY);
        assert!(backoff.next(None) <= Duration::from_secs(1));
    }
}
