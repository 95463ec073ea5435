//! How often something drastic may be done: one bad bundle must not kill a node.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use enforcer_common::ids::BootNs;

/// Counted anew after this long.
const WINDOW: Duration = Duration::from_secs(60);

/// Whether something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It may.
    Granted,
    /// It was done too often in this minute.
    Refused,
}

/// At most so many a minute for each `K`, and for all together.
#[derive(Debug)]
pub struct Limiter<K> {
    limit: u32,
    of_all: u32,
    window: u64,
    all: u32,
    each: HashMap<K, u32>,
}

impl<K: Eq + Hash> Limiter<K> {
    /// At most `limit` a minute for each, and `of_all` for all.
    #[must_use]
    pub fn new(limit: u32, of_all: u32) -> Self {
        Self {
            limit,
            of_all,
            window: 0,
            all: 0,
            each: HashMap::new(),
        }
    }

    /// Asks for one more at this moment.
    pub fn ask(&mut self, whose: K, now: BootNs) -> Leave {
        let window = now.0 / WINDOW.as_nanos() as u64;
        if window != self.window {
            self.window = window;
            self.all = 0;
            self.each.clear();
        }
        let count = self.each.entry(whose).or_default();
        if *count >= self.limit || self.all >= self.of_all {
            return Leave::Refused;
        }
        *count += 1;
        self.all += 1;
        Leave::Granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn after_the_limit_it_is_refused_for_the_rest_of_the_minute() {
        let mut limiter = Limiter::new(2, 2);
        let mut ask = |whose, second| limiter.ask(whose, BootNs(second * SECOND));
        assert_eq!(ask("a", 0), Leave::Granted);
        assert_eq!(ask("a", 1), Leave::Granted);
        assert_eq!(ask("a", 3), Leave::Refused);
        // The node has had as many as it may, too.
        assert_eq!(ask("b", 4), Leave::Refused);
        assert_eq!(ask("a", 61), Leave::Granted);
        assert_eq!(ask("b", 62), Leave::Granted);
        assert_eq!(ask("b", 63), Leave::Refused);
    }

    #[test]
    fn none_means_none() {
        assert_eq!(Limiter::new(0, 0).ask((), BootNs(5)), Leave::Refused);
    }
}
