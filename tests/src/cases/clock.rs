//! Expiry, by a clock that nobody sets back.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

use super::{Scene, cases, entitled, standard::DESTINATIONS};
use crate::harness::{Allowed, Bundle, Refused, wait_for};

cases![expiry_and_clock_steps];

/// How long the entitlement lasts from when the bundle is written: time enough to read under it.
const LASTS: SignedDuration = SignedDuration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Steps the wall clock, and back again when dropped.
pub struct Stepped {
    forward: bool,
}

impl Stepped {
    pub fn by_a_day(forward: bool) -> Result<Self> {
        step(forward)?;
        Ok(Self { forward })
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        if let Err(error) = step(!self.forward) {
            eprintln!("enforcer-tests: {error:#}");
        }
    }
}

fn step(forward: bool) -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    let day = TimeSpec::from_duration(DAY);
    let then = if forward { now + day } else { now - day };
    clock_settime(ClockId::CLOCK_REALTIME, then).context("cannot set the clock")
}

fn expiry_and_clock_steps(scene: &mut Scene) -> Result<()> {
    let end = Timestamp::now() + LASTS;
    let bundle = Bundle::of_key(&format!("{DESTINATIONS}, validUntil: {end}"))
        .file("second-key", "/srv/t/second-key")
        .entitlement("E2", "app", "second-key", DESTINATIONS);
    scene.on(&bundle)?;
    let read = "read /srv/t/key";
    let reach = "tcp 10.20.0.2:9000";

    // Reads in time, and wants to send after the end.
    let before = scene.outside.counts()?;
    let mut late = entitled().start([read, reach, "pause", reach, read])?;
    late.until("paused")?;
    wait_for("what it sent to arrive", || {
        (scene.outside.counts().ok()? != before).then_some(())
    })?;
    scene.check(&entitled(), &[(read, Allowed)])?;

    wait_for("the entitlement's end", || {
        (Timestamp::now() > end).then_some(())
    })
    .or_else(|_| {
        wait_for("the entitlement's end", || {
            (Timestamp::now() > end).then_some(())
        })
    })?;
    let expired = [
        (read, Refused("expired")),
        ("read /srv/t/second-key", Allowed),
    ];
    scene.check(&entitled(), &expired)?;
    late.go_on()?;
    let expected = [
        (read, Allowed),
        (reach, Allowed),
        ("pause", Allowed),
        (reach, Refused("expired")),
        (read, Refused("expired")),
    ];
    // What the other actor sent in the meantime is nothing.
    scene.compare(&before, &late.finish()?, 1, &expected)?;

    let stepped = Stepped::by_a_day(false)?;
    scene
        .check(&entitled(), &expired)
        .context("the clock was set back")?;
    thread::sleep(Duration::from_millis(1500));
    scene
        .check(&entitled(), &expired)
        .context("the clock was set back a while ago")?;
    drop(stepped);
    thread::sleep(Duration::from_millis(500));
    scene
        .check(&entitled(), &expired)
        .context("the clock is right again")?;
    Ok(())
}
