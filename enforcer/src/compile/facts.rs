//! What the node knows, as plain data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use enforcer_common::ids::{BootNs, ExecutableKey, Uid};
use jiff::Timestamp;

use super::containers::Container;
use super::pods::Pods;
use crate::bundle;

/// What the node knows of the things a bundle names.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether this tier can follow what is handed on.
    pub forwarding: bool,
    /// The keys under which the kernel knows a program of this path and content; several on overlayfs. Missing or
    /// empty if there is no such program or its digest is another.
    pub executables: BTreeMap<bundle::Executable, Vec<ExecutableKey>>,
    /// The same of programs in containers, by what selects those.
    pub contained: BTreeMap<Contained, Vec<ExecutableKey>>,
    /// The uid of each user name that exists.
    pub users: BTreeMap<String, Uid>,
    /// The home directories, as beginnings of patterns: see [`home_patterns`](bundle::home_patterns).
    pub homes: Vec<String>,
    /// The pods, where something tells of them.
    pub pods: Option<Pods>,
    /// The containers, by the paths of their cgroups from the cgroup root.
    pub containers: BTreeMap<String, Container>,
    /// The node's labels.
    pub labels: bundle::Labels,
    /// The addresses of each host name that has any.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// How wall-clock time becomes boot time.
    pub clock: Clock,
}

/// A program in certain containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contained {
    /// Its path there.
    pub program: bundle::Executable,
    kubernetes: Option<bundle::Kubernetes>,
    container: Option<bundle::Container>,
}

impl Contained {
    /// What a workload asks for; `None` if its program, if any, is on the host.
    #[must_use]
    pub fn of(selectors: &bundle::Match) -> Option<Self> {
        let program = selectors.executable.as_ref();
        let program = program.filter(|_| selectors.is_about_containers())?;
        Some(Self {
            program: program.clone(),
            kubernetes: selectors.kubernetes.clone(),
            container: selectors.container.clone(),
        })
    }
}

impl Facts {
    /// The keys of a program on the host; one of zeroes, which a task without any has too, is none.
    pub(super) fn executable(&self, program: &bundle::Executable) -> Vec<ExecutableKey> {
        real(self.executables.get(program))
    }

    /// The same of a program in containers.
    pub(super) fn contained(&self, program: &Contained) -> Vec<ExecutableKey> {
        real(self.contained.get(program))
    }

    pub(super) fn user(&self, user: &bundle::User) -> Option<Uid> {
        match user {
            bundle::User::Id(uid) => Some(Uid(*uid)),
            bundle::User::Name(name) => self.users.get(name).copied(),
        }
    }
}

fn real(keys: Option<&Vec<ExecutableKey>>) -> Vec<ExecutableKey> {
    let known = keys.into_iter().flatten().copied();
    known
        .filter(|key| *key != ExecutableKey::default())
        .collect()
}

/// The two clocks, read at one moment.
///
/// Keep it from one compilation to the next unless the wall clock was stepped: with another pair every moment moves
/// by some nanoseconds, so that every number of a subject changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// `CLOCK_BOOTTIME`.
    pub boot: BootNs,
    /// `CLOCK_REALTIME`.
    pub wall: Timestamp,
}

impl Clock {
    /// The boot time of a moment: 0 if it is before boot, and [`BootNs::NEVER`] if it is beyond what can be told.
    #[must_use]
    pub fn boot_at(&self, moment: Timestamp) -> BootNs {
        let distance = moment.as_nanosecond() - self.wall.as_nanosecond();
        let boot = i128::from(self.boot.0) + distance;
        BootNs(u64::try_from(boot.max(0)).unwrap_or(u64::MAX))
    }

    /// The start of a window; the beginning of time if there is none.
    #[must_use]
    pub fn from(&self, moment: Option<Timestamp>) -> BootNs {
        moment.map_or(BootNs(0), |moment| self.boot_at(moment))
    }

    /// The end of a window; [`BootNs::NEVER`] if there is none.
    #[must_use]
    pub fn until(&self, moment: Option<Timestamp>) -> BootNs {
        moment.map_or(BootNs::NEVER, |moment| self.boot_at(moment))
    }
}

/// A credential of the daemon's own, a canary: always enforced, never expiring, held by processes only, and good
/// for no destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Its id, which begins with `enforcer-` so that no bundle has it.
    pub id: String,
    /// The program that may read it. All others are denied, even where the bundle only monitors.
    pub entitled: Option<ExecutableKey>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_become_boot_time() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let clock = Clock {
            boot: BootNs(10_000_000_000),
            wall: at(1000),
        };
        for (moment, expected) in [
            (at(1000), BootNs(10_000_000_000)),
            (at(1001), BootNs(11_000_000_000)),
            (at(990), BootNs(0)),
            (at(-5000), BootNs(0)),
            (Timestamp::MAX, BootNs::NEVER),
        ] {
            assert_eq!(clock.boot_at(moment), expected, "{moment}");
        }
        assert_eq!(clock.from(None), BootNs(0));
        assert_eq!(clock.until(None), BootNs::NEVER);
    }
}
