//! The tables in user space, for `explain`, replay and tests.

use std::collections::HashMap;

use enforcer_common::address::Address;
use enforcer_common::ids::{BootNs, CredentialId, Generation, PortSetId, ScopeId};
use enforcer_common::tables::{
    Bundle, Credential, CredentialKey, GrantKey, Grants, Holder, HolderKey, PortKey, ScopeKey,
    Subject, SubjectKey, Tables,
};

use super::Policy;

/// [`Tables`] over hash maps: a policy in one generation, and who holds what.
#[derive(Clone, Debug, Default)]
pub struct HostTables {
    bundle: Option<Bundle>,
    credentials: HashMap<CredentialKey, Credential>,
    subjects: HashMap<SubjectKey, Subject>,
    grants: HashMap<GrantKey, Grants>,
    scopes: HashMap<ScopeKey, PortSetId>,
    ports: HashMap<PortKey, u32>,
    holders: HashMap<HolderKey, CredentialId>,
}

impl HostTables {
    /// The tables of `policy`, in force as `generation`. Nobody holds anything.
    #[must_use]
    pub fn new(policy: &Policy, generation: Generation) -> Self {
        Self {
            bundle: Some(Bundle {
                generation,
                ..policy.bundle
            }),
            credentials: (policy.credentials.iter())
                .map(|(id, credential)| (CredentialKey::new(generation, *id), *credential))
                .collect(),
            subjects: (policy.subjects.iter())
                .map(|(selector, subject)| (selector.key(generation), *subject))
                .collect(),
            grants: policy.grants.clone().into_iter().collect(),
            scopes: policy.scopes.clone().into_iter().collect(),
            ports: policy.ports.clone().into_iter().collect(),
            holders: HashMap::new(),
        }
    }

    /// Until when it is known that nothing newer has been issued; for ever, unless this says otherwise.
    pub fn set_fresh_until(&mut self, moment: BootNs) {
        if let Some(bundle) = &mut self.bundle {
            bundle.fresh_until = moment;
        }
    }

    /// Records that `holder` holds `credentials`, and nothing else: the first slots, then the mark of overflow.
    pub fn set_held(&mut self, holder: Holder, credentials: &[CredentialId]) {
        self.holders.retain(|key, _| key.holder != holder);
        for (slot, credential) in (0..=enforcer_common::capacity::HELD_PER_HOLDER).zip(credentials)
        {
            self.holders.insert(HolderKey { holder, slot }, *credential);
        }
    }
}

/// The first `bits` bits of 16 bytes.
fn truncated(address: &Address, bits: u32) -> Address {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    Address::from_octets((u128::from_be_bytes(address.octets()) & mask).to_be_bytes())
}

impl Tables for HostTables {
    fn bundle(&self) -> Option<&Bundle> {
        self.bundle.as_ref()
    }

    fn credential(&self, key: &CredentialKey) -> Option<Credential> {
        self.credentials.get(key).copied()
    }

    fn subject(&self, key: &SubjectKey) -> Option<Subject> {
        self.subjects.get(key).copied()
    }

    fn grants(&self, key: &GrantKey) -> Option<&Grants> {
        self.grants.get(key)
    }

    fn covers(&self, scope: ScopeId, address: &Address, transport: u64) -> u32 {
        let found = (0..=128).rev().find_map(|bits| {
            let key = ScopeKey::new(scope, &truncated(address, bits), bits);
            self.scopes.get(&key).copied()
        });
        let Some(ports) = found else {
            return 0;
        };
        let (protocol, port) = ((transport >> 16) as u8, transport as u16);
        let found = (0..=16).rev().find_map(|bits| {
            let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
            let key = PortKey::new(ports, protocol, port & mask, bits);
            self.ports.get(&key).copied()
        });
        found.unwrap_or(0)
    }

    fn held(&self, key: &HolderKey) -> Option<CredentialId> {
        self.holders.get(key).copied()
    }
}
