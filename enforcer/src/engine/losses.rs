//! What was not recorded, not told or not seen, and saying so.

use enforcer_common::capacity::Room;
use enforcer_common::event::{Ring, Use};
use serde_json::json;

use super::Engine;
use crate::kernel::maps::Maps;
use crate::kernel::passed_over::More;
use crate::kernel::settled::Settles;

/// For whom something held could not be recorded, for want of room: they are judged as if they held too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(super) struct Unaccounted {
    /// Every process in no instance, until the daemon is started anew.
    processes: bool,
    /// Some instances, until they end.
    instances: bool,
}

/// Records for which there was no room in a ring, or for what the read gate tells, as long as there is none to say so in the log
/// either.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unsaid {
    count: u64,
    by_programs: u64,
}

impl Engine {
    pub(super) fn report_losses(&mut self) {
        let (mut count, settles) = self.untold_uses;
        let account = json!({"stage": "daemon", "count": count, "total": count});
        if count > 0 && self.log.write_account("lost", account, settles) {
            self.log.metrics().lost("daemon", count);
            self.untold_uses = Default::default();
        } else {
            count = 0;
        }
        let lost = self.lost;
        for ring in Ring::ALL {
            let index = *ring as usize;
            let counted = Maps(&mut self.loaded.ebpf).sum("LOST", index as u32);
            let Ok(counted) = counted else { continue };
            let before = std::mem::replace(&mut self.lost_by_programs[index], counted);
            let by_programs = counted.saturating_sub(before);
            let by_gate = self.gate.as_ref().map_or(0, |gate| gate.take_lost(*ring));
            let unsaid = &mut self.unsaid[index];
            unsaid.count += by_programs + by_gate;
            unsaid.by_programs += by_programs;
            let new = unsaid.count;
            let mut settles = Settles::default();
            settles.lost[index] = unsaid.by_programs;
            let total = self.lost[index] + new;
            let account = json!({"stage": ring.name(), "count": new, "total": total});
            if new > 0 && self.log.write_account("lost", account, settles) {
                self.log.metrics().lost(ring.name(), new);
                self.lost[index] = total;
                self.unsaid[index] = Unsaid::default();
            }
        }
        let new = |ring: Ring| self.lost[ring as usize] - lost[ring as usize];
        self.usage_lost(count + new(Ring::Denials), new(Ring::Uses));
        self.report_untold();
    }

    /// Tells of denials that the webhook did not take.
    fn report_untold(&mut self) {
        let Some(webhook) = &self.webhook else {
            return;
        };
        let (_, lost) = webhook.counts();
        let new = lost - std::mem::replace(&mut self.untold, lost);
        if new > 0 {
            self.log.metrics().lost("webhook", new);
            self.log.write(
                "lost",
                json!({"stage": "webhook", "count": new, "total": lost}),
            );
        }
    }

    pub(super) fn report_full_tables(&mut self) {
        let count = std::mem::take(&mut self.table_full);
        if count > 0 {
            if self.loaded.room == Room::Ordinary {
                self.outgrown = Some("a table of the kernel is full".to_owned());
            }
            self.log.write(
                "table-full",
                json!({
                    "count": count,
                    "message": "a table of the kernel is full: what could not be recorded is refused; `enforcer status --tables` shows which, `run --holders` enlarges that of holders",
                }),
            );
        }
        let mut maps = Maps(&mut self.loaded.ebpf);
        let is_set = |maps: &mut Maps<'_>, index| maps.at::<u32>("UNACCOUNTED", index);
        let now = is_set(&mut maps, 0).and_then(|processes| {
            Ok(Unaccounted {
                processes: processes != 0,
                instances: is_set(&mut maps, 1)? != 0,
            })
        });
        match now {
            Ok(now) if now != self.unaccounted => {
                self.unaccounted = now;
                let message = "what somebody held could not be recorded: who may be meant is refused; start the daemon anew with a larger --holders";
                self.log.write(
                    "unaccounted",
                    json!({"processes": now.processes, "instances": now.instances, "message": message}),
                );
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    "it cannot be told whether holders were recorded: {}",
                    crate::chain(&error)
                );
            }
        }
    }

    pub(super) fn report_passed_over(&mut self) {
        let more = match self.passed_over.look(&self.loaded) {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(%error, "the kernel does not say how often programs were passed over");
                return;
            }
        };
        for More {
            program,
            count,
            total,
        } in more
        {
            self.log.write(
                "passed-over",
                json!({
                    "program": program,
                    "count": count,
                    "total": total,
                    "message": "the kernel did not call this program: another task on the same processor was interrupted in it",
                }),
            );
        }
    }

    /// This one arrived and will not be written: because the daemon stops, or has no bundle yet. It is counted.
    pub fn not_told(&mut self, record: &Use) {
        let (count, settles) = &mut self.untold_uses;
        *count += 1;
        settles.add(Settles::of(record));
    }

    /// Tells of records that a sink has not delivered and never will.
    pub fn undelivered(&mut self, sink: &str, count: u64) {
        self.log.write(
            "lost",
            json!({"stage": format!("sink {sink}"), "count": count}),
        );
    }
}
