//! What a daemon of another build has left: its tables are used once, and go with its programs.

use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use enforcer_common::ids::{CredentialId, Generation, NameDigest, Tgid};
use enforcer_common::tables::{AncestorSlot, Governed, Holder, HolderKey, Origin};

use super::holders::Holders;
use super::pins::Set;

/// Why its tables cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} table {table} of an earlier daemon")]
pub struct Error {
    action: &'static str,
    table: &'static str,
    source: MapError,
}

/// Tells its programs that this is the daemon now, whose opens are no uses.
pub fn announce(set: &Set, daemon: Tgid) -> Result<(), Error> {
    let table = "DAEMON";
    let write = || -> Result<(), MapError> {
        let data = MapData::from_pin(set.map(table))?;
        Array::<_, Tgid>::try_from(Map::Array(data))?.set(0, daemon, 0)
    };
    write().map_err(|source| Error {
        action: "write to",
        table,
        source,
    })
}

/// The numbers of credentials.
pub fn credentials(set: &Set) -> Result<Vec<(NameDigest, CredentialId)>, Error> {
    entries(set, "CREDENTIAL_NUMBERS")
}

/// Makes holders of whoever was one, under the same numbers. Returns how many holdings there were, and how many found
/// no room.
pub fn holders(set: &Set, holders: &mut Holders) -> Result<(usize, usize), Error> {
    let known = entries::<HolderKey, CredentialId>(set, "HOLDERS")?;
    let count = known.len();
    let mut lost = 0;
    for (key, credential) in known {
        if holders.add(key.holder, credential).is_err() {
            lost += 1;
        }
        if has_ended(&key.holder) {
            // It ended before it was recorded, so nothing else would take it out.
            holders.forget(key.holder);
        }
    }
    Ok((count, lost))
}

/// What its slots of ancestors stand for; all free if it is of a build that has none.
pub fn slots(set: &Set) -> Result<Vec<AncestorSlot>, Error> {
    array(set, "ANCESTOR_SLOTS")
}

/// The generation in force; 0 if no bundle ever was.
pub fn generation(set: &Set) -> Result<Generation, Error> {
    let generations = array(set, "GENERATION")?;
    Ok(generations.first().copied().unwrap_or_default())
}

/// What it noted of governance; nothing if it is of a build that notes nothing.
pub fn governed(set: &Set) -> Result<Governed, Error> {
    let noted = array(set, "GOVERNED")?;
    Ok(noted.first().copied().unwrap_or_default())
}

/// Where the processes that still run come from, by its slots.
pub fn origins(set: &Set) -> Result<Vec<(Holder, Origin)>, Error> {
    if !set.map("ORIGINS").exists() {
        return Ok(Vec::new());
    }
    let mut origins = entries::<Holder, Origin>(set, "ORIGINS")?;
    origins.retain(|(process, _)| !has_ended(process));
    Ok(origins)
}

fn has_ended(holder: &Holder) -> bool {
    let process = holder.tgid();
    process.is_some_and(|it| !Path::new(&format!("/proc/{}", it.0)).exists())
}

/// None if there is no such table.
fn array<V: Pod>(set: &Set, table: &'static str) -> Result<Vec<V>, Error> {
    if !set.map(table).exists() {
        return Ok(Vec::new());
    }
    let read = || -> Result<Vec<V>, MapError> {
        let data = MapData::from_pin(set.map(table))?;
        Array::try_from(Map::Array(data))?.iter().collect()
    };
    read().map_err(|source| Error {
        action: "read",
        table,
        source,
    })
}

fn entries<K: Pod, V: Pod>(set: &Set, table: &'static str) -> Result<Vec<(K, V)>, Error> {
    let read = || -> Result<Vec<(K, V)>, MapError> {
        let data = MapData::from_pin(set.map(table))?;
        HashMap::<_, K, V>::try_from(Map::HashMap(data))?
            .iter()
            .collect()
    };
    read().map_err(|source| Error {
        action: "read",
        table,
        source,
    })
}
