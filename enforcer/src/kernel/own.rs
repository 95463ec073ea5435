//! What is the daemon's own in the kernel: its programs, maps and links. The programs are told which those are, and
//! refuse them to others; and the daemon sees whether its links are still attached.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya_obj::generated::{bpf_cmd, bpf_link_type};
use enforcer_common::tables::OwnObject;

use super::load::Loaded;
use super::maps::{self, Maps};
use super::sys;

/// Why it is not known what is ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not say what it has.
    #[error("the kernel does not say which programs, maps and links are the daemon's")]
    Ask(#[from] io::Error),
    /// The programs cannot be told.
    #[error(transparent)]
    Table(#[from] maps::Error),
}

/// The links that others may be able to detach: those of cgroup programs.
#[derive(Debug, Default)]
pub struct Own {
    links: Vec<(String, OwnedFd)>,
}

impl Own {
    /// Finds what is ours, and tells the programs.
    pub fn find(loaded: &mut Loaded) -> Result<Self, Error> {
        let mut programs = BTreeMap::new();
        let mut maps = BTreeSet::new();
        for (name, descriptor) in loaded.programs() {
            let info = sys::program_info(descriptor)?;
            programs.insert(info.id, name.to_owned());
            maps.extend(sys::program_maps(descriptor)?);
        }
        let mut own = Self::default();
        let mut objects = Vec::new();
        for id in sys::link_ids() {
            // One that has gone in the meantime, or that another daemon hides, is not ours.
            let Ok(link) = sys::link(id) else { continue };
            let info = sys::link_info(link.as_fd())?;
            let Some(program) = programs.get(&info.prog_id) else {
                continue;
            };
            objects.push(OwnObject::new(bpf_cmd::BPF_LINK_GET_FD_BY_ID as u32, id));
            if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
                own.links.push((program.clone(), link));
            }
        }
        let program = |id: &u32| OwnObject::new(bpf_cmd::BPF_PROG_GET_FD_BY_ID as u32, *id);
        let map = |id: &u32| OwnObject::new(bpf_cmd::BPF_MAP_GET_FD_BY_ID as u32, *id);
        objects.extend(programs.keys().map(program).chain(maps.iter().map(map)));
        let mut tables = Maps(&mut loaded.ebpf);
        for object in objects {
            tables.put("OWN_OBJECTS", object, 1_u32)?;
        }
        Ok(own)
    }

    /// A program whose link somebody has detached, if there is one.
    pub fn detached(&self) -> io::Result<Option<&str>> {
        for (program, link) in &self.links {
            let info = sys::link_info(link.as_fd())?;
            // SAFETY: the member that the kernel fills for a link of a cgroup; zero if it is attached to none any more.
            if unsafe { info.__bindgen_anon_1.cgroup.cgroup_id } == 0 {
                return Ok(Some(program));
            }
        }
        Ok(None)
    }
}
