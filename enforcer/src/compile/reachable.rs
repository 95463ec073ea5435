//! Which nodes of the watch tree one directory can stand for at the same time: the kernel remembers only a few.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use enforcer_common::capacity::NODES_PER_WATCH;
use enforcer_common::ids::WatchNode;

use super::paths::{Affixes, Steps};

type Nodes = BTreeSet<WatchNode>;

/// A set of nodes that some path leads to and that is too large to remember; `None` if there is none.
pub(super) fn crowd(root: WatchNode, steps: &HashMap<WatchNode, Steps>) -> Option<Nodes> {
    let mut seen: HashSet<Nodes> = HashSet::new();
    let mut open = vec![Nodes::from([root])];
    while let Some(nodes) = open.pop() {
        for next in successors(&nodes, steps) {
            if next.len() > NODES_PER_WATCH {
                return Some(next);
            }
            let goes_on = next.iter().any(|node| steps.contains_key(node));
            if goes_on && seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    None
}

/// Where one more name can lead: for each name that is looked up, and, for all others, for each beginning and end
/// that patterns ask for.
fn successors(nodes: &Nodes, steps: &HashMap<WatchNode, Steps>) -> Vec<Nodes> {
    let from = || nodes.iter().filter_map(|node| steps.get(node));
    let patterns: Vec<(&WatchNode, &Affixes)> = from().flat_map(|steps| &steps.patterns).collect();
    let mut named: BTreeMap<&[u8], Nodes> = BTreeMap::new();
    for (name, next) in from().flat_map(|steps| &steps.names) {
        named.entry(name).or_default().insert(*next);
    }
    for (name, next) in &mut named {
        let fitting = patterns.iter().filter(|(_, affixes)| affixes.fits(name));
        next.extend(fitting.map(|(next, _)| **next));
    }
    let mut all: Vec<Nodes> = named.into_values().collect();
    // The prefixes that fit one name are all beginnings of the longest of them; so are the suffixes ends.
    for (_, first) in &patterns {
        for (_, last) in &patterns {
            let fitting = patterns.iter().filter(|(_, affixes)| {
                first.prefix.starts_with(&affixes.prefix) && last.suffix.ends_with(&affixes.suffix)
            });
            all.push(fitting.map(|(next, _)| **next).collect());
        }
    }
    all
}
