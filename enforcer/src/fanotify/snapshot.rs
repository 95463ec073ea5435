//! What the gate decides by: a policy and the files it is about, as they stood at one moment. Pure.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use enforcer_common::ids::{BootNs, CredentialId, Generation, InodeKey};
use enforcer_common::iterate::FileRecord;

use crate::compile::{HostTables, Policy};

/// Everything for one decision. The gate takes the whole of it at once, so that no decision sees half of one
/// bundle and half of another.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The bundle; `None` before the first one.
    pub rules: Option<Arc<Rules>>,
    /// The files.
    pub places: Arc<Places>,
}

/// A bundle in force.
#[derive(Debug)]
pub struct Rules {
    /// The policy, by whose paths a new file is recognised.
    pub policy: Arc<Policy>,
    /// The same as the kernel has it.
    pub tables: HostTables,
    /// Its number.
    pub generation: Generation,
}

impl Rules {
    /// Those of a policy, of which it is known until `fresh_until` that none is newer.
    pub fn new(policy: Arc<Policy>, generation: Generation, fresh_until: BootNs) -> Self {
        let mut tables = HostTables::new(&policy, generation);
        tables.set_fresh_until(fresh_until);
        Self {
            tables,
            policy,
            generation,
        }
    }
}

/// What is where.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Protected files.
    pub files: HashMap<InodeKey, CredentialId>,
    /// Watched directories, by the paths under which they were found.
    pub directories: HashMap<InodeKey, PathBuf>,
    /// File systems all of whose content is a credential, by device.
    pub volumes: HashMap<u32, CredentialId>,
}

/// What a file is, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A file known by its inode, or everything on its file system.
    Known(CredentialId),
    /// A file that is new in a watched directory.
    New(CredentialId),
    /// No credential.
    Nothing,
}

impl Snapshot {
    /// What the open file is. Its inode comes first: the name by which it was opened only ever makes a file a
    /// credential, never takes that away.
    pub fn find(&self, file: &FileRecord) -> Found {
        if let Some(credential) = self.places.files.get(&file.key.inode) {
            return Found::Known(*credential);
        }
        let named = self.rules.as_ref().and_then(|rules| {
            let directory = self.places.directories.get(&file.parent)?;
            rules.policy.credential_of(&directory.join(name(file)))
        });
        if let Some(credential) = named {
            return Found::New(credential);
        }
        match self.places.volumes.get(&file.key.inode.dev) {
            Some(credential) => Found::Known(*credential),
            None => Found::Nothing,
        }
    }
}

/// The name by which a file was opened.
pub fn name(file: &FileRecord) -> &OsStr {
    let end = file.name.iter().position(|byte| *byte == 0);
    OsStr::from_bytes(&file.name[..end.unwrap_or(file.name.len())])
}
