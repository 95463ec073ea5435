//! Who may read a file, by its owner and mode.

use std::collections::BTreeMap;

use super::material::printable;

/// Most members of a group that are named.
const MOST_MEMBERS: usize = 20;

/// Users and groups of one root.
#[derive(Debug, Default)]
pub struct Names {
    users: BTreeMap<u32, String>,
    /// With the members.
    groups: BTreeMap<u32, (String, Vec<String>)>,
}

impl Names {
    /// From the texts of `passwd` and `group`. The first of several names for one number counts.
    pub fn of(passwd: &str, group: &str) -> Self {
        let mut names = Self::default();
        let mut primary = Vec::new();
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, uid, gid, ..] = fields[..]
                && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse::<u32>())
            {
                let name = printable(name);
                primary.push((gid, name.clone()));
                names.users.entry(uid).or_insert(name);
            }
        }
        for line in group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, gid, members, ..] = fields[..]
                && let Ok(gid) = gid.parse()
            {
                let members = members.split(',').filter(|it| !it.is_empty());
                let members = members.map(printable).collect();
                names
                    .groups
                    .entry(gid)
                    .or_insert((printable(name), members));
            }
        }
        for (gid, user) in primary {
            if let Some((_, members)) = names.groups.get_mut(&gid)
                && !members.contains(&user)
            {
                members.push(user);
            }
        }
        names
    }

    /// The user's name, or the number.
    pub fn user(&self, uid: u32) -> String {
        let name = self.users.get(&uid).cloned();
        name.unwrap_or_else(|| uid.to_string())
    }

    /// The group's name, or the number.
    pub fn group(&self, gid: u32) -> String {
        let name = self.groups.get(&gid).map(|(name, _)| name.clone());
        name.unwrap_or_else(|| gid.to_string())
    }

    /// Who has the permission `bit` (4 to read, 2 to write) on something with this owner, group and mode. Root always has.
    pub fn with(&self, bit: u32, uid: u32, gid: u32, mode: u32) -> Vec<String> {
        let mut all = vec!["root".to_owned()];
        if uid != 0 && mode & (bit << 6) != 0 {
            all.push(format!("user {}", self.user(uid)));
        }
        if mode & (bit << 3) != 0 {
            let members = self.groups.get(&gid).map(|(_, members)| members.as_slice());
            let members = members.unwrap_or_default();
            let more = if members.len() > MOST_MEMBERS {
                ", ..."
            } else {
                ""
            };
            let named: Vec<&str> = members
                .iter()
                .take(MOST_MEMBERS)
                .map(String::as_str)
                .collect();
            let group = self.group(gid);
            all.push(if named.is_empty() {
                format!("group {group}")
            } else {
                format!("group {group} ({}{more})", named.join(", "))
            });
        }
        if mode & bit != 0 {
            all.push("everybody".to_owned());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_follow_owner_and_mode() {
        let names = Names::of(
            "root:x:0:0::/root:\nada:x:1000:1000::/home/ada:\nbob:x:1001:50::/:\nodd\n",
            "root:x:0:\nada:x:1000:\nstaff:x:50:ada\nbroken:x:y:\n",
        );
        for (uid, gid, mode, expected) in [
            (0, 0, 0o600, "root"),
            (1000, 1000, 0o600, "root, user ada"),
            (1000, 50, 0o640, "root, user ada, group staff (ada, bob)"),
            (1000, 77, 0o040, "root, group 77"),
            (7, 0, 0o404, "root, user 7, everybody"),
            (0, 0, 0o644, "root, group root (root), everybody"),
        ] {
            assert_eq!(names.with(4, uid, gid, mode).join(", "), expected);
        }
        assert_eq!(names.with(2, 0, 50, 0o660).len(), 2);
    }
}
