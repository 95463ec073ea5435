//! Programs in containers, where workloads are selected by them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use enforcer_common::ids::ExecutableKey;

use super::Engine;
use super::containers::Containers;
use super::located::asks_for_catalogue;
use crate::bundle::{Bundle, Executable};
use crate::compile::{Contained, Container};
use crate::credentials::View;
use crate::kernel::at_root;
use crate::node::containers::root_of;
use crate::node::executables::look_inside;

/// A runtime has given a new container its root by then.
const ROOT_WITHIN: Duration = Duration::from_secs(2);

/// What the programs of one container are to the kernel. Each is looked at once, as early as can be: later it may be
/// what somebody in the container has put there.
#[derive(Debug, Default)]
pub(super) struct Programs(BTreeMap<Executable, Vec<ExecutableKey>>);

impl Programs {
    fn keys(&mut self, ebpf: &mut Ebpf, cgroup: &str, program: &Executable) -> Vec<ExecutableKey> {
        if let Some(known) = self.0.get(program) {
            return known.clone();
        }
        let Some(view) = root(cgroup) else {
            return Vec::new();
        };
        let keys = look_inside(ebpf, &view, program);
        self.0.insert(program.clone(), keys.clone());
        keys
    }
}

impl Containers {
    /// The keys of the programs that the bundle asks for in containers.
    pub(super) fn look_at_programs(
        &mut self,
        ebpf: &mut Ebpf,
        bundle: &Bundle,
    ) -> BTreeMap<Contained, Vec<ExecutableKey>> {
        let mut all: BTreeMap<Contained, Vec<ExecutableKey>> = BTreeMap::new();
        let asked = bundle.selectors().filter_map(|selectors| {
            let contained = Contained::of(selectors)?;
            Some((selectors, contained))
        });
        for (selectors, contained) in asked {
            let meant = (self.known.iter()).filter(|(_, it)| it.is_meant_by(selectors));
            let mut keys = Vec::new();
            for (path, _) in meant {
                let programs = self.programs.entry(path.clone()).or_default();
                keys.extend(programs.keys(ebpf, path, &contained.program));
            }
            keys.sort_unstable();
            keys.dedup();
            all.insert(contained, keys);
        }
        all
    }

    /// Whether the container's root is still to come, where what is in it matters to the bundle.
    pub(super) fn awaits_root(&self, bundle: &Bundle, path: &str, container: &Container) -> bool {
        let since = self.starting().since(path);
        since.is_some_and(|since| since < ROOT_WITHIN)
            && (matters(bundle, container) || asks_for_catalogue(bundle))
            && root(path).is_none()
    }
}

impl Engine {
    /// Captures an executable of a container, as it is now.
    pub fn executable_key_inside(
        &mut self,
        cgroup: &str,
        path: &Path,
    ) -> Result<ExecutableKey, String> {
        let program = Executable {
            path: path.to_owned(),
            sha256: None,
            fs_verity: None,
        };
        let root = root(cgroup).ok_or_else(|| format!("the container at {cgroup} has gone"))?;
        let keys = look_inside(&mut self.loaded.ebpf, &root, &program);
        let key = keys.first().copied();
        key.ok_or_else(|| format!("there is no file {} in the container", path.display()))
    }

    /// Whether the bundle in force asks for a program in containers like this.
    pub(super) fn asks_for_programs_in(&self, container: &Container) -> bool {
        let in_force = self.in_force.as_ref();
        in_force.is_some_and(|it| matters(&it.bundle, container))
    }
}

/// The root of the container at this cgroup, if it has one of its own.
pub(super) fn root(cgroup: &str) -> Option<View> {
    let cgroups = at_root::path().ok()?;
    root_of(&cgroups.join(cgroup.trim_start_matches('/')))
}

fn matters(bundle: &Bundle, container: &Container) -> bool {
    let mut selectors = bundle.selectors();
    selectors.any(|it| it.executable.is_some() && container.is_meant_by(it))
}
