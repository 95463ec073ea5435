//! From a bundle and what the node knows to the kernel's tables. Pure: no I/O, and the time is a fact.
//!
//! [`compile()`] turns names into numbers that stay the same from one bundle to the next ([`Numbering`]), so that the
//! what has [`changed`] between two [`Policy`]s is small, and so that what the tables refer to never changes in place.

mod cgroups;
mod containers;
mod difference;
mod error;
mod facts;
mod grants;
mod host;
mod numbering;
mod origins;
mod paths;
mod placed;
mod pods;
mod policy;
mod reachable;
mod scopes;
mod sources;
mod subjects;

pub use containers::{Container, PodOfContainer};
pub use difference::changed;
pub use error::{CompileError, Names};
pub use facts::{Clock, Contained, Facts, Reserved};
pub use host::HostTables;
pub use numbering::{NUMBERED, Numbering, Slots};
pub use origins::Relevant;
pub use placed::Uncovered;
pub use pods::{Pod, Pods, Projection, SecretFiles, Volume};
pub use policy::{CredentialInfo, EntitlementInfo, Policy, WatchTree};
pub use subjects::SubjectSelector;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use enforcer_common::address::Address;
use enforcer_common::capacity::Room;
use enforcer_common::ids::{BootNs, CredentialId, Generation};
use enforcer_common::tables::{self, EndpointKey, SocketName};
use enforcer_common::verdict;

use crate::bundle::{self, Bundle, Source};
use cgroups::Identities;
use grants::{Rights, SubjectContents};
use scopes::{Scopes, Spec};
use sources::Matcher;

/// What the tables shall say for `bundle` on a node of which `facts` are known. `reserved` are the daemon's own
/// credentials, which no bundle can name.
///
/// # Errors
/// [`CompileError`] if the bundle asks for more than the kernel's tables hold or compare. Nothing of it counts then.
pub fn compile(
    bundle: &Bundle,
    facts: &Facts,
    numbering: &mut Numbering,
    reserved: &[Reserved],
) -> Result<Policy, CompileError> {
    numbering.begin();
    let asked = placed::catalogue(bundle);
    let (bundle, uncovered) = placed::placed(bundle, facts);
    let bundle = &*with_declassified(bundle, facts);
    let credentials = credential_ids(bundle, numbering)?;
    let catalogue = (bundle.credentials.iter().zip(&credentials))
        .filter_map(|(credential, number)| Some((*number, asked.get(&credential.id)?.clone())))
        .collect();
    let rights = Rights::of(bundle, facts, reserved, &credentials, numbering)?;
    let identities = Identities::of(bundle, facts, numbering)?;
    let mut scopes = Scopes::default();
    let baseline: Vec<Spec> = bundle
        .baseline
        .iter()
        .map(|destination| Spec::of(destination, facts))
        .collect();
    let baseline = scopes.number(&[baseline.as_slice()], numbering)?;
    let rows = subjects::rows(bundle, facts, reserved, &identities);
    let mut contents = SubjectContents::new(&rights, &mut scopes, numbering);
    let mut subjects = BTreeMap::new();
    let mut members = BTreeMap::new();
    for (selector, row) in rows {
        let subject = contents.subject(&row)?;
        // Workloads without entitlements say nothing.
        if subject != tables::Subject::default() {
            subjects.insert(selector, subject);
        }
        let names = row.matched.iter().map(|party| rights.party(*party));
        members.insert(selector, names.map(str::to_owned).collect());
    }
    let grants = contents.grants;
    let matcher = Matcher::of(bundle, &credentials)?;
    let watch = paths::build(bundle, &credentials, &matcher, numbering)?;
    let variables = variables(bundle, &credentials);
    let mut policy = Policy {
        bundle: tables::Bundle {
            expires: facts.clock.until(bundle.metadata.expires_at),
            fresh_until: BootNs::NEVER,
            generation: Generation(0),
            baseline,
            mode: mode(bundle.defaults.mode) as u8,
            action: action(bundle.defaults.action) as u8,
            on_expiry: match bundle.defaults.on_expiry {
                bundle::OnExpiry::Deny => verdict::Mode::Enforce,
                bundle::OnExpiry::Monitor => verdict::Mode::Monitor,
            } as u8,
            inbound_permitted: u8::from(bundle.defaults.inbound == bundle::Inbound::Permit),
            masks: subjects
                .keys()
                .fold(0, |masks, key: &SubjectSelector| masks | 1 << key.mask()),
            environment: u8::from(!variables.is_empty()),
            degraded: 0,
            flags: flags(bundle),
            zero: 0,
            steady_until: BootNs(0),
            secret: [0; 2],
        },
        credentials: rights.credentials(bundle, &credentials),
        subjects,
        grants,
        scopes: scopes.prefixes,
        ports: scopes.ports,
        endpoints: endpoints(bundle, &credentials),
        sockets: sockets(bundle, &credentials),
        variables,
        cgroup_names: identities.names().clone(),
        roots: identities.origins().roots().clone(),
        relevant: identities.origins().relevant().clone(),
        by_origin: identities.origins().combined().clone(),
        ancestors: identities.origins().slots().clone(),
        watch,
        credential_info: credential_info(bundle, reserved, &credentials, &rights),
        entitlement_info: rights.into_info(),
        uncovered,
        catalogue,
        members,
        identities,
        matcher,
    };
    // Their files are known, and nothing is decided about them.
    let declassified = |info: &CredentialInfo| info.id == DECLASSIFIED;
    policy
        .credentials
        .retain(|id, _| !policy.credential_info.get(id).is_some_and(declassified));
    policy.fits(Room::Large)?;
    numbering.finish();
    Ok(policy)
}

fn flags(bundle: &Bundle) -> u8 {
    let follows = bundle.credentials.iter().any(|it| it.follow);
    let denies = bundle.defaults.unclassified == bundle::Unclassified::Deny;
    let flag = |set, flag| if set { flag } else { 0 };
    flag(follows, tables::Bundle::FOLLOWS) | flag(denies, tables::Bundle::UNCLASSIFIED_DENIED)
}

/// What declassified files are known as; no bundle can name it.
const DECLASSIFIED: &str = "enforcer-declassified";

/// The bundle with its declassified files as a last credential, if anything is followed here: of two that a file is, the
/// first counts.
fn with_declassified<'a>(mut bundle: Cow<'a, Bundle>, facts: &Facts) -> Cow<'a, Bundle> {
    let follows = bundle
        .credentials
        .iter()
        .any(|credential| credential.follow);
    let sources = &bundle.declassify.files;
    if facts.forwarding && follows && !sources.is_empty() {
        let sources = sources.clone();
        bundle.to_mut().credentials.push(bundle::Credential {
            id: DECLASSIFIED.to_owned(),
            owner: None,
            exclusive: false,
            follow: false,
            sources,
            nodes: bundle::Labels::new(),
        });
    }
    bundle
}

/// The numbers of the bundle's credentials, in its order.
fn credential_ids(
    bundle: &Bundle,
    numbering: &mut Numbering,
) -> Result<Vec<CredentialId>, CompileError> {
    bundle
        .credentials
        .iter()
        .map(|credential| numbering.credential(&credential.id))
        .collect()
}

fn endpoints(bundle: &Bundle, credentials: &[CredentialId]) -> BTreeMap<EndpointKey, CredentialId> {
    let mut endpoints = BTreeMap::new();
    for (source, id) in sources(bundle, credentials) {
        if let Source::Endpoint(endpoint) = source {
            let address = address(endpoint.ip());
            endpoints
                .entry(EndpointKey::new(&address, endpoint.port()))
                .or_insert(id);
        }
    }
    endpoints
}

/// The sockets outside the file systems.
fn sockets(bundle: &Bundle, credentials: &[CredentialId]) -> BTreeMap<SocketName, CredentialId> {
    let mut sockets = BTreeMap::new();
    for (source, id) in sources(bundle, credentials) {
        if let Source::AbstractSocket(name) = source
            && let Some(key) = SocketName::new(name.as_bytes())
        {
            sockets.entry(key).or_insert(id);
        }
    }
    sockets
}

fn variables(bundle: &Bundle, credentials: &[CredentialId]) -> BTreeMap<String, CredentialId> {
    let mut variables = BTreeMap::new();
    for (source, id) in sources(bundle, credentials) {
        if let Source::Environment(name) = source {
            variables.entry(name.clone()).or_insert(id);
        }
    }
    variables
}

/// Every source, with its credential.
fn sources<'a>(
    bundle: &'a Bundle,
    credentials: &'a [CredentialId],
) -> impl Iterator<Item = (&'a Source, CredentialId)> {
    let named = bundle.credentials.iter().zip(credentials);
    named.flat_map(|(credential, id)| credential.sources.iter().map(|source| (source, *id)))
}

fn credential_info(
    bundle: &Bundle,
    reserved: &[Reserved],
    credentials: &[CredentialId],
    rights: &Rights,
) -> BTreeMap<CredentialId, CredentialInfo> {
    let own = reserved.iter().zip(rights.reserved()).map(|(own, id)| {
        let info = CredentialInfo {
            id: own.id.clone(),
            owner: None,
            sources: Vec::new(),
        };
        (*id, info)
    });
    let named = bundle.credentials.iter().zip(credentials);
    named
        .map(|(credential, id)| {
            let info = CredentialInfo {
                id: credential.id.clone(),
                owner: credential.owner.clone(),
                sources: credential.sources.clone(),
            };
            (*id, info)
        })
        .chain(own)
        .collect()
}

/// An address as the decision sees it.
pub(crate) fn address(ip: IpAddr) -> Address {
    let v6 = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    Address::from_octets(v6.octets())
}

fn mode(mode: bundle::Mode) -> verdict::Mode {
    match mode {
        bundle::Mode::Enforce => verdict::Mode::Enforce,
        bundle::Mode::Monitor => verdict::Mode::Monitor,
    }
}

fn action(action: bundle::Action) -> verdict::Action {
    match action {
        bundle::Action::Block => verdict::Action::Block,
        bundle::Action::Kill => verdict::Action::Kill,
        bundle::Action::Freeze => verdict::Action::Freeze,
        bundle::Action::KillWorkload => verdict::Action::KillWorkload,
    }
}
