//! What one daemon leaves in the kernel for the next.
//!
//! A daemon takes over the pinned programs and tables of an earlier one of the same build. Beside those of another
//! build it loads its own, and takes the others away once its own do their work.

use std::os::fd::AsFd as _;

use enforcer_bundle::Digest;
use enforcer_common::capacity::Room;
use enforcer_common::ids::{Generation, Tgid};

use super::at_root::Root;
use super::btf::Types;
use super::capture::capture;
use super::legacy;
use super::load::{
    Constants, Error, Loaded, OBJECT, Options, attach, begin, load_iterators, load_tier, open, see,
    start_tier, tables,
};
use super::maps::Maps;
use super::pins::{self, Pins, Set};
use super::programs::needed;
use super::settled::Leaving;
use super::sys;
use super::tier::Tier;

/// The pins of the programs.
pub struct Pinned {
    /// Where they are.
    pub pins: Pins,
    /// Which they are.
    pub set: Set,
    /// Whether an earlier daemon made them, and its tables go on.
    pub taken_over: bool,
}

impl Loaded {
    /// Whether the tables are those of an earlier daemon, and what they say goes on.
    pub fn taken_over(&self) -> bool {
        self.pinned.as_ref().is_some_and(|it| it.taken_over)
    }

    /// What earlier daemons left that was not taken over, the oldest first.
    pub fn left(&self) -> Result<Vec<Set>, pins::Error> {
        let Some(pinned) = &self.pinned else {
            return Ok(Vec::new());
        };
        let mut sets = pinned.pins.sets()?;
        sets.retain(|set| *set != pinned.set);
        Ok(sets)
    }

    /// Takes that away: what is in force now does its work. Returns how many records it had that nobody has told.
    pub fn retire(&self) -> Result<u64, pins::Error> {
        let left = self.left()?;
        let mut untold = 0;
        if let Some(pinned) = &self.pinned
            && !left.is_empty()
        {
            let own = pinned.set.map_ids()?;
            Root::open()?
                .sweep(|it| it.uses(&own))
                .map_err(pins::Error::Sweep)?;
            for set in left {
                let leaving = Leaving::open(&set);
                set.remove()?;
                match leaving.and_then(|it| it.untold()) {
                    Ok(count) => untold += count,
                    Err(error) => tracing::warn!(
                        set = %set.path().display(),
                        "it is not known how many records of an earlier daemon's programs were lost: {}",
                        crate::chain(&error)
                    ),
                }
            }
        }
        Ok(untold)
    }
}

/// Takes over the programs of an earlier daemon of this build, or loads and attaches them: of the strongest tier this
/// kernel has, or of the one asked for. Opens by the process `daemon` are not uses.
pub fn start(options: &Options, daemon: Tgid) -> Result<Loaded, Error> {
    let mut pins = Pins::take()?;
    let types = Types::read()?;
    let tiers = match &options.tier {
        Some(tier) => std::slice::from_ref(tier),
        None => &Tier::ALL,
    };
    let mut first = None;
    for tier in tiers {
        match start_pinned(&types, options, *tier, daemon, &mut pins) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => {
                if options.tier.is_none() {
                    tracing::info!(
                        tier = tier.name(),
                        "this tier is not to be had: {}",
                        crate::chain(&error)
                    );
                }
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or(Error::NoTier))
}

fn start_pinned(
    types: &Types,
    options: &Options,
    tier: Tier,
    daemon: Tgid,
    pins: &mut Option<Pins>,
) -> Result<Loaded, Error> {
    // Whose programs go with it, or let reads go on without it, does not start again for the sake of room.
    let room = match (&pins, tier) {
        (Some(_), Tier::Lsm | Tier::ModifyReturn) => options.room,
        (None, _) | (_, Tier::Fanotify) => Room::Large,
    };
    let options = &Options { room, ..*options };
    let Some(taken) = pins else {
        return start_tier(types, options, tier, daemon);
    };
    let build = build(options, tier);
    remove_unfinished(taken)?;
    let started = match take_over(types, options, tier, taken, &build)? {
        Some((loaded, set)) => take_office(loaded, options, taken, set, daemon),
        None => start_anew(types, options, tier, daemon, taken, &build),
    };
    let (mut loaded, set, taken_over) = match started {
        Ok(started) => started,
        Err(error) => {
            remove_unfinished(taken)?;
            return Err(error);
        }
    };
    let (directory, _) = capture(&mut loaded.ebpf, taken.directory()).map_err(Box::new)?;
    Maps(&mut loaded.ebpf).set("PINS", 0, directory[0].inode)?;
    loaded.pinned = pins.take().map(|pins| Pinned {
        pins,
        set,
        taken_over,
    });
    Ok(loaded)
}

/// From now on this daemon has what another has left.
fn take_office(
    mut loaded: Loaded,
    options: &Options,
    pins: &Pins,
    set: Set,
    daemon: Tgid,
) -> Result<(Loaded, Set, bool), Error> {
    announce(pins, &set, daemon)?;
    begin(&mut loaded, options, daemon)?;
    see(&mut loaded)?;
    Ok((loaded, set, true))
}

/// Programs of its own for this daemon, beside those of others.
fn start_anew(
    types: &Types,
    options: &Options,
    tier: Tier,
    daemon: Tgid,
    pins: &Pins,
    build: &str,
) -> Result<(Loaded, Set, bool), Error> {
    let set = pins.begin()?;
    let mut loaded = load_tier(types, options, tier, Some(&set))?;
    announce(pins, &set, daemon)?;
    begin(&mut loaded, options, daemon)?;
    attach(&mut loaded, Some(&set))?;
    see(&mut loaded)?;
    let set = pins.finish(&set, build)?;
    Ok((loaded, set, false))
}

/// Tells the programs of others.
fn announce(pins: &Pins, own: &Set, daemon: Tgid) -> Result<(), Error> {
    for other in pins.sets()?.iter().filter(|other| *other != own) {
        // Without that, whoever reads is somebody to them: what they refuse this daemon, they refuse it.
        if let Err(error) = legacy::announce(other, daemon) {
            tracing::warn!(
                set = %other.path().display(),
                "an earlier daemon's programs do not learn of this one: {}",
                crate::chain(&error)
            );
        }
    }
    Ok(())
}

/// Tells programs of the same object, tier and sizes from others.
fn build(options: &Options, tier: Tier) -> String {
    let Digest(digest) = Digest::of_bytes(OBJECT);
    let mut build = format!(
        "{}-{}-{}-{}",
        &digest[..16],
        tier.name(),
        options.room.name(),
        options.ring_bytes
    );
    if let Some(holders) = options.holders {
        build.push_str(&format!("-{holders}"));
    }
    build
}

/// Takes over a set of pins of this build, if there is one and nothing of it is missing.
fn take_over(
    types: &Types,
    options: &Options,
    tier: Tier,
    pins: &Pins,
    build: &str,
) -> Result<Option<(Loaded, Set)>, Error> {
    for set in pins.sets()? {
        if !set.is_of(build) {
            continue;
        }
        if let Some(table) = missing_table(&set)? {
            tracing::warn!(
                table,
                "the tables of an earlier daemon are not whole: new programs are loaded beside them"
            );
            continue;
        }
        let mut ebpf = open(types, options, &Constants::of(tier), Some(&set))?;
        let mut programs = Vec::new();
        for (name, link) in set.kept()? {
            let info = sys::link_info(link.as_fd()).map_err(Error::Ask)?;
            programs.push((name, sys::program(info.prog_id).map_err(Error::Ask)?));
        }
        let own = set.map_ids()?;
        let attached = Root::open()?.ours().map_err(Error::Ask)?;
        let ours = attached.into_iter().filter(|it| it.uses(&own));
        programs.extend(ours.map(|it| (it.name.to_owned(), it.program)));
        let is_there = |name: &&str| programs.iter().any(|(known, _)| known == name);
        if let Some(missing) = needed(tier).find(|name| !is_there(name)) {
            tracing::warn!(
                program = missing,
                "the programs of an earlier daemon are not whole: new ones are loaded beside them"
            );
            continue;
        }
        load_iterators(&mut ebpf, tier, &types.functions)?;
        return Ok(Some((Loaded::new(ebpf, tier, options.room, programs), set)));
    }
    Ok(None)
}

/// A table that a set should have and has not. In its place there would be a new one, which its programs do not use.
fn missing_table(set: &Set) -> Result<Option<String>, Error> {
    let is_missing = |name: &String| !set.map(name).exists();
    Ok(tables()?.into_iter().find(is_missing))
}

/// Takes away what a daemon left that died while it began, or beside the programs of others before it had a bundle in
/// force: those enforce, and know who holds what.
fn remove_unfinished(pins: &Pins) -> Result<(), Error> {
    let sets = pins.sets()?;
    let others = sets.len() > 1;
    for set in sets {
        let never_in_force = || Ok::<_, Error>(legacy::generation(&set)? == Generation(0));
        if !(set.is_unfinished() || others && never_in_force()?) {
            continue;
        }
        let gone = set.map_ids()?;
        Root::open()?
            .sweep(|it| !it.uses(&gone))
            .map_err(pins::Error::Sweep)?;
        set.remove()?;
    }
    Ok(())
}
