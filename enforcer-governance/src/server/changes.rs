//! Changes of what is in a directory.

use std::path::Path;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::Error;

/// Changes that come in a burst are one.
const SETTLE: Duration = Duration::from_millis(100);

/// Changes of a directory, or a file, from now on.
pub struct Changes {
    events: mpsc::UnboundedReceiver<()>,
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    /// # Errors
    /// If the directory cannot be watched.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = sender.send(());
            }
        });
        let directory = if path.is_dir() {
            path
        } else {
            path.parent().unwrap_or(Path::new("/"))
        };
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let failed = |error| Error::io(directory)(std::io::Error::other(error));
        Ok(Self {
            events,
            _watcher: watching.map_err(failed)?,
        })
    }

    /// Waits for the next change, and until it is over. Who gives up waiting has to look by himself.
    pub async fn next(&mut self) {
        if self.events.recv().await.is_some() {
            tokio::time::sleep(SETTLE).await;
            while self.events.try_recv().is_ok() {}
        }
    }
}
