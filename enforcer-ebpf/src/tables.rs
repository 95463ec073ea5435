//! [`Tables`] over BPF maps.

use aya_ebpf::{helpers::generated::bpf_map_lookup_elem, maps::HashMap};
use enforcer_common::{
    address::Address,
    branchless::reload,
    decide,
    facts::Task,
    ids::{BootNs, CgroupId, CredentialId, PortSetId, ScopeId},
    tables::{
        Bundle, Cgroup, Credential, CredentialKey, GrantKey, Grants, HolderKey, PortKey, ScopeKey,
        Subject, SubjectKey, Tables,
    },
};

use crate::{
    maps::{BUNDLES, CGROUPS, CREDENTIALS, GRANTS, HOLDERS, PORTS, SCOPES, SUBJECTS, UNACCOUNTED},
    task::generation,
};

/// The kernel's tables.
///
/// From 6.1 on the memory of a replaced or removed hash entry may at once become another key's. Entries of
/// these tables do not change while a decision can see them: their keys have a generation or a number that
/// stands for their content, and they are removed when no program runs any more that could use them. What is
/// replaced meanwhile is read with [`settled`].
pub struct KernelTables;

/// Copies a value that the daemon may be replacing: if after the copy the key has another entry, what was copied
/// may be a third's, and the new entry is copied instead, which stays as it is until this program has ended.
/// `false` if there is none. (An `Option` of a larger type would be moved with bytes that were never written,
/// which kernels before 6.3 do not accept.)
#[inline(always)]
pub fn settled<K, V: Copy>(map: &HashMap<K, V>, key: &K, into: &mut V) -> bool {
    let Some(first) = map.get_ptr(key) else {
        return false;
    };
    // SAFETY: a pointer into the map, valid until the program ends; volatile, so that it is read now.
    *into = unsafe { core::ptr::read_volatile(first) };
    let Some(second) = map.get_ptr(key) else {
        return false;
    };
    if second != first {
        // SAFETY: as above.
        *into = unsafe { core::ptr::read_volatile(second) };
    }
    true
}

/// Adds 0 to every word of a value, a 0 that the verifier does not know ([`Bundle::zero`]).
#[inline(always)]
pub fn blur<T>(value: &mut T, bundle: &Bundle) {
    let words = core::ptr::from_mut(value).cast::<u64>();
    let mut word = 0;
    while word < size_of::<T>() / 8 {
        // SAFETY: a `repr(C)` value of whole words.
        unsafe {
            let at = words.add(word);
            at.write_volatile(at.read_volatile() | reload(&bundle.zero));
        }
        word += 1;
    }
}

impl Tables for KernelTables {
    #[inline(always)]
    fn bundle(&self) -> Option<&Bundle> {
        let generation = generation();
        if generation.0 == 0 {
            return None;
        }
        BUNDLES.get(generation.0 & 1)
    }

    #[inline(always)]
    fn credential(&self, key: &CredentialKey) -> Option<Credential> {
        // SAFETY: copied at once.
        unsafe { CREDENTIALS.get(key) }.copied()
    }

    #[inline(always)]
    fn subject(&self, key: &SubjectKey) -> Option<Subject> {
        // SAFETY: copied at once.
        unsafe { SUBJECTS.get(key) }.copied()
    }

    #[inline(always)]
    fn grants(&self, key: &GrantKey) -> Option<&Grants> {
        // SAFETY: valid until the program ends, and not reused before.
        unsafe { GRANTS.get(key) }
    }

    #[inline(always)]
    fn covers(&self, scope: ScopeId, address: &Address, transport: u64) -> u32 {
        let key = ScopeKey::new(scope, address, 128);
        let Some(ports) = lookup::<_, PortSetId>(&SCOPES, &key) else {
            return 0;
        };
        let key = PortKey::new(ports, (transport >> 16) as u8, transport as u16, 16);
        lookup(&PORTS, &key).unwrap_or(0)
    }

    #[inline(always)]
    fn weigh(&self, key: GrantKey, now: BootNs, address: &Address, transport: u64) -> u64 {
        weigh_grants(key.word(), now.0, address.high, address.low, transport)
    }

    #[inline(always)]
    fn baseline(&self, scope: ScopeId, address: &Address, transport: u64) -> bool {
        baseline_covers(scope.0 as u64, address.high, address.low, transport) != 0
    }

    #[inline(always)]
    fn near(&self, key: GrantKey) -> u64 {
        near_grants(key.word())
    }

    #[inline(always)]
    fn held(&self, key: &HolderKey) -> Option<CredentialId> {
        // SAFETY: copied at once.
        unsafe { HOLDERS.get(key) }.copied()
    }

    #[inline(always)]
    fn unaccounted(&self, task: &Task) -> bool {
        unaccounted(task.instance)
    }
}

/// Whether a holding could not be recorded for the instance, or if it is none, for a process in none. In a frame of
/// its own.
#[inline(never)]
fn unaccounted(instance: CgroupId) -> bool {
    let is_instance = instance.0 != 0;
    if UNACCOUNTED.get(u32::from(is_instance)).copied() != Some(1) {
        return false;
    }
    let mut cgroup = Cgroup::default();
    !is_instance || settled(&CGROUPS, &instance, &mut cgroup) && cgroup.unaccounted != 0
}

/// Looks up a key that has its prefix length within, which aya's own type does not.
#[inline(always)]
pub fn lookup<K, V: Copy>(trie: &'static impl Sized, key: &K) -> Option<V> {
    // SAFETY: the trie is a map whose keys and values are `K` and `V`; the value is copied at once.
    unsafe {
        let value = bpf_map_lookup_elem(
            core::ptr::from_ref(trie).cast_mut().cast(),
            core::ptr::from_ref(key).cast(),
        );
        value.cast::<V>().as_ref().copied()
    }
}

/// [`decide::weigh`] with everything in registers. A global function with numbers for arguments is verified
/// once by itself (since 5.6), not again for each path that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weigh_grants(key: u64, now: u64, high: u64, low: u64, transport: u64) -> u64 {
    decide::weigh(
        &KernelTables,
        GrantKey::from_word(key),
        BootNs(now),
        &Address { high, low },
        transport,
    )
}

/// Look-up of a destination in a scope, likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn baseline_covers(scope: u64, high: u64, low: u64, transport: u64) -> u64 {
    KernelTables
        .covers(ScopeId(scope as u32), &Address { high, low }, transport)
        .into()
}

/// [`decide::near`], likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn near_grants(key: u64) -> u64 {
    decide::near(&KernelTables, GrantKey::from_word(key))
}
