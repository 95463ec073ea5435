//! Entitlements as the kernel compares them, by subject and credential.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use enforcer_common::capacity::GRANTS_PER_PAIR;
use enforcer_common::ids::{BootNs, CredentialId, ScopeId, SubjectId};
use enforcer_common::tables::{Credential, Grant, GrantKey, Grants, Subject};
use enforcer_common::verdict;

use super::scopes::{Scopes, Spec};
use super::subjects::Row;
use super::{CompileError, EntitlementInfo, Facts, Numbering, Reserved, action, mode};
use crate::bundle::{Bundle, Entitlement, Inbound, OnStale, Source};

/// One entitlement, ready for the tables.
struct Right {
    party: usize,
    credential: CredentialId,
    grant: Grant,
    scope: Vec<Spec>,
    info: EntitlementInfo,
}

/// All entitlements of a bundle, and the daemon's own.
pub(super) struct Rights {
    /// In the order of their numbers.
    rights: Vec<Right>,
    /// For each party the positions of its rights.
    by_party: Vec<Vec<usize>>,
    parties: Vec<String>,
    reserved: Vec<CredentialId>,
}

impl Rights {
    pub fn of(
        bundle: &Bundle,
        facts: &Facts,
        reserved: &[Reserved],
        credentials: &[CredentialId],
        numbering: &mut Numbering,
    ) -> Result<Self, CompileError> {
        let positions: HashMap<&str, usize> = (bundle.workloads.iter().enumerate())
            .map(|(position, workload)| (workload.id.as_str(), position))
            .collect();
        let endpoints: HashMap<&str, (CredentialId, Vec<Spec>)> = (bundle.credentials.iter())
            .zip(credentials)
            .map(|(credential, id)| (credential.id.as_str(), (*id, own_endpoints(credential))))
            .collect();
        let mut rights = Vec::new();
        for entitlement in &bundle.entitlements {
            // The bundle is consistent, so both are there.
            let (Some(party), Some((credential, endpoints))) = (
                positions.get(entitlement.workload.as_str()),
                endpoints.get(entitlement.credential.as_str()),
            ) else {
                continue;
            };
            let own = entitlement.destinations.iter();
            let own = own.map(|destination| Spec::of(destination, facts));
            rights.push(Right {
                party: *party,
                credential: *credential,
                grant: grant(bundle, facts, entitlement, numbering)?,
                scope: (own.chain(endpoints.iter().cloned()))
                    .chain(answers(bundle, entitlement))
                    .collect(),
                info: EntitlementInfo {
                    id: entitlement.id.clone(),
                    workload: entitlement.workload.clone(),
                    credential: entitlement.credential.clone(),
                    approval: entitlement.approval.clone(),
                },
            });
        }
        let mut parties: Vec<String> = (bundle.workloads.iter())
            .map(|workload| workload.id.clone())
            .collect();
        let mut own = Vec::new();
        for credential in reserved {
            let right = canary(credential, parties.len(), numbering)?;
            parties.push(right.info.workload.clone());
            own.push(right.credential);
            rights.push(right);
        }
        rights.sort_by_key(|right| right.grant.entitlement);
        let mut by_party = vec![Vec::new(); parties.len()];
        for (position, right) in rights.iter().enumerate() {
            by_party[right.party].push(position);
        }
        Ok(Self {
            rights,
            by_party,
            parties,
            reserved: own,
        })
    }

    /// The name of a party.
    pub fn party(&self, party: usize) -> &str {
        self.parties.get(party).map_or("", String::as_str)
    }

    /// The reserved credentials, in their order.
    pub fn reserved(&self) -> &[CredentialId] {
        &self.reserved
    }

    /// The credentials table.
    pub fn credentials(
        &self,
        bundle: &Bundle,
        ids: &[CredentialId],
    ) -> BTreeMap<CredentialId, Credential> {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let named = bundle.credentials.iter().zip(ids);
        let named = named.map(|(credential, id)| {
            let mut sources = credential.sources.iter();
            let variable = sources.any(|source| matches!(source, Source::Environment(_)));
            let flags = flag(credential.exclusive, Credential::EXCLUSIVE)
                | flag(credential.follow, Credential::FOLLOW)
                | flag(variable, Credential::ENVIRONMENT);
            (*id, flags)
        });
        let own = self.reserved.iter();
        let own = own.map(|id| (*id, Credential::PROCESS_ONLY));
        let mut all: BTreeMap<_, _> = (named.chain(own))
            .map(|(id, flags)| (id, Credential { flags }))
            .collect();
        for right in &self.rights {
            if let Some(credential) = all.get_mut(&right.credential) {
                credential.flags |= Credential::ENTITLED;
            }
        }
        all
    }

    /// What to say of each entitlement.
    pub fn into_info(self) -> BTreeMap<enforcer_common::ids::EntitlementId, EntitlementInfo> {
        let rights = self.rights.into_iter();
        rights
            .map(|right| (right.grant.entitlement, right.info))
            .collect()
    }

    /// The rights of all `parties`, by credential.
    fn union(&self, parties: &BTreeSet<usize>) -> BTreeMap<CredentialId, Vec<usize>> {
        let mut all: BTreeMap<CredentialId, Vec<usize>> = BTreeMap::new();
        for party in parties {
            for right in &self.by_party[*party] {
                let rights = all.entry(self.rights[*right].credential).or_default();
                rights.push(*right);
            }
        }
        for rights in all.values_mut() {
            rights.sort_unstable();
        }
        all
    }
}

/// Whom the holder may answer: by the bundle's default, everybody or nobody.
fn answers(bundle: &Bundle, entitlement: &Entitlement) -> Vec<Spec> {
    match (&entitlement.serves, bundle.defaults.inbound) {
        (Some(services), _) => services.iter().map(Spec::service).collect(),
        (None, Inbound::Permit) => vec![Spec::everybody()],
        (None, Inbound::Deny) => Vec::new(),
    }
}

fn own_endpoints(credential: &crate::bundle::Credential) -> Vec<Spec> {
    let endpoints = credential.sources.iter().filter_map(|source| match source {
        Source::Endpoint(endpoint) => Some(Spec::endpoint(*endpoint)),
        _ => None,
    });
    endpoints.collect()
}

fn grant(
    bundle: &Bundle,
    facts: &Facts,
    entitlement: &Entitlement,
    numbering: &mut Numbering,
) -> Result<Grant, CompileError> {
    let defaults = &bundle.defaults;
    Ok(Grant {
        valid_from: facts.clock.from(entitlement.valid_from),
        valid_until: facts.clock.until(entitlement.valid_until),
        entitlement: numbering.entitlement(&entitlement.id)?,
        mode: mode(entitlement.mode.unwrap_or(defaults.mode)) as u8,
        action: action(entitlement.action.unwrap_or(defaults.action)) as u8,
        flags: flags(bundle, entitlement),
        reserved: 0,
    })
}

fn flags(bundle: &Bundle, entitlement: &Entitlement) -> u8 {
    let stale = match entitlement.on_stale.unwrap_or(bundle.defaults.on_stale) {
        OnStale::Keep => 0,
        OnStale::Monitor => Grant::STALE_ENDS | Grant::STALE_MONITORS,
        OnStale::Deny => Grant::STALE_ENDS,
    };
    let revoked = if entitlement.revoked {
        Grant::REVOKED
    } else {
        0
    };
    stale | revoked
}

/// The entitlement of a reserved credential. Where no program has it, it only says how denials are enforced.
fn canary(
    reserved: &Reserved,
    party: usize,
    numbering: &mut Numbering,
) -> Result<Right, CompileError> {
    Ok(Right {
        party,
        credential: numbering.credential(&reserved.id)?,
        grant: Grant {
            valid_from: BootNs(0),
            valid_until: BootNs::NEVER,
            entitlement: numbering.entitlement(&reserved.id)?,
            mode: verdict::Mode::Enforce as u8,
            action: verdict::Action::Block as u8,
            flags: 0,
            reserved: 0,
        },
        scope: Vec::new(),
        info: EntitlementInfo {
            id: reserved.id.clone(),
            workload: reserved.id.clone(),
            credential: reserved.id.clone(),
            approval: None,
        },
    })
}

/// How a task stands to the workloads of a subject.
#[derive(Clone, Copy)]
enum Kind {
    /// It belongs to them.
    Matched,
    /// It would with another program.
    Near,
}

/// Subjects and grants as they are numbered.
pub(super) struct SubjectContents<'a> {
    pub grants: BTreeMap<GrantKey, Grants>,
    rights: &'a Rights,
    scopes: &'a mut Scopes,
    numbering: &'a mut Numbering,
    /// Scopes by the rights in their slots.
    known_scopes: HashMap<Vec<usize>, ScopeId>,
    /// Subjects by their parties, for each [`Kind`].
    known: [HashMap<BTreeSet<usize>, SubjectId>; 2],
}

impl<'a> SubjectContents<'a> {
    pub fn new(rights: &'a Rights, scopes: &'a mut Scopes, numbering: &'a mut Numbering) -> Self {
        Self {
            grants: BTreeMap::new(),
            rights,
            scopes,
            numbering,
            known_scopes: HashMap::new(),
            known: Default::default(),
        }
    }

    pub fn subject(&mut self, row: &Row) -> Result<Subject, CompileError> {
        Ok(Subject {
            matched: self.numbered(&row.matched, Kind::Matched)?,
            near: self.numbered(&row.near, Kind::Near)?,
            standing: row.standing,
        })
    }

    fn numbered(
        &mut self,
        parties: &BTreeSet<usize>,
        kind: Kind,
    ) -> Result<SubjectId, CompileError> {
        if let Some(known) = self.known[kind as usize].get(parties) {
            return Ok(*known);
        }
        let mut content = Vec::new();
        for (credential, rights) in self.rights.union(parties) {
            let grants = match kind {
                Kind::Matched => self.compared(parties, &rights)?,
                Kind::Near => self.nearest(&rights),
            };
            content.push((credential, grants));
        }
        let id = if content.is_empty() {
            SubjectId(0)
        } else {
            self.numbering.subject(content.clone())?
        };
        for (credential, grants) in content {
            self.grants.insert(GrantKey::new(id, credential), grants);
        }
        self.known[kind as usize].insert(parties.clone(), id);
        Ok(id)
    }

    /// Everything that is weighed if a task matches.
    fn compared(
        &mut self,
        parties: &BTreeSet<usize>,
        rights: &[usize],
    ) -> Result<Grants, CompileError> {
        let mut grants = Grants {
            count: rights.len() as u32,
            ..Grants::default()
        };
        if grants.count > GRANTS_PER_PAIR {
            return Err(self.too_many(parties, rights));
        }
        for (slot, right) in grants.grants.iter_mut().zip(rights) {
            *slot = self.rights.rights[*right].grant;
        }
        grants.scope = self.scope(rights)?;
        Ok(grants)
    }

    /// What is said if only the program is another: how strictly, which the strictest of them decides.
    fn nearest(&self, rights: &[usize]) -> Grants {
        let all = rights.iter().map(|right| self.rights.rights[*right].grant);
        let strictest = all.max_by_key(|grant| {
            let first = std::cmp::Reverse(grant.entitlement);
            (grant.mode, grant.action, first)
        });
        let mut grants = Grants {
            count: u32::from(strictest.is_some()),
            ..Grants::default()
        };
        grants.grants[0] = strictest.unwrap_or_default();
        grants
    }

    fn scope(&mut self, rights: &[usize]) -> Result<ScopeId, CompileError> {
        if let Some(known) = self.known_scopes.get(rights) {
            return Ok(*known);
        }
        let slots: Vec<&[Spec]> = (rights.iter())
            .map(|right| self.rights.rights[*right].scope.as_slice())
            .collect();
        let id = self.scopes.number(&slots, self.numbering)?;
        self.known_scopes.insert(rights.to_vec(), id);
        Ok(id)
    }

    /// `rights` are all to one credential.
    fn too_many(&self, parties: &BTreeSet<usize>, rights: &[usize]) -> CompileError {
        let rights = || rights.iter().map(|right| &self.rights.rights[*right]);
        let involved = parties
            .iter()
            .filter(|party| rights().any(|right| right.party == **party));
        CompileError::TooManyGrants {
            workloads: involved.map(|party| self.rights.party(*party)).collect(),
            credential: rights()
                .map(|right| right.info.credential.clone())
                .next()
                .unwrap_or_default(),
            entitlements: rights().map(|right| right.info.id.clone()).collect(),
        }
    }
}
