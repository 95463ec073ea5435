//! What to write to get from one table to another.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let old = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let new = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd')]);
        let written: Vec<_> = changed(Some(&old), &new).collect();
        assert_eq!(written, [(&3, &'x'), (&4, &'d')]);
        assert_eq!(changed(None, &new).count(), 3);
    }
}
