//! A small world: few programs, cgroups, users, credentials and destinations, so that random tables often meet
//! random tasks. It knows its facts as plain lists, and shows them to the decision as [`Tables`].

use std::collections::{BTreeMap, HashMap};

use enforcer_common::address::{Address, Destination, Protocol};
use enforcer_common::capacity::HELD_PER_HOLDER;
use enforcer_common::facts::Task;
use enforcer_common::ids::{
    BootNs, CgroupId, CredentialId, EntitlementId, ExecutableKey, Generation, IdentityId, InodeKey,
    ScopeId, SubjectId, Tgid, Uid,
};
use enforcer_common::tables::{
    Bundle, Credential, CredentialKey, Grant, GrantKey, Grants, Holder, HolderKey, Subject,
    SubjectKey, Tables,
};
use proptest::prelude::*;

pub const DESTINATIONS: usize = 3;
pub const GENERATION: Generation = Generation(7);

/// What a subject is selected by; `None` does not matter.
pub type Selector = (Option<u64>, Option<u32>, Option<u32>);

/// Everything a decision depends on.
#[derive(Clone, Debug)]
pub struct World {
    pub bundle: Option<Bundle>,
    pub credentials: BTreeMap<u32, Credential>,
    pub subjects: BTreeMap<Selector, Subject>,
    pub grants: BTreeMap<(u32, u32), Grants>,
    /// By scope and destination, the slots that cover it. Scope 0 covers nothing.
    pub scopes: [[u32; DESTINATIONS]; 4],
    /// What the instance holds, and what the process does.
    pub held: [Vec<u32>; 2],
    pub task: Task,
    pub now: BootNs,
}

/// The places to go to; the last is another process on this node.
pub fn destination(index: usize) -> Destination {
    let v4 = |octets| Address::from_v4(u32::from_ne_bytes(octets));
    match index {
        0 => Destination::new(v4([10, 0, 0, 1]), 443, Protocol::TCP),
        1 => Destination::new(v4([10, 0, 0, 1]), 53, Protocol::UDP),
        _ => Destination::new(v4([127, 0, 0, 1]), 80, Protocol::TCP),
    }
}

pub fn program(ino: u64) -> ExecutableKey {
    let inode = InodeKey {
        ino,
        ..InodeKey::default()
    };
    ExecutableKey {
        inode,
        changed_ns: 0,
    }
}

impl World {
    /// Who holds: the instance, and the process.
    fn holders(&self) -> [Holder; 2] {
        [
            Holder::instance(CgroupId(9)),
            Holder::process(self.task.tgid, self.task.start),
        ]
    }
}

/// The world as tables.
pub struct WorldTables {
    pub bundle: Option<Bundle>,
    pub credentials: HashMap<CredentialKey, Credential>,
    pub subjects: HashMap<SubjectKey, Subject>,
    pub grants: HashMap<GrantKey, Grants>,
    pub covers: HashMap<(ScopeId, Address, u64), u32>,
    pub held: HashMap<HolderKey, CredentialId>,
}

impl WorldTables {
    pub fn new(world: &World) -> Self {
        let mut masks = 0;
        let mut subjects = HashMap::new();
        for ((executable, identity, uid), subject) in &world.subjects {
            let bit = |given: bool, bit: u64| if given { bit } else { 0 };
            let mask = bit(executable.is_some(), SubjectKey::EXECUTABLE)
                | bit(identity.is_some(), SubjectKey::IDENTITY)
                | bit(uid.is_some(), SubjectKey::UID);
            let like = Task {
                executable: program(executable.unwrap_or(0)),
                identity: IdentityId(identity.unwrap_or(0)),
                uid: Uid(uid.unwrap_or(0)),
                ..Task::default()
            };
            masks |= 1 << mask;
            subjects.insert(SubjectKey::of(&like, GENERATION, mask), *subject);
        }
        let mut covers = HashMap::new();
        for (scope, row) in (0..).zip(&world.scopes) {
            for (index, slots) in row.iter().enumerate() {
                let to = destination(index);
                covers.insert((ScopeId(scope), to.address, to.transport()), *slots);
            }
        }
        let mut held = HashMap::new();
        for (holder, credentials) in world.holders().into_iter().zip(&world.held) {
            for (slot, credential) in (0..=HELD_PER_HOLDER).zip(credentials) {
                held.insert(HolderKey { holder, slot }, CredentialId(*credential));
            }
        }
        Self {
            bundle: world.bundle.map(|bundle| Bundle { masks, ..bundle }),
            credentials: (world.credentials.iter())
                .map(|(id, flags)| (CredentialKey::new(GENERATION, CredentialId(*id)), *flags))
                .collect(),
            subjects,
            grants: (world.grants.iter())
                .map(|((subject, credential), grants)| {
                    let key = GrantKey::new(SubjectId(*subject), CredentialId(*credential));
                    (key, *grants)
                })
                .collect(),
            covers,
            held,
        }
    }
}

impl Tables for WorldTables {
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
        let key = (scope, *address, transport & 0xff_ffff);
        self.covers.get(&key).copied().unwrap_or(0)
    }

    fn held(&self, key: &HolderKey) -> Option<CredentialId> {
        self.held.get(key).copied()
    }
}

fn moment() -> impl Strategy<Value = BootNs> {
    prop_oneof![8 => (0..10_u64).prop_map(BootNs), 2 => Just(BootNs::NEVER)]
}

fn bundle() -> impl Strategy<Value = Bundle> {
    let expires = prop_oneof![1 => (0..10_u64).prop_map(BootNs), 3 => Just(BootNs::NEVER)];
    let degraded = prop_oneof![7 => Just(0_u8), 1 => Just(1)];
    let fresh = prop_oneof![1 => (0..10_u64).prop_map(BootNs), 2 => Just(BootNs::NEVER)];
    (
        expires,
        fresh,
        0..4_u32,
        0..2_u8,
        0..2_u8,
        0..2_u8,
        degraded,
        prop_oneof![Just(0), Just(Bundle::UNCLASSIFIED_DENIED)],
    )
        .prop_map(
            |(expires, fresh_until, baseline, mode, action, on_expiry, degraded, flags)| Bundle {
                expires,
                fresh_until,
                generation: GENERATION,
                baseline: ScopeId(baseline.saturating_sub(2)),
                mode,
                action,
                on_expiry,
                inbound_permitted: 0,
                masks: 0,
                environment: 0,
                degraded,
                flags,
                zero: 0,
                steady_until: BootNs(0),
                secret: [0; 2],
            },
        )
}

fn subject() -> impl Strategy<Value = Subject> {
    let standing = prop_oneof![15 => Just(0_u32), 1 => 1..4_u32];
    (0..4_u32, 0..4_u32, standing).prop_map(|(matched, near, standing)| Subject {
        matched: SubjectId(matched),
        near: SubjectId(near),
        standing,
    })
}

fn grants() -> impl Strategy<Value = Grants> {
    let flags = prop_oneof![
        5 => Just(0_u8),
        1 => Just(Grant::REVOKED),
        1 => Just(Grant::STALE_ENDS),
        1 => Just(Grant::STALE_ENDS | Grant::STALE_MONITORS),
        1 => Just(Grant::REVOKED | Grant::STALE_ENDS | Grant::STALE_MONITORS),
    ];
    let grant = (moment(), moment(), 0..2_u8, 0..2_u8, flags);
    (0..4_u32, prop::collection::vec(grant, 1..=4)).prop_map(|(scope, all)| {
        let mut grants = Grants {
            scope: ScopeId(scope),
            count: all.len() as u32,
            ..Grants::default()
        };
        for (slot, (from, until, mode, action, flags)) in grants.grants.iter_mut().zip(all) {
            *slot = Grant {
                // Most windows have begun.
                valid_from: BootNs(from.0 % 8),
                valid_until: until,
                entitlement: EntitlementId(0),
                mode,
                action,
                flags,
                reserved: 0,
            };
        }
        grants
    })
}

fn task() -> impl Strategy<Value = Task> {
    (
        0..3_u64,
        0..3_u32,
        0..2_u32,
        prop::bool::ANY,
        prop::bool::ANY,
    )
        .prop_map(|(executable, identity, uid, instance, classified)| Task {
            executable: program(executable),
            start: BootNs(4),
            instance: CgroupId(if instance { 9 } else { 0 }),
            cgroup: CgroupId(9),
            tgid: Tgid(5),
            uid: Uid(uid),
            identity: IdentityId(identity),
            classified: u32::from(classified),
        })
}

fn held() -> impl Strategy<Value = Vec<u32>> {
    let most = HELD_PER_HOLDER as usize + 1;
    prop_oneof![
        1 => Just(Vec::new()),
        6 => prop::collection::vec(1..5_u32, 1..4),
        1 => prop::collection::vec(1..5_u32, most - 1..=most),
    ]
}

/// Any world.
pub fn world() -> impl Strategy<Value = World> {
    let selector = (
        prop::option::of(1..3_u64),
        prop::option::of(1..3_u32),
        prop::option::of(0..2_u32),
    );
    let flags = prop_oneof![3 => Just(2_u32), 1 => Just(3), 1 => Just(0), 1 => Just(1)];
    let credential = flags.prop_map(|flags| Credential { flags });
    let tables = (
        prop::option::weighted(0.97, bundle()),
        // Credential 4 is never in the bundle.
        prop::collection::btree_map(1..4_u32, credential, 1..4),
        prop::collection::btree_map(selector, subject(), 0..8),
        prop::collection::btree_map((1..4_u32, 1..5_u32), grants(), 0..10),
        prop::array::uniform4(prop::array::uniform3(0..16_u32)),
    );
    (tables, [held(), held()], task(), 0..10_u64).prop_map(|(tables, held, task, now)| {
        let (bundle, credentials, subjects, mut grants, mut scopes) = tables;
        scopes[0] = [0; DESTINATIONS];
        let slots = grants.values_mut().flat_map(|grants| &mut grants.grants);
        for (number, grant) in (1..).zip(slots) {
            grant.entitlement = EntitlementId(number);
        }
        World {
            bundle,
            credentials,
            subjects,
            grants,
            scopes,
            held,
            task,
            now: BootNs(now),
        }
    })
}
