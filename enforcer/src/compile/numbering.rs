//! Numbers for names and contents that outlive a bundle.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use enforcer_common::capacity;
use enforcer_common::ids::{
    CredentialId, EntitlementId, IdentityId, NameDigest, PortSetId, ScopeId, SubjectId, WatchNode,
};
use enforcer_common::tables::{AncestorSlot, Grants};
use enforcer_common::verdict::Verdict;

use sha2::{Digest as _, Sha256};

use super::CompileError;
use super::origins::Meaning;
use super::paths::Component;
use super::scopes::{Intervals, Prefix};
use crate::bundle::Executable;

/// Kinds of things with numbers, besides credentials.
pub const NUMBERED: usize = capacity::NUMBERED as usize;

/// Numbers given out so far. They begin at 1 and are never given twice: what the tables refer to by number keeps its
/// meaning as long as the programs are loaded, through however many daemons.
#[derive(Clone, Debug)]
pub struct Numbering {
    /// Counts compilations.
    round: u64,
    /// The last compilation that succeeded.
    last_good: u64,
    credentials: Interner<NameDigest>,
    entitlements: Interner<String>,
    identities: Interner<Meaning>,
    subjects: Interner<Vec<(CredentialId, Grants)>>,
    scopes: Interner<Vec<(Prefix, PortSetId)>>,
    port_sets: Interner<Intervals>,
    nodes: Interner<(WatchNode, Component)>,
    ancestors: Slots,
}

impl Default for Numbering {
    fn default() -> Self {
        Self {
            round: 0,
            last_good: 0,
            credentials: Interner::new("credentials"),
            entitlements: Interner::new("entitlements"),
            identities: Interner::new("cgroup identities"),
            subjects: Interner::new("subjects"),
            scopes: Interner::new("scopes"),
            port_sets: Interner::new("port sets"),
            nodes: Interner::new("parts of paths"),
            ancestors: Slots::default(),
        }
    }
}

impl Numbering {
    /// Goes on from what an earlier daemon has given out: credentials, and of all else the last numbers.
    pub fn resume(
        &mut self,
        credentials: impl IntoIterator<Item = (NameDigest, CredentialId)>,
        last: [u32; NUMBERED],
    ) {
        for (name, number) in credentials {
            self.credentials.known.insert(name, (number.0, 0));
            self.credentials.last = self.credentials.last.max(number.0);
        }
        let all = [
            &mut self.entitlements.last,
            &mut self.identities.last,
            &mut self.subjects.last,
            &mut self.scopes.last,
            &mut self.port_sets.last,
            &mut self.nodes.last,
        ];
        for (own, last) in all.into_iter().zip(last) {
            *own = last.max(*own);
        }
    }

    /// The numbers of credentials.
    pub fn credentials(&self) -> impl Iterator<Item = (NameDigest, CredentialId)> {
        let known = self.credentials.known.iter();
        known.map(|(name, (number, _))| (*name, CredentialId(*number)))
    }

    /// The last numbers of all else, in the order of [`Numbering::resume`].
    pub fn last(&self) -> [u32; NUMBERED] {
        [
            self.entitlements.last,
            self.identities.last,
            self.subjects.last,
            self.scopes.last,
            self.port_sets.last,
            self.nodes.last,
        ]
    }

    /// A compilation begins.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// A compilation succeeded: forgets contents that neither it nor the good one before it used. Should such a
    /// content come back, it gets a new number.
    pub(super) fn finish(&mut self) {
        let since = self.last_good;
        self.subjects.forget_before(since);
        self.scopes.forget_before(since);
        self.port_sets.forget_before(since);
        self.last_good = self.round;
    }

    pub(super) fn credential(&mut self, id: &str) -> Result<CredentialId, CompileError> {
        let number = self.credentials.number(digest(id), self.round);
        number.map(CredentialId)
    }

    pub(super) fn entitlement(&mut self, id: &str) -> Result<EntitlementId, CompileError> {
        let number = self.entitlements.number(id.to_owned(), self.round);
        number.map(EntitlementId)
    }

    pub(super) fn identity(&mut self, meaning: Meaning) -> Result<IdentityId, CompileError> {
        self.identities.number(meaning, self.round).map(IdentityId)
    }

    pub(super) fn ancestor(&mut self, program: &Executable) -> Result<u32, CompileError> {
        self.ancestors.number(selector(program))
    }

    /// The slots of ancestors, unlike all other numbers used again: what was noted under one that is free is forgotten
    /// before.
    pub fn slots(&mut self) -> &mut Slots {
        &mut self.ancestors
    }

    pub(super) fn subject(
        &mut self,
        content: Vec<(CredentialId, Grants)>,
    ) -> Result<SubjectId, CompileError> {
        self.subjects.number(content, self.round).map(SubjectId)
    }

    /// Forgets the contents of these subjects, which the tables have changed in place: whoever has such a content from now
    /// on gets a new number.
    pub fn forget_subjects(&mut self, subjects: &HashSet<SubjectId>) {
        let known = &mut self.subjects.known;
        known.retain(|_, (number, _)| !subjects.contains(&SubjectId(*number)));
    }

    pub(super) fn scope(
        &mut self,
        content: Vec<(Prefix, PortSetId)>,
    ) -> Result<ScopeId, CompileError> {
        self.scopes.number(content, self.round).map(ScopeId)
    }

    pub(super) fn port_set(&mut self, content: Intervals) -> Result<PortSetId, CompileError> {
        self.port_sets.number(content, self.round).map(PortSetId)
    }

    pub(super) fn node(
        &mut self,
        above: WatchNode,
        step: Component,
    ) -> Result<WatchNode, CompileError> {
        self.nodes.number((above, step), self.round).map(WatchNode)
    }
}

/// As what a selector of an ancestor is known from one daemon to the next.
fn selector(program: &Executable) -> NameDigest {
    let mut text = program.path.as_os_str().as_encoded_bytes().to_vec();
    for digest in [program.sha256, program.fs_verity] {
        // No path has that byte; and a digest is there or not.
        text.extend([0, u8::from(digest.is_some())]);
        text.extend(digest.iter().flatten());
    }
    digest(&text)
}

fn digest(name: impl AsRef<[u8]>) -> NameDigest {
    let digest = Sha256::digest(name);
    let (words, _) = digest.as_chunks::<8>();
    NameDigest([0, 1].map(|index| u64::from_ne_bytes(words[index])))
}

/// What each slot stands for.
#[derive(Clone, Debug)]
pub struct Slots([AncestorSlot; capacity::ANCESTOR_SLOTS as usize]);

impl Default for Slots {
    fn default() -> Self {
        Self([AncestorSlot::default(); capacity::ANCESTOR_SLOTS as usize])
    }
}

impl Slots {
    fn number(&mut self, selector: NameDigest) -> Result<u32, CompileError> {
        let slots = || self.0.iter().map(|slot| slot.selector);
        let free = NameDigest::default();
        let known = slots().position(|it| it == selector);
        let Some(slot) = known.or_else(|| slots().position(|it| it == free)) else {
            return Err(CompileError::Capacity {
                table: "ancestors",
                got: self.0.len() / 2 + 1,
                allowed: self.0.len() / 2,
            });
        };
        self.0[slot].selector = selector;
        Ok(slot as u32)
    }

    /// All of them, by number.
    pub fn all(&mut self) -> &mut [AncestorSlot] {
        &mut self.0
    }

    /// Frees those that are not among these bits.
    pub fn keep(&mut self, bits: u64) {
        for (slot, number) in self.0.iter_mut().zip(0..) {
            if bits >> number & 1 == 0 {
                *slot = AncestorSlot::default();
            }
        }
    }

    /// Those that are not free, a bit for each.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.having(|slot| slot.selector != NameDigest::default())
    }

    /// Of these bits the descendants are all known.
    pub fn complete(&mut self, bits: u64) {
        for (slot, number) in self.0.iter_mut().zip(0..) {
            slot.complete |= bits >> number & 1;
        }
    }

    fn having(&self, is: impl Fn(&AncestorSlot) -> bool) -> u64 {
        let slots = self.0.iter().zip(0..);
        let slots = slots.filter(|(slot, _)| is(slot));
        slots.fold(0, |all, (_, number)| all | 1 << number)
    }

    /// Of these bits, those of whose descendants only some are known: who ran before has not been looked at.
    #[must_use]
    pub fn incomplete(&self, bits: u64) -> u64 {
        bits & self.having(|slot| slot.complete == 0)
    }
}

/// Gives each key its number.
#[derive(Clone, Debug)]
struct Interner<K> {
    what: &'static str,
    /// The number, and the last round that asked for it.
    known: HashMap<K, (u32, u64)>,
    last: u32,
}

impl<K: Eq + Hash> Interner<K> {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            known: HashMap::new(),
            last: 0,
        }
    }

    fn number(&mut self, key: K, round: u64) -> Result<u32, CompileError> {
        if let Some((number, used)) = self.known.get_mut(&key) {
            *used = round;
            return Ok(*number);
        }
        if self.last == Verdict::ID_MAX {
            return Err(CompileError::Exhausted { what: self.what });
        }
        self.last += 1;
        self.known.insert(key, (self.last, round));
        Ok(self.last)
    }

    fn forget_before(&mut self, round: u64) {
        self.known.retain(|_, (_, used)| *used >= round);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_never_used_again() {
        let mut interner = Interner::new("letters");
        let mut number = |key: char, round| interner.number(key, round).expect("numbers are left");
        assert_eq!((number('a', 1), number('b', 1), number('a', 2)), (1, 2, 1));
        interner.forget_before(2);
        assert_eq!(interner.number('a', 3).expect("left"), 1);
        assert_eq!(interner.number('b', 3).expect("left"), 3);
    }

    #[test]
    fn numbers_run_out_before_they_are_cut_off() {
        let mut interner = Interner::new("letters");
        interner.last = Verdict::ID_MAX;
        let error = interner.number('a', 1).expect_err("none left");
        assert!(matches!(error, CompileError::Exhausted { what: "letters" }));
    }

    #[test]
    fn a_slot_is_used_again_once_it_is_free() {
        let mut slots = Slots::default();
        let name = |number: u64| NameDigest([number + 1, 0]);
        for number in 0..u64::from(capacity::ANCESTOR_SLOTS) {
            assert_eq!(u64::from(slots.number(name(number)).expect("free")), number);
        }
        assert!(slots.number(name(100)).is_err());
        assert_eq!(slots.number(name(7)).expect("known"), 7);
        slots.keep(!(1 << 5));
        assert_eq!(slots.number(name(100)).expect("free"), 5);
        slots.complete(1 << 5);
        assert_eq!(slots.used(), u64::MAX >> 2);
        assert_eq!(slots.incomplete(0b110_0000), 0b100_0000);
    }
}
