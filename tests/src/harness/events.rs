//! The daemon's events, as they come.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Result, anyhow};
use serde_json::Value;

use crate::peer;

/// As many are kept: a case looks at its own only.
const KEPT: usize = 50_000;

/// One event.
#[derive(Clone, Debug)]
pub struct Event(pub Value);

impl Event {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    /// `read` or `reach`.
    pub fn kind(&self) -> &str {
        self.text("kind")
    }

    /// Whether it is about a refusal, or in monitor mode about what would have been one.
    pub fn is_denial(&self) -> bool {
        self.text("verdict") == "deny"
    }

    /// Why it was denied.
    pub fn reason(&self) -> &str {
        self.text("reason")
    }

    /// Which line it is.
    pub fn sequence(&self) -> u64 {
        self.0["sequence"].as_u64().unwrap_or_default()
    }

    /// The process.
    pub fn pid(&self) -> u64 {
        self.0["process"]["pid"].as_u64().unwrap_or_default()
    }

    /// The credential.
    pub fn credential(&self) -> &str {
        self.text("credential")
    }

    /// The version of the bundle that it was judged by.
    pub fn bundle(&self) -> u64 {
        self.0["bundle"].as_u64().unwrap_or_default()
    }

    /// What was done: `none`, `block` or `kill`.
    pub fn action_taken(&self) -> &str {
        self.0["action"]["taken"].as_str().unwrap_or_default()
    }

    /// Where to, in plain form.
    pub fn destination(&self) -> Option<SocketAddr> {
        let destination = &self.0["destination"];
        let address = destination["address"].as_str()?.parse().ok()?;
        let port = u16::try_from(destination["port"].as_u64()?).ok()?;
        Some(peer::plain(SocketAddr::new(address, port)))
    }

    /// The daemon tries by itself whether it refuses.
    fn is_canary(&self) -> bool {
        self.credential().starts_with("enforcer-canary")
    }
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    /// Lines that are not JSON.
    strange: Vec<String>,
    /// The number of the last one, canaries included.
    last: u64,
}

/// All events of one daemon.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Kept>>);

impl Events {
    /// Reads them from now on.
    pub fn follow(from: impl Read + Send + 'static) -> Self {
        let events = Self::default();
        let kept = Arc::clone(&events.0);
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let Ok(mut kept) = kept.lock() else { return };
                match serde_json::from_str(&line).map(Event) {
                    Ok(event) => {
                        kept.last = event.sequence();
                        if !event.is_canary() {
                            kept.events.push_back(event);
                        }
                    }
                    Err(_) => kept.strange.push(line),
                }
                if kept.events.len() > KEPT {
                    kept.events.pop_front();
                }
            }
        });
        events
    }

    /// The latest one of which this holds.
    pub fn find(&self, holds: impl Fn(&Event) -> bool) -> Option<Event> {
        let kept = self.0.lock().ok()?;
        let mut latest_first = kept.events.iter().rev();
        latest_first.find(|event| holds(event)).cloned()
    }

    /// All of a kind.
    pub fn all(&self, kind: &str) -> Vec<Event> {
        self.0.lock().map_or_else(
            |_| Vec::new(),
            |kept| {
                let all = kept.events.iter();
                all.filter(|event| event.kind() == kind).cloned().collect()
            },
        )
    }

    /// All of a process.
    pub fn of(&self, pid: u32) -> Vec<Event> {
        self.0.lock().map_or_else(
            |_| Vec::new(),
            |kept| {
                let ours = kept.events.iter();
                ours.filter(|event| event.pid() == u64::from(pid))
                    .cloned()
                    .collect()
            },
        )
    }

    /// The `sequence` of the last one.
    pub fn last(&self) -> u64 {
        self.0.lock().map_or(0, |kept| kept.last)
    }

    /// Fails if any line was no JSON.
    pub fn all_parsed(&self) -> Result<()> {
        let kept = self.0.lock().map_err(|_| anyhow!("the reader panicked"))?;
        match kept.strange.first() {
            None => Ok(()),
            Some(line) => Err(anyhow!("an event is not JSON: {line:?}")),
        }
    }
}
