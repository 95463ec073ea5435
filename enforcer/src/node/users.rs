//! Users by name, and their homes, from `/etc/passwd`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use enforcer_common::ids::Uid;

/// The host's own user database.
pub const PASSWD: &str = "/etc/passwd";

/// Every user of the host's own user database.
pub fn users() -> BTreeMap<String, Uid> {
    parse(&std::fs::read_to_string(PASSWD).unwrap_or_default())
}

/// The home directories in it, there or not.
pub fn homes() -> BTreeSet<PathBuf> {
    homes_in(&std::fs::read_to_string(PASSWD).unwrap_or_default())
}

/// The home directories in the text of a user database.
pub fn homes_in(passwd: &str) -> BTreeSet<PathBuf> {
    let homes = passwd.lines().filter_map(|line| line.split(':').nth(5));
    homes
        .filter(|home| home.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn parse(passwd: &str) -> BTreeMap<String, Uid> {
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (name, uid) = (fields.next()?, fields.nth(1)?);
            Some((name.to_owned(), Uid(uid.parse().ok()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_users_are_passed_over() {
        let users = parse("root:x:0:0:root:/root:/bin/sh\n+nis\nbad:x:y:0\nbackup:x:34:34\n");
        assert_eq!(
            users.into_iter().collect::<Vec<_>>(),
            [("backup".to_owned(), Uid(34)), ("root".to_owned(), Uid(0))]
        );
        let homes = homes_in("root:x:0:0:root:/root:/bin/sh\n+nis\na:x:1:1:::/bin/sh\n");
        assert_eq!(homes, BTreeSet::from([PathBuf::from("/root")]));
    }
}
