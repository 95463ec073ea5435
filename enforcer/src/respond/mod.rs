//! What follows a denial besides the refusal, where the kernel cannot do it itself.

mod instance;
mod limiter;
pub mod webhook;

use std::collections::BTreeSet;
use std::time::Duration;

use enforcer_common::event::{Use, taken};
use enforcer_common::ids::{BootNs, CgroupId};
use enforcer_common::verdict::Action;

pub use instance::Instance;
pub use limiter::{Leave, Limiter};

/// Acts on workload instances.
#[derive(Debug)]
pub struct Responder {
    limiter: Limiter<String>,
    /// What was withheld is told this often.
    told: Limiter<(String, &'static str)>,
    limit: u32,
    /// What was acted on last, and when: it may have been refused more than once before that took effect.
    last: (CgroupId, BootNs),
}

/// Denials of an instance that was acted on so long ago are part of the same.
const SAME: Duration = Duration::from_secs(2);
/// So often a minute it is told that something was withheld, for one workload and for all.
const TOLD: (u32, u32) = (1, 100);

/// What came of an action.
#[derive(Debug)]
pub struct Response {
    /// One of [`taken`].
    pub taken: u8,
    /// Why it is less than was asked for; nothing if that was told a moment ago.
    pub withheld: Option<String>,
}

impl Responder {
    /// Acts on at most `limit` instances a minute.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            limiter: Limiter::new(limit, limit),
            told: Limiter::new(TOLD.0, TOLD.1),
            limit,
            last: (CgroupId(0), BootNs(0)),
        }
    }

    /// Does what is asked for after the refusal of a use by `workload`, except to the instances `spared`. `None` if that
    /// is nothing more than the kernel has done.
    pub fn respond(
        &mut self,
        record: &Use,
        workload: &str,
        spared: impl FnOnce() -> BTreeSet<CgroupId>,
    ) -> Option<Response> {
        let action = Action::from_u8(record.action)?;
        let was_refused = record.reason != 0 && record.taken != taken::NOTHING;
        let done = match action {
            Action::Freeze | Action::KillWorkload if was_refused => {
                self.act(action, record, workload, spared)
            }
            _ if record.taken == taken::LIMITED => Err(("limited", self.limited())),
            _ => return None,
        };
        let (why, reason) = match done {
            Ok(taken) => {
                return Some(Response {
                    taken,
                    withheld: None,
                });
            }
            Err(withheld) => withheld,
        };
        match self.told.ask((workload.to_owned(), why), record.time) {
            Leave::Granted => Some(Response {
                taken: record.taken,
                withheld: Some(reason),
            }),
            Leave::Refused => None,
        }
    }

    /// Returns one of [`taken`], or why nothing was done: in a word, and in a sentence.
    fn act(
        &mut self,
        action: Action,
        record: &Use,
        workload: &str,
        spared: impl FnOnce() -> BTreeSet<CgroupId>,
    ) -> Result<u8, (&'static str, String)> {
        let id = record.task.instance;
        if id == CgroupId(0) {
            let reason = "the process is in no unit, session or container";
            return Err(("no-instance", reason.to_owned()));
        }
        if spared().contains(&id) || instance::untouchable().contains(&id) {
            let reason = "the daemon, init or everybody is in that cgroup";
            return Err(("untouchable", reason.to_owned()));
        }
        let gone = |error| ("gone", format!("its cgroup cannot be opened: {error}"));
        let instance = Instance::open(id).map_err(gone)?;
        let (before, when) = self.last;
        let same = before == id && record.time.0.saturating_sub(when.0) < SAME.as_nanos() as u64;
        if !same && self.limiter.ask(workload.to_owned(), record.time) == Leave::Refused {
            return Err(("limited", self.limited()));
        }
        let (result, taken) = match action {
            Action::Freeze => (instance.freeze(), taken::FROZEN),
            _ => (instance.kill(), taken::KILLED_WORKLOAD),
        };
        let name = instance.name().unwrap_or_default();
        result.map_err(|error| ("failed", format!("cgroup {name}: {error}")))?;
        self.last = (id, record.time);
        Ok(taken)
    }

    fn limited(&self) -> String {
        format!(
            "done {} times this minute for this workload or on this node: until the minute is over its uses are only refused (`run --actions-per-minute`)",
            self.limit
        )
    }
}
