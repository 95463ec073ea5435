//! How many nodes may come at once: all of them do after a server was away.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many nodes a second are let in. Each wants a bundle signed, sent and acknowledged.
const A_SECOND: u32 = 500;
/// So many seconds' worth are let in at once.
const BURST: Duration = Duration::from_secs(1);
/// A node that was told to come back and does not is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Lets nodes in, one after another.
#[derive(Default)]
pub struct Gate(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// When the next one's turn is.
    next: Option<Instant>,
    /// The nodes that were told when theirs is.
    told: HashMap<String, Instant>,
}

impl Gate {
    /// # Errors
    /// When to come back.
    pub fn admit(&self, node: &str) -> Result<(), Duration> {
        self.admit_at(node, Instant::now())
    }

    fn admit_at(&self, node: &str, now: Instant) -> Result<(), Duration> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = queue.told.get(node).copied() {
            if turn > now {
                return Err(turn - now);
            }
            queue.told.remove(node);
            return Ok(());
        }
        let turn = queue.next.map_or(now, |next| next.max(now));
        queue.next = Some(turn + Duration::from_secs(1) / A_SECOND);
        if turn - now <= BURST {
            return Ok(());
        }
        queue.told.retain(|_, turn| *turn + FORGOTTEN > now);
        queue.told.insert(node.to_owned(), turn);
        Err(turn - now)
    }

    /// When one of `nodes` shall come back that all lose their server now.
    pub fn spread(&self, nodes: usize) -> Duration {
        let all = Duration::from_secs(1) + Duration::from_secs(nodes as u64) / A_SECOND;
        all.mul_f64(rand::random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_comes_in_at_the_rate_and_everybody_does() {
        let gate = Gate::default();
        let start = Instant::now();
        let mut waiting: Vec<(Duration, String)> = (0..5000)
            .map(|number| (Duration::ZERO, format!("node-{number}")))
            .collect();
        let mut admitted = Vec::new();
        let mut asked = 0;
        while !waiting.is_empty() {
            waiting.sort();
            let (at, node) = waiting.remove(0);
            asked += 1;
            match gate.admit_at(&node, start + at) {
                Ok(()) => admitted.push(at),
                Err(after) => waiting.push((at + after, node)),
            }
        }
        assert!(asked < 10_000, "{asked}");
        let within = |second| {
            let of = |at: &&Duration| at.as_secs() == second;
            admitted.iter().filter(of).count()
        };
        assert_eq!(within(0), 501);
        assert_eq!(within(5), 500);
        assert!(admitted.iter().all(|at| at.as_secs() < 10));
    }
}
