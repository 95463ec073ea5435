//! cgroups that exist already, and what the kernel would have recorded of them at their creation.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use enforcer_common::ids::CgroupId;
use enforcer_common::instance::{classify_name, user_of_name};
use enforcer_common::tables::Cgroup;

use crate::bundle::Labels;
use crate::compile::Container;
use crate::kernel::at_root;
use crate::record::model::{self, Instance};

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: CgroupId,
    /// Its path from the cgroup root; `/` for the root itself.
    pub path: String,
    /// What it is by its name and those above it; it means nothing yet.
    pub record: Cgroup,
}

impl Found {
    /// Whether it is still there.
    #[must_use]
    pub fn is_below(&self, root: &Path) -> bool {
        let found = std::fs::metadata(root.join(self.path.trim_start_matches('/')));
        found.is_ok_and(|it| it.ino() == self.id.0)
    }
}

/// The root.
#[must_use]
pub fn root_record() -> Cgroup {
    Cgroup {
        flags: Cgroup::ROOT | Cgroup::SLICES_ONLY,
        ..Cgroup::default()
    }
}

/// Becomes what a child of this name is. By the same rule as in the kernel at creation; which instance it is, if it is
/// one, does not matter to the caller.
pub fn descend(cgroup: &mut Cgroup, name: &str) {
    let name = name.as_bytes();
    cgroup.descend(CgroupId(0), classify_name(name), user_of_name(name));
}

/// Every cgroup below `root`, parents before children. One that goes away meanwhile is left out.
pub fn scan(root: &Path) -> io::Result<Vec<Found>> {
    let mut found = vec![Found {
        id: CgroupId(std::fs::metadata(root)?.ino()),
        path: "/".to_owned(),
        record: root_record(),
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
    let mut record = parent.record;
    record.descend(
        id,
        classify_name(name.as_bytes()),
        user_of_name(name.as_bytes()),
    );
    Found {
        id,
        path: format!("{}/{name}", parent.path.trim_end_matches('/')),
        record,
    }
}

/// So many cgroups are remembered; with one more all are forgotten.
const REMEMBERED: usize = 4096;

/// What is known of cgroups by their ids, for events.
#[derive(Debug, Default)]
pub struct Known(RefCell<HashMap<CgroupId, Option<Instance>>>);

impl Known {
    /// Where a process in this cgroup belongs, given the container that the cgroup of a path is or lies in; `None` if the
    /// cgroup is gone and was never asked for.
    pub fn instance_of<'a>(
        &self,
        id: CgroupId,
        container_at: impl Fn(&str) -> Option<&'a Container>,
    ) -> Option<Instance> {
        let mut known = self.0.borrow_mut();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known
            .entry(id)
            .or_insert_with(|| {
                path_of(id).map(|path| match container_at(&path) {
                    Some(container) => in_container(&path, container),
                    None => instance(&path),
                })
            })
            .clone()
    }

    /// What is in the cgroup at `path` may be something else from now on.
    pub fn forget_below(&mut self, path: &str) {
        let below = |it: &Instance| it.cgroup.starts_with(path);
        self.0
            .get_mut()
            .retain(|_, known| !known.as_ref().is_some_and(below));
    }
}

/// The path of a cgroup that the kernel tells of as `told`. That path begins at the root of all cgroups, of which the daemon
/// may see only a part.
#[must_use]
pub fn path_seen(id: CgroupId, told: &[u8]) -> String {
    path_of(id).unwrap_or_else(|| String::from_utf8_lossy(told).into_owned())
}

/// The path of a cgroup, from the cgroup root, if it is there.
fn path_of(id: CgroupId) -> Option<String> {
    let root = at_root::path().ok()?;
    let path = by_handle(&root, id.0).ok()?;
    let below = path.strip_prefix(&root).ok()?;
    Some(format!("/{}", below.to_str()?))
}

/// Of handles of cgroups and the like, from Linux 5.5 on.
const FILEID_KERNFS: libc::c_int = 0xfe;

#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

/// The path of the directory with this number, of the file system that is mounted at `root`.
fn by_handle(root: &Path, id: u64) -> io::Result<PathBuf> {
    let mount = File::open(root)?;
    let mut handle = Handle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    // SAFETY: the handle is laid out as the kernel's `struct file_handle`, with as many bytes as it says.
    let opened = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened just now, and nobody else has it.
    let opened = unsafe { OwnedFd::from_raw_fd(opened) };
    std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))
}

/// What a path says.
fn instance(path: &str) -> Instance {
    let names = path.split('/').filter(|name| !name.is_empty());
    let unit = names
        .into_iter()
        .find(|name| classify_name(name.as_bytes()).is_instance())
        .filter(|name| name.contains('.'));
    Instance {
        cgroup: path.to_owned(),
        unit: unit.map(str::to_owned),
        ..Instance::default()
    }
}

/// What a container says of the cgroup at `path`, which it is or has within.
#[must_use]
pub fn in_container(path: &str, container: &Container) -> Instance {
    let pod = container.pod.as_ref().map(|pod| model::Pod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        service_account: pod.service_account.clone(),
        labels: pod.labels.clone(),
    });
    let of_no_pod = pod.is_none();
    let image = container.images.first().map(|name| {
        let digest = container.digests.first();
        let named = digest.filter(|_| !name.contains('@'));
        named.map_or_else(|| name.clone(), |digest| format!("{name}@{digest}"))
    });
    Instance {
        cgroup: path.to_owned(),
        unit: None,
        pod,
        container: Some(model::Container {
            id: container.id.clone(),
            name: Some(container.name.clone()).filter(|name| !name.is_empty()),
            image,
            labels: match of_no_pod {
                true => container.labels.clone(),
                false => Labels::new(),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(path: &str) -> Found {
        let root = Found {
            id: CgroupId(1),
            path: "/".to_owned(),
            record: root_record(),
        };
        path.split('/').zip(2..).fold(root, |parent, (name, id)| {
            child(&parent, name, CgroupId(id))
        })
    }

    #[test]
    fn the_outermost_unit_is_the_instance() {
        let service = down("system.slice/app.service");
        assert_eq!(service.record.instance, CgroupId(3));
        let below = down("system.slice/app.service/sub.scope");
        assert_eq!(below.record.instance, CgroupId(3));
        assert_eq!(down("system.slice").record.instance, CgroupId(0));
    }

    #[test]
    fn units_of_a_user_manager_are_instances_of_their_own() {
        let unit = down("user.slice/user-1000.slice/user@1000.service/app.slice/a.service");
        assert_eq!(unit.record.instance, CgroupId(6));
        assert_eq!((unit.record.flags, unit.record.user), (0, 0));
    }

    #[test]
    fn names_count_only_where_the_host_gives_them() {
        for (path, flags, user) in [
            ("user.slice/user-1000.slice", Cgroup::SLICES_ONLY, 0),
            ("user.slice/user-1000.slice/user@1000.service", 0, 1001),
            (
                "user.slice/user-1000.slice/user@1000.service/app.slice",
                0,
                1001,
            ),
            (
                "user.slice/user-1000.slice/user@1000.service/a.service/app.slice",
                0,
                0,
            ),
            (
                "user.slice/user-1000.slice/user@1000.service/app.slice/user@0.service",
                0,
                0,
            ),
            (
                "user.slice/user-1000.slice/session-3.scope",
                Cgroup::SESSION,
                0,
            ),
            (
                "user.slice/user-1000.slice/user@1000.service/session-3.scope",
                0,
                0,
            ),
            ("system.slice/a.service/session-3.scope", 0, 0),
            ("init.scope", Cgroup::MANAGER, 0),
            ("system.slice/init.scope", 0, 0),
            ("system.slice/a.service/init.scope", 0, 0),
        ] {
            let found = down(path).record;
            assert_eq!((found.flags, found.user), (flags, user), "{path}");
        }
    }
}
