//! From path sources to the tree the kernel follows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use enforcer_common::capacity::PATTERNS_PER_NODE;
use enforcer_common::ids::{CredentialId, WatchNode};
use enforcer_common::watch::{ChildKey, Node, Pattern, PatternKey};
use enforcer_common::watch::{NAME_BYTES, PREFIX_BYTES, SUFFIX_BYTES};

use super::reachable;
use super::sources::Matcher;
use super::{CompileError, Names, Numbering, WatchTree};
use crate::bundle::{Bundle, Source};

/// Most `**` in one pattern: each is followed both ways, as no directory and as some.
const MAX_STARS: usize = 4;

/// One step down.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Component {
    /// The root itself.
    Root,
    /// A name.
    Literal(Box<[u8]>),
    /// A name with wildcards.
    Wild(Box<[u8]>),
    /// `**`, some directories, at least one.
    Any,
}

impl Component {
    fn wild(text: &str) -> Self {
        match text {
            "**" => Self::Any,
            _ if text.contains(['*', '?', '[']) => Self::Wild(text.as_bytes().into()),
            _ => Self::Literal(text.as_bytes().into()),
        }
    }

    /// What the kernel compares if this is not looked up by its whole name.
    fn affixes(&self) -> Option<Affixes> {
        match self {
            Self::Literal(name) if name.len() <= NAME_BYTES => None,
            Self::Literal(name) => Some(Affixes::cut(name, name)),
            Self::Wild(text) => {
                let (head, tail) = around_wildcards(text);
                Some(Affixes::cut(head, tail))
            }
            Self::Any | Self::Root => Some(Affixes::default()),
        }
    }
}

/// What stands before the first wildcard of a component, and behind the last.
fn around_wildcards(text: &[u8]) -> (&[u8], &[u8]) {
    let mut head = None;
    let mut tail = 0;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let end = match byte {
            b'*' | b'?' => at + 1,
            b'[' => class_end(text, at),
            _ => {
                at += 1;
                continue;
            }
        };
        head.get_or_insert(at);
        tail = end;
        at = end;
    }
    (&text[..head.unwrap_or(text.len())], &text[tail..])
}

/// Where the class that begins at `start` is over. A `]` that comes first in it is one of its members.
fn class_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    if matches!(text.get(at), Some(b'!' | b'^')) {
        at += 1;
    }
    let members = text.get(at + 1..).unwrap_or_default();
    match members.iter().position(|byte| *byte == b']') {
        Some(more) => at + 1 + more + 1,
        None => text.len(),
    }
}

/// A wildcard step as the kernel compares it: begins with, and ends with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Affixes {
    pub prefix: Vec<u8>,
    pub suffix: Vec<u8>,
}

impl Affixes {
    /// As much of the beginning of one and the end of the other as the kernel compares.
    fn cut(head: &[u8], tail: &[u8]) -> Self {
        Self {
            prefix: head[..head.len().min(PREFIX_BYTES)].to_vec(),
            suffix: tail[tail.len() - tail.len().min(SUFFIX_BYTES)..].to_vec(),
        }
    }

    /// Whether `name` fits.
    pub fn fits(&self, name: &[u8]) -> bool {
        name.len() >= self.prefix.len() + self.suffix.len()
            && name.starts_with(&self.prefix)
            && name.ends_with(&self.suffix)
    }
}

/// What leads on from a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    pub names: BTreeMap<Box<[u8]>, WatchNode>,
    /// By the node below, so that a pattern that stays keeps its place among them.
    pub patterns: BTreeMap<WatchNode, Affixes>,
}

/// The tree of all path sources.
pub(super) fn build(
    bundle: &Bundle,
    credentials: &[CredentialId],
    matcher: &Matcher,
    numbering: &mut Numbering,
) -> Result<WatchTree, CompileError> {
    let mut builder = Builder {
        root: numbering.node(WatchNode(0), Component::Root)?,
        numbering,
        steps: HashMap::new(),
        ends: BTreeMap::new(),
        visited: None,
    };
    for (credential, id) in bundle.credentials.iter().zip(credentials) {
        for source in credential.sources.iter().filter(|source| source.is_path()) {
            // A file or socket has one path, so what it is can be said exactly.
            let exact = match source {
                Source::File(path) | Source::Socket(path) => matcher.credential_of(path),
                _ => None,
            };
            let components = components(source)?;
            builder.add(builder.root, &components, exact.unwrap_or(*id))?;
        }
    }
    builder.check(bundle)?;
    Ok(builder.finish())
}

fn components(source: &Source) -> Result<Vec<Component>, CompileError> {
    let literal = |path: &Path| {
        let names = path.iter().skip(1);
        let names = names.map(|name| Component::Literal(name.as_encoded_bytes().into()));
        names.collect::<Vec<_>>()
    };
    Ok(match source {
        Source::File(path) | Source::Socket(path) => literal(path),
        Source::Directory(path) => {
            let mut components = literal(path);
            components.push(Component::Any);
            components
        }
        Source::Files(glob) => {
            let mut components: Vec<_> = glob
                .glob()
                .split('/')
                .skip(1)
                .map(Component::wild)
                .collect();
            components.dedup_by(|a, b| *a == Component::Any && *b == Component::Any);
            let stars = components.iter().filter(|part| **part == Component::Any);
            let got = stars.count();
            if got > MAX_STARS {
                return Err(CompileError::TooManyStars {
                    pattern: glob.glob().to_owned(),
                    got,
                    allowed: MAX_STARS,
                });
            }
            components
        }
        // These are no paths, or have been placed.
        _ => Vec::new(),
    })
}

struct Builder<'a> {
    root: WatchNode,
    numbering: &'a mut Numbering,
    steps: HashMap<WatchNode, Steps>,
    ends: BTreeMap<WatchNode, CredentialId>,
    /// While looking for the sources of some nodes: the nodes of one source.
    visited: Option<BTreeSet<WatchNode>>,
}

impl Builder<'_> {
    /// Adds what lies `below` a node; the first credential that arrives at an end keeps it.
    fn add(
        &mut self,
        node: WatchNode,
        below: &[Component],
        credential: CredentialId,
    ) -> Result<(), CompileError> {
        let Some((first, rest)) = below.split_first() else {
            self.ends.entry(node).or_insert(credential);
            return Ok(());
        };
        if *first == Component::Any && !rest.is_empty() {
            self.add(node, rest, credential)?;
        }
        let next = self.step(node, first)?;
        self.add(next, rest, credential)
    }

    fn step(&mut self, node: WatchNode, by: &Component) -> Result<WatchNode, CompileError> {
        let next = self.numbering.node(node, by.clone())?;
        if let Some(visited) = &mut self.visited {
            visited.insert(next);
        }
        let steps = self.steps.entry(node).or_default();
        match (by.affixes(), by) {
            (None, Component::Literal(name)) => {
                steps.names.insert(name.clone(), next);
            }
            (affixes, _) => {
                steps.patterns.insert(next, affixes.unwrap_or_default());
            }
        }
        if *by == Component::Any {
            let again = self.steps.entry(next).or_default();
            again.patterns.insert(next, Affixes::default());
        }
        Ok(next)
    }

    /// Whether the kernel can follow all of it.
    fn check(&mut self, bundle: &Bundle) -> Result<(), CompileError> {
        let most = PATTERNS_PER_NODE as usize;
        let crowded = self
            .steps
            .values()
            .find(|steps| steps.patterns.len() > most);
        if let Some(steps) = crowded {
            let below: BTreeSet<_> = steps.patterns.keys().copied().collect();
            return Err(CompileError::TooManyPatterns {
                got: below.len(),
                sources: self.sources(bundle, &below)?,
            });
        }
        if let Some(nodes) = reachable::crowd(self.root, &self.steps) {
            return Err(CompileError::TooManyWays {
                got: nodes.len(),
                sources: self.sources(bundle, &nodes)?,
            });
        }
        Ok(())
    }

    /// The sources that pass through one of `nodes`.
    fn sources(
        &mut self,
        bundle: &Bundle,
        nodes: &BTreeSet<WatchNode>,
    ) -> Result<Names, CompileError> {
        let mut names = Vec::new();
        for source in bundle.credentials.iter().flat_map(|one| &one.sources) {
            let components = components(source)?;
            self.visited = Some(BTreeSet::new());
            if !components.is_empty() {
                self.add(self.root, &components, CredentialId(0))?;
            }
            let visited = self.visited.take().unwrap_or_default();
            if !visited.is_disjoint(nodes) {
                names.push(match source {
                    Source::File(path) | Source::Socket(path) => path.display().to_string(),
                    Source::Directory(path) => format!("{}/", path.display()),
                    Source::Files(glob) => glob.glob().to_owned(),
                    // These pass through none.
                    other => other.to_string(),
                });
            }
        }
        Ok(Names(names))
    }

    fn finish(self) -> WatchTree {
        let mut tree = WatchTree {
            root: self.root,
            ..WatchTree::default()
        };
        for (node, credential) in self.ends {
            tree.nodes.insert(node, Node { credential });
        }
        for (node, steps) in self.steps {
            for (name, next) in steps.names {
                // Longer names are patterns.
                if let Some(key) = ChildKey::new(node, &name) {
                    tree.children.insert(key, next);
                }
            }
            for (slot, (next, affixes)) in (0..).zip(steps.patterns) {
                let pattern = Pattern::new(&affixes.prefix, &affixes.suffix, next);
                tree.patterns.insert(PatternKey { node, slot }, pattern);
            }
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_wildcards() {
        for (text, head, tail) in [
            ("id_*.pem", "id_", ".pem"),
            ("*", "", ""),
            ("a?b*c", "a", "c"),
            ("key-[0-9].k]", "key-", ".k]"),
            ("x[]a]y", "x", "y"),
            ("x[!]a]y*z", "x", "z"),
            ("a]b*", "a]b", ""),
        ] {
            let expected = (head.as_bytes(), tail.as_bytes());
            assert_eq!(around_wildcards(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn names_too_long_to_look_up_are_told_by_both_ends() {
        let long = format!("{}{}", "a".repeat(40), "b".repeat(40));
        let affixes = Component::wild(&long).affixes().expect("a pattern");
        assert!(affixes.fits(long.as_bytes()));
        assert!(!affixes.fits("a".repeat(80).as_bytes()));
        assert_eq!(Component::wild(&"a".repeat(64)).affixes(), None);
    }
}
