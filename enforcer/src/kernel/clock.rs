//! The two clocks.

use enforcer_common::ids::BootNs;
use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

use crate::compile::Clock;

/// Nanoseconds on `CLOCK_BOOTTIME` now.
pub fn boot_now() -> BootNs {
    // The clock exists on every kernel that can load the programs; 0 would make everything not yet valid.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(BootNs(0), |time| {
        BootNs(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
    })
}

/// Relates wall clock and boot clock, and never lets a wall clock that is set back bring time back.
#[derive(Clone, Copy, Debug)]
pub struct Keeper {
    clock: Clock,
}

/// A wall clock that drifts from the boot clock by less than this was slewed, not stepped.
const STEP: SignedDuration = SignedDuration::from_secs(1);

impl Default for Keeper {
    fn default() -> Self {
        Self::new()
    }
}

impl Keeper {
    /// Takes both clocks now.
    pub fn new() -> Self {
        Self { clock: pair() }
    }

    /// The relation to convert by.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Looks at both clocks again. `true` if the wall clock was set forward: then everything is to be
    /// converted anew. Set back, it is not believed: what has expired stays expired.
    pub fn stepped(&mut self) -> bool {
        let now = pair();
        let expected = wall_at(&self.clock, now.boot);
        if now.wall.duration_since(expected) > STEP {
            self.clock = now;
            return true;
        }
        false
    }

    /// The wall clock's time, as far as it is believed, at a moment of the boot clock.
    pub fn wall(&self, boot: BootNs) -> Timestamp {
        wall_at(&self.clock, boot)
    }
}

fn pair() -> Clock {
    Clock {
        boot: boot_now(),
        wall: Timestamp::now(),
    }
}

fn wall_at(clock: &Clock, boot: BootNs) -> Timestamp {
    let difference = boot.0 as i128 - clock.boot.0 as i128;
    let difference = i64::try_from(difference).unwrap_or(i64::MAX);
    clock
        .wall
        .checked_add(SignedDuration::from_nanos(difference))
        .unwrap_or(clock.wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_is_not_believed() {
        let mut keeper = Keeper::new();
        keeper.clock.wall += SignedDuration::from_hours(24);
        let before = keeper.clock();
        assert!(!keeper.stepped());
        assert_eq!(keeper.clock().wall, before.wall);
    }

    #[test]
    fn a_clock_set_forward_is() {
        let mut keeper = Keeper::new();
        keeper.clock.wall -= SignedDuration::from_hours(24);
        assert!(keeper.stepped());
        assert!(!keeper.stepped());
    }
}
