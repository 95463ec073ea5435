//! How a secret came to somebody: who read it, and through what it was handed on.

use std::collections::HashMap;

use enforcer_common::event::{Gate, Kind, Use};
use enforcer_common::ids::{BootNs, CgroupId, CredentialId, InodeKey, Tgid};

use super::model::Hop;

/// So many trails of each kind are remembered; with one more all are forgotten, and events have no `path` for a while.
const REMEMBERED: usize = 16_384;
/// Longer ones keep their beginning and their end.
const LONGEST: usize = 16;

/// Who holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Instance(CgroupId),
    /// When it started is looked at where it is known.
    Process(Tgid),
    /// A pipe or socket.
    Object(u64),
    File(InodeKey),
}

/// The trails of what is held now.
#[derive(Debug, Default)]
pub struct Trails(HashMap<(Place, CredentialId), Trail>);

#[derive(Clone, Debug)]
struct Trail {
    /// Of a process.
    start: BootNs,
    hops: Vec<Hop>,
}

impl Trails {
    /// Takes note of a record, and says how the secret that it is about came to whoever it is about.
    pub fn follow(&mut self, record: &Use, exe: &str, file: Option<&str>) -> Vec<Hop> {
        let credential = record.credential;
        let hop = |how: &'static str| Hop {
            pid: record.task.tgid.0,
            exe: exe.to_owned(),
            how: how.into(),
            file: file.map(str::to_owned),
        };
        let is_file = record.gate == Gate::FileWrite as u8;
        match Kind::from_u8(record.kind) {
            Some(Kind::Read) if record.reason == 0 && record.trusted == 0 => {
                let mut hops = self.of(Place::File(record.file), credential);
                hops.push(hop("read"));
                self.remember(holder(record), credential, record.task.start, hops.clone());
                hops
            }
            Some(Kind::Forward) => {
                let [object, taken, _] = record.destination.as_detail();
                if is_file {
                    let mut hops = self.to(record);
                    hops.push(hop(Gate::FileWrite.name()));
                    self.remember(
                        Place::File(record.file),
                        credential,
                        BootNs(0),
                        hops.clone(),
                    );
                    hops
                } else if taken != 0 {
                    let mut hops = self.of(Place::Object(object), credential);
                    let through = Gate::from_u8(record.gate).map_or("unknown", Gate::name);
                    hops.push(hop(through));
                    self.remember(holder(record), credential, record.task.start, hops.clone());
                    hops
                } else {
                    let hops = self.to(record);
                    self.remember(Place::Object(object), credential, BootNs(0), hops.clone());
                    hops
                }
            }
            Some(Kind::Reach) if record.reason != 0 => self.to(record),
            _ => Vec::new(),
        }
    }

    /// The trail to the task that a record is about: its instance's, its own, or that of the nearest ancestor with one.
    fn to(&self, record: &Use) -> Vec<Hop> {
        let credential = record.credential;
        let own = self.0.get(&(holder(record), credential));
        if let Some(own) =
            own.filter(|it| record.task.instance.0 != 0 || it.start == record.task.start)
        {
            return own.hops.clone();
        }
        let parents = std::iter::once(&record.parent).chain(&record.ancestors);
        parents
            .map(|parent| self.of(Place::Process(*parent), credential))
            .find(|hops| !hops.is_empty())
            .unwrap_or_default()
    }

    fn of(&self, place: Place, credential: CredentialId) -> Vec<Hop> {
        let trail = self.0.get(&(place, credential));
        trail.map(|it| it.hops.clone()).unwrap_or_default()
    }

    fn remember(
        &mut self,
        place: Place,
        credential: CredentialId,
        start: BootNs,
        mut hops: Vec<Hop>,
    ) {
        if hops.len() > LONGEST {
            hops.remove(LONGEST / 2);
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert((place, credential), Trail { start, hops });
    }
}

fn holder(record: &Use) -> Place {
    match record.task.instance {
        CgroupId(0) => Place::Process(record.task.tgid),
        instance => Place::Instance(instance),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: CredentialId = CredentialId(7);

    fn record(kind: Kind, gate: Gate, pid: u32) -> Use {
        // SAFETY: a record of plain numbers.
        let mut record: Use = unsafe { std::mem::zeroed() };
        record.kind = kind as u8;
        record.gate = gate as u8;
        record.credential = SECRET;
        record.task.tgid = Tgid(pid);
        record.task.start = BootNs(u64::from(pid) * 100);
        record.parent = Tgid(1);
        record
    }

    fn handed(gate: Gate, pid: u32, object: u64, taken: u64) -> Use {
        let mut record = record(Kind::Forward, gate, pid);
        record.destination = enforcer_common::address::Destination::detail([object, taken, 0]);
        record
    }

    fn hows(hops: &[Hop]) -> Vec<(u32, &str)> {
        hops.iter().map(|hop| (hop.pid, &*hop.how)).collect()
    }

    #[test]
    fn a_secret_is_followed_through_a_pipe_to_a_child() {
        let mut trails = Trails::default();
        trails.follow(&record(Kind::Read, Gate::FileOpen, 11), "cat", Some("/key"));
        trails.follow(&handed(Gate::Pipe, 11, 500, 0), "cat", None);
        trails.follow(&handed(Gate::Pipe, 10, 500, 1), "sh", None);
        let mut denied = record(Kind::Reach, Gate::SocketConnect, 12);
        denied.reason = 11;
        denied.ancestors[1] = Tgid(10);
        let path = trails.follow(&denied, "curl", None);
        assert_eq!(hows(&path), [(11, "read"), (10, "pipe")]);
        assert_eq!(path[0].file.as_deref(), Some("/key"));
        // Somebody else's child.
        denied.ancestors[1] = Tgid(99);
        let path = trails.follow(&denied, "curl", None);
        assert_eq!(path, []);
    }

    #[test]
    fn a_process_with_the_id_of_one_that_ended_has_no_trail() {
        let mut trails = Trails::default();
        trails.follow(&record(Kind::Read, Gate::FileOpen, 11), "cat", None);
        let mut denied = record(Kind::Reach, Gate::SocketConnect, 11);
        denied.reason = 11;
        denied.task.start = BootNs(5);
        assert_eq!(trails.follow(&denied, "curl", None), []);
    }

    #[test]
    fn long_trails_keep_their_ends() {
        let mut trails = Trails::default();
        trails.follow(&record(Kind::Read, Gate::FileOpen, 1), "cat", None);
        for pid in 1..40 {
            let object = u64::from(pid);
            trails.follow(&handed(Gate::Pipe, pid, object, 0), "a", None);
            trails.follow(&handed(Gate::Pipe, pid + 1, object, 1), "a", None);
        }
        let mut denied = record(Kind::Reach, Gate::SocketConnect, 40);
        denied.reason = 11;
        let path = trails.follow(&denied, "curl", None);
        assert_eq!(path.len(), LONGEST);
        assert_eq!(hows(&path)[0], (1, "read"));
        assert_eq!(hows(&path)[LONGEST - 1], (40, "pipe"));
    }
}
