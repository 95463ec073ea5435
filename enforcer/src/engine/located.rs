//! What the catalogue has, in containers' own file systems.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use enforcer_common::ids::{CredentialId, InodeKey};

use super::programs::root;
use super::{Engine, Error};
use crate::bundle::{Bundle, Source, entries};
use crate::compile::Policy;
use crate::credentials::{View, locations};
use crate::kernel::capture::{self, capture};

/// What was found in one container, by what of the catalogue was looked for. It is looked for once: as early as can be.
pub(super) type Located = BTreeMap<String, Vec<Found>>;

/// A file.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its path in the container.
    path: PathBuf,
    /// Several on overlayfs.
    keys: Vec<InodeKey>,
}

impl Engine {
    /// The files in containers that are credentials of `policy`.
    pub(super) fn look_into_containers(
        &mut self,
        policy: &Policy,
    ) -> Result<Vec<(InodeKey, CredentialId, PathBuf)>, Error> {
        let asked = |id: &String| policy.catalogue.values().flatten().any(|it| it == id);
        for located in self.containers.located.values_mut() {
            located.retain(|id, _| asked(id));
        }
        if policy.catalogue.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for cgroup in self.containers.known.keys().cloned().collect::<Vec<_>>() {
            all.extend(self.look_into(policy, &cgroup)?);
        }
        Ok(all)
    }

    /// The same of the container at this cgroup.
    fn look_into(
        &mut self,
        policy: &Policy,
        cgroup: &str,
    ) -> Result<Vec<(InodeKey, CredentialId, PathBuf)>, Error> {
        let known = self
            .containers
            .located
            .entry(cgroup.to_owned())
            .or_default();
        let asked = policy.catalogue.values().flatten();
        let missing: Vec<&String> = asked.filter(|id| !known.contains_key(*id)).collect();
        if !missing.is_empty() {
            // It has ended, or has no root of its own.
            let Some(view) = root(cgroup) else {
                return Ok(Vec::new());
            };
            for id in missing {
                let mut found = Vec::new();
                for path in entries(id).flat_map(|entry| locations(&view, entry)) {
                    found.extend(self.look_at(&view, path)?);
                }
                let known = self.containers.located.entry(cgroup.to_owned());
                known.or_default().insert(id.clone(), found);
            }
        }
        let mut all = Vec::new();
        for (credential, ids) in &policy.catalogue {
            let located = &self.containers.located[cgroup];
            let files = ids.iter().filter_map(|id| located.get(id)).flatten();
            all.extend(files.flat_map(|file| {
                let key = |key: &InodeKey| (*key, *credential, file.path.clone());
                file.keys.iter().map(key).collect::<Vec<_>>()
            }));
        }
        Ok(all)
    }

    fn look_at(&mut self, view: &View, path: PathBuf) -> Result<Option<Found>, Error> {
        let Ok(place) = view.place(&path) else {
            return Ok(None);
        };
        let through = format!("/proc/self/fd/{}", place.as_raw_fd());
        match capture(&mut self.loaded.ebpf, Path::new(&through)) {
            Ok((keys, opened)) => {
                let keys: Vec<InodeKey> = keys.iter().map(|key| key.inode).collect();
                if let Some(marks) = self.files.marks() {
                    marks.file(&opened, keys[0], &path);
                }
                Ok(Some(Found { path, keys }))
            }
            Err(capture::Error::Table(error)) => Err(error.into()),
            Err(error) => {
                tracing::warn!(container = view.name, path = %path.display(), error = %crate::chain(&error), "a credential's file is not protected");
                Ok(None)
            }
        }
    }

    /// Protects what is in a container that has just become known.
    pub(super) fn protect_inside(&mut self, policy: &Policy, cgroup: &str) -> Result<(), Error> {
        if policy.catalogue.is_empty() {
            return Ok(());
        }
        let found = self.look_into(policy, cgroup)?;
        self.files.add(&mut self.loaded.ebpf, found)?;
        self.publish_places(policy);
        Ok(())
    }
}

/// Whether the bundle protects what the catalogue has.
pub(super) fn asks_for_catalogue(bundle: &Bundle) -> bool {
    let mut sources = bundle.credentials.iter().flat_map(|it| &it.sources);
    sources.any(|it| matches!(it, Source::Catalogue(_)))
}
