//! What is the daemon's own in the kernel: its programs, maps and links. The programs are told which those are, and
//! refuse them to others; and the daemon sees whether those on the root of the cgroups are still attached.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya_obj::generated::bpf_cmd;
use enforcer_common::capacity;
use enforcer_common::ids::ExecutableKey;
use enforcer_common::tables::OwnObject;

use super::at_root::{self, Root};
use super::capture::{self, capture};
use super::load::Loaded;
use super::maps::{self, Maps};
use super::{pins, sys};

/// Why it is not known what is ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not say what it has.
    #[error("the kernel does not say which programs, maps and links are the daemon's")]
    Ask(#[from] io::Error),
    /// The programs cannot be told.
    #[error(transparent)]
    Table(#[from] maps::Error),
    /// The pins cannot be looked at.
    #[error(transparent)]
    Pins(#[from] pins::Error),
    /// The daemon's executable cannot be looked at.
    #[error(transparent)]
    Executable(#[from] Box<capture::Error>),
    /// The root of the cgroups is not there.
    #[error(transparent)]
    Root(#[from] at_root::Error),
}

/// The programs, by number.
#[derive(Debug, Default)]
pub struct Own {
    programs: BTreeMap<u32, String>,
}

impl Own {
    /// How many programs there are.
    pub fn count(&self) -> usize {
        self.programs.len()
    }

    /// Finds what is ours, and tells the programs.
    pub fn find(loaded: &mut Loaded) -> Result<Self, Error> {
        let mut programs = BTreeMap::new();
        let mut maps = BTreeSet::new();
        for (name, descriptor) in loaded.programs() {
            let info = sys::program_info(descriptor)?;
            programs.insert(info.id, name.to_owned());
            maps.extend(sys::program_maps(descriptor)?);
        }
        // The next daemon needs those, too, that no program uses.
        if let Some(pinned) = &loaded.pinned {
            maps.extend(pinned.set.map_ids()?);
        }
        let mut objects = BTreeSet::new();
        for id in sys::link_ids() {
            // One that has gone in the meantime, or that another daemon hides, is not ours.
            let Ok(link) = sys::link(id) else { continue };
            if programs.contains_key(&sys::link_info(link.as_fd())?.prog_id) {
                objects.insert(OwnObject::new(bpf_cmd::BPF_LINK_GET_FD_BY_ID as u32, id));
            }
        }
        let program = |id: &u32| OwnObject::new(bpf_cmd::BPF_PROG_GET_FD_BY_ID as u32, *id);
        let map = |id: &u32| OwnObject::new(bpf_cmd::BPF_MAP_GET_FD_BY_ID as u32, *id);
        objects.extend(programs.keys().map(program).chain(maps.iter().map(map)));
        let mut tables = Maps(&mut loaded.ebpf);
        for (known, _) in tables.entries::<OwnObject, u32>("OWN_OBJECTS")? {
            if !objects.contains(&known) {
                tables.remove::<OwnObject, u32>("OWN_OBJECTS", &known)?;
            }
        }
        for object in objects {
            tables.put("OWN_OBJECTS", object, 1_u32)?;
        }
        Ok(Self { programs })
    }

    /// From now on the executable at `path`, as it is now, may take over when this daemon has gone.
    pub fn name_heir(ebpf: &mut Ebpf, path: &Path) -> Result<(), Error> {
        let (keys, _) = capture(ebpf, path).map_err(Box::new)?;
        let key = keys[0];
        let mut maps = Maps(ebpf);
        if maps.get::<ExecutableKey, u32>("HEIRS", &key)?.is_some() {
            return Ok(());
        }
        let known = maps.entries::<ExecutableKey, u32>("HEIRS")?;
        if known.len() >= capacity::HEIRS as usize {
            for (old, _) in known {
                maps.remove::<ExecutableKey, u32>("HEIRS", &old)?;
            }
        }
        Ok(maps.put("HEIRS", key, 1_u32)?)
    }

    /// A program on the cgroup root that somebody has detached, if there is one.
    pub fn detached(&self) -> Result<Option<&str>, Error> {
        Ok(Root::open()?.missing(&self.programs)?)
    }
}
