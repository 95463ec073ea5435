//! The cases, and what runs them.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result};
use nix::mount::{self, MsFlags};

use crate::harness::{
    ALICE, Actor, Bundle, Daemon, Expect, FILES, Outcome, Outside, PROGRAMS, Skipped, check,
    copy_program, write,
};

mod actions;
mod appear;
mod basics;
pub mod clock;
mod credentials;
mod fanotify;
mod faults;
pub mod governance;
mod holders;
mod kill;
pub mod kills;
mod log;
mod malformed;
mod metrics;
pub mod mixed;
mod network;
mod origins;
mod overload;
mod paths;
pub mod restart;
mod room;
mod scripts;
mod selectors;
mod service;
pub mod standard;
mod swap;
mod terms;
mod tools;
mod usage;
mod verifier;
mod verity;

/// One case.
pub struct Case {
    name: &'static str,
    run: fn(&mut Scene) -> Result<()>,
}

/// Names a case after its function.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        /// The cases of this file.
        pub const CASES: &[$crate::cases::Case] = &[$($crate::cases::Case { name: stringify!($name), run: $name }),+];
    };
}
use cases;

const ALL: &[&[Case]] = &[
    basics::CASES,
    selectors::CASES,
    origins::CASES,
    terms::CASES,
    holders::CASES,
    network::CASES,
    kill::CASES,
    actions::CASES,
    usage::CASES,
    paths::CASES,
    scripts::CASES,
    appear::CASES,
    credentials::CASES,
    clock::CASES,
    malformed::CASES,
    swap::CASES,
    restart::CASES,
    room::CASES,
    governance::CASES,
    overload::CASES,
    log::CASES,
    faults::CASES,
    fanotify::CASES,
    service::CASES,
    metrics::CASES,
    verifier::CASES,
];

/// What the cases share: one daemon, started when first needed, and the world outside.
pub struct Scene {
    daemon: Option<Daemon>,
    /// The world outside.
    pub outside: Outside,
    /// Whether cases that do one thing many times do it a tenth as often.
    brief: bool,
}

impl Scene {
    /// Files, programs, and the world outside.
    pub fn set_up(brief: bool) -> Result<Self> {
        fs::create_dir_all(FILES)?;
        // A file system whose files have handles.
        mount::mount(
            Some("tmpfs"),
            FILES,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )
        .context("cannot mount a tmpfs")?;
        for program in standard::PROGRAM_NAMES {
            copy_program(format!("{PROGRAMS}/{program}"))?;
        }
        for file in standard::FILE_NAMES {
            write(format!("{FILES}/{file}"), "the secret itself\n")?;
        }
        Ok(Self {
            daemon: None,
            outside: Outside::start()?,
            brief,
        })
    }

    /// The daemon, with this bundle in force.
    pub fn on(&mut self, bundle: &Bundle) -> Result<&mut Daemon> {
        if self
            .daemon
            .as_mut()
            .is_some_and(|daemon| !daemon.is_alive())
        {
            // It failed the case it died in already, if anybody looked.
            self.daemon = None;
        }
        match &mut self.daemon {
            Some(daemon) if daemon.has(bundle) => {}
            Some(daemon) => daemon.swap(bundle)?,
            None => self.daemon = Some(Daemon::start(bundle, &[])?),
        }
        self.daemon()
    }

    /// A new daemon, however it is started.
    pub fn start(&mut self, start: impl FnOnce() -> Result<Daemon>) -> Result<&mut Daemon> {
        self.off()?;
        self.daemon = Some(start()?);
        self.daemon()
    }

    /// A new daemon, with this bundle in force, and with options of its own, mostly such that make something small.
    pub fn small(&mut self, bundle: &Bundle, options: &[&str]) -> Result<&mut Daemon> {
        self.off()?;
        self.daemon = Some(Daemon::start(bundle, options)?);
        self.daemon()
    }

    /// The daemon, with the bundle that most cases share.
    pub fn standard(&mut self) -> Result<&mut Daemon> {
        self.on(&standard::bundle()?)
    }

    /// The daemon that runs.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("no daemon runs")
    }

    /// The daemon that runs, for who ends it otherwise.
    pub fn take(&mut self) -> Option<Daemon> {
        self.daemon.take()
    }

    /// A daemon in the place of one that was taken.
    pub fn put(&mut self, daemon: Daemon) {
        self.daemon = Some(daemon);
    }

    /// Stops the daemon, if there is one.
    pub fn off(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), Daemon::stop)
    }

    /// Lets an actor do these steps and compares each with what is expected: its result, the bytes that
    /// arrive, and the event of a refusal.
    pub fn check(&mut self, actor: &Actor, steps: &[(&str, Expect)]) -> Result<Outcome> {
        check::check(self.daemon.as_ref(), &mut self.outside, actor, steps)
            .with_context(|| format!("{actor:?} on {steps:?}"))
    }

    /// The same for an actor whose output is not that of its arguments: a shell, or one that paused.
    pub fn compare(
        &mut self,
        before: &crate::harness::outside::Counts,
        outcome: &Outcome,
        skip: usize,
        expected: &[(&str, Expect)],
    ) -> Result<()> {
        let daemon = self.daemon.as_ref();
        check::compare(daemon, &mut self.outside, before, outcome, skip, expected)
    }
}

/// The program that the standard bundle's entitlements are for.
pub fn entitled() -> Actor {
    Actor::new(format!("{PROGRAMS}/entitled")).user(ALICE)
}

/// Its twin that has none.
pub fn other() -> Actor {
    Actor::new(format!("{PROGRAMS}/other")).user(ALICE)
}

/// Runs all cases with one of the words in `filter`, which `|` separates, in their names, in brief or not. The result is whether all went well.
pub fn run(filter: &str, brief: bool) -> Result<bool> {
    run_those(ALL, filter, brief)
}

/// Runs the cases for guests with programs from Debian.
pub fn run_with_tools() -> Result<bool> {
    run_those(&[tools::CASES, verity::CASES], "", false)
}

fn run_those(cases: &[&[Case]], filter: &str, brief: bool) -> Result<bool> {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut scene = Scene::set_up(brief);
    for case in cases.iter().copied().flatten() {
        if !filter.split('|').any(|part| case.name.contains(part)) {
            continue;
        }
        let start = Instant::now();
        let result = match &mut scene {
            Ok(scene) => (case.run)(scene),
            Err(error) => Err(anyhow::anyhow!("there is nothing to run it on: {error:#}")),
        };
        let name = case.name;
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("ok {name} ({seconds:.1} s)");
            }
            Err(error) => match error.downcast_ref::<Skipped>() {
                Some(why) => {
                    skipped += 1;
                    println!("skipped {name}: {why} ({seconds:.1} s)");
                }
                None => {
                    failed += 1;
                    println!("FAILED {name}: {error:#} ({seconds:.1} s)");
                }
            },
        }
    }
    if let Ok(scene) = &mut scene
        && scene.daemon.is_some()
    {
        // How it ends belongs to what it is tested for.
        match scene.off() {
            Ok(()) => {
                passed += 1;
                println!("ok clean_stop");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED clean_stop: {error:#}");
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0)
}
