//! The table of protected files, whose keys are counted as well.

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use enforcer_common::ids::{CredentialId, Generation, InodeKey};
use enforcer_common::tables::Versioned;

use super::maps::{self, failed, own_hash};
use super::presence::Counters;

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;
/// `BPF_EXIST`.
const EXIST: u64 = 2;

const TABLE: &str = "FILES";

/// A handle of its own to the table.
pub struct Protected {
    files: HashMap<MapData, InodeKey, Versioned<CredentialId>>,
    counters: Counters,
}

impl Protected {
    /// Opens the table.
    pub fn new(ebpf: &Ebpf) -> Result<Self, maps::Error> {
        Ok(Self {
            files: own_hash(ebpf, TABLE)?,
            counters: Counters::open(ebpf, "FILES_PRESENT")?,
        })
    }

    /// Says what a file is, in every generation.
    pub fn put(&mut self, file: InodeKey, credential: CredentialId) -> Result<(), maps::Error> {
        self.write(file, Versioned::constant(credential))
    }

    /// Says what a file is from generation `next` on; until then it is what it is in `current`.
    pub fn put_from(
        &mut self,
        file: InodeKey,
        credential: CredentialId,
        current: Generation,
        next: Generation,
    ) -> Result<(), maps::Error> {
        let known = match self.files.get(&file, 0) {
            Ok(known) => Some(known),
            Err(MapError::KeyNotFound) => None,
            Err(source) => return Err(failed("read", TABLE)(source)),
        };
        match Versioned::from_then_on(known, credential, current, next) {
            Some(value) => self.write(file, value),
            None => Ok(()),
        }
    }

    fn write(&mut self, file: InodeKey, value: Versioned<CredentialId>) -> Result<(), maps::Error> {
        if self.files.insert(file, value, EXIST).is_ok() {
            return Ok(());
        }
        self.counters.add(file.word());
        if self.files.insert(file, value, NOEXIST).is_ok() {
            return Ok(());
        }
        self.counters.take(file.word());
        // The kernel has protected it meanwhile, or there is no room.
        self.files
            .insert(file, value, EXIST)
            .map_err(failed("write to", TABLE))
    }

    /// Takes a file out; one that is not there is as good as taken out.
    pub fn remove(&mut self, file: &InodeKey) -> Result<(), maps::Error> {
        if maps::found(self.files.remove(file)).map_err(failed("remove from", TABLE))? {
            self.counters.take(file.word());
        }
        Ok(())
    }
}
