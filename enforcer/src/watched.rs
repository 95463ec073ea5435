//! Files whose change matters: the bundle, the executables it selects by, and the users.
//!
//! Their directories are watched, because editors and package managers put a new file in the old one's place. What is
//! only opened or read there wakes nobody: `/usr/bin` is among them, and every start of a program opens a file in it.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use enforcer::engine::Engine;
use enforcer::node::users;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::sync::mpsc;

/// What files come to be, change and go by.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_ATTRIB
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_MOVE);

/// The files, and those of them that have changed.
pub struct Watched {
    inotify: Arc<Inotify>,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    files: BTreeSet<PathBuf>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    changed: Vec<PathBuf>,
}

impl Watched {
    /// Watches nothing yet. Tells `changes` whenever there is something to take.
    pub fn new(changes: mpsc::UnboundedSender<()>) -> Result<Self> {
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC).context("cannot watch files (inotify)")?;
        let watched = Self {
            inotify: Arc::new(inotify),
            known: Arc::default(),
        };
        let (inotify, known) = (watched.inotify.clone(), watched.known.clone());
        thread::Builder::new()
            .name("watched".to_owned())
            .spawn(move || {
                while let Ok(events) = inotify.read_events() {
                    let mut known = lock(&known);
                    for event in events {
                        known.take_in(event);
                    }
                    if !known.changed.is_empty() && changes.send(()).is_err() {
                        return;
                    }
                }
            })
            .context("cannot watch files")?;
        Ok(watched)
    }

    /// Watches what the engine now depends on.
    pub fn follow(&mut self, engine: &Engine) {
        let mut files: BTreeSet<PathBuf> = engine.executables().into_iter().collect();
        files.extend(engine.source().map(Path::to_owned));
        files.insert(users::PASSWD.into());
        let mut directories: BTreeSet<&Path> =
            files.iter().filter_map(|file| file.parent()).collect();
        directories.extend(engine.source().filter(|it| it.is_dir()));
        let mut known = lock(&self.known);
        for directory in directories {
            // Of one that is watched already, the kernel gives the same number again.
            match self.inotify.add_watch(directory, CHANGES) {
                Ok(watch) => {
                    known.directories.insert(watch, directory.to_owned());
                }
                Err(error) => {
                    tracing::warn!(directory = %directory.display(), %error, "cannot be watched: changes there are noticed at the next reload");
                }
            }
        }
        known.files = files;
    }

    /// What has changed since this was asked last.
    pub fn take(&self) -> Vec<PathBuf> {
        std::mem::take(&mut lock(&self.known).changed)
    }
}

impl Known {
    fn take_in(&mut self, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.changed.extend(self.files.iter().cloned());
            return;
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&event.wd);
            return;
        }
        let Some(directory) = self.directories.get(&event.wd) else {
            return;
        };
        let path = match event.name {
            Some(name) => directory.join(name),
            None => directory.clone(),
        };
        if self.files.iter().any(|file| path.starts_with(file)) {
            self.changed.push(path);
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
