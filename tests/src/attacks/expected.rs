//! What each attack should come to, by tier and kernel.

use std::fmt;

use anyhow::{Context as _, Result, bail};
pub use enforcer::kernel::tier::Tier;

use Seen::{Caught, CaughtOrTold, NotCaught, NotRun};

/// By the name that the daemon uses.
pub fn tier(name: &str) -> Result<Tier> {
    let mut all = Tier::ALL.into_iter();
    all.find(|tier| tier.name() == name)
        .with_context(|| format!("{name:?} is no tier"))
}

/// A kernel's version, as far as behaviour follows it.
pub type Kernel = (u32, u32);

/// Any kernel is before this one.
const EVER: Kernel = (u32::MAX, 0);

/// The version in a release like `6.12.115+deb13-amd64`.
pub fn kernel(release: &str) -> Result<Kernel> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("{release:?} is no kernel release"),
    }
}

/// What an attack comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seen {
    /// Refused, and there is an event.
    Caught,
    /// Refused as a rule. Where something got through, the daemon told that the kernel passed its programs over;
    /// this is why.
    CaughtOrTold(&'static str),
    /// It gets through; this is why.
    NotCaught(&'static str),
    /// It cannot be tried; this is why.
    NotRun(&'static str),
}

impl Seen {
    /// Why it is not caught or not tried.
    pub fn why(self) -> Option<&'static str> {
        match self {
            Caught => None,
            CaughtOrTold(why) | NotCaught(why) | NotRun(why) => Some(why),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Caught => "caught",
            CaughtOrTold(_) => "caught, or told",
            NotCaught(_) => "not caught",
            NotRun(_) => "not run",
        })
    }
}

/// Kernels on which it is different, on one tier or all.
#[derive(Clone, Copy, Debug)]
struct Differing {
    tier: Option<Tier>,
    from: Kernel,
    before: Kernel,
    seen: Seen,
}

/// As many exceptions may an attack have.
const DIFFERING: usize = 3;

/// What an attack comes to on each tier, with the kernels that differ.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    tiers: [Seen; 3],
    differing: [Option<Differing>; DIFFERING],
}

/// The same on every tier.
pub const fn everywhere(seen: Seen) -> Expected {
    Expected {
        tiers: [seen; 3],
        differing: [None; DIFFERING],
    }
}

/// Caught everywhere, but for what a preemptible kernel lets through when many call at once.
pub const CROWDED: Expected = CAUGHT.since_on(
    Tier::ModifyReturn,
    (7, 0),
    CaughtOrTold(
        "a preemptible kernel passes over a program that another task on the same processor is interrupted in",
    ),
);

/// What the `fanotify` tier leaves open on connections that others made.
pub const CALLERS_ONLY: Expected = hooks_only(
    "no hook sees who sends on a connected socket; outside a unit the packet gate goes by who connected it",
);

/// Caught on every tier.
pub const CAUGHT: Expected = everywhere(Caught);

/// Gets through on every tier.
pub const fn open(why: &'static str) -> Expected {
    everywhere(NotCaught(why))
}

/// Cannot be tried anywhere.
pub const fn not_run(why: &'static str) -> Expected {
    everywhere(NotRun(why))
}

/// Caught where there are hooks, but not by permission events.
pub const fn hooks_only(why: &'static str) -> Expected {
    CAUGHT.on(Tier::Fanotify, NotCaught(why))
}

impl Expected {
    /// But this on that tier.
    pub const fn on(mut self, tier: Tier, seen: Seen) -> Self {
        self.tiers[tier as usize] = seen;
        self
    }

    const fn but(mut self, differing: Differing) -> Self {
        let mut index = 0;
        while self.differing[index].is_some() {
            index += 1;
        }
        self.differing[index] = Some(differing);
        self
    }

    /// But this on kernels before `kernel`.
    pub const fn before(self, kernel: Kernel, seen: Seen) -> Self {
        self.but(Differing {
            tier: None,
            from: (0, 0),
            before: kernel,
            seen,
        })
    }

    /// But this from `kernel` on.
    pub const fn from(self, kernel: Kernel, seen: Seen) -> Self {
        self.but(Differing {
            tier: None,
            from: kernel,
            before: EVER,
            seen,
        })
    }

    /// But this on that tier, from `kernel` on.
    pub const fn since_on(self, tier: Tier, kernel: Kernel, seen: Seen) -> Self {
        self.but(Differing {
            tier: Some(tier),
            from: kernel,
            before: EVER,
            seen,
        })
    }

    /// But this on that tier and kernels before `kernel`.
    pub const fn before_on(self, tier: Tier, kernel: Kernel, seen: Seen) -> Self {
        self.but(Differing {
            tier: Some(tier),
            from: (0, 0),
            before: kernel,
            seen,
        })
    }

    /// What it should be here.
    pub fn here(&self, tier: Tier, kernel: Kernel) -> Seen {
        let differs = |differing: &&Differing| {
            differing.tier.is_none_or(|on| on == tier)
                && (differing.from..differing.before).contains(&kernel)
        };
        match self.differing.iter().flatten().find(differs) {
            Some(differing) => differing.seen,
            None => self.tiers[tier as usize],
        }
    }

    /// What it is on that tier, but for differing kernels.
    pub fn usually(&self, tier: Tier) -> Seen {
        self.tiers[tier as usize]
    }

    /// The kernels that differ, in words.
    pub fn differing(&self) -> String {
        let words: Vec<String> = self
            .differing
            .iter()
            .flatten()
            .map(Differing::words)
            .collect();
        words.join("; ")
    }

    /// Every reason for not being caught or tried, once.
    pub fn reasons(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        let differing = self
            .differing
            .iter()
            .flatten()
            .map(|differing| differing.seen);
        for seen in self.tiers.into_iter().chain(differing) {
            if let Some(why) = seen.why()
                && !reasons.contains(&why)
            {
                reasons.push(why);
            }
        }
        reasons
    }
}

impl Differing {
    fn words(&self) -> String {
        let tier = self.tier.map(|tier| format!("{} ", tier.name()));
        let tier = tier.unwrap_or_default();
        let seen = self.seen;
        let (major, minor) = if self.before == EVER {
            return format!("{tier}from {}.{}: {seen}", self.from.0, self.from.1);
        } else {
            self.before
        };
        format!("{tier}before {major}.{minor}: {seen}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_tiers_differ() -> Result<()> {
        let expected = hooks_only("a")
            .before_on(Tier::Fanotify, (6, 12), Caught)
            .before((5, 12), NotRun("b"));
        assert_eq!(expected.here(Tier::Lsm, kernel("6.1.0-9-amd64")?), Caught);
        assert_eq!(expected.here(Tier::Fanotify, kernel("6.1")?), Caught);
        assert_eq!(
            expected.here(Tier::Fanotify, kernel("6.12.1")?),
            NotCaught("a")
        );
        assert_eq!(expected.here(Tier::Lsm, kernel("5.10.1+x")?), NotRun("b"));
        assert_eq!(expected.reasons(), ["a", "b"]);
        assert_eq!(
            expected.differing(),
            "fanotify before 6.12: caught; before 5.12: not run"
        );
        Ok(())
    }
}
