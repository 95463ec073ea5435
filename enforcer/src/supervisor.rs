//! What the service manager is told (sd_notify(3)). Without one, nothing.

use std::env;
use std::time::Duration;

use sd_notify::NotifyState;

/// A start takes no longer than this, as the unit has it.
const START: Duration = Duration::from_secs(180);

/// The service manager, and what it was told last.
#[derive(Default)]
pub struct Supervisor {
    status: String,
}

impl Supervisor {
    /// The gates are attached, and a bundle is in force or was looked for. After a reload: that is done.
    pub fn ready(&self) {
        // The one before, which was this process, may have asked for patience.
        let usual = env::var("WATCHDOG_USEC")
            .ok()
            .and_then(|it| it.parse().ok());
        match usual {
            Some(usec) => tell(&[NotifyState::Ready, NotifyState::WatchdogUsec(usec)]),
            None => tell(&[NotifyState::Ready]),
        }
    }

    /// The program starts again in this process, which takes as long as a start.
    pub fn starting_again(&self) {
        let patience = NotifyState::WatchdogUsec(START.as_micros() as u32);
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now, patience]),
            Err(_) => tell(&[patience]),
        }
    }

    /// The configuration and the bundle are read again.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
        }
    }

    /// The loop turns; and how things are, if that is new.
    pub fn turns(&mut self, status: String) {
        if self.status == status {
            return tell(&[NotifyState::Watchdog]);
        }
        tell(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
        self.status = status;
    }

    /// The daemon ends.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
