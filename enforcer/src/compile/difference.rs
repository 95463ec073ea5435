//! What to write and what to remove to get from one table to another.

use std::collections::BTreeMap;

/// The entries of `new` that `old` does not have, or has with another value.
pub fn changed<'a, K: Ord, V: PartialEq>(
    old: Option<&'a BTreeMap<K, V>>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let known = move |key: &K| old.and_then(|old| old.get(key));
    new.iter()
        .filter(move |(key, value)| known(key) != Some(value))
}

/// The keys of `gone` that `stays` does not have.
pub fn absent<'a, K: Ord, V>(
    gone: &'a BTreeMap<K, V>,
    stays: Option<&'a BTreeMap<K, V>>,
) -> impl Iterator<Item = &'a K> {
    gone.keys()
        .filter(move |key| stays.is_none_or(|stays| !stays.contains_key(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_or_removed() {
        let old = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let new = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd')]);
        let written: Vec<_> = changed(Some(&old), &new).collect();
        assert_eq!(written, [(&3, &'x'), (&4, &'d')]);
        assert_eq!(changed(None, &new).count(), 3);
        assert!(absent(&old, Some(&new)).eq([&1]));
        assert_eq!(absent(&old, None).count(), 3);
    }
}
