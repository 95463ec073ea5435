//! cgroups that exist already, and what the kernel would have recorded of them at their creation.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use enforcer_common::ids::CgroupId;
use enforcer_common::instance::{NameKind, classify_name};

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: CgroupId,
    /// Its path from the cgroup root; `/` for the root itself.
    pub path: String,
    /// The instance it belongs to; 0 if none.
    pub instance: CgroupId,
    /// Whether it and all above it are slices.
    pub slices_only: bool,
}

/// Every cgroup below `root`, parents before children. One that goes away meanwhile is left out.
pub fn scan(root: &Path) -> io::Result<Vec<Found>> {
    let mut found = vec![Found {
        id: CgroupId(std::fs::metadata(root)?.ino()),
        path: "/".to_owned(),
        instance: CgroupId(0),
        slices_only: true,
    }];
    let mut next = 0;
    while let Some(parent) = found.get(next).cloned() {
        next += 1;
        let directory = root.join(parent.path.trim_start_matches('/'));
        let Ok(entries) = std::fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if !metadata.is_dir() {
                continue;
            }
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            found.push(child(&parent, name, CgroupId(metadata.ino())));
        }
    }
    Ok(found)
}

/// The same rule as the kernel side's at creation.
fn child(parent: &Found, name: &str, id: CgroupId) -> Found {
    let kind = classify_name(name.as_bytes());
    let instance = if kind == NameKind::Instance && parent.instance.0 == 0 {
        id
    } else {
        parent.instance
    };
    Found {
        id,
        path: format!("{}/{name}", parent.path.trim_end_matches('/')),
        instance,
        slices_only: parent.slices_only && kind == NameKind::Slice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(path: &str) -> Found {
        let root = Found {
            id: CgroupId(1),
            path: "/".to_owned(),
            instance: CgroupId(0),
            slices_only: true,
        };
        path.split('/').zip(2..).fold(root, |parent, (name, id)| {
            child(&parent, name, CgroupId(id))
        })
    }

    #[test]
    fn the_outermost_unit_is_the_instance() {
        let service = down("system.slice/app.service");
        assert_eq!(service.instance, CgroupId(3));
        assert_eq!(
            down("system.slice/app.service/sub.scope").instance,
            CgroupId(3)
        );
        assert_eq!(down("system.slice").instance, CgroupId(0));
    }

    #[test]
    fn units_of_a_user_manager_are_instances_of_their_own() {
        let unit = down("user.slice/user-1000.slice/user@1000.service/app.slice/a.service");
        assert_eq!(unit.instance, CgroupId(6));
        assert!(!unit.slices_only);
    }
}
