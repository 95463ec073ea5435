//! What to write to get from one table to another.

use std::collections::BTreeMap;

/// Operations on one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<K, V> {
    /// New entries, and those with another value.
    pub put: Vec<(K, V)>,
    /// Entries that are gone.
    pub delete: Vec<K>,
}

/// What makes `new` of `old`.
#[must_use]
pub fn difference<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Changes<K, V> {
    Changes {
        put: new
            .iter()
            .filter(|(key, value)| old.get(key) != Some(value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        delete: old
            .keys()
            .filter(|key| !new.contains_key(key))
            .cloned()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let old = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let new = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd')]);
        let changes = difference(&old, &new);
        assert_eq!(changes.put, [(3, 'x'), (4, 'd')]);
        assert_eq!(changes.delete, [1]);
    }
}
