//! Recording holdings from user space, as `enforcer-ebpf/src/holders.rs` does in the kernel.

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use enforcer_common::capacity::HELD_PER_HOLDER;
use enforcer_common::facts::Task;
use enforcer_common::ids::CredentialId;
use enforcer_common::tables::{Credential, Holder, HolderKey};

use super::maps::{self, own_hash};
use super::presence::{Counters, Holdings};

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

/// A handle of its own to the table of holders.
pub struct Holders {
    table: HashMap<MapData, HolderKey, CredentialId>,
    counters: Counters,
    holdings: Holdings,
}

/// What a holding was before it was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Not there.
    New,
    /// There already.
    Known,
}

impl Holders {
    /// Opens the table.
    pub fn new(ebpf: &Ebpf) -> Result<Self, maps::Error> {
        Ok(Self {
            table: own_hash(ebpf, "HOLDERS")?,
            counters: Counters::open(ebpf, "HELD_PRESENT")?,
            holdings: Holdings::open(ebpf)?,
        })
    }

    /// Records that `task` holds `credential`. If that fails, the read must be denied.
    pub fn record(
        &mut self,
        task: &Task,
        credential: CredentialId,
        flags: Credential,
    ) -> Result<Recorded, MapError> {
        let process = self.add(Holder::process(task.tgid, task.start), credential);
        if task.instance.0 == 0 || flags.has(Credential::PROCESS_ONLY) {
            return process;
        }
        // Within an instance the process record only serves a later move to another cgroup.
        match self.add(Holder::instance(task.instance), credential)? {
            Recorded::Known => process,
            Recorded::New => Ok(Recorded::New),
        }
    }

    /// Adds one credential to one holder. Others that add at the same moment take different slots.
    pub fn add(&mut self, holder: Holder, credential: CredentialId) -> Result<Recorded, MapError> {
        let mut result = Ok(Recorded::Known);
        for slot in 0..=HELD_PER_HOLDER {
            let key = HolderKey { holder, slot };
            let last = slot == HELD_PER_HOLDER;
            match self.table.get(&key, 0) {
                // The last slot only marks that there were more.
                Ok(held) if last || held == credential => return Ok(Recorded::Known),
                Ok(_) => continue,
                Err(_) => {}
            }
            self.counters.add(holder.word());
            result = self
                .table
                .insert(key, credential, NOEXIST)
                .map(|()| Recorded::New);
            if result.is_ok() {
                self.holdings.add();
                return result;
            }
            self.counters.take(holder.word());
            // Somebody else took the slot, or the table is full.
            match self.table.get(&key, 0) {
                Ok(held) if last || held == credential => return Ok(Recorded::Known),
                Ok(_) => {}
                Err(_) => return result,
            }
        }
        result
    }

    /// Forgets a holder that has ended.
    pub fn forget(&mut self, holder: Holder) {
        for slot in 0..=HELD_PER_HOLDER {
            if self.table.remove(&HolderKey { holder, slot }).is_err() {
                break;
            }
            self.counters.take(holder.word());
        }
    }
}
