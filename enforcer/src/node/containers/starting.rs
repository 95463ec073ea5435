//! The containers that are being started, and who waits until it is known what they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Exempt, place_of};

/// Containers whose cgroup is there and of which it is not known what they are.
#[derive(Debug, Default)]
pub struct Starting {
    /// Whether anything depends on what containers are.
    matters: AtomicBool,
    exempt: Exempt,
    all: Mutex<BTreeMap<String, Begun>>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Instant,
    exempt: bool,
    held: bool,
    late: bool,
}

/// How a start went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// For how long it was not known what the container is.
    pub took: Duration,
    /// Whether the runtime was made to wait in that time.
    pub held: bool,
    /// Whether it was let go on before it was known.
    pub late: bool,
    /// Whether nobody had to wait for it.
    pub exempt: bool,
}

impl Starting {
    /// Nobody waits for these.
    #[must_use]
    pub fn but_for(exempt: Exempt) -> Self {
        Self {
            exempt,
            ..Self::default()
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Begun>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cgroup was made. Of a container's own one it is waited for what it is.
    pub fn created(&self, path: &str) {
        if let Some(place) = place_of(path).filter(|place| place.path == path) {
            let begun = Begun {
                at: Instant::now(),
                exempt: place.is_locked_at_start() || self.exempt.has(&place),
                held: false,
                late: false,
            };
            self.all().insert(path.to_owned(), begun);
        }
    }

    /// For how long it has not been known what this container is.
    pub fn since(&self, path: &str) -> Option<Duration> {
        self.all().get(path).map(|begun| begun.at.elapsed())
    }

    /// It is known what the container is, or that nobody knows, or it is gone.
    pub fn end(&self, path: &str) -> Option<Ended> {
        let begun = self.all().remove(path)?;
        self.changed.notify_all();
        Some(Ended {
            took: begun.at.elapsed(),
            held: begun.held,
            late: begun.late,
            exempt: begun.exempt,
        })
    }

    /// Says whether anything depends on what containers are: else nobody has to wait.
    pub fn matter(&self, matters: bool) {
        self.matters.store(matters, Ordering::Relaxed);
    }

    /// Those to wait for now: they began less than `limit` ago, and it is not known what they are.
    pub fn now(&self, limit: Duration) -> BTreeSet<String> {
        if !self.matters.load(Ordering::Relaxed) {
            return BTreeSet::new();
        }
        let all = self.all();
        let recent = all
            .iter()
            .filter(|(_, begun)| !begun.exempt && begun.at.elapsed() < limit);
        recent.map(|(path, _)| path.clone()).collect()
    }

    /// Waits until it is known what these are, for so long at most.
    pub fn wait(&self, mut these: BTreeSet<String>, limit: Duration) {
        let end = Instant::now() + limit;
        let mut all = self.all();
        loop {
            these.retain(|path| match all.get_mut(path) {
                Some(begun) => {
                    begun.held = true;
                    true
                }
                None => false,
            });
            let left = end.saturating_duration_since(Instant::now());
            if these.is_empty() {
                return;
            }
            if left.is_zero() {
                for path in &these {
                    if let Some(begun) = all.get_mut(path) {
                        begun.late = true;
                    }
                }
                return;
            }
            let waited = self.changed.wait_timeout(all, left);
            all = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn path(digit: char) -> String {
        format!("/docker/{}", digit.to_string().repeat(64))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn only_containers_are_waited_for() {
        let starting = Starting::default();
        starting.matter(true);
        starting.created("/system.slice/a.service");
        starting.created(&format!("{}/below", path('a')));
        assert!(starting.now(LONG).is_empty());
        starting.created(&path('a'));
        assert_eq!(starting.now(LONG), BTreeSet::from([path('a')]));
        assert!(starting.now(Duration::ZERO).is_empty());
        starting.matter(false);
        assert!(starting.now(LONG).is_empty());
        let ended = starting.end(&path('a')).expect("it was there");
        assert!(!ended.held && !ended.late);
        assert_eq!(starting.end(&path('a')), None);
    }

    #[test]
    fn who_waits_goes_on_when_it_is_known_or_time_is_up() {
        let starting = Arc::new(Starting::default());
        starting.created(&path('a'));
        starting.created(&path('b'));
        let waiter = {
            let starting = starting.clone();
            let these = BTreeSet::from([path('a')]);
            std::thread::spawn(move || starting.wait(these, LONG))
        };
        while !starting.all()[&path('a')].held {
            std::thread::yield_now();
        }
        let ended = starting.end(&path('a')).expect("it was there");
        waiter.join().expect("it went on");
        assert!(ended.held && !ended.late);

        starting.wait(BTreeSet::from([path('b')]), Duration::from_millis(1));
        let ended = starting.end(&path('b')).expect("it was there");
        assert!(ended.held && ended.late);
    }
}
