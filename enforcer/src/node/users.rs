//! Users by name, from `/etc/passwd`.

use std::collections::BTreeMap;

use enforcer_common::ids::Uid;

/// Every user of the host's own user database.
pub fn users() -> BTreeMap<String, Uid> {
    parse(&std::fs::read_to_string("/etc/passwd").unwrap_or_default())
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
    }
}
