//! [`Tables`] over BPF maps.

use aya_ebpf::maps::lpm_trie::Key;
use enforcer_common::{
    address::Destination,
    ids::{CredentialId, ScopeId},
    tables::{
        Bundle, Credential, CredentialKey, GrantKey, Grants, HolderKey, PortKey, ScopeKey, Subject,
        SubjectKey, Tables,
    },
};

use crate::{
    maps::{BUNDLES, CREDENTIALS, GRANTS, HOLDERS, PORTS, SCOPES, SUBJECTS},
    task::generation,
};

/// The kernel's tables. Values are copied out at once: an entry may be reused after its removal.
pub struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn bundle(&self) -> Option<Bundle> {
        let generation = generation();
        if generation.0 == 0 {
            return None;
        }
        BUNDLES.get(generation.0 & 1).copied()
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
        // SAFETY: not preallocated, so a removed entry is freed only after the program has ended (RCU).
        unsafe { GRANTS.get(key) }
    }

    #[inline(always)]
    fn covers(&self, scope: ScopeId, destination: &Destination) -> u32 {
        let address = Key::new(
            ScopeKey::FULL_BITS,
            ScopeKey {
                scope,
                address: destination.address.0,
            },
        );
        let Some(ports) = SCOPES.get(&address).copied() else {
            return 0;
        };
        let port = Key::new(
            PortKey::FULL_BITS,
            PortKey {
                ports,
                protocol: destination.protocol.0,
                port: destination.port.to_be_bytes(),
            },
        );
        PORTS.get(&port).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn held(&self, key: &HolderKey) -> Option<CredentialId> {
        // SAFETY: copied at once.
        unsafe { HOLDERS.get(key) }.copied()
    }
}
