//! The decision replay: random cases decided by the kernel and by the host, compared word for word. They
//! come from the generator of `enforcer-common`'s property tests.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use enforcer::kernel::maps::Maps;
use enforcer::kernel::replay::Replay;
use enforcer_common::address::{Address, Destination};
use enforcer_common::event::Kind;
use enforcer_common::ids::{CredentialId, Generation, PortSetId, ScopeId};
use enforcer_common::replay::{self, Case};
use enforcer_common::tables::{
    Bundle, Credential, CredentialKey, GrantKey, Grants, HolderKey, PortKey, ScopeKey, Subject,
    SubjectKey,
};
use enforcer_common::verdict::Verdict;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngSeed, TestRunner};
use world::{DESTINATIONS, GENERATION, World, WorldTables, destination, world};

#[path = "../../enforcer-common/tests/world/mod.rs"]
mod world;

/// Credentials that are asked for; the last is in no bundle.
const CREDENTIALS: u32 = 4;

/// Ports of a scope's widest prefix, which no case may see.
const EVERYTHING: PortSetId = PortSetId(100);

/// Compares at least `cases` cases, world by world with everything that can be asked in each. `true` if none
/// differs.
pub fn run(cases: usize, seed: u64) -> Result<bool> {
    println!("replay of at least {cases} cases, seed {seed}");
    let mut replay = Replay::load().map_err(|error| anyhow!("{}", enforcer::chain(&error)))?;
    let mut runner = TestRunner::new(Config {
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    });
    let worlds = world();
    let begun = Instant::now();
    let (mut passed, mut failed) = (0_usize, 0_usize);
    let mut answers = BTreeMap::<_, usize>::new();
    while passed + failed < cases {
        let world = worlds
            .new_tree(&mut runner)
            .map_err(|reason| anyhow!("cannot make a world: {reason}"))?
            .current();
        let tables = WorldTables::new(&world);
        let entries = Entries::of(&tables);
        entries
            .write(&mut replay.maps())
            .context("cannot write a world's tables")?;
        for case in questions(&world) {
            let host = replay::answer(&tables, &case);
            let kernel = replay
                .decide(&case)
                .map_err(|error| anyhow!("{}", enforcer::chain(&error)))?;
            *answers.entry(answer(&case, host)).or_default() += 1;
            if kernel.0 == host.0 {
                passed += 1;
            } else {
                failed += 1;
                println!("kernel and host differ in {world:#?}\nand {case:#?}");
                println!("kernel: {:#018x} {kernel:?}", kernel.0);
                println!("host:   {:#018x} {host:?}", host.0);
            }
        }
        entries
            .remove(&mut replay.maps())
            .context("cannot remove a world's tables")?;
    }
    println!("decided in {:.1} s", begun.elapsed().as_secs_f64());
    for ((verb, answer), count) in &answers {
        println!("{count:>7} {verb} {answer}");
    }
    println!("{passed} passed, {failed} failed, 0 skipped");
    Ok(failed == 0)
}

/// Everything that can be asked in a world.
fn questions(world: &World) -> impl Iterator<Item = Case> {
    let facts = Case {
        now: world.now,
        task: world.task,
        ..Case::default()
    };
    let reads = (1..=CREDENTIALS).map(move |credential| Case {
        credential: CredentialId(credential),
        kind: Kind::Read as u32,
        ..facts
    });
    let reaches = (0..DESTINATIONS).map(move |index| Case {
        destination: destination(index),
        kind: Kind::Reach as u32,
        ..facts
    });
    let tampers = std::iter::once(Case {
        kind: Kind::Tamper as u32,
        ..facts
    });
    reads.chain(reaches).chain(tampers)
}

/// What was asked and answered, for counting.
fn answer(case: &Case, verdict: Verdict) -> (&'static str, &'static str) {
    let kind = u8::try_from(case.kind).ok().and_then(Kind::from_u8);
    let verb = kind.map_or("unknown", Kind::name);
    let answer = match verdict.denied() {
        _ if !verdict.governed() => "passes",
        Some(reason) => reason.name(),
        None if verdict.trusted() => "trusted",
        None => "allowed",
    };
    (verb, answer)
}

/// A world as entries of the kernel's tables.
struct Entries<'a> {
    tables: &'a WorldTables,
    scopes: Vec<(ScopeKey, PortSetId)>,
    ports: Vec<(PortKey, u32)>,
}

impl<'a> Entries<'a> {
    fn of(tables: &'a WorldTables) -> Self {
        let mut sets = BTreeMap::<(ScopeId, Address), Vec<_>>::new();
        for ((scope, address, transport), slots) in &tables.covers {
            // Scope 0 is in no table.
            if scope.0 != 0 {
                let to = Destination::from_words(*address, *transport);
                sets.entry((*scope, *address))
                    .or_default()
                    .push((to, *slots));
            }
        }
        let mut scopes = Vec::new();
        let mut ports = Vec::new();
        for (number, ((scope, address), all)) in (1..).zip(sets) {
            // Prefixes of several lengths, and the widest to the contrary, which must lose to them.
            let key = |bits| ScopeKey::new(scope, &address, bits);
            scopes.push((key(128 - 8 * (number % 4)), PortSetId(number)));
            scopes.push((key(0), EVERYTHING));
            for (to, slots) in all {
                let key = |set, bits| PortKey::new(set, to.protocol().0, to.port(), bits);
                ports.push((key(PortSetId(number), 16 - 2 * number), slots));
                ports.push((key(PortSetId(number), 0), !slots & 0xf));
                ports.push((key(EVERYTHING, 0), 0xf));
            }
        }
        Self {
            tables,
            scopes,
            ports,
        }
    }

    fn write(&self, maps: &mut Maps) -> Result<()> {
        for (key, value) in &self.tables.credentials {
            maps.put::<CredentialKey, Credential>("CREDENTIALS", key, value)?;
        }
        for (key, value) in &self.tables.subjects {
            maps.put::<SubjectKey, Subject>("SUBJECTS", key, value)?;
        }
        for (key, value) in &self.tables.grants {
            maps.put::<GrantKey, Grants>("GRANTS", key, value)?;
        }
        for (key, value) in &self.tables.held {
            maps.put::<HolderKey, CredentialId>("HOLDERS", key, value)?;
        }
        for (key, value) in &self.scopes {
            maps.put_prefix("SCOPES", key.prefix_bits(), key.data(), value.0)?;
        }
        for (key, value) in &self.ports {
            maps.put_prefix("PORTS", key.prefix_bits(), key.data(), *value)?;
        }
        if let Some(bundle) = self.tables.bundle {
            maps.set::<Bundle>("BUNDLES", GENERATION.0 & 1, bundle)?;
            maps.set("GENERATION", 0, GENERATION)?;
        }
        Ok(())
    }

    fn remove(&self, maps: &mut Maps) -> Result<()> {
        maps.set("GENERATION", 0, Generation(0))?;
        for key in self.tables.credentials.keys() {
            maps.remove::<CredentialKey, Credential>("CREDENTIALS", key)?;
        }
        for key in self.tables.subjects.keys() {
            maps.remove::<SubjectKey, Subject>("SUBJECTS", key)?;
        }
        for key in self.tables.grants.keys() {
            maps.remove::<GrantKey, Grants>("GRANTS", key)?;
        }
        for key in self.tables.held.keys() {
            maps.remove::<HolderKey, CredentialId>("HOLDERS", key)?;
        }
        for (key, _) in &self.scopes {
            maps.remove_prefix("SCOPES", key.prefix_bits(), key.data())?;
        }
        for (key, _) in &self.ports {
            maps.remove_prefix("PORTS", key.prefix_bits(), key.data())?;
        }
        Ok(())
    }
}
