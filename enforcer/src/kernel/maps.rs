//! Typed access to the kernel's tables.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie};
use aya::{Ebpf, Pod};
use enforcer_common::ids::Generation;
use enforcer_common::tables::Versioned;

use super::load::ROOMY;

/// Why a table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object has no such map.
    #[error("the eBPF object has no map `{0}`; it and this daemon were not built together")]
    Missing(&'static str),
    /// The map is of another kind, or a write failed.
    #[error("cannot {action} table {table}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// The table.
        table: &'static str,
        /// Why.
        source: MapError,
    },
}

impl Error {
    /// Whether a table has no room for one entry more that can be had larger.
    #[must_use]
    pub fn is_for_want_of_room(&self) -> bool {
        let Self::Map {
            table,
            source: MapError::SyscallError(error),
            ..
        } = self
        else {
            return false;
        };
        error.io_error.raw_os_error() == Some(libc::E2BIG)
            && ROOMY.iter().any(|(roomy, _)| roomy == table)
    }
}

/// The maps of a loaded object.
pub struct Maps<'a>(pub &'a mut Ebpf);

impl Maps<'_> {
    fn hash<K: Pod, V: Pod>(
        &mut self,
        table: &'static str,
    ) -> Result<HashMap<&mut MapData, K, V>, Error> {
        let map = self.0.map_mut(table).ok_or(Error::Missing(table))?;
        HashMap::try_from(map).map_err(failed("open", table))
    }

    /// Writes one entry of a hash table.
    pub fn put<K: Pod, V: Pod>(
        &mut self,
        table: &'static str,
        key: impl Borrow<K>,
        value: impl Borrow<V>,
    ) -> Result<(), Error> {
        self.hash(table)?
            .insert(key, value, 0)
            .map_err(failed("write to", table))
    }

    /// Makes `key` mean `after` from generation `next` on; until then it goes on meaning what it does in
    /// `current`. Writes nothing if that is so already.
    pub fn put_from<K: Pod, V: Copy + Default + PartialEq>(
        &mut self,
        table: &'static str,
        key: K,
        after: V,
        current: Generation,
        next: Generation,
    ) -> Result<(), Error>
    where
        Versioned<V>: Pod,
    {
        let known = self.get::<K, Versioned<V>>(table, &key)?;
        match Versioned::from_then_on(known, after, current, next) {
            Some(value) => self.put(table, key, value),
            None => Ok(()),
        }
    }

    /// Writes one entry unless the key is taken. `false` if it is.
    pub fn put_new<K: Pod, V: Pod>(
        &mut self,
        table: &'static str,
        key: &K,
        value: &V,
    ) -> Result<bool, Error> {
        let mut map = self.hash::<K, V>(table)?;
        if map.insert(key, value, u64::from(NOEXIST)).is_ok() {
            return Ok(true);
        }
        match map.get(key, 0) {
            Ok(_) => Ok(false),
            Err(source) => Err(failed("write to", table)(source)),
        }
    }

    /// Writes one entry in the place of another. `false` if there is none, which may have gone meanwhile.
    pub fn put_known<K: Pod, V: Pod>(
        &mut self,
        table: &'static str,
        key: &K,
        value: &V,
    ) -> Result<bool, Error> {
        let written = self
            .hash::<K, V>(table)?
            .insert(key, value, u64::from(EXIST));
        found(written).map_err(failed("write to", table))
    }

    /// Reads one entry of a hash table.
    pub fn get<K: Pod, V: Pod>(
        &mut self,
        table: &'static str,
        key: &K,
    ) -> Result<Option<V>, Error> {
        match self.hash::<K, V>(table)?.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed("read", table)(source)),
        }
    }

    /// Removes one entry. `false` if it is not there, which is as good.
    pub fn remove<K: Pod, V: Pod>(&mut self, table: &'static str, key: &K) -> Result<bool, Error> {
        found(self.hash::<K, V>(table)?.remove(key)).map_err(failed("remove from", table))
    }

    /// Every entry of a hash table.
    pub fn entries<K: Pod, V: Pod>(&mut self, table: &'static str) -> Result<Vec<(K, V)>, Error> {
        let map = self.hash::<K, V>(table)?;
        map.iter()
            .collect::<Result<_, _>>()
            .map_err(failed("read", table))
    }

    /// The keys of a hash table.
    pub fn keys<K: Pod, V: Pod>(&mut self, table: &'static str) -> Result<Vec<K>, Error> {
        let map = self.hash::<K, V>(table)?;
        map.keys()
            .collect::<Result<_, _>>()
            .map_err(failed("read", table))
    }

    /// Removes the entries whose keys are not to stay.
    pub fn retain<K: Pod, V: Pod>(
        &mut self,
        table: &'static str,
        stays: impl Fn(&K) -> bool,
    ) -> Result<(), Error> {
        for key in self.keys::<K, V>(table)? {
            if !stays(&key) {
                self.remove::<K, V>(table, &key)?;
            }
        }
        Ok(())
    }

    fn trie<const N: usize>(
        &mut self,
        table: &'static str,
    ) -> Result<LpmTrie<&mut MapData, [u8; N], u32>, Error>
    where
        [u8; N]: Pod,
    {
        let map = self.0.map_mut(table).ok_or(Error::Missing(table))?;
        LpmTrie::try_from(map).map_err(failed("open", table))
    }

    /// Writes one prefix of a longest-prefix table.
    pub fn put_prefix<const N: usize>(
        &mut self,
        table: &'static str,
        bits: u32,
        data: [u8; N],
        value: u32,
    ) -> Result<(), Error>
    where
        [u8; N]: Pod,
    {
        self.trie(table)?
            .insert(&lpm_trie::Key::new(bits, data), value, 0)
            .map_err(failed("write to", table))
    }

    /// Removes one prefix of a longest-prefix table.
    pub fn remove_prefix<const N: usize>(
        &mut self,
        table: &'static str,
        bits: u32,
        data: [u8; N],
    ) -> Result<(), Error>
    where
        [u8; N]: Pod,
    {
        let _ = self.trie(table)?.remove(&lpm_trie::Key::new(bits, data));
        Ok(())
    }

    /// Removes the prefixes, each with its length in bits, that are not to stay.
    pub fn retain_prefixes<const N: usize>(
        &mut self,
        table: &'static str,
        stay: &BTreeSet<(u32, [u8; N])>,
    ) -> Result<(), Error>
    where
        [u8; N]: Pod,
    {
        let known = self.trie(table)?.keys().collect::<Result<Vec<_>, _>>();
        for key in known.map_err(failed("read", table))? {
            if !stay.contains(&(key.prefix_len(), key.data())) {
                self.remove_prefix(table, key.prefix_len(), key.data())?;
            }
        }
        Ok(())
    }

    /// Writes one element of an array.
    pub fn set<V: Pod>(&mut self, table: &'static str, index: u32, value: V) -> Result<(), Error> {
        let map = self.0.map_mut(table).ok_or(Error::Missing(table))?;
        let mut array: Array<_, V> = map.try_into().map_err(failed("open", table))?;
        array
            .set(index, value, 0)
            .map_err(failed("write to", table))
    }

    /// One element of an array.
    pub fn at<V: Pod>(&mut self, table: &'static str, index: u32) -> Result<V, Error> {
        let map = self.0.map_mut(table).ok_or(Error::Missing(table))?;
        let array: Array<_, V> = map.try_into().map_err(failed("open", table))?;
        array.get(&index, 0).map_err(failed("read", table))
    }

    /// Sums an element over all processors.
    pub fn sum(&mut self, table: &'static str, index: u32) -> Result<u64, Error> {
        let map = self.0.map_mut(table).ok_or(Error::Missing(table))?;
        let array: PerCpuArray<_, u64> = map.try_into().map_err(failed("open", table))?;
        let values = array.get(&index, 0).map_err(failed("read", table))?;
        Ok(values.iter().sum())
    }
}

/// Whether a removal or a replacement found anything; to find nothing is no failure.
pub(super) fn found(result: Result<(), MapError>) -> Result<bool, MapError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        // aya reports ENOENT of these as a failed system call.
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(false)
        }
        Err(source) => Err(source),
    }
}

/// A handle of its own to an array, for a thread that shares nothing with the others.
pub fn own_array<V: Pod>(ebpf: &Ebpf, table: &'static str) -> Result<Array<MapData, V>, Error> {
    let Some(Map::Array(map)) = ebpf.map(table) else {
        return Err(Error::Missing(table));
    };
    Array::try_from(Map::Array(own(map, table)?)).map_err(failed("open", table))
}

/// The same to a hash table.
pub fn own_hash<K: Pod, V: Pod>(
    ebpf: &Ebpf,
    table: &'static str,
) -> Result<HashMap<MapData, K, V>, Error> {
    let Some(Map::HashMap(map)) = ebpf.map(table) else {
        return Err(Error::Missing(table));
    };
    HashMap::try_from(Map::HashMap(own(map, table)?)).map_err(failed("open", table))
}

fn own(map: &MapData, table: &'static str) -> Result<MapData, Error> {
    let descriptor = map.fd().as_fd().try_clone_to_owned();
    descriptor
        .map_err(MapError::IoError)
        .and_then(MapData::from_fd)
        .map_err(failed("open", table))
}

/// `BPF_NOEXIST`.
const NOEXIST: u32 = 1;
/// `BPF_EXIST`.
const EXIST: u32 = 2;

pub(super) fn failed(action: &'static str, table: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Map {
        action,
        table,
        source,
    }
}
